package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"math"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/resilience"
)

// DefaultNoTrafficInterval is the pause between health checks of a cluster that has had
// no request (envoy.config.core.v3.HealthCheck.no_traffic_interval).
const DefaultNoTrafficInterval = time.Minute

// healthChecks reads the active health checks of a cluster: one, as in Envoy.
func healthChecks(list []*corev3.HealthCheck, cluster string) ([]resilience.HealthCheck, *fault) {
	if len(list) > 1 {
		return nil, faultf("", "not supported: a cluster takes one health check").underIndex("health_checks", 1)
	}
	return each("health_checks", list, func(m *corev3.HealthCheck) (resilience.HealthCheck, *fault) {
		return healthCheck(m, cluster)
	})
}

func healthCheck(m *corev3.HealthCheck, cluster string) (h resilience.HealthCheck, f *fault) {
	if h.Timeout, f = needed("timeout", m.GetTimeout()); f != nil {
		return h, f
	}
	if h.Interval, f = needed("interval", m.GetInterval()); f != nil {
		return h, f
	}
	if h.IntervalJitter, f = duration("interval_jitter", m.GetIntervalJitter(), 0); f != nil {
		return h, f
	}
	if h.InitialJitter, f = duration("initial_jitter", m.GetInitialJitter(), 0); f != nil {
		return h, f
	}
	if h.NoTrafficInterval, f = positive("no_traffic_interval", m.GetNoTrafficInterval(), DefaultNoTrafficInterval); f != nil {
		return h, f
	}
	if h.UnhealthyInterval, f = positive("unhealthy_interval", m.GetUnhealthyInterval(), h.Interval); f != nil {
		return h, f
	}
	if h.UnhealthyThreshold, f = threshold("unhealthy_threshold", m.GetUnhealthyThreshold()); f != nil {
		return h, f
	}
	if h.HealthyThreshold, f = threshold("healthy_threshold", m.GetHealthyThreshold()); f != nil {
		return h, f
	}
	if p := m.GetAltPort(); p != nil {
		if h.Port = p.GetValue(); h.Port == 0 || h.Port > math.MaxUint16 {
			return h, faultf("alt_port", "%d is not a port", h.Port)
		}
	}
	if r := m.GetReuseConnection(); r != nil && !r.GetValue() {
		return h, faultf("reuse_connection", "false is not supported")
	}
	switch kind := m.GetHealthChecker().(type) {
	case *corev3.HealthCheck_HttpHealthCheck_:
		f = httpHealth(kind.HttpHealthCheck, cluster, &h).under("http_health_check")
	case *corev3.HealthCheck_GrpcHealthCheck_:
		f = grpcHealth(kind.GrpcHealthCheck, cluster, &h).under("grpc_health_check")
	case *corev3.HealthCheck_TcpHealthCheck_:
		h.Kind = resilience.HealthTCP
	default:
		f = faultf("", "none of http_health_check, grpc_health_check and tcp_health_check is set")
	}
	return h, f
}

// needed is positive for a field that must be set.
func needed(field string, d *durationpb.Duration) (time.Duration, *fault) {
	if d == nil {
		return 0, faultf(field, "missing")
	}
	return positive(field, d, 0)
}

func threshold(field string, v *wrapperspb.UInt32Value) (uint32, *fault) {
	switch {
	case v == nil:
		return 0, faultf(field, "missing")
	case v.GetValue() == 0:
		return 0, faultf(field, "must be more than 0")
	}
	return v.GetValue(), nil
}

func httpHealth(m *corev3.HealthCheck_HttpHealthCheck, cluster string, h *resilience.HealthCheck) *fault {
	h.Kind, h.Host, h.Path, h.Method = resilience.HealthHTTP, m.GetHost(), m.GetPath(), "GET"
	if h.Host == "" {
		h.Host = cluster
	}
	switch {
	case !isHeaderText(h.Host):
		return faultf("host", "%q can not be sent in a header", h.Host)
	case len(h.Path) == 0 || h.Path[0] != '/':
		return faultf("path", "%q does not begin with a slash", h.Path)
	case !isHeaderText(h.Path):
		return faultf("path", "%q can not be sent in a request line", h.Path)
	}
	switch method := m.GetMethod(); method {
	case corev3.RequestMethod_METHOD_UNSPECIFIED:
	case corev3.RequestMethod_CONNECT:
		return faultf("method", "%v is not supported", method)
	default:
		name, ok := corev3.RequestMethod_name[int32(method)]
		if !ok {
			return faultf("method", "value %d is not known", method)
		}
		h.Method = name
	}
	switch codec := m.GetCodecClientType(); codec {
	case typev3.CodecClientType_HTTP1:
	case typev3.CodecClientType_HTTP2:
		h.HTTP2 = true
	default:
		return faultf("codec_client_type", "%v is not supported", codec)
	}
	var f *fault
	if h.Headers, f = changesOf("request_headers", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()); f != nil {
		return f
	}
	if h.Expected, f = each("expected_statuses", m.GetExpectedStatuses(), statuses); f != nil {
		return f
	}
	if h.Expected == nil {
		h.Expected = []resilience.StatusRange{{Start: 200, End: 201}}
	}
	h.Retriable, f = each("retriable_statuses", m.GetRetriableStatuses(), statuses)
	return f
}

func grpcHealth(m *corev3.HealthCheck_GrpcHealthCheck, cluster string, h *resilience.HealthCheck) *fault {
	h.Kind, h.Service, h.Authority, h.HTTP2 = resilience.HealthGRPC, m.GetServiceName(), m.GetAuthority(), true
	if h.Authority == "" {
		h.Authority = cluster
	}
	if !isHeaderText(h.Authority) {
		return faultf("authority", "%q can not be sent in a header", h.Authority)
	}
	var f *fault
	h.Headers.Set, f = each("initial_metadata", m.GetInitialMetadata(), headerChange)
	return f
}

// statuses reads a range from 100 up to but without 600, as Envoy demands.
func statuses(m *typev3.Int64Range) (resilience.StatusRange, *fault) {
	switch {
	case m.GetStart() < 100:
		return resilience.StatusRange{}, faultf("start", "%d is less than 100", m.GetStart())
	case m.GetEnd() > 600:
		return resilience.StatusRange{}, faultf("end", "%d is more than 600", m.GetEnd())
	case m.GetStart() >= m.GetEnd():
		return resilience.StatusRange{}, faultf("", "from %d up to but without %d there is no status", m.GetStart(), m.GetEnd())
	}
	return resilience.StatusRange{Start: int(m.GetStart()), End: int(m.GetEnd())}, nil
}

// isHeaderText reports whether s can be sent as a header's value or a path: no
// control character and no space, which could end it and begin something else.
func isHeaderText(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
