package compile

import (
	"math/rand/v2"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	rewritev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/rewrite/uri_template/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// wild fills messages at random, mostly with what makes sense where it stands.
type wild struct{ *rand.Rand }

var (
	wildTexts = []string{"a", "x-a", "/a", "/a/b", "*", "a.*", "/{a}/**", "%REQ(x-a)%", "c", "", ":path", "host", "a b", "\\1", "(", "envoy.filters.http.jwt_authn", "payload", "fault", "cors", "5xx"}
	wildAnys  = []proto.Message{&faultv3.HTTPFault{}, &corsv3.CorsPolicy{}, &routev3.FilterConfig{}, &uritemplatev3.UriTemplateMatchConfig{}, &rewritev3.UriTemplateRewriteConfig{}, &structpb.Struct{}}
)

func (w wild) message(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch verdicts[m.Descriptor().FullName()][fd.Name()] {
		case isRefused:
			if w.IntN(400) > 0 {
				continue
			}
		case isEnforced:
			if w.IntN(3) > 0 && fd.Name() != "name" && fd.Name() != "key" && fd.Name() != "weight" && fd.Name() != "domains" && fd.Name() != "routes" && fd.Name() != "match" {
				continue
			}
		}
		if depth > 12 {
			continue
		}
		switch {
		case fd.IsMap():
			entries := m.Mutable(fd).Map()
			v := entries.NewValue()
			if fd.MapValue().Message() != nil {
				w.fill(v.Message(), depth)
			}
			entries.Set(protoreflect.ValueOfString(wildTexts[w.IntN(len(wildTexts))]).MapKey(), v)
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range 1 + w.IntN(2) {
				v := list.NewElement()
				if fd.Message() != nil {
					w.fill(v.Message(), depth)
				} else {
					v = w.scalar(fd)
				}
				list.Append(v)
			}
		case fd.Message() != nil:
			v := m.NewField(fd)
			w.fill(v.Message(), depth)
			m.Set(fd, v)
		default:
			m.Set(fd, w.scalar(fd))
		}
	}
}

func (w wild) fill(m protoreflect.Message, depth int) {
	switch v := m.Interface().(type) {
	case *durationpb.Duration:
		v.Seconds = int64(w.IntN(5))
	case *wrapperspb.UInt32Value:
		v.Value = uint32(w.IntN(4))
	case *wrapperspb.BoolValue:
		v.Value = w.IntN(2) == 0
	case *structpb.Struct:
		v.Fields = map[string]*structpb.Value{"v": structpb.NewStringValue("1")}
	case *anypb.Any:
		inner := proto.Clone(wildAnys[w.IntN(len(wildAnys))])
		w.message(inner.ProtoReflect(), depth+4)
		if a, err := anypb.New(inner); err == nil {
			v.TypeUrl, v.Value = a.GetTypeUrl(), a.GetValue()
		}
	default:
		w.message(m, depth+1)
	}
}

func (w wild) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(w.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(w.IntN(fd.Enum().Values().Len())))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(w.IntN(4)))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(w.IntN(4)))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32([]uint32{1, 2, 50, 200, 503}[w.IntN(5)])
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(w.Uint64N(4))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(w.Float64() * 100)
	}
	if text, ok := fitting[fd.Name()]; ok && w.IntN(10) > 0 {
		return protoreflect.ValueOfString(text)
	}
	return protoreflect.ValueOfString(wildTexts[w.IntN(len(wildTexts))])
}

// fitting are texts that make sense in fields of a name.
var fitting = map[protoreflect.Name]string{
	"key": "x-a", "name": "x-a", "header_name": "x-a", "cluster": "c", "cluster_header": "x-a", "prefix": "/", "path": "/a", "path_separated_prefix": "/a", "regex": "a.*",
	"value": "%REQ(x-a)%", "substitution": "b", "host_rewrite_literal": "h", "host_rewrite_header": "x-a", "prefix_rewrite": "/b", "path_rewrite": "/%REQ(x-a)%", "host_rewrite": "h",
	"path_template": "/{a}/**", "path_template_rewrite": "/{a}", "retry_on": "5xx", "remove": "x-a", "request_headers_to_remove": "x-b", "response_headers_to_remove": "x-b", "exact": "a", "suffix": "a", "contains": "a",
	"filter": "envoy.filters.http.jwt_authn", "upgrade_type": "websocket", "inline_string": "x",
}

// Routes made at random are refused with the field or can be used; most fields
// of those that are accepted are set here and there.
func TestRandomRoutes(t *testing.T) {
	_, l, err := Listener(listenerOf(t, apiListenerOf(rds+`, "http_filters": [`+faulty("")+`, {"name": "cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}, `+router+`]`)))
	if err != nil {
		t.Fatal(err)
	}
	w := wild{rand.New(rand.NewPCG(1, 2))}
	tried, taken := 10_000, 0
	for i := range tried {
		m := &routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Domains: []string{"*"}}}}
		vh := m.GetVirtualHosts()[0]
		if i%8 == 0 {
			w.message(m.ProtoReflect(), 0)
		} else {
			route := &routev3.Route{}
			w.message(route.ProtoReflect(), 6)
			vh.Routes = append(vh.Routes, route)
		}
		_, rc, err := RouteConfig(pack(t, m))
		if err != nil {
			if refusal(t, err) == "" && i%8 != 0 {
				t.Fatalf("no field in %v", err)
			}
			continue
		}
		taken++
		call(l, rc)
	}
	if t.Logf("%d of %d are accepted", taken, tried); taken < tried/100 {
		t.Errorf("only %d of %d are accepted", taken, tried)
	}
}
