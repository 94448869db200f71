package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"net"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	applev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/apple/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	getaddrinfov3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/getaddrinfo/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

const (
	// DefaultDNSRefresh is the pause between look-ups that a cluster does not set
	// (envoy.config.cluster.v3.Cluster.dns_refresh_rate).
	DefaultDNSRefresh = 5 * time.Second
	// minDNSRefresh is what a rate must be more than, as in Envoy.
	minDNSRefresh = time.Millisecond
	// failureGrowth is how many times its base the longest pause after failures is
	// where it is not set (envoy.config.cluster.v3.Cluster.RefreshRate.max_interval).
	failureGrowth = 10
)

// oldRates reads how often names are looked up. They must be right in clusters
// of all types, as in Envoy.
func oldRates(m *clusterv3.Cluster) (*snapshot.DNS, *fault) {
	dns := &snapshot.DNS{}
	f := rates(dns, m.GetDnsRefreshRate(), m.GetDnsJitter())
	if r := m.GetDnsFailureRefreshRate(); f == nil && r != nil {
		f = failureRate(dns, r.GetBaseInterval(), r.GetMaxInterval()).under("dns_failure_refresh_rate")
	}
	return dns, f
}

// oldDNS reads a cluster of type STRICT_DNS or LOGICAL_DNS.
func oldDNS(m *clusterv3.Cluster, dns *snapshot.DNS, c *snapshot.Cluster) *fault {
	c.DNS = dns
	switch family := m.GetDnsLookupFamily(); family {
	case clusterv3.Cluster_AUTO:
		dns.Family, dns.PreferIPv6 = "ip", true
	case clusterv3.Cluster_V4_ONLY:
		dns.Family = "ip4"
	case clusterv3.Cluster_V6_ONLY:
		dns.Family = "ip6"
	case clusterv3.Cluster_V4_PREFERRED:
		dns.Family, dns.PreferIPv4 = "ip", true
	case clusterv3.Cluster_ALL:
		dns.Family = "ip"
	default:
		return faultf("dns_lookup_family", "value %d is not known", family)
	}
	// Another resolver could answer otherwise.
	switch {
	case len(m.GetDnsResolvers()) > 0:
		return faultf("dns_resolvers", notSupported)
	case m.GetDnsResolutionConfig() != nil:
		return faultf("dns_resolution_config", notSupported)
	}
	if f := resolver(m.GetTypedDnsResolverConfig().GetTypedConfig()); f != nil {
		return f.under("typed_config").under("typed_dns_resolver_config")
	}
	return lookups(m.GetLoadAssignment(), c)
}

// newDNS reads a cluster whose extension is DnsCluster.
func newDNS(config *anypb.Any, assignment *endpointv3.ClusterLoadAssignment, c *snapshot.Cluster) *fault {
	var m dnsv3.DnsCluster
	f := extension(config, &m)
	dns := &snapshot.DNS{}
	c.DNS = dns
	if f == nil {
		f = rates(dns, m.GetDnsRefreshRate(), m.GetDnsJitter())
	}
	if r := m.GetDnsFailureRefreshRate(); f == nil && r != nil {
		f = failureRate(dns, r.GetBaseInterval(), r.GetMaxInterval()).under("dns_failure_refresh_rate")
	}
	if f == nil {
		f = resolver(m.GetTypedDnsResolverConfig().GetTypedConfig()).under("typed_config").under("typed_dns_resolver_config")
	}
	switch family := m.GetDnsLookupFamily(); family {
	case commondnsv3.DnsLookupFamily_UNSPECIFIED, commondnsv3.DnsLookupFamily_AUTO:
		dns.Family, dns.PreferIPv6 = "ip", true
	case commondnsv3.DnsLookupFamily_V4_ONLY:
		dns.Family = "ip4"
	case commondnsv3.DnsLookupFamily_V6_ONLY:
		dns.Family = "ip6"
	case commondnsv3.DnsLookupFamily_V4_PREFERRED:
		dns.Family, dns.PreferIPv4 = "ip", true
	case commondnsv3.DnsLookupFamily_ALL:
		dns.Family = "ip"
	default:
		if f == nil {
			f = faultf("dns_lookup_family", "value %d is not known", family)
		}
	}
	if f != nil {
		return f.under("typed_config").under("cluster_type")
	}
	c.Discovery = snapshot.StrictDNS
	if m.GetAllAddressesInSingleEndpoint() {
		c.Discovery = snapshot.LogicalDNS
	}
	return lookups(assignment, c)
}

func rates(dns *snapshot.DNS, refresh, jitter *durationpb.Duration) *fault {
	var f *fault
	if dns.RefreshRate, f = duration("dns_refresh_rate", refresh, DefaultDNSRefresh); f != nil {
		return f
	}
	if dns.RefreshRate <= minDNSRefresh {
		return faultf("dns_refresh_rate", "%v is not more than %v", dns.RefreshRate, minDNSRefresh)
	}
	dns.Jitter, f = duration("dns_jitter", jitter, 0)
	return f
}

func failureRate(dns *snapshot.DNS, base, most *durationpb.Duration) *fault {
	if base == nil {
		return faultf("base_interval", "missing")
	}
	var f *fault
	if dns.FailureBase, f = duration("base_interval", base, 0); f != nil {
		return f
	}
	if dns.FailureBase <= minDNSRefresh {
		return faultf("base_interval", "%v is not more than %v", dns.FailureBase, minDNSRefresh)
	}
	def := dns.FailureBase
	if def <= forever/failureGrowth {
		def *= failureGrowth
	}
	if dns.FailureMax, f = duration("max_interval", most, def); f != nil {
		return f
	}
	if dns.FailureMax < dns.FailureBase {
		return faultf("max_interval", "%v is less than base_interval, %v", dns.FailureMax, dns.FailureBase)
	}
	return nil
}

// resolver accepts a configuration that only tunes how the process's own
// resolver would ask. Names are looked up by net.Resolver in any case.
func resolver(config *anypb.Any) *fault {
	for _, m := range []proto.Message{&caresv3.CaresDnsResolverConfig{}, &getaddrinfov3.GetAddrInfoDnsResolverConfig{}, &applev3.AppleDnsResolverConfig{}} {
		if config.MessageIs(m) {
			return extension(config, m)
		}
	}
	if config == nil {
		return nil
	}
	return faultf("", "%s is not supported", typeName(config))
}

// lookups reads the names to look up. What they have in common with endpoints of
// other clusters is in c.Endpoints, which has none of its own.
func lookups(m *endpointv3.ClusterLoadAssignment, c *snapshot.Cluster) *fault {
	if m == nil {
		return faultf("load_assignment", "missing")
	}
	eps, f := loadAssignment(m, ipOrName)
	if f != nil {
		return f.under("load_assignment")
	}
	if c.Discovery == snapshot.LogicalDNS {
		switch l := m.GetEndpoints(); {
		case len(l) != 1:
			return faultf("load_assignment.endpoints", "LOGICAL_DNS takes one locality, not %d", len(l))
		case len(l[0].GetLbEndpoints()) != 1:
			return faultf("load_assignment.endpoints[0].lb_endpoints", "LOGICAL_DNS takes one endpoint, not %d", len(l[0].GetLbEndpoints()))
		}
	}
	for _, e := range eps.All {
		host, port, err := net.SplitHostPort(e.Address)
		n, errPort := strconv.ParseUint(port, 10, 16)
		if err != nil || errPort != nil { // socketAddress has joined them
			return faultf("load_assignment", "%q is not an address", e.Address)
		}
		if e.Hostname == "" {
			e.Hostname = host // as Envoy, for host rewriting and hashing
		}
		e.Address = ""
		c.DNS.Names = append(c.DNS.Names, snapshot.DNSName{Host: host, Port: uint32(n), Endpoint: e})
	}
	eps.All = []lb.Endpoint{}
	c.Endpoints = eps
	return nil
}
