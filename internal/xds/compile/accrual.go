package compile

import (
	"fmt"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Defaults of failure accrual (https://linkerd.io/2/reference/circuit-breaking/),
// of peak EWMA (Linkerd's proxy), and how long a probe may take.
const (
	defaultMaxFailures  = 7
	defaultWindow       = 30 * time.Second
	defaultMinRequests  = 10
	defaultMinPenalty   = time.Second
	defaultMaxPenalty   = time.Minute
	defaultJitter       = 0.5
	maxJitter           = 100
	defaultProbeTimeout = 10 * time.Second
	defaultDecay        = 10 * time.Second
)

// ownFields reads what Envoy has no field for: filter_metadata "sinew"
// of a cluster. A key that is not known is refused, because it asks for something.
func ownFields(m *clusterv3.Cluster, c *snapshot.Cluster) *fault {
	own, ok := m.GetMetadata().GetFilterMetadata()[ownMetadata]
	if !ok {
		return nil
	}
	for _, key := range sortedKeys(own.GetFields()) {
		value := own.GetFields()[key]
		var f *fault
		switch key {
		case "failure_accrual":
			c.Accrual, f = accrual(value)
		case "peak_ewma":
			f = peakEWMA(value, &c.LB)
		default:
			f = faultf("", notSupported)
		}
		if f == nil && c.Discovery == snapshot.Aggregate {
			f = faultf("", "not supported in an aggregate cluster")
		}
		if f != nil {
			return f.under(key).underKey("metadata.filter_metadata", ownMetadata)
		}
	}
	return nil
}

// settings are the fields of a struct that are still to be read; f is the first fault.
type settings struct {
	left map[string]*structpb.Value
	f    *fault
}

func settingsOf(v *structpb.Value) *settings {
	s, ok := v.GetKind().(*structpb.Value_StructValue)
	if !ok {
		return &settings{f: faultf("", "is not an object")}
	}
	left := make(map[string]*structpb.Value, len(s.StructValue.GetFields()))
	for key, value := range s.StructValue.GetFields() {
		left[key] = value
	}
	return &settings{left: left}
}

func (s *settings) take(key string) (*structpb.Value, bool) {
	v, ok := s.left[key]
	delete(s.left, key)
	return v, ok && s.f == nil
}

func (s *settings) fail(key, format string, args ...any) {
	if s.f == nil {
		s.f = &fault{path: key, why: fmt.Sprintf(format, args...)}
	}
}

func (s *settings) text(key, def string) string {
	v, ok := s.take(key)
	if !ok {
		return def
	}
	t, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok {
		s.fail(key, "is not a text")
		return def
	}
	return t.StringValue
}

func (s *settings) number(key string, def, least, most float64) float64 {
	v, ok := s.take(key)
	if !ok {
		return def
	}
	n, ok := v.GetKind().(*structpb.Value_NumberValue)
	if !ok || !(n.NumberValue >= least && n.NumberValue <= most) {
		s.fail(key, "is not a number from %v to %v", least, most)
		return def
	}
	return n.NumberValue
}

func (s *settings) whole(key string, def uint32) uint32 {
	n := s.number(key, float64(def), 0, math.MaxUint32)
	if n != math.Trunc(n) {
		s.fail(key, "%v is not a whole number", n)
	}
	return uint32(n)
}

// span is a duration above 0 in Go's form, such as "1m30s".
func (s *settings) span(key string, def time.Duration) time.Duration {
	text := s.text(key, "")
	if text == "" {
		if s.f == nil {
			return def
		}
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		s.fail(key, "%q is not a duration above 0", text)
	}
	return d
}

func (s *settings) end() *fault {
	for _, key := range sortedKeys(s.left) {
		s.fail(key, notSupported)
	}
	return s.f
}

func accrual(v *structpb.Value) (*resilience.Accrual, *fault) {
	s := settingsOf(v)
	a := &resilience.Accrual{ProbeTimeout: defaultProbeTimeout}
	// Keys of the other mode may be there, and say nothing.
	failures := s.whole("max_failures", defaultMaxFailures)
	rate := s.number("success_rate", 0, 0, 1)
	a.Window = s.span("window", defaultWindow)
	a.MinRequests = s.whole("min_requests", defaultMinRequests)
	a.MinPenalty = s.span("min_penalty", defaultMinPenalty)
	a.MaxPenalty = s.span("max_penalty", defaultMaxPenalty)
	a.Jitter = s.number("jitter", defaultJitter, 0, maxJitter)
	switch mode := s.text("mode", ""); mode {
	case "consecutive":
		if a.Consecutive = failures; failures == 0 {
			s.fail("max_failures", "must be more than 0")
		}
	case "success-rate":
		if a.SuccessRate = rate; rate == 0 {
			s.fail("success_rate", "must be more than 0")
		}
	default:
		s.fail("mode", "%q is neither consecutive nor success-rate", mode)
	}
	if a.MinPenalty > a.MaxPenalty {
		s.fail("min_penalty", "%v is more than max_penalty, %v", a.MinPenalty, a.MaxPenalty)
	}
	if f := s.end(); f != nil {
		return nil, f
	}
	return a, nil
}

// peakEWMA takes the place of the policy that Envoy would use.
func peakEWMA(v *structpb.Value, p *lb.Policy) *fault {
	s := settingsOf(v)
	decay := s.span("decay", defaultDecay)
	if f := s.end(); f != nil {
		return f
	}
	switch p.Kind {
	case lb.RoundRobin, lb.Random, lb.LeastRequest:
	default:
		return faultf("", "not supported in place of a policy by hash or by reported load")
	}
	if p.Choices == 0 {
		p.Choices = DefaultChoices
	}
	p.Kind, p.Decay, p.FullScan, p.ActiveBias = lb.PeakEWMA, decay, false, nil
	return nil
}
