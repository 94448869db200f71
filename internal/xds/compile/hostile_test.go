package compile

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// spoiler changes one thing in a message that makes sense, so that what is
// hostile stands where it is read, and not behind an earlier refusal.
type spoiler struct{ *rand.Rand }

// places are all messages in m, and in the messages that its Anys hold; put
// writes what was changed back into those.
func (s spoiler) places(m protoreflect.Message, put func(), found *[]func()) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		*found = append(*found, func() { s.any(a); put() })
		inner, err := a.UnmarshalNew()
		if err != nil {
			return
		}
		s.places(inner.ProtoReflect(), func() {
			if b, err := proto.Marshal(inner); err == nil {
				a.Value = b
			}
			put()
		}, found)
		return
	}
	// In the order of the descriptor: that of Range is not the same for each build.
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		v := m.Get(fd)
		*found = append(*found, func() { s.spoil(m, fd); put() })
		if fd.Name() == "regex" { // it costs a server most, and is rare
			again := (*found)[len(*found)-1]
			*found = append(*found, again, again, again, again, again)
		}
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			values := map[string]protoreflect.Message{}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool { values[k.String()] = v.Message(); return true })
			for _, k := range slices.Sorted(maps.Keys(values)) {
				s.places(values[k], put, found)
			}
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				s.places(v.List().Get(i).Message(), put, found)
			}
		case !fd.IsMap() && !fd.IsList() && fd.Message() != nil:
			s.places(v.Message(), put, found)
		}
	}
	// A field that was not set, too.
	if fields.Len() > 0 {
		*found = append(*found, func() { s.spoil(m, fields.Get(s.IntN(fields.Len()))); put() })
	}
}

func (s spoiler) any(a *anypb.Any) {
	switch s.IntN(4) {
	case 0:
		a.TypeUrl = []string{"", "type.googleapis.com/", "type.googleapis.com/no.such.Type", "\xff"}[s.IntN(4)]
	case 1:
		a.Value = a.Value[:s.IntN(len(a.Value)+1)]
	case 2:
		a.Value = nil
	default:
		a.Value = append(a.Value, 0xff, 0xff, 0xff)
	}
}

func (s spoiler) spoil(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.Name() != "regex" && s.IntN(3) == 0:
		m.Clear(fd)
	case fd.IsMap():
		entries := m.Mutable(fd).Map()
		entries.Set(protoreflect.ValueOfString("").MapKey(), entries.NewValue())
	case fd.IsList():
		list := m.Mutable(fd).List()
		switch {
		case list.Len() > 0 && s.IntN(2) == 0:
			list.Set(s.IntN(list.Len()), list.NewElement())
		case list.Len() > 0 && s.IntN(2) == 0:
			list.Append(list.Get(0))
		case fd.Message() == nil:
			list.Append(s.scalar(fd))
		default:
			list.Append(list.NewElement())
		}
	case fd.Message() != nil:
		m.Set(fd, m.NewField(fd))
	default:
		m.Set(fd, s.scalar(fd))
	}
}

func (s spoiler) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(s.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum([]protoreflect.EnumNumber{0, 1, 2, 9, -1, math.MaxInt32, math.MinInt32}[s.IntN(7)])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([][]byte{nil, {0}, []byte("{"), make([]byte, 4096)}[s.IntN(4)])
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32([]int32{0, -1, math.MinInt32, math.MaxInt32, 1_000_000_000}[s.IntN(5)])
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64([]int64{0, -1, math.MinInt64, math.MaxInt64, 315_576_000_000, 9_223_372_037}[s.IntN(6)])
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32([]uint32{0, 1, 101, 65_536, 1 << 31, math.MaxUint32}[s.IntN(6)])
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64([]uint64{0, 1, 1 << 33, 1 << 63, math.MaxUint64}[s.IntN(5)])
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32([]float32{0, -1, float32(math.NaN()), float32(math.Inf(1)), math.SmallestNonzeroFloat32}[s.IntN(5)])
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64}[s.IntN(7)])
	}
	if fd.Name() == "regex" && s.IntN(2) == 0 {
		return protoreflect.ValueOfString([]string{strings.Repeat("a", 1025), strings.Repeat("(a?){9}", 300), "((((((a{9}){9}){9}){9}){9}){9})", "(a|b"}[s.IntN(4)])
	}
	return protoreflect.ValueOfString([]string{"", "\x00", "\r\nx: y", "*", "%", "(", "/", strings.Repeat("x", 5000), "outbound|||", "999.0.0.1", "é"}[s.IntN(11)])
}

// longestRegex is the length of the longest regular expression in a message.
func longestRegex(m protoreflect.Message) (longest int) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		if inner, err := a.UnmarshalNew(); err == nil {
			return longestRegex(inner.ProtoReflect())
		}
		return 0
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		each := func(v protoreflect.Value) { longest = max(longest, longestRegex(v.Message())) }
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { each(v); return true })
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				each(v.List().Get(i))
			}
		case !fd.IsMap() && !fd.IsList() && fd.Message() != nil:
			each(v)
		case fd.Name() == "regex" && fd.Kind() == protoreflect.StringKind && !fd.IsList():
			longest = max(longest, len(v.String()))
		}
		return true
	})
	return longest
}

// hostileKind is one type of resource: how it is read and used, and messages to begin with.
type hostileKind[R any] struct {
	decode func(*anypb.Any) (string, *R, error)
	use    func(*R)
	// more says what a result allows that its message does not; may be nil.
	more  func(proto.Message, *R) string
	seeds []*anypb.Any
}

// verdict says what is wrong with how a message is read; "" if nothing is.
func (k *hostileKind[R]) verdict(decode func(*anypb.Any) (string, *R, error), a *anypb.Any, m proto.Message) (wrong string, refused bool) {
	defer func() {
		if r := recover(); r != nil {
			wrong = fmt.Sprintf("panic: %v", r)
		}
	}()
	name, r, err := decode(a)
	again, _, errAgain := decode(a)
	var e *Error
	switch {
	case name != again || (err == nil) != (errAgain == nil):
		return fmt.Sprintf("first %q, %v, then %q, %v", name, err, again, errAgain), false
	case err != nil && (r != nil || !errors.As(err, &e) || e.Why == ""):
		return fmt.Sprintf("%v with %T: %v", r, err, err), true
	case err != nil:
		return "", true
	case r == nil:
		return "neither a result nor an error", false
	case longestRegex(m.ProtoReflect()) > routing.MaxRegexLength:
		return "a regular expression beyond the limit is accepted", false
	}
	k.use(r)
	if k.more != nil {
		return k.more(m, r), false
	}
	return "", false
}

// run holds the check against our reading, and against careless ones.
func (k *hostileKind[R]) run(t *testing.T, seed uint64, careless map[string]func(*anypb.Any, proto.Message) (string, *R, error)) {
	t.Helper()
	s := spoiler{rand.New(rand.NewPCG(seed, 41))}
	refused, caught := 0, map[string]int{}
	const messages = 450
	for range messages {
		source := k.seeds[s.IntN(len(k.seeds))]
		m, err := source.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + s.IntN(2) {
			var found []func()
			s.places(m.ProtoReflect(), func() {}, &found)
			if len(found) > 0 {
				found[s.IntN(len(found))]()
			}
		}
		b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		if err != nil {
			continue // text that is not UTF-8 can not be in a message
		}
		a := &anypb.Any{TypeUrl: source.GetTypeUrl(), Value: b}
		wrong, no := k.verdict(k.decode, a, m)
		if wrong != "" {
			t.Errorf("%s\n%.2000s", wrong, fmt.Sprint(m))
		}
		if no {
			refused++
		}
		for name, decode := range careless {
			if wrong, _ := k.verdict(func(a *anypb.Any) (string, *R, error) { return decode(a, m) }, a, m); wrong != "" {
				caught[name]++
			}
		}
	}
	if refused < 200 || refused > messages-100 {
		t.Errorf("%d of %d are refused: the others prove nothing", refused, messages)
	}
	for name := range careless {
		if caught[name] < 10 {
			t.Errorf("a reader that %s is caught %d times only", name, caught[name])
		}
	}
	t.Logf("%d messages, %d refused; careless readers are caught %v times", messages, refused, caught)
}

// takesAll wraps a reading into one that takes what it does not understand for empty.
func takesAll[R any](decode func(*anypb.Any) (string, *R, error), empty func() *R) func(*anypb.Any, proto.Message) (string, *R, error) {
	return func(a *anypb.Any, _ proto.Message) (string, *R, error) {
		name, r, err := decode(a)
		if err != nil {
			return name, empty(), nil
		}
		return name, r, nil
	}
}

// TestHostileMessages spoils messages of each type that the control plane sends:
// none makes us panic, none is read two ways, none gets a regular expression
// beyond the limits past us, and none that is accepted lets requests through
// that, taken at its word, it does not.
func TestHostileMessages(t *testing.T) {
	_, l, err := Listener(listenerOf(t, apiListenerOf(rds+`, "http_filters": [`+faulty(`"abort": {"http_status": 500}`)+`, `+router+`]`)))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("RouteConfiguration", func(t *testing.T) {
		k := hostileKind[snapshot.RouteConfig]{decode: RouteConfig, use: func(rc *snapshot.RouteConfig) { call(l, rc) }, seeds: []*anypb.Any{
			routesOf(t, inOneHost(`"ignore_port_in_host_matching": true`, `"cors": {"allow_origin_string_match": [{"safe_regex": {"regex": "http.*"}}]}`,
				weights(`{"name": "a", "weight": 1}, {"name": "b", "weight": 2}`)+`, `+claimed(ofToken+groups+`, "value": {"present_match": true}`)+`, `+
					`{"match": {"path_match_policy": `+templated("/{a}/**")+`}, "route": {"cluster_header": "h"}}, {"match": {"prefix": "/"}, "direct_response": {"status": 200}}`)),
			routesOf(t, `{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["a", "*"], "routes": [
				{"match": {"safe_regex": {"regex": "/a.*"}, "headers": [{"name": "x", "range_match": {"end": 3}}], "runtime_fraction": {"default_value": {"numerator": 5}}},
					"route": {"cluster": "c", "timeout": "1s", "retry_policy": {"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "1s"}}, "hash_policy": [{"header": {"header_name": "x"}}],
					"request_mirror_policies": [{"cluster": "m", "runtime_fraction": {"default_value": {"numerator": 1}}}], "regex_rewrite": {"pattern": {"regex": "a(.)"}, "substitution": "b"}}},
				{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]}, "max_stream_duration": {"max_stream_duration": "1s"}}}]}]}`),
		}}
		k.run(t, 1, map[string]func(*anypb.Any, proto.Message) (string, *snapshot.RouteConfig, error){
			"takes what it does not understand for empty": takesAll(RouteConfig, func() *snapshot.RouteConfig { return &snapshot.RouteConfig{} }),
			"takes lists and messages for filled": func(a *anypb.Any, m proto.Message) (string, *snapshot.RouteConfig, error) {
				for _, vh := range m.(*routev3.RouteConfiguration).VirtualHosts {
					_ = vh.Domains[0]
					for _, r := range vh.Routes {
						if w := r.GetRoute().GetWeightedClusters(); w != nil {
							total := uint32(0)
							for _, c := range w.Clusters {
								total += c.Weight.Value
							}
							_ = 100 / total
						}
					}
				}
				return RouteConfig(a)
			},
		})
	})
	t.Run("Cluster", func(t *testing.T) {
		k := hostileKind[snapshot.Cluster]{decode: Cluster, use: func(c *snapshot.Cluster) {
			checkBalancing(c)
			checkSecurity(c.TLS)
			if c.EndpointsName == "" && c.Discovery == snapshot.FromControlPlane {
				balance(c.Endpoints, c.LB)
			}
		}, seeds: []*anypb.Any{
			clusterOf(t, `{"name": "outbound|80|v1|a.b", `+eds+`, "lb_policy": "LEAST_REQUEST", "outlier_detection": {"enforcing_success_rate": 0, "interval": "1s"}, "circuit_breakers": {"thresholds": [{"retry_budget": {"budget_percent": {"value": 3}}}]}, "connect_timeout": "1s"}`),
			clusterOf(t, `{"name": "d", "type": "LOGICAL_DNS", "dns_failure_refresh_rate": {"base_interval": "1s"}, "load_assignment": {"policy": {"overprovisioning_factor": 9}, "endpoints": [{"priority": 1, "lb_endpoints": [`+at("a.b", 80, "")+`]}]},
				"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 7}, "health_checks": [`+httpCheck(`"expected_statuses": [{"start": 200, "end": 300}]`)+`]}`),
			clusterOf(t, `{"name": "t", `+eds+`, "transport_socket": `+clientSocket(sdsCert+`, `+sdsTrust, `"sni": "x"`)+`}`),
			clusterOf(t, `{"name": "t", `+eds+`, "transport_socket": `+clientSocket(`"tls_certificates": [{"certificate_chain": {"filename": "c"}, "private_key": {"filename": "k"}}], `+trusting(`"trusted_ca": {"filename": "r"}, "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"safe_regex": {"regex": "a.*"}}}]`), "")+`}`),
		}}
		k.run(t, 2, map[string]func(*anypb.Any, proto.Message) (string, *snapshot.Cluster, error){
			"takes what it does not understand for empty": takesAll(Cluster, func() *snapshot.Cluster { return &snapshot.Cluster{LB: lb.Policy{Kind: lb.LeastRequest}} }),
			"takes lists and messages for filled": func(a *anypb.Any, m proto.Message) (string, *snapshot.Cluster, error) {
				c := m.(*clusterv3.Cluster)
				if c.OutlierDetection != nil {
					_ = c.OutlierDetection.EnforcingSuccessRate.Value
				}
				if c.CircuitBreakers != nil {
					_ = c.CircuitBreakers.Thresholds[0].RetryBudget.BudgetPercent.Value
				}
				for _, h := range c.HealthChecks {
					_ = h.GetHttpHealthCheck().ExpectedStatuses[0].End / int64(h.HealthyThreshold.Value)
				}
				if c.GetType() == clusterv3.Cluster_LOGICAL_DNS {
					_ = c.LoadAssignment.Endpoints[0].LbEndpoints[0]
				}
				return Cluster(a)
			},
		})
	})
	t.Run("ClusterLoadAssignment", func(t *testing.T) {
		k := hostileKind[lb.Endpoints]{decode: Endpoints, use: func(eps *lb.Endpoints) {
			for _, p := range []lb.Policy{{Kind: lb.RoundRobin}, {Kind: lb.LeastRequest, Choices: 2}, {Kind: lb.RingHash, LocalityWeighted: true}} {
				balance(eps, p)
			}
		}, seeds: []*anypb.Any{
			endpointsOf(t, `{"cluster_name": "e", "policy": {"overprovisioning_factor": 140, "drop_overloads": [{"category": "c", "drop_percentage": {"numerator": 1}}]}, "endpoints": [{"locality": {"zone": "z"}, "load_balancing_weight": 3, "lb_endpoints": [`+
				at("10.0.0.1", 80, `, "load_balancing_weight": 4294967290, "metadata": {"filter_metadata": {"envoy.lb": {"a": "b"}}}`)+`, `+at("10.0.0.2", 81, `, "health_status": "DEGRADED"`)+`]}]}`),
		}}
		k.run(t, 3, map[string]func(*anypb.Any, proto.Message) (string, *lb.Endpoints, error){
			"takes what it does not understand for empty": takesAll(Endpoints, func() *lb.Endpoints { return lb.NewEndpoints([]lb.Endpoint{{}}, nil) }),
			"takes lists and messages for filled": func(a *anypb.Any, m proto.Message) (string, *lb.Endpoints, error) {
				for _, e := range m.(*endpointv3.ClusterLoadAssignment).Endpoints {
					total := uint32(0)
					for _, x := range e.LbEndpoints {
						total += x.LoadBalancingWeight.GetValue()
						_ = x.HealthStatus / (1 + x.HealthStatus/9)
					}
					_ = 100 / total
					_ = e.Locality.Zone
				}
				return Endpoints(a)
			},
		})
	})
	t.Run("Listener", func(t *testing.T) {
		k := hostileKind[snapshot.Listener]{decode: Listener, use: func(l *snapshot.Listener) {
			if l.Inline != nil {
				call(l, l.Inline)
			}
		}, seeds: []*anypb.Any{
			listenerOf(t, apiListenerOf(rds+`, "stream_idle_timeout": "1s", "http_filters": [`+faulty(`"delay": {"fixed_delay": "1s", "percentage": {"numerator": 3}}, "upstream_cluster": "c"`)+`, `+adaptive(gradientOf(`"interval": "1s"`))+`, `+router+`]`)),
			listenerOf(t, apiListenerOf(`"http_filters": [`+router+`], "route_config": {"virtual_hosts": [{"domains": ["*"], "routes": [`+toCluster(`"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "b"}`)+`]}]}`)),
		}}
		k.run(t, 4, map[string]func(*anypb.Any, proto.Message) (string, *snapshot.Listener, error){
			"takes lists and messages for filled": func(a *anypb.Any, m proto.Message) (string, *snapshot.Listener, error) {
				hcm := &hcmv3.HttpConnectionManager{}
				_ = m.(*listenerv3.Listener).ApiListener.ApiListener.UnmarshalTo(hcm)
				_ = hcm.HttpFilters[0]
				return Listener(a)
			},
		})
	})
	t.Run("inbound Listener", func(t *testing.T) {
		mixed := rbacFilter("deny", `"rules": `+policies("DENY", rule("d", `{"and_rules": {"rules": [{"url_path": {"path": {"prefix": "/admin"}}}, {"not_rule": {"header": {"name": "x-a", "string_match": {"safe_regex": {"regex": "1|2"}}}}}]}}`, anyone)))
		allow := rbacFilter("allow", `"rules": `+policies("ALLOW", rule("a", `{"or_rules": {"rules": [{"url_path": {"path": {"exact": "/a"}}}, {"header": {"name": ":method", "string_match": {"exact": "POST"}}}, {"destination_port": 9080}]}}`, `{"authenticated": {"principal_name": {"exact": "`+web+`"}}}`)+`, `+rule("b", `{"url_path": {"path": {"exact": "/open"}}}`, anyone)))
		k := hostileKind[snapshot.Inbound]{decode: Inbound, use: func(in *snapshot.Inbound) {
			for _, c := range []*snapshot.FilterChain{in.TLS, in.Plain} {
				if c != nil {
					admit(c)
				}
			}
		}, more: letsThrough, seeds: []*anypb.Any{
			listenerOf(t, guarded(mixed)), listenerOf(t, guarded(allow)), listenerOf(t, guarded(mixed, allow)),
			listenerOf(t, guarded(allow, limitFilterOf("limit", perSecond("5"), ""))),
			listenerOf(t, guarded(rbacFilter("d", `"rules": `+policies("DENY", rule("d", anyone, `{"not_id": {"or_ids": {"ids": [{"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/sa/web"}}}}, {"authenticated": {"principal_name": {"exact": "`+batch+`"}}}]}}}`))))),
		}}
		k.run(t, 5, map[string]func(*anypb.Any, proto.Message) (string, *snapshot.Inbound, error){
			"takes what it does not understand for empty": takesAll(Inbound, func() *snapshot.Inbound { return &snapshot.Inbound{Address: "x", Plain: &snapshot.FilterChain{}} }),
			"takes lists and messages for filled": func(a *anypb.Any, m proto.Message) (string, *snapshot.Inbound, error) {
				for _, filter := range rbacFilters(m) {
					for _, p := range filter.GetRules().GetPolicies() {
						_ = p.Permissions[0]
						_ = p.Principals[0]
					}
				}
				return Inbound(a)
			},
		})
	})
}

// rbacFilters are the filters of a listener with one chain and one manager.
func rbacFilters(m proto.Message) (out []*rbacfilterv3.RBAC) {
	for _, chain := range m.(*listenerv3.Listener).GetFilterChains() {
		for _, filter := range chain.GetFilters() {
			hcm := &hcmv3.HttpConnectionManager{}
			if filter.GetTypedConfig().UnmarshalTo(hcm) != nil {
				continue
			}
			for _, f := range hcm.GetHttpFilters() {
				if rbac := (&rbacfilterv3.RBAC{}); f.GetTypedConfig().UnmarshalTo(rbac) == nil && !f.GetDisabled() {
					out = append(out, rbac)
				}
			}
		}
	}
	return out
}

// letsThrough returns a request that the result lets through though the
// message, taken word for word and with what is not understood refusing, does not.
func letsThrough(m proto.Message, in *snapshot.Inbound) string {
	filters := rbacFilters(m)
	for _, path := range []string{"/", "/a", "/admin", "/admin/x", "/open"} {
		for _, who := range []string{"", web, batch} {
			for _, method := range []string{"GET", "POST"} {
				for _, a := range []string{"1", "3"} {
					r := request(path, who)
					r.Method, r.Header["X-A"] = method, []string{a}
					allowed := in.Plain != nil && (in.Plain.Authorizer == nil || in.Plain.Authorizer.Decide(r).Allowed)
					for _, filter := range filters {
						if allowed && !meansToAllow(filter.GetRules(), r) {
							return fmt.Sprintf("%s %s of %q with x-a %s is let through", method, path, who, a)
						}
					}
				}
			}
		}
	}
	return ""
}

// meansToAllow reads rules as Envoy documents them, without any preparation.
// What it does not understand neither allows in an ALLOW rule nor lets pass a DENY rule.
func meansToAllow(rules *rbacv3.RBAC, r *identity.AccessRequest) bool {
	if rules == nil {
		return true
	}
	matched := false
	for _, p := range rules.GetPolicies() {
		permission, principal := false, false
		for _, x := range p.GetPermissions() {
			permission = permission || means(x, r, rules.GetAction())
		}
		for _, x := range p.GetPrincipals() {
			principal = principal || means(x, r, rules.GetAction())
		}
		matched = matched || permission && principal
	}
	switch rules.GetAction() {
	case rbacv3.RBAC_ALLOW:
		return matched
	case rbacv3.RBAC_DENY:
		return !matched
	default:
		return true
	}
}

// means reads a permission or a principal.
func means(x proto.Message, r *identity.AccessRequest, action rbacv3.RBAC_Action) bool {
	unknown := action == rbacv3.RBAC_DENY
	header := func(h *routev3.HeaderMatcher) bool {
		values := map[string][]string{":method": {r.Method}, ":path": {r.Path}, ":authority": {r.Authority}}[h.GetName()]
		if values == nil {
			values = r.Header[http.CanonicalHeaderKey(h.GetName())]
		}
		if h.GetHeaderMatchSpecifier() == nil {
			return (len(values) > 0) != h.GetInvertMatch()
		}
		m, ok := h.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_StringMatch)
		if !ok || h.GetTreatMissingHeaderAsEmpty() {
			return unknown
		}
		if len(values) == 0 {
			return h.GetInvertMatch() && unknown // not there: only refusing is safe to expect
		}
		return meansText(m.StringMatch, values[0], unknown) != h.GetInvertMatch()
	}
	switch x := x.(type) {
	case *rbacv3.Permission:
		switch rule := x.GetRule().(type) {
		case *rbacv3.Permission_Any:
			return true
		case *rbacv3.Permission_AndRules:
			all := len(rule.AndRules.GetRules()) > 0
			for _, y := range rule.AndRules.GetRules() {
				all = all && means(y, r, action)
			}
			return all
		case *rbacv3.Permission_OrRules:
			for _, y := range rule.OrRules.GetRules() {
				if means(y, r, action) {
					return true
				}
			}
			return false
		case *rbacv3.Permission_NotRule:
			return !means(rule.NotRule, r, action)
		case *rbacv3.Permission_Header:
			return header(rule.Header)
		case *rbacv3.Permission_UrlPath:
			return meansText(rule.UrlPath.GetPath(), r.Path, unknown)
		case *rbacv3.Permission_DestinationPort:
			return rule.DestinationPort == uint32(r.DestinationPort)
		}
	case *rbacv3.Principal:
		switch id := x.GetIdentifier().(type) {
		case *rbacv3.Principal_Any:
			return true
		case *rbacv3.Principal_AndIds:
			all := len(id.AndIds.GetIds()) > 0
			for _, y := range id.AndIds.GetIds() {
				all = all && means(y, r, action)
			}
			return all
		case *rbacv3.Principal_OrIds:
			for _, y := range id.OrIds.GetIds() {
				if means(y, r, action) {
					return true
				}
			}
			return false
		case *rbacv3.Principal_NotId:
			return !means(id.NotId, r, action)
		case *rbacv3.Principal_Header:
			return header(id.Header)
		case *rbacv3.Principal_Authenticated_:
			if id.Authenticated.GetPrincipalName() == nil {
				return r.Principal != ""
			}
			return r.Principal != "" && meansText(id.Authenticated.GetPrincipalName(), r.Principal, unknown)
		}
	}
	return unknown
}

func meansText(m *matcherv3.StringMatcher, s string, unknown bool) bool {
	fold := func(s string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(s) == fold(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(s), fold(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(s), fold(p.Suffix))
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(fold(s), fold(p.Contains))
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := regexp.Compile(`\A(?:` + p.SafeRegex.GetRegex() + `)\z`)
		return err == nil && re.MatchString(s) || err != nil && unknown
	}
	return unknown
}
