package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/resilience"
)

const (
	// BalancerAnnotation on a Service, ServiceEntry or DestinationRule asks for a load
	// balancer that Istio's API has no word for. Its one value is PeakEWMA.
	BalancerAnnotation = "sinew.io/load-balancer"
	// PeakEWMA chooses by the latency that endpoints have had of late, times their requests in flight.
	PeakEWMA = "peak-ewma"

	ownAnnotations = "sinew.io/"
)

// FailureAccrual is the failure-driven breaker of each endpoint of a Service, as
// Linkerd's annotations ask for it
// (https://linkerd.io/2/reference/circuit-breaking/).
type FailureAccrual struct {
	// MaxFailures in a row put an endpoint out of use; 0 has them not count. Default 7.
	MaxFailures uint32
	// SuccessRate, between 0 and 1, is that below which an endpoint is put out of use,
	// over Window and from MinRequests on; 0 has it not count. Defaults, in modes
	// "success-rate" and "unified": 0.8, 10 s and 5. One of it and MaxFailures is 0.
	SuccessRate float64
	Window      time.Duration
	MinRequests uint32
	// MinPenalty is how long it is out of use first, and MaxPenalty at most. Defaults 1 s and 1 min.
	MinPenalty, MaxPenalty time.Duration
	// Jitter is the share of the penalty that may be added. Default 0.5.
	Jitter float64
}

// Linkerd's annotations, and the domains of those that change where requests go or
// whether they are tried again.
const (
	accrualAnnotation = "balancer.linkerd.io/failure-accrual"
	consecutivePrefix = "balancer.linkerd.io/failure-accrual-consecutive-"
	successRatePrefix = "balancer.alpha.linkerd.io/failure-accrual-success-rate-"
	retryPrefix       = "retry.linkerd.io/"
	timeoutPrefix     = "timeout.linkerd.io/"
)

var trafficAnnotations = []string{"balancer.linkerd.io/", "balancer.alpha.linkerd.io/", retryPrefix, timeoutPrefix, "retry.alpha.linkerd.io/", "timeout.alpha.linkerd.io/"}

// knownAnnotations are those of the domains above that are read.
var knownAnnotations = []string{
	accrualAnnotation, consecutivePrefix + "max-failures", consecutivePrefix + "min-penalty", consecutivePrefix + "max-penalty",
	consecutivePrefix + "jitter-ratio", successRatePrefix + "threshold", successRatePrefix + "window", successRatePrefix + "min-requests",
	retryPrefix + "http", retryPrefix + "grpc", retryPrefix + "limit", timeoutPrefix + "request",
}

// Istio's labels and annotations of a Service or ServiceEntry that change where its
// requests go, and that the mesh has no rule for
// (https://istio.io/latest/docs/reference/config/labels/, and annotations).
var (
	unenforcedLabels      = []string{"istio.io/persistent-session", "istio.io/persistent-session-header"}
	unenforcedAnnotations = []string{"networking.istio.io/traffic-distribution"}
)

// placement refuses what is asked for beside the spec and not enforced.
func (f *findings) placement(m *Meta) {
	for _, name := range unenforcedLabels {
		if m.Labels[name] != "" {
			f.errorf("metadata.labels["+name+"]", "is not enforced by the mesh: a DestinationRule's consistentHash keeps a client at its endpoint")
		}
	}
	for _, name := range unenforcedAnnotations {
		if m.Annotations[name] != "" {
			f.errorf("metadata.annotations["+name+"]", "is not enforced by the mesh: a DestinationRule's localityLbSetting says where requests go")
		}
	}
}

// annotated is what a Service's annotations say of its traffic.
type annotated struct {
	balancer string
	accrual  *FailureAccrual
	// route has the timeout and the retries of requests that no VirtualService decides on; nil where nothing is said.
	route *networking.HTTPRoute
}

// trafficAnnotations reads what annotations say of traffic. One of a domain that
// changes traffic which is not read is refused; those of other domains are others' business.
func (f *findings) trafficAnnotations(m *Meta) annotated {
	at := func(name string) string { return "metadata.annotations[" + name + "]" }
	var out annotated
	out.balancer = f.balancerAnnotation(m)
	f.placement(m)
	used := func(name string, read func(text string) error) bool {
		text, ok := m.Annotations[name]
		if !ok {
			return false
		}
		f.err(at(name), read(strings.TrimSpace(text)))
		return true
	}
	for _, name := range sortedKeys(m.Annotations) {
		ours := slices.ContainsFunc(trafficAnnotations, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if ours && !slices.Contains(knownAnnotations, name) {
			f.errorf(at(name), "is not enforced by the mesh%s", suggest(name, knownAnnotations))
		}
	}
	f.accrual(m, used, &out)

	var timeout *durationpb.Duration
	used(timeoutPrefix+"request", func(text string) error {
		d, err := linkerdDuration(text)
		timeout = durationpb.New(d)
		return err
	})
	retries := f.linkerdRetries(m, used)
	if timeout != nil || retries != nil {
		out.route = &networking.HTTPRoute{Timeout: timeout, Retries: retries}
	}
	return out
}

// balancerAnnotation returns the value of BalancerAnnotation, and refuses other annotations of the mesh's own domain.
func (f *findings) balancerAnnotation(m *Meta) string {
	for _, name := range sortedKeys(m.Annotations) {
		if strings.HasPrefix(name, ownAnnotations) && name != BalancerAnnotation {
			f.errorf("metadata.annotations["+name+"]", "is not known%s", suggest(name, []string{BalancerAnnotation}))
		}
	}
	value := m.Annotations[BalancerAnnotation]
	if value != "" && value != PeakEWMA {
		f.errorf("metadata.annotations["+BalancerAnnotation+"]", "%q is not a load balancer: the one value is %s", value, PeakEWMA)
		return ""
	}
	return value
}

func (f *findings) accrual(m *Meta, used func(string, func(string) error) bool, out *annotated) {
	a := &FailureAccrual{MaxFailures: 7, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 0.5}
	mode, ok := m.Annotations[accrualAnnotation]
	known := mode == "consecutive" || mode == "unified" || mode == "success-rate"
	if ok && !known {
		f.errorf("metadata.annotations["+accrualAnnotation+"]", "%q is not one of consecutive, success-rate, unified", mode)
	}
	if mode == "unified" || mode == "success-rate" {
		a.SuccessRate, a.Window, a.MinRequests = 0.8, 10*time.Second, 5
	}
	has := used(consecutivePrefix+"max-failures", func(s string) error { return wholeNumber(s, math.MaxUint32, &a.MaxFailures) })
	has = used(consecutivePrefix+"min-penalty", func(s string) error { return penalty(s, &a.MinPenalty) }) || has
	has = used(consecutivePrefix+"max-penalty", func(s string) error { return penalty(s, &a.MaxPenalty) }) || has
	has = used(consecutivePrefix+"jitter-ratio", func(s string) error { return ratio(s, 100, &a.Jitter) }) || has
	rate := used(successRatePrefix+"threshold", func(s string) error { return ratio(s, 1, &a.SuccessRate) })
	rate = used(successRatePrefix+"window", func(s string) error { return penalty(s, &a.Window) }) || rate
	rate = used(successRatePrefix+"min-requests", func(s string) error { return wholeNumber(s, 1_000_000, &a.MinRequests) }) || rate
	switch {
	case !ok && (has || rate):
		f.warnf("metadata.annotations", "has settings of failure accrual, which take effect only with %s", accrualAnnotation)
	case mode == "consecutive" && rate:
		f.warnf("metadata.annotations", "has settings of the success rate, which have no effect with %s: consecutive", accrualAnnotation)
		a.SuccessRate, a.Window, a.MinRequests = 0, 0, 0
	}
	if mode == "success-rate" {
		a.MaxFailures = 0
	}
	if a.MinPenalty > a.MaxPenalty {
		f.errorf("metadata.annotations["+consecutivePrefix+"min-penalty]", "%v is more than the maximum, %v", a.MinPenalty, a.MaxPenalty)
	}
	if a.SuccessRate > 0 && a.Window < 10*time.Millisecond {
		f.errorf("metadata.annotations["+successRatePrefix+"window]", "%v is less than 10ms", a.Window)
	}
	if !known {
		return
	}
	if a.MaxFailures == 0 && a.SuccessRate == 0 {
		f.warnf("metadata.annotations["+accrualAnnotation+"]", "has no effect: both failures in a row and the success rate are switched off")
		return
	}
	if a.MaxFailures > 0 && a.SuccessRate > 0 {
		f.errorf("metadata.annotations["+accrualAnnotation+"]",
			"unified is not enforced by the mesh where both failures in a row and the success rate count: write consecutive or success-rate, or set %smax-failures or %sthreshold to \"0\"",
			consecutivePrefix, successRatePrefix)
		return
	}
	rule := resilience.Accrual{
		Consecutive: a.MaxFailures, SuccessRate: a.SuccessRate, Window: a.Window, MinRequests: a.MinRequests,
		MinPenalty: a.MinPenalty, MaxPenalty: a.MaxPenalty, Jitter: a.Jitter, ProbeTimeout: time.Second,
	}
	if err := rule.Validate(); err != nil && !slices.ContainsFunc(*f, func(have Finding) bool { return have.Severity == Error }) {
		f.errorf("metadata.annotations["+accrualAnnotation+"]", "the mesh does not take it: %v", err)
	}
	out.accrual = a
}

// linkerdRetries reads which answers are retried: statuses of HTTP and of gRPC, by the
// answer alone, so that a connection that breaks is none of them
// (https://linkerd.io/2/reference/retries/). Default limit 1.
func (f *findings) linkerdRetries(m *Meta, used func(string, func(string) error) bool) *networking.HTTPRetry {
	var on []string
	http := used(retryPrefix+"http", func(text string) error {
		for _, part := range strings.Split(text, ",") {
			from, to, err := statusRange(strings.TrimSpace(part))
			if err != nil {
				return err
			}
			for code := from; code <= to; code++ {
				on = append(on, strconv.Itoa(code))
			}
		}
		return nil
	})
	grpc := used(retryPrefix+"grpc", func(text string) error {
		for _, part := range strings.Split(text, ",") {
			part = strings.TrimSpace(part)
			if !slices.Contains(grpcRetries, part) {
				return fmt.Errorf("%q is not one of %s", part, strings.Join(grpcRetries, ", "))
			}
			on = append(on, part)
		}
		return nil
	})
	limit := uint32(1)
	given := used(retryPrefix+"limit", func(text string) error { return wholeNumber(text, math.MaxInt32, &limit) })
	if !http && !grpc {
		if given {
			f.warnf("metadata.annotations["+retryPrefix+"limit]", "has no effect without %shttp or %sgrpc", retryPrefix, retryPrefix)
		}
		return nil
	}
	return &networking.HTTPRetry{Attempts: int32(limit), RetryOn: strings.Join(on, ",")}
}

var grpcRetries = []string{"cancelled", "deadline-exceeded", "resource-exhausted", "internal", "unavailable"}

// statusRange reads "5xx", "gateway-error", a status, or two with a hyphen.
func statusRange(s string) (from, to int, err error) {
	switch s {
	case "5xx":
		return 500, 599, nil
	case "gateway-error":
		return 502, 504, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.Atoi(first)
	to, err2 := strconv.Atoi(last)
	if err1 != nil || err2 != nil || from < 100 || to > 599 || from > to {
		return 0, 0, fmt.Errorf("%q is not 5xx, gateway-error, a status, or a range of them such as 500-504", s)
	}
	return from, to, nil
}

func wholeNumber(s string, limit uint64, out *uint32) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > limit {
		return fmt.Errorf("%q is not a whole number up to %d", s, limit)
	}
	*out = uint32(n)
	return nil
}

func ratio(s string, limit float64, out *float64) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= 0 && v <= limit) {
		return fmt.Errorf("%q is not a number between 0 and %v", s, limit)
	}
	*out = v
	return nil
}

func penalty(s string, out *time.Duration) error {
	d, err := linkerdDuration(s)
	if err != nil {
		return err
	}
	if d == 0 {
		return fmt.Errorf("%q must be more than 0", s)
	}
	*out = d
	return nil
}

var linkerdUnits = map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}

// linkerdDuration reads a whole number with a unit.
func linkerdDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	digits := strings.TrimRight(s, "msdh")
	unit, ok := linkerdUnits[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 63)
	if !ok || err != nil || n > uint64(math.MaxInt64/unit) {
		return 0, fmt.Errorf("%q is not a duration: write a whole number and one of ms, s, m, h, d", s)
	}
	return time.Duration(n) * unit, nil
}
