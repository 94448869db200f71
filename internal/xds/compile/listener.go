package compile

import (
	"maps"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// Listener compiles a client-side listener: one with an api_listener, whose
// HTTP connection manager says where the routes are (gRFC A27). name is set
// where it could be read, even with an error.
func Listener(resource *anypb.Any) (name string, l *snapshot.Listener, err error) {
	var m listenerv3.Listener
	wrapper, f := open(resource, &m)
	name = named(m.GetName(), wrapper)
	if f == nil {
		l, f = apiListener(&m)
	}
	if f != nil {
		return name, nil, f.of("Listener", name)
	}
	return name, l, nil
}

func named(name, wrapper string) string {
	if name == "" {
		return wrapper
	}
	return name
}

func apiListener(m *listenerv3.Listener) (*snapshot.Listener, *fault) {
	if f := unlisted(m.ProtoReflect()); f != nil {
		return nil, f
	}
	switch {
	case m.GetName() == "":
		return nil, faultf("name", "is empty")
	case m.GetApiListener() == nil:
		return nil, faultf("api_listener", "missing: a listener for a socket can not say where requests go")
	case len(m.GetFilterChains()) > 0:
		return nil, faultf("filter_chains", "not supported beside api_listener")
	case m.GetDefaultFilterChain() != nil:
		return nil, faultf("default_filter_chain", "not supported beside api_listener")
	case m.GetMetadata().GetFilterMetadata()[ownMetadata] != nil:
		return nil, faultf("", "not supported beside api_listener").underKey("metadata.filter_metadata", ownMetadata)
	}
	var hcm hcmv3.HttpConnectionManager
	f := extension(m.GetApiListener().GetApiListener(), &hcm)
	l := &snapshot.Listener{Name: m.GetName()}
	if f == nil {
		f = clientManager(&hcm, l)
	}
	if f != nil {
		return nil, f.under("api_listener").under("api_listener")
	}
	return l, nil
}

// clientManager reads the HTTP connection manager of an API listener.
func clientManager(hcm *hcmv3.HttpConnectionManager, l *snapshot.Listener) *fault {
	filters := clientFilters{l}
	if f := httpFilters(hcm.GetHttpFilters(), clientSide, filters.read); f != nil {
		return f
	}
	last := len(hcm.GetHttpFilters()) - 1
	if f := filters.router(hcm.GetHttpFilters()[last].GetTypedConfig()); f != nil {
		return f.under("typed_config").underIndex("http_filters", last)
	}
	if f := upgrades(hcm); f != nil {
		return f
	}
	// One that is not set is none, where Envoy's is 5 min: a long answer of a
	// server that says little would break off without anybody having asked for it.
	var f *fault
	if l.IdleTimeout, f = duration("stream_idle_timeout", hcm.GetStreamIdleTimeout(), 0); f != nil {
		return f
	}
	// How requests that come in are read. use_remote_address says nothing of its own here.
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"normalize_path", hcm.GetNormalizePath().GetValue()},
		{"merge_slashes", hcm.GetMergeSlashes()},
		{"path_with_escaped_slashes_action", hcm.GetPathWithEscapedSlashesAction() > hcmv3.HttpConnectionManager_KEEP_UNCHANGED},
		{"xff_num_trusted_hops", hcm.GetXffNumTrustedHops() > 0},
		{"strip_matching_host_port", hcm.GetStripMatchingHostPort()},
		{"strip_any_host_port", hcm.GetStripAnyHostPort()},
		{"strip_trailing_host_dot", hcm.GetStripTrailingHostDot()},
	} {
		if field.set {
			return faultf(field.name, "not supported in a listener for outbound requests")
		}
	}
	// Idle time, age and number of requests are of downstream connections, which
	// an API listener does not have: the program's own requests come to it.
	limit, f := duration("max_stream_duration", hcm.GetCommonHttpProtocolOptions().GetMaxStreamDuration(), 0)
	if f != nil {
		return f.under("common_http_protocol_options")
	}
	l.MaxStreamDuration = limit
	switch {
	case hcm.GetRds() != nil:
		if f := overADS(hcm.GetRds().GetConfigSource()); f != nil {
			return f.under("config_source").under("rds")
		}
		l.RouteName = hcm.GetRds().GetRouteConfigName()
		if l.RouteName == "" {
			return faultf("rds.route_config_name", "is empty")
		}
	case hcm.GetRouteConfig() != nil:
		rc, f := routeConfig(hcm.GetRouteConfig())
		if f != nil {
			return f.under("route_config")
		}
		l.Inline = rc
	default:
		return faultf("", "neither rds nor route_config is set")
	}
	return nil
}

func upgrades(hcm *hcmv3.HttpConnectionManager) *fault {
	for i, u := range hcm.GetUpgradeConfigs() {
		if f := upgrade(u.GetUpgradeType(), u.GetEnabled()); f != nil {
			return f.underIndex("upgrade_configs", i)
		}
	}
	return nil
}

// commonManager checks what servers read beside their filters and routes.
func commonManager(hcm *hcmv3.HttpConnectionManager) *fault {
	if f := upgrades(hcm); f != nil {
		return f
	}
	if d, f := duration("stream_idle_timeout", hcm.GetStreamIdleTimeout(), 0); f != nil {
		return f
	} else if d != 0 {
		return faultf("stream_idle_timeout", "not supported: only 0 is, which means none")
	}
	return nil
}

// upgrade accepts upgrades that may pass: all of HTTP/1.1 pass unbuffered.
func upgrade(kind string, enabled *wrapperspb.BoolValue) *fault {
	if enabled != nil && !enabled.GetValue() {
		return faultf("enabled", "not supported: upgrades to %q pass", kind)
	}
	if strings.EqualFold(kind, "CONNECT") || strings.EqualFold(kind, "CONNECT-UDP") {
		return faultf("upgrade_type", "%q is not supported", kind)
	}
	return nil
}

// overADS accepts the config source that means the stream the resource came on.
func overADS(source *corev3.ConfigSource) *fault {
	if source.GetAds() == nil && source.GetSelf() == nil {
		return faultf("", "must be ads or self")
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// forever stands for an explicit "no limit" where zero means a default.
const forever = time.Duration(1<<63 - 1)
