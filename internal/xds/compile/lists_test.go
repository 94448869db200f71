package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// messagesRead are the messages that the package decodes; all others are inside of these.
var messagesRead = []protoreflect.FullName{
	"envoy.config.listener.v3.Listener",
	"envoy.config.route.v3.RouteConfiguration",
	"envoy.config.cluster.v3.Cluster",
	"envoy.config.endpoint.v3.ClusterLoadAssignment",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
	"envoy.extensions.filters.http.router.v3.Router",
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
	"envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
	"envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
	"envoy.extensions.load_balancing_policies.random.v3.Random",
	"envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash",
	"envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
	"envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
	"envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
	"envoy.extensions.load_balancing_policies.subset.v3.Subset",
	"envoy.extensions.load_balancing_policies.random_subsetting.v3.RandomSubsetting",
	"envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided",
	"envoy.extensions.clusters.aggregate.v3.ClusterConfig",
	"envoy.extensions.clusters.dns.v3.DnsCluster",
	"envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
	"envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig",
	"envoy.extensions.network.dns_resolver.apple.v3.AppleDnsResolverConfig",
	"envoy.config.route.v3.FilterConfig",
	"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
	"envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
	"envoy.extensions.filters.http.rbac.v3.RBAC",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
	"envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
	"envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
	"envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
	"envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
	"envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate",
	"envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig",
	"envoy.extensions.filters.http.fault.v3.HTTPFault",
	"envoy.extensions.filters.http.cors.v3.Cors",
	"envoy.extensions.filters.http.cors.v3.CorsPolicy",
	"envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
}

func messageType(t *testing.T, name protoreflect.FullName) protoreflect.MessageType {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return mt
}

func TestEveryFieldIsInOneList(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	for _, messages := range allLists {
		for name, l := range messages {
			if seen[name] {
				t.Errorf("%s has lists twice", name)
			}
			seen[name] = true
			in := map[string]int{}
			for _, field := range strings.Fields(l.enforced + " " + l.harmless + " " + l.refused) {
				in[field]++
			}
			fields := messageType(t, name).Descriptor().Fields()
			for i := range fields.Len() {
				fd := fields.Get(i)
				if n := in[string(fd.Name())]; n != 1 {
					t.Errorf("%s.%s is in %d lists", name, fd.Name(), n)
				}
				delete(in, string(fd.Name()))
			}
			for field := range in {
				t.Errorf("%s has no field %s", name, field)
			}
		}
	}
}

// What is enforced has to be looked into, and lists for messages that nothing reads would mislead.
func TestListsCoverExactlyWhatIsRead(t *testing.T) {
	reached := map[protoreflect.FullName]bool{}
	var visit func(md protoreflect.MessageDescriptor)
	visit = func(md protoreflect.MessageDescriptor) {
		if reached[md.FullName()] || isLeaf(md) {
			return
		}
		reached[md.FullName()] = true
		known, ok := verdicts[md.FullName()]
		if !ok {
			t.Errorf("%s is read and has no lists", md.FullName())
		}
		for name, v := range known {
			fd := md.Fields().ByName(name)
			if v != isEnforced || fd == nil || fd.Message() == nil {
				continue
			}
			if fd.IsMap() {
				if value := fd.MapValue().Message(); value != nil {
					visit(value)
				}
				continue
			}
			visit(fd.Message())
		}
	}
	for _, name := range messagesRead {
		visit(messageType(t, name).Descriptor())
	}
	for name := range verdicts {
		if !reached[name] {
			t.Errorf("%s has lists and is not read", name)
		}
	}
}

// set gives the field a value that counts as set.
func set(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	element := func(v protoreflect.Value) protoreflect.Value {
		switch fd.Kind() {
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1)
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("x")
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(1)
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("x"))
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(1)
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(1)
		case protoreflect.DoubleKind:
			return protoreflect.ValueOfFloat64(1)
		case protoreflect.MessageKind:
			return v
		}
		panic(fmt.Sprintf("%s: kind %v", fd.FullName(), fd.Kind()))
	}
	switch {
	case fd.IsMap():
		entries := m.Mutable(fd).Map()
		entries.Set(protoreflect.ValueOfString("k").MapKey(), entries.NewValue())
	case fd.IsList():
		list := m.Mutable(fd).List()
		list.Append(element(list.NewElement()))
	default:
		m.Set(fd, element(m.NewField(fd)))
	}
}

func TestTheListsDecide(t *testing.T) {
	fields := 0
	for name, known := range verdicts {
		mt := messageType(t, name)
		if f := unlisted(mt.New()); f != nil {
			t.Errorf("%s, empty: %s: %s", name, f.path, f.why)
		}
		newer := mt.New()
		newer.SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 50_000, protowire.VarintType), 1))
		if f := unlisted(newer); f == nil || !strings.Contains(f.why, "50000") {
			t.Errorf("%s: a field of a newer version gives %+v", name, f)
		}
		all := mt.Descriptor().Fields()
		for i := range all.Len() {
			fd := all.Get(i)
			m := mt.New()
			set(m, fd)
			f := unlisted(m)
			fields++
			if known[fd.Name()] == isRefused {
				if f == nil || f.path != string(fd.Name()) || f.why != notSupported {
					t.Errorf("%s: refused field %s gives %+v", name, fd.Name(), f)
				}
			} else if f != nil {
				t.Errorf("%s: field %s gives %+v", name, fd.Name(), f)
			}
		}
	}
	if fields < 400 {
		t.Errorf("only %d fields", fields)
	}
}

// Which field an error names must not depend on the order of a map.
func TestTheFirstFieldIsNamed(t *testing.T) {
	mt := messageType(t, "envoy.config.route.v3.Route")
	m := mt.New()
	names := slices.Collect(maps.Keys(verdicts["envoy.config.route.v3.Route"]))
	slices.Sort(names)
	for _, name := range []protoreflect.Name{"request_body_buffer_limit", "route_specifiers", "filter_action"} {
		set(m, m.Descriptor().Fields().ByName(name))
	}
	for range 50 {
		if f := unlisted(m); f == nil || f.path != "filter_action" {
			t.Fatalf("%+v", f)
		}
	}
}

func TestFaultsInsideAreFound(t *testing.T) {
	mt := messageType(t, "envoy.config.route.v3.RouteConfiguration")
	m := mt.New()
	hosts := m.Mutable(m.Descriptor().Fields().ByName("virtual_hosts")).List()
	hosts.Append(hosts.NewElement())
	host := hosts.NewElement()
	routes := host.Message().Mutable(host.Message().Descriptor().Fields().ByName("routes")).List()
	route := routes.NewElement()
	set(route.Message(), route.Message().Descriptor().Fields().ByName("filter_action"))
	routes.Append(route)
	hosts.Append(host)
	if f := unlisted(m); f == nil || f.path != "virtual_hosts[1].routes[0].filter_action" {
		t.Errorf("%+v", f)
	}
}
