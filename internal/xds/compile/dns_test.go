package compile

import (
	"reflect"
	"strings"
	"testing"
	"time"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/getaddrinfo/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

const oneName = `"load_assignment": {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "reviews.example", "port_value": 80}}}}]}]}`

// dnsCluster is the typed extension with further fields.
func dnsCluster(fields string) string {
	return `"cluster_type": {"name": "envoy.clusters.dns", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster"` + fields + `}}`
}

func TestDNSClusters(t *testing.T) {
	place := lb.Locality{Region: "r"}
	c, err := oneCluster(t, `"type": "STRICT_DNS", "respect_dns_ttl": true, "dns_refresh_rate": "60s", "dns_jitter": "0.1s", "cleanup_interval": "1s",
		"typed_dns_resolver_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig", "udp_max_queries": 100, "dns_resolver_options": {"use_tcp_for_dns_lookups": true}}},
		"dns_lookup_family": "V4_ONLY", "load_assignment": {"cluster_name": "c", "policy": {"drop_overloads": [{"category": "x", "drop_percentage": {"numerator": 1}}]}, "endpoints": [
			{"locality": {"region": "r"}, "load_balancing_weight": 4, "priority": 1, "lb_endpoints": [`+at("a.example", 80, `, "load_balancing_weight": 3, "metadata": {"filter_metadata": {"envoy.lb": {"canary": true}}}`)+`, `+at("10.0.0.1", 81, ``)+`]},
			{"lb_endpoints": [{"endpoint": {"hostname": "name", "address": {"socket_address": {"address": "b.example", "port_value": 82}}}}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	want := &snapshot.DNS{RefreshRate: time.Minute, Jitter: 100 * time.Millisecond, Family: "ip4", Names: []snapshot.DNSName{
		{Host: "a.example", Port: 80, Endpoint: lb.Endpoint{Hostname: "a.example", Weight: 3, Priority: 1, Locality: place, Metadata: map[string]string{"canary": "true"}}},
		{Host: "10.0.0.1", Port: 81, Endpoint: lb.Endpoint{Hostname: "10.0.0.1", Weight: 1, Priority: 1, Locality: place}},
		{Host: "b.example", Port: 82, Endpoint: lb.Endpoint{Hostname: "name", Weight: 1}},
	}}
	if c.Discovery != snapshot.StrictDNS || c.EndpointsName != "" || !reflect.DeepEqual(c.DNS, want) {
		t.Errorf("%+v\nwant %+v", c.DNS, want)
	}
	if e := c.Endpoints; len(e.All) != 0 || e.Overprovisioning != 140 || len(e.Drops) != 1 || !reflect.DeepEqual(e.Localities, []lb.LocalityWeight{{Locality: place, Priority: 1, Weight: 4}}) {
		t.Errorf("%+v", e)
	}
	for _, tt := range []struct {
		name, fields string
		kind         snapshot.Discovery
		want         snapshot.DNS
	}{
		{"defaults", `"type": "STRICT_DNS"`, snapshot.StrictDNS, snapshot.DNS{RefreshRate: 5 * time.Second, Family: "ip", PreferIPv6: true}},
		{"IPv6", `"type": "LOGICAL_DNS", "dns_lookup_family": "V6_ONLY"`, snapshot.LogicalDNS, snapshot.DNS{RefreshRate: 5 * time.Second, Family: "ip6"}},
		{"IPv4 first", `"type": "LOGICAL_DNS", "dns_lookup_family": "V4_PREFERRED"`, snapshot.LogicalDNS, snapshot.DNS{RefreshRate: 5 * time.Second, Family: "ip", PreferIPv4: true}},
		{"both", `"type": "LOGICAL_DNS", "dns_lookup_family": "ALL", "dns_failure_refresh_rate": {"base_interval": "2s"}`, snapshot.LogicalDNS,
			snapshot.DNS{RefreshRate: 5 * time.Second, Family: "ip", FailureBase: 2 * time.Second, FailureMax: 20 * time.Second}},
		{"extension", dnsCluster(""), snapshot.StrictDNS, snapshot.DNS{RefreshRate: 5 * time.Second, Family: "ip", PreferIPv6: true}},
		{"extension, logical", dnsCluster(`, "all_addresses_in_single_endpoint": true, "dns_refresh_rate": "1s", "dns_jitter": "2s", "dns_lookup_family": "V4_ONLY", "respect_dns_ttl": true,
			"dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "3s"},
			"typed_dns_resolver_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"}}`), snapshot.LogicalDNS,
			snapshot.DNS{RefreshRate: time.Second, Jitter: 2 * time.Second, Family: "ip4", FailureBase: time.Second, FailureMax: 3 * time.Second}},
		{"extension, both", dnsCluster(`, "dns_lookup_family": "ALL"`), snapshot.StrictDNS, snapshot.DNS{RefreshRate: 5 * time.Second, Family: "ip"}},
	} {
		c, err := oneCluster(t, tt.fields+", "+oneName)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		tt.want.Names = []snapshot.DNSName{{Host: "reviews.example", Port: 80, Endpoint: lb.Endpoint{Hostname: "reviews.example", Weight: 1}}}
		if c.Discovery != tt.kind || !reflect.DeepEqual(*c.DNS, tt.want) {
			t.Errorf("%s: %v %+v\nwant %+v", tt.name, c.Discovery, *c.DNS, tt.want)
		}
	}
}

func TestDNSErrorsNameTheField(t *testing.T) {
	const custom = "cluster_type.typed_config"
	resolver := func(fields string) string {
		return `, "typed_dns_resolver_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig", ` + fields + `}}`
	}
	strict := `"type": "STRICT_DNS", ` + oneName
	for _, tt := range []struct{ fields, path string }{
		{`"type": "STRICT_DNS"`, "load_assignment"},
		{`"type": "STRICT_DNS", "eds_cluster_config": {}`, "eds_cluster_config"},
		{`"type": "LOGICAL_DNS", "load_assignment": {}`, "load_assignment.endpoints"},
		{`"type": "LOGICAL_DNS", "load_assignment": {"endpoints": [{}]}`, "load_assignment.endpoints[0].lb_endpoints"},
		{`"type": "LOGICAL_DNS", "load_assignment": {"endpoints": [{}, {"priority": 1}]}`, "load_assignment.endpoints"},
		{`"type": "LOGICAL_DNS", "load_assignment": {"endpoints": [{"lb_endpoints": [` + at("a", 1, "") + `, ` + at("b", 1, "") + `]}]}`, "load_assignment.endpoints[0].lb_endpoints"},
		{`"type": "STRICT_DNS", "load_assignment": {"endpoints": [{"lb_endpoints": [` + at("a b", 1, "") + `]}]}`, "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address"},
		{strict + `, "dns_refresh_rate": "0.001s"`, "dns_refresh_rate"},
		{strict + `, "dns_jitter": "-1s"`, "dns_jitter"},
		{strict + `, "dns_failure_refresh_rate": {}`, "dns_failure_refresh_rate.base_interval"},
		{strict + `, "dns_failure_refresh_rate": {"base_interval": "0s"}`, "dns_failure_refresh_rate.base_interval"},
		{strict + `, "dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"}`, "dns_failure_refresh_rate.max_interval"},
		{strict + `, "dns_lookup_family": 9`, "dns_lookup_family"},
		{strict + `, "dns_resolvers": [{}]`, "dns_resolvers"},
		{strict + `, "dns_resolution_config": {}`, "dns_resolution_config"},
		{strict + resolver(`"resolvers": [{}]`), "typed_dns_resolver_config.typed_config.resolvers"},
		{strict + resolver(`"dns_resolver_options": {"no_default_search_domain": true}`), "typed_dns_resolver_config.typed_config.dns_resolver_options.no_default_search_domain"},
		{strict + `, "typed_dns_resolver_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}`, "typed_dns_resolver_config.typed_config"},
		{dnsCluster(""), "load_assignment"},
		{dnsCluster("") + `, "eds_cluster_config": {}`, "eds_cluster_config"},
		{dnsCluster(`, "all_addresses_in_single_endpoint": true`) + `, "load_assignment": {}`, "load_assignment.endpoints"},
		{dnsCluster(`, "dns_refresh_rate": "-1s"`) + ", " + oneName, custom + ".dns_refresh_rate"},
		{dnsCluster(`, "dns_lookup_family": 9`) + ", " + oneName, custom + ".dns_lookup_family"},
		{dnsCluster(`, "dns_failure_refresh_rate": {}`) + ", " + oneName, custom + ".dns_failure_refresh_rate.base_interval"},
		{dnsCluster(strings.ReplaceAll(resolver(`"resolvers": [{}]`), "\n", "")) + ", " + oneName, custom + ".typed_dns_resolver_config.typed_config.resolvers"},
	} {
		_, err := oneCluster(t, tt.fields)
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}

func TestAggregates(t *testing.T) {
	aggregate := func(fields string) string {
		return `"cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig"` + fields + `}}`
	}
	const provided = `, "load_balancing_policy": {"policies": [{"typed_extension_config": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided"}}}]}`
	two := aggregate(`, "clusters": ["a", "b", "a"]`)
	for _, fields := range []string{two, two + `, "lb_policy": "CLUSTER_PROVIDED"`, two + provided} {
		c, err := oneCluster(t, fields)
		if err != nil || c.Discovery != snapshot.Aggregate || !reflect.DeepEqual(c.Underlying, []string{"a", "b"}) || c.EndpointsName != "" || c.LB.PanicThreshold != 50 {
			t.Errorf("%+v, %v", c, err)
		}
	}
	for _, tt := range []struct{ fields, path string }{
		{aggregate(""), "cluster_type.typed_config.clusters"},
		{aggregate(`, "clusters": ["a", ""]`), "cluster_type.typed_config.clusters[1]"},
		{two + `, "load_assignment": {}`, "load_assignment"},
		{two + `, "eds_cluster_config": {}`, "eds_cluster_config"},
		{two + `, "lb_policy": "RANDOM"`, "lb_policy"},
		{two + `, "lb_subset_config": {}`, "lb_subset_config"},
		{two + `, "load_balancing_policy": {}`, "load_balancing_policy.policies"},
		{two + `, "health_checks": [` + httpCheck("") + `]`, "health_checks"},
		{two + `, "metadata": {"filter_metadata": {"sinew": {"peak_ewma": {}}}}`, `metadata.filter_metadata["sinew"].peak_ewma`},
		{`"cluster_type": {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"}}`, "cluster_type"},
	} {
		_, err := oneCluster(t, tt.fields)
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}
