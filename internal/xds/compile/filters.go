package compile

import (
	"strings"

	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// harmlessFilters are HTTP and network filters that only count, or tell other
// proxies about this one. They are known by the type of their configuration,
// as Envoy knows them: a filter's name is free text, and one that restricts
// access must not pass under it.
var harmlessFilters = map[string]bool{
	"stats.PluginConfig": true, // istio.stats
	"envoy.extensions.filters.http.grpc_stats.v3.FilterConfig":  true, // envoy.filters.http.grpc_stats
	"io.istio.http.peer_metadata.Config":                        true, // istio.metadata_exchange, HTTP
	"envoy.tcp.metadataexchange.config.MetadataExchange":        true, // istio.metadata_exchange, TCP
	"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": true, // istio.alpn: which ALPN protocols to offer over TLS
}

// harmlessEmpty are HTTP filters that do nothing on the way in until a route
// configures them; a route that does is refused.
var harmlessEmpty = map[string]bool{
	"envoy.extensions.filters.http.fault.v3.HTTPFault": true,
	"envoy.extensions.filters.http.cors.v3.Cors":       true,
}

// filterType is the type of a filter's configuration, inside the TypedStruct
// that stands for one whose message the sender does not have.
func filterType(config *anypb.Any) (name string, f *fault) {
	switch name := typeName(config); name {
	case "udpa.type.v1.TypedStruct":
		var ts udpatypev1.TypedStruct
		if err := proto.Unmarshal(config.GetValue(), &ts); err != nil {
			return "", faultf("", "not a %s: %v", name, err)
		}
		return lastPart(ts.GetTypeUrl()), nil
	case "xds.type.v3.TypedStruct":
		var ts xdstypev3.TypedStruct
		if err := proto.Unmarshal(config.GetValue(), &ts); err != nil {
			return "", faultf("", "not a %s: %v", name, err)
		}
		return lastPart(ts.GetTypeUrl()), nil
	default:
		return name, nil
	}
}

func lastPart(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '/')+1:] }

// side is where filters stand. A filter that is optional may be skipped on the
// way out, but not on the way in: there it may be what keeps callers out, and
// skipping it would open what the sender believes to be shut.
type side bool

const (
	clientSide side = false
	serverSide side = true
)

// enforce reads a filter that has to be enforced. known is false for others.
type enforce func(name string, config *anypb.Any, disabled bool) (known bool, f *fault)

// httpFilters accepts a chain that ends in the router and has nothing before
// it but what enforce reads and what is harmless. Nil enforces nothing.
func httpFilters(filters []*hcmv3.HttpFilter, where side, read enforce) *fault {
	const field = "http_filters"
	if len(filters) == 0 {
		return faultf(field, "there is no router, which has to be the last filter")
	}
	names := make(map[string]bool, len(filters))
	for i, filter := range filters {
		if names[filter.GetName()] {
			return faultf("name", "%q occurs twice", filter.GetName()).underIndex(field, i)
		}
		names[filter.GetName()] = true
		last := i == len(filters)-1
		if f := httpFilter(filter, last, where, read); f != nil {
			return f.underIndex(field, i)
		}
	}
	return nil
}

func httpFilter(filter *hcmv3.HttpFilter, last bool, where side, read enforce) *fault {
	optional := filter.GetIsOptional() && where == clientSide
	if filter.GetConfigDiscovery() != nil && (last || !optional) {
		return faultf("config_discovery", notSupported)
	}
	config := filter.GetTypedConfig()
	if config.MessageIs((*routerv3.Router)(nil)) {
		switch {
		case !last:
			return faultf("", "the router has to be the last filter")
		case filter.GetDisabled():
			return faultf("disabled", "the router can not be disabled")
		}
		var m routerv3.Router
		f := extension(config, &m)
		if f == nil && where == serverSide && m.GetRespectExpectedRqTimeout() {
			f = faultf("respect_expected_rq_timeout", "not supported in a listener for an address")
		}
		return f.under("typed_config")
	}
	if last {
		return faultf("", "filter %q of type %q can not be the last one, which has to be the router", filter.GetName(), typeName(config))
	}
	if read != nil {
		if known, f := read(filter.GetName(), config, filter.GetDisabled()); known {
			return f
		}
	}
	if optional || filter.GetDisabled() {
		return nil // a route that enables it is refused
	}
	kind, f := filterType(config)
	switch {
	case f != nil:
		return f.under("typed_config")
	case harmlessFilters[kind], harmlessEmpty[kind] && len(config.GetValue()) == 0:
		return nil
	}
	return faultf("", "filter %q of type %q is not supported", filter.GetName(), kind)
}

// perFilterConfig accepts configurations of harmless filters and such as
// switch their filter off. It is for the way in, where no other filter that
// routes may configure is read here.
func perFilterConfig(configs map[string]*anypb.Any) *fault {
	for _, name := range sortedKeys(configs) {
		config, disabled, _, f := filterConfig(configs[name])
		if f == nil && !disabled {
			f = harmlessSetting(config)
		}
		if f != nil {
			return f.underKey(perFilter, name)
		}
	}
	return nil
}

const perFilter = "typed_per_filter_config"

// filterConfig takes a configuration out of the wrapper that can switch its filter off.
func filterConfig(config *anypb.Any) (inner *anypb.Any, disabled, optional bool, f *fault) {
	if !config.MessageIs((*routev3.FilterConfig)(nil)) {
		return config, false, false, nil
	}
	var fc routev3.FilterConfig
	if f := extension(config, &fc); f != nil {
		return nil, false, false, f
	}
	if fc.GetConfig() == nil && !fc.GetDisabled() {
		return nil, false, false, faultf("", "has no configuration and does not switch the filter off")
	}
	return fc.GetConfig(), fc.GetDisabled(), fc.GetIsOptional(), nil
}

func harmlessSetting(config *anypb.Any) *fault {
	kind, f := filterType(config)
	if f == nil && !harmlessFilters[kind] {
		f = faultf("", "configuration of type %q is not supported", kind)
	}
	return f
}
