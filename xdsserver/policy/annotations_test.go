package policy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func annotatedService(annotations string) string {
	return "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n" + annotations + "spec: {ports: [{port: 80}], selector: {app: a}}\n"
}

func lines(list ...string) string { return "    " + strings.Join(list, "\n    ") + "\n" }

func TestFailureAccrual(t *testing.T) {
	const mode, on = "balancer.linkerd.io/failure-accrual: ", "balancer.linkerd.io/failure-accrual-consecutive-"
	const rate = "balancer.alpha.linkerd.io/failure-accrual-success-rate-"
	consecutive := FailureAccrual{MaxFailures: 7, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 0.5}
	unified := consecutive
	unified.SuccessRate, unified.Window, unified.MinRequests = 0.8, 10*time.Second, 5
	change := func(a FailureAccrual, f func(*FailureAccrual)) *FailureAccrual {
		f(&a)
		return &a
	}
	for _, tt := range []struct {
		text    []string
		want    *FailureAccrual
		problem string // the field and a part of the message
		line    int
	}{
		{[]string{"config.linkerd.io/opaque-ports: '80'"}, nil, "", 0},
		{[]string{mode + "consecutive"}, &consecutive, "", 0},
		{[]string{mode + "unified"}, nil, "unified is not enforced by the mesh where both", 6},
		{[]string{mode + "success-rate"}, change(unified, func(a *FailureAccrual) { a.MaxFailures = 0 }), "", 0},
		{[]string{mode + "success-rate", rate + "threshold: '0.3'", rate + "window: 1m"},
			change(unified, func(a *FailureAccrual) { a.MaxFailures, a.SuccessRate, a.Window = 0, 0.3, time.Minute }), "", 0},
		{[]string{mode + "consecutive", on + "max-failures: '3'", on + "min-penalty: 10ms", on + "max-penalty: 1d", on + "jitter-ratio: '100'"},
			&FailureAccrual{MaxFailures: 3, MinPenalty: 10 * time.Millisecond, MaxPenalty: 24 * time.Hour, Jitter: 100}, "", 0},
		{[]string{mode + "unified", on + "max-failures: '0'", rate + "threshold: '0.5'", rate + "window: 2m", rate + "min-requests: '1'"},
			&FailureAccrual{SuccessRate: 0.5, Window: 2 * time.Minute, MinRequests: 1, MinPenalty: time.Second, MaxPenalty: time.Minute, Jitter: 0.5}, "", 0},
		{[]string{mode + "unified", rate + "threshold: '0'", rate + "window: 1ms"},
			change(unified, func(a *FailureAccrual) { a.SuccessRate, a.Window = 0, time.Millisecond }), "", 0},
		{[]string{mode + "unified", rate + "threshold: '0'", on + "max-failures: '0'"}, nil, "failure-accrual]: warning: has no effect", 6},
		{[]string{on + "max-failures: '3'"}, nil, "metadata.annotations: warning: has settings of failure accrual", 5},
		{[]string{mode + "consecutive", rate + "threshold: '0.3'"}, &consecutive, "metadata.annotations: warning: has settings of the success rate", 5},
		{[]string{mode + "sometimes"}, nil, "failure-accrual]: \"sometimes\" is not one of", 6},
		{[]string{mode + "consecutive", on + "max-failures: '-1'"}, &consecutive, "max-failures]: \"-1\" is not a whole number", 7},
		{[]string{mode + "consecutive", on + "min-penalty: '0'"}, &consecutive, "min-penalty]: \"0\" must be more than 0", 7},
		{[]string{mode + "consecutive", on + "min-penalty: 0.5s"}, &consecutive, "min-penalty]: \"0.5s\" is not a duration", 7},
		{[]string{mode + "consecutive", on + "min-penalty: 9223372036854775807d"}, &consecutive, "is not a duration", 7},
		{[]string{mode + "consecutive", on + "max-penalty: 5"}, &consecutive, "quotes", 7},
		{[]string{mode + "consecutive", on + "min-penalty: 2m"}, change(consecutive, func(a *FailureAccrual) { a.MinPenalty = 2 * time.Minute }), "is more than the maximum", 7},
		{[]string{mode + "consecutive", on + "jitter-ratio: '100.1'"}, &consecutive, "jitter-ratio]: \"100.1\" is not a number between 0 and 100", 7},
		{[]string{mode + "consecutive", on + "jitter-ratio: NaN"}, &consecutive, "jitter-ratio]", 7},
		{[]string{mode + "success-rate", rate + "threshold: '1.01'"}, change(unified, func(a *FailureAccrual) { a.MaxFailures = 0 }), "threshold]: \"1.01\" is not a number between 0 and 1", 7},
		{[]string{mode + "success-rate", rate + "window: 1ms"}, change(unified, func(a *FailureAccrual) { a.MaxFailures, a.Window = 0, time.Millisecond }), "less than 10ms", 7},
		{[]string{mode + "success-rate", rate + "min-requests: '1000001'"}, change(unified, func(a *FailureAccrual) { a.MaxFailures = 0 }), "min-requests]", 7},
		{[]string{mode + "consecutive", on + "max-failure: '3'"}, &consecutive, "did you mean balancer.linkerd.io/failure-accrual-consecutive-max-failures", 7},
		{[]string{"balancer.alpha.linkerd.io/penalize-failures: 'true'"}, nil, "penalize-failures]: is not enforced by the mesh", 6},
	} {
		f := Parse("f.yaml", []byte(annotatedService(lines(tt.text...))))
		got := f.Objects[0].Spec.(*KubernetesService).annotated.accrual
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, want %+v", tt.text, got, tt.want)
		}
		checkProblem(t, fmt.Sprint(tt.text), f.Problems, tt.problem, tt.line)
	}
}

func checkProblem(t *testing.T, what string, problems []Problem, want string, line int) {
	t.Helper()
	if want == "" {
		if len(problems) > 0 {
			t.Errorf("%s: %q", what, texts(problems))
		}
		return
	}
	if len(problems) != 1 || !strings.Contains(problems[0].String(), want) || problems[0].At.Line != line {
		t.Errorf("%s: %q, want %s on line %d", what, texts(problems), want, line)
	}
}

func TestServiceRetriesAndTimeouts(t *testing.T) {
	for _, tt := range []struct {
		text    []string
		retryOn string
		limit   int32
		timeout time.Duration
		problem string
		line    int
	}{
		{[]string{"timeout.linkerd.io/request: 1500ms"}, "", 0, 1500 * time.Millisecond, "", 0},
		{[]string{"retry.linkerd.io/http: '503, gateway-error'"}, "503,502,503,504", 1, 0, "", 0},
		{[]string{"retry.linkerd.io/http: 429-431", "retry.linkerd.io/grpc: internal,unavailable", "retry.linkerd.io/limit: '4'"}, "429,430,431,internal,unavailable", 4, 0, "", 0},
		{[]string{"retry.linkerd.io/limit: '4'"}, "", 0, 0, "limit]: warning: has no effect", 6},
		{[]string{"retry.linkerd.io/http: 5yy"}, "", 1, 0, "http]: \"5yy\" is not", 6},
		{[]string{"retry.linkerd.io/http: 504-500"}, "", 1, 0, "http]: \"504-500\" is not", 6},
		{[]string{"retry.linkerd.io/grpc: 5xx"}, "", 1, 0, "grpc]: \"5xx\" is not one of", 6},
		{[]string{"retry.linkerd.io/timeout: 1s"}, "", 0, 0, "timeout]: is not enforced", 6},
		{[]string{"timeout.linkerd.io/idle: 1s"}, "", 0, 0, "idle]: is not enforced", 6},
		{[]string{"timeout.linkerd.io/request: 1"}, "", 0, 0, "quotes", 6},
	} {
		f := Parse("f.yaml", []byte(annotatedService(lines(tt.text...))))
		route := f.Objects[0].Spec.(*KubernetesService).annotated.route
		if route.GetRetries().GetRetryOn() != tt.retryOn || route.GetRetries().GetAttempts() != tt.limit || route.GetTimeout().AsDuration() != tt.timeout {
			t.Errorf("%q: %v", tt.text, route)
		}
		checkProblem(t, fmt.Sprint(tt.text), f.Problems, tt.problem, tt.line)
	}
}

func TestBalancerAnnotation(t *testing.T) {
	dr := func(annotation, policy string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x, annotations: {" + annotation + "}}\nspec: {host: a, trafficPolicy: {" + policy + "}}\n"
	}
	const ewma = "sinew.io/load-balancer: peak-ewma"
	for _, tt := range []struct{ text, problem string }{
		{annotatedService(lines(ewma)), ""},
		{annotatedService(lines("sinew.io/load-balancer: ewma")), "is not a load balancer"},
		{annotatedService(lines("sinew.io/loadbalancer: peak-ewma")), "did you mean sinew.io/load-balancer"},
		{dr(ewma, "outlierDetection: {}"), ""},
		{dr(ewma, "loadBalancer: {localityLbSetting: {enabled: false}}"), ""},
		{dr(ewma, "loadBalancer: {simple: ROUND_ROBIN}"), "names another"},
		{dr(ewma, "loadBalancer: {consistentHash: {useSourceIp: true}}"), "names another"},
		{dr("sinew.io/load-balancer: x", "outlierDetection: {}"), "is not a load balancer"},
	} {
		f := Parse("f.yaml", []byte(tt.text))
		found := tt.problem == "" && len(f.Problems) == 0
		for _, p := range f.Problems {
			found = found || tt.problem != "" && p.Severity == Error && strings.Contains(p.String(), tt.problem) && strings.Contains(p.Field, "metadata.annotations[")
		}
		if !found {
			t.Errorf("%s: %q, want %q", tt.text, texts(f.Problems), tt.problem)
		}
	}
}

// TestPlacementBesideTheSpec: labels and annotations of Istio that would send
// requests elsewhere are not passed over.
func TestPlacementBesideTheSpec(t *testing.T) {
	service := "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  %s\nspec: {selector: {app: x}, ports: [{port: 80}]}\n"
	entry := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: x\n  %s\nspec: {hosts: [a.example], resolution: DNS, ports: [{name: http, number: 80, protocol: HTTP}]}\n"
	for _, kind := range []string{service, entry} {
		for _, tt := range []struct{ meta, field string }{
			{"labels: {istio.io/persistent-session: session}", "metadata.labels[istio.io/persistent-session]"},
			{"labels: {istio.io/persistent-session-header: x-session}", "metadata.labels[istio.io/persistent-session-header]"},
			{"annotations: {networking.istio.io/traffic-distribution: PreferClose}", "metadata.annotations[networking.istio.io/traffic-distribution]"},
			{"labels: {istio.io/persistent-session: ''}", ""},
			{"labels: {app: x, istio.io/use-waypoint: none}", ""},
			{"annotations: {networking.istio.io/exportTo: '.'}", ""},
		} {
			f := Parse("f.yaml", fmt.Appendf(nil, kind, tt.meta))
			if tt.field == "" {
				if len(f.Problems) > 0 {
					t.Errorf("%s: %v", tt.meta, texts(f.Problems))
				}
				continue
			}
			if len(f.Problems) != 1 || f.Problems[0].Severity != Error || f.Problems[0].Field != tt.field || f.Problems[0].At.Line != 5 {
				t.Errorf("%s: %+v, want an error at %s in line 5", tt.meta, f.Problems, tt.field)
			}
		}
	}
}
