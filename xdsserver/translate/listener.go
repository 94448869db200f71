package translate

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// outbound is the API listener behind a "host:port" that a client calls. It
// has the name that was asked for, and sends to the route configuration of the
// host that the name means in the client's namespace.
//
// A name without a port means port 80 where the service has it, as a URL
// without a port does, and else the service's first port.
func (b *builder) outbound(name string) (proto.Message, error) {
	host, port, ok := splitHostPort(name)
	if !ok {
		return nil, nil
	}
	d := b.view.resolve(host, b.client.Namespace)
	if d == nil {
		return nil, nil
	}
	if port == 0 {
		port = defaultPort(d.service)
	}
	if d.service != nil {
		if _, ok := d.service.PortNumber(port); !ok {
			return nil, nil
		}
	}
	return &listenerv3.Listener{
		Name: name,
		ApiListener: &listenerv3.ApiListener{ApiListener: mustPack(&hcmv3.HttpConnectionManager{
			StatPrefix: "outbound",
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
				ConfigSource:    overADS(),
				RouteConfigName: TrafficName{Port: port, Host: d.host}.String(),
			}},
			HttpFilters: b.outboundFilters(),
		})},
	}, nil
}

func defaultPort(s *policy.Service) uint32 {
	if s == nil || len(s.Ports) == 0 {
		return 80
	}
	for _, p := range s.Ports {
		if p.Number == 80 {
			return 80
		}
	}
	return s.Ports[0].Number
}

// outboundFilters are those that routes configure, which do nothing by themselves, and
// the router. gRPC has one for faults, and refuses a listener with one for CORS.
func (b *builder) outboundFilters() []*hcmv3.HttpFilter {
	filters := []*hcmv3.HttpFilter{httpFilter(faultFilter, &faultv3.HTTPFault{})}
	if b.client.Agent != GRPC {
		filters = append(filters, httpFilter(corsFilter, &corsv3.Cors{}))
	}
	return append(filters, routerOnly()...)
}

// routerOnly is the filter chain that every HTTP connection manager needs: gRPC
// refuses one without a terminal filter (gRFC A39).
func routerOnly() []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustPack(&routerv3.Router{})},
	}}
}

func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// unsupported is the error for a field that nothing here enforces. Validation
// refuses such fields where policy is read; this stands behind it, so that
// policy from anywhere is never served in part without a word.
func unsupported(object, field string) error {
	return fmt.Errorf("%s %s: not enforced, so it is refused", object, field)
}
