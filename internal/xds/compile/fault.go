package compile

import (
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// faultSetting reads what the fault filter does; nil where it does nothing.
func faultSetting(m *faultv3.HTTPFault) (*snapshot.FaultSetting, *fault) {
	out := &resilience.Fault{}
	var f *fault
	if m.GetDelay() != nil {
		if out.Delay, f = faultDelay(m.GetDelay()); f != nil {
			return nil, f.under("delay")
		}
	}
	if m.GetAbort() != nil {
		if out.Abort, f = faultAbort(m.GetAbort()); f != nil {
			return nil, f.under("abort")
		}
	}
	if out.Headers, f = each("headers", m.GetHeaders(), headerMatch); f != nil {
		return nil, f
	}
	if len(m.GetDownstreamNodes()) > 0 {
		nodes, f := oneOf(m.GetDownstreamNodes())
		if f != nil {
			return nil, f.under("downstream_nodes")
		}
		out.Headers = append(out.Headers, routing.HeaderMatch{Name: downstreamNode, String: nodes})
	}
	if m.GetMaxActiveFaults() != nil {
		limit := m.GetMaxActiveFaults().GetValue()
		out.MaxActive = &limit
	}
	if out.Delay == nil && out.Abort == nil {
		return nil, nil
	}
	return &snapshot.FaultSetting{Fault: out, Cluster: m.GetUpstreamCluster()}, nil
}

// downstreamNode is the header by which an Envoy says which node it is.
var downstreamNode = routing.NewHeaderName("x-envoy-downstream-service-node")

// oneOf matches any of the texts as it is.
func oneOf(texts []string) (routing.StringMatch, *fault) {
	if len(texts) == 1 {
		return routing.Exact(texts[0], false), nil
	}
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = regexp.QuoteMeta(text)
	}
	m, err := routing.Regex(strings.Join(quoted, "|"))
	if err != nil {
		return m, faultf("", "%v", err)
	}
	return m, nil
}

func faultDelay(m *commonfaultv3.FaultDelay) (*resilience.FaultDelay, *fault) {
	d := &resilience.FaultDelay{}
	var f *fault
	switch spec := m.GetFaultDelaySecifier().(type) {
	case *commonfaultv3.FaultDelay_FixedDelay:
		d.Fixed, f = positive("fixed_delay", spec.FixedDelay, 0)
	case *commonfaultv3.FaultDelay_HeaderDelay_:
		d.FromHeader = true
	default:
		f = faultf("", "neither fixed_delay nor header_delay is set")
	}
	if f == nil {
		d.Fraction, d.Denominator, f = percentage(m.GetPercentage())
	}
	return d, f
}

func faultAbort(m *faultv3.FaultAbort) (*resilience.FaultAbort, *fault) {
	a := &resilience.FaultAbort{GRPC: -1, Body: m.GetResponseBody()}
	switch spec := m.GetErrorType().(type) {
	case *faultv3.FaultAbort_HttpStatus:
		if spec.HttpStatus < 200 || spec.HttpStatus > 599 {
			return nil, faultf("http_status", "%d is not from 200 to 599", spec.HttpStatus)
		}
		a.Status = int(spec.HttpStatus)
	case *faultv3.FaultAbort_GrpcStatus:
		if spec.GrpcStatus > 1<<31-1 {
			return nil, faultf("grpc_status", "%d is not a status", spec.GrpcStatus)
		}
		a.GRPC = int(spec.GrpcStatus)
	case *faultv3.FaultAbort_HeaderAbort_:
		a.FromHeader = true
	default:
		return nil, faultf("", "none of http_status, grpc_status and header_abort is set")
	}
	var f *fault
	a.Fraction, a.Denominator, f = percentage(m.GetPercentage())
	return a, f
}

// percentage reads a share of requests, and what it is counted in; none is 0 %.
func percentage(m *typev3.FractionalPercent) (out routing.Fraction, denominator uint32, f *fault) {
	out.PerMillion, f = fraction(m)
	switch m.GetDenominator() {
	case typev3.FractionalPercent_TEN_THOUSAND:
		denominator = 10_000
	case typev3.FractionalPercent_MILLION:
		denominator = 1_000_000
	default:
		denominator = 100
	}
	return out, denominator, f.under("percentage")
}

// hedge reads how a request is sent more than once at the same time; nil where it is not.
func hedge(m *routev3.HedgePolicy) (*resilience.Hedge, *fault) {
	if m == nil {
		return nil, nil
	}
	h := &resilience.Hedge{Initial: 1, OnPerTryTimeout: m.GetHedgeOnPerTryTimeout()}
	if m.GetInitialRequests() != nil {
		if h.Initial = m.GetInitialRequests().GetValue(); h.Initial == 0 {
			return nil, faultf("initial_requests", "must be more than 0")
		}
	}
	var f *fault
	if h.Additional.PerMillion, f = fraction(m.GetAdditionalRequestChance()); f != nil {
		return nil, f.under("additional_request_chance")
	}
	if h.Initial == 1 && h.Additional.PerMillion == 0 && !h.OnPerTryTimeout {
		return nil, nil
	}
	return h, nil
}
