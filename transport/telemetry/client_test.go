package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/meshhttp"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// statuses answers with one status after the other.
func statuses(list ...int) transport {
	return func(*http.Request) (*http.Response, error) {
		s := list[0]
		list = list[1:]
		return answer(s), nil
	}
}

func TestAttemptsOfACall(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	var sent []string
	next := statuses(500, 500, 200)
	rt := client(t, r.Telemetry, retryOn(t, "5xx", 2), 0, transport(func(req *http.Request) (*http.Response, error) {
		sent = append(sent, req.Header.Get("Traceparent"))
		return next(req)
	}))
	if status, err := send(t, rt, request(t, context.Background(), "GET", "http://shop.example:8080/a?x=1")); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	calls, tries := r.ended(trace.SpanKindInternal), r.ended(trace.SpanKindClient)
	if len(calls) != 1 || len(tries) != 3 {
		t.Fatalf("%d call and %d attempt spans", len(calls), len(tries))
	}
	check(t, "call", attrsOf(calls[0].Attributes()), map[string]string{
		"http.request.method": "GET", "url.full": "http://shop.example:8080/a?x=1", "server.address": "shop.example", "server.port": "8080",
		"http.response.status_code": "200", "error.type": "", "mesh.cluster": "passthrough", "mesh.attempts": "3",
	})
	for i, s := range tries {
		if s.Parent().SpanID() != calls[0].SpanContext().SpanID() || s.Name() != "GET" {
			t.Errorf("attempt %d: parent or name %q", i, s.Name())
		}
		if want := formatTraceparent(s.SpanContext()); sent[i] != want {
			t.Errorf("attempt %d sent %s, want %s", i, sent[i], want)
		}
		resend, status, word, code := "", "200", "", "Unset"
		if i > 0 {
			resend = strconv.Itoa(i)
		}
		if i < 2 {
			status, word, code = "500", "500", "Error"
		}
		check(t, "attempt", attrsOf(s.Attributes()), map[string]string{
			"http.request.method": "GET", "url.full": "http://shop.example:8080/a?x=1", "server.address": "shop.example", "server.port": "8080",
			"http.response.status_code": status, "error.type": word, "http.request.resend_count": resend,
		})
		if s.Status().Code.String() != code {
			t.Errorf("attempt %d: status %v", i, s.Status())
		}
	}
	byStatus := make(map[string]uint64)
	for _, p := range r.points(t, "http.client.request.duration") {
		v := p.attrs["http.response.status_code"]
		byStatus[v.String()] += p.count
		if p.sum < 0 {
			t.Errorf("attempts took %v s", p.sum)
		}
	}
	if byStatus["500"] != 2 || byStatus["200"] != 1 || len(byStatus) != 2 {
		t.Errorf("attempts counted %v", byStatus)
	}
	call := r.only(t, "mesh.client.call.duration")
	check(t, "call metric", call.attrs, map[string]string{"http.response.status_code": "200", "mesh.cluster": "passthrough", "error.type": ""})
	retry := r.only(t, "mesh.client.retries")
	check(t, "retries", retry.attrs, map[string]string{"mesh.retry.outcome": "retried", "mesh.cluster": "passthrough"})
	if call.count != 1 || retry.value != 2 {
		t.Errorf("%d calls, %d retries", call.count, retry.value)
	}
}

func TestRetryForbidden(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	rt := client(t, r.Telemetry, retryOn(t, "5xx", 1), 0, statuses(503, 503))
	if status, err := send(t, rt, request(t, context.Background(), "GET", "http://a.example/")); status != 503 || err != nil {
		t.Fatal(status, err)
	}
	got := make(map[string]int64)
	for _, p := range r.points(t, "mesh.client.retries") {
		v := p.attrs[keyOutcome]
		got[v.String()] += p.value
	}
	if got["retried"] != 1 || got["limit"] != 1 || len(got) != 2 {
		t.Errorf("retries %v", got)
	}
}

// A route of policy names cluster, route, host and endpoint.
func TestMeshCall(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }))
	defer server.Close()
	address := server.Listener.Addr().String()
	r := newRig(t, sdktrace.AlwaysSample())
	weighted, err := routing.NewWeighted([]routing.WeightedCluster{{Name: "outbound|9080|v1|reviews", Weight: 1}})
	if err != nil {
		t.Fatal(err)
	}
	e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: meshhttp.NewWire(nil), Observer: r.Observer()})
	defer e.Close()
	e.Install(&snapshot.Snapshot{
		Hosts: map[string]*snapshot.Host{"reviews:9080": {Name: "reviews:9080", VirtualHost: &snapshot.VirtualHost{Routes: []snapshot.Route{{
			Name: "to-v1", Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathPrefix, Value: "/reviews"}}, Clusters: weighted,
		}}}}},
		Clusters: map[string]*snapshot.Cluster{"outbound|9080|v1|reviews": {
			Name: "outbound|9080|v1|reviews", Limits: unlimited, ConnectTimeout: time.Minute,
			Endpoints: lb.NewEndpoints([]lb.Endpoint{{Address: address, Weight: 1}}, nil),
		}},
	})
	rt := meshhttp.NewRoundTripper(e, meshhttp.ClientOptions{Observer: r.Observer(), Inject: r.Inject})
	if status, err := send(t, rt, request(t, context.Background(), "FETCH", "http://reviews:9080/reviews/0")); status != 404 || err != nil {
		t.Fatal(status, err)
	}
	host, port, _ := net.SplitHostPort(address)
	want := map[string]string{
		"http.request.method": "_OTHER", "http.request.method_original": "FETCH", "server.address": "reviews", "server.port": "9080",
		"mesh.route": "to-v1", "mesh.cluster": "outbound|9080|v1|reviews", "error.type": "404", "network.peer.address": host, "network.peer.port": port,
	}
	tries := r.ended(trace.SpanKindClient)
	if len(tries) != 1 || tries[0].Name() != "HTTP" {
		t.Fatalf("%d attempts", len(tries))
	}
	check(t, "attempt", attrsOf(tries[0].Attributes()), want)
	check(t, "attempts", r.only(t, "http.client.request.duration").attrs, map[string]string{
		"http.request.method": "_OTHER", "server.address": "reviews", "server.port": "9080", "http.response.status_code": "404", "error.type": "404",
		"mesh.route": "", "mesh.cluster": "", "http.request.method_original": "", "network.peer.address": "", "network.peer.port": "",
	})
	check(t, "calls", r.only(t, "mesh.client.call.duration").attrs, map[string]string{
		"server.address": "reviews", "mesh.route": "to-v1", "mesh.cluster": "outbound|9080|v1|reviews", "http.response.status_code": "404", "error.type": "404",
		"http.request.method": "", "server.port": "",
	})

	// No route: the call is counted, and there is no attempt.
	_, err = send(t, rt, request(t, context.Background(), "GET", "http://reviews:9080/ratings"))
	var none *outbound.NoRouteError
	if !errors.As(err, &none) {
		t.Fatal(err)
	}
	calls := r.ended(trace.SpanKindInternal)
	check(t, "call", attrsOf(calls[len(calls)-1].Attributes()), map[string]string{
		"error.type": "no_route", "http.response.status_code": "", "server.address": "reviews", "server.port": "9080",
		"http.request.method": "GET", "mesh.attempts": "0", "mesh.cluster": "",
	})
	if n := len(r.ended(trace.SpanKindClient)); n != 1 {
		t.Errorf("%d attempts", n)
	}
	found := false
	for _, p := range r.points(t, "mesh.client.call.duration") {
		v := p.attrs["error.type"]
		found = found || v.String() == "no_route"
	}
	if !found {
		t.Error("the call without a route is not counted")
	}
}

// brokenBody fails after its first byte.
type brokenBody struct{ read bool }

func (b *brokenBody) Read(p []byte) (int, error) {
	if !b.read {
		b.read = true
		p[0] = 'x'
		return 1, nil
	}
	return 0, io.ErrUnexpectedEOF
}
func (b *brokenBody) Close() error { return nil }

func TestBodyThatBreaks(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	rt := client(t, r.Telemetry, nil, 0, transport(func(*http.Request) (*http.Response, error) {
		resp := answer(201)
		resp.Body = &brokenBody{}
		return resp, nil
	}))
	if _, err := send(t, rt, request(t, context.Background(), "GET", "http://a.example/")); err == nil {
		t.Fatal("no error")
	}
	for _, s := range r.spans.Ended() {
		check(t, s.SpanKind().String(), attrsOf(s.Attributes()), map[string]string{"http.response.status_code": "201", "error.type": "reset"})
	}
	if n := len(r.spans.Ended()); n != 2 {
		t.Errorf("%d spans", n)
	}
}

func TestFaults(t *testing.T) {
	place := outbound.Place{Host: "a:80"}
	for _, c := range []struct {
		outcome resilience.Outcome
		want    string
	}{
		{resilience.Outcome{Status: 200}, ""},
		{resilience.Outcome{Status: 302}, ""},
		{resilience.Outcome{Status: 404}, "404"},
		{resilience.Outcome{Status: 503}, "503"},
		{resilience.Outcome{Failure: resilience.Cancelled, Err: context.Canceled}, ""},
		{resilience.Outcome{Failure: resilience.Cancelled, Err: context.DeadlineExceeded}, "timeout"},
		{resilience.Outcome{Failure: resilience.RouteTimeout}, "timeout"},
		{resilience.Outcome{Failure: resilience.PerTryTimeout}, "per_try_timeout"},
		{resilience.Outcome{Failure: resilience.Reset, Err: io.EOF}, "reset"},
		{resilience.Outcome{Failure: resilience.RefusedStream}, "refused_stream"},
		{resilience.Outcome{Failure: resilience.Overflow, Err: &outbound.LimitError{Place: place}}, "limit"},
		{resilience.Outcome{Failure: resilience.Overflow, Err: &outbound.BreakerOpenError{Place: place}}, "breaker_open"},
		{resilience.Outcome{Err: &outbound.NotReadyError{Place: place}}, "not_ready"},
		{resilience.Outcome{Err: &outbound.NotReadyError{Place: place, Err: context.Canceled}}, "not_ready"},
		{resilience.Outcome{Err: &outbound.NoHealthyEndpointError{Place: place}}, "no_healthy_endpoint"},
		{resilience.Outcome{Err: errors.New("secret")}, "_OTHER"},
		{resilience.Outcome{Failure: resilience.ConnectFailure, Err: fmt.Errorf("x: %w", &net.DNSError{Name: "a"})}, "name_resolution_error"},
		{resilience.Outcome{Failure: resilience.ConnectFailure, Err: fmt.Errorf("x: %w", syscall.ECONNREFUSED)}, "connection_refused"},
		{resilience.Outcome{Failure: resilience.ConnectFailure, Err: context.DeadlineExceeded}, "connect_timeout"},
		{resilience.Outcome{Failure: resilience.ConnectFailure, Err: errors.New("x")}, "connect_failure"},
		{resilience.Outcome{Failure: resilience.ConnectFailure}, "connect_failure"},
	} {
		if got := clientFault(&c.outcome).word(c.outcome.Status); got != c.want {
			t.Errorf("%+v: %q, want %q", c.outcome, got, c.want)
		}
	}
}

// countingSampler counts how often it is asked.
type countingSampler struct {
	sdktrace.Sampler
	mu    sync.Mutex
	asked int
	last  sdktrace.SamplingParameters
}

func (s *countingSampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	s.mu.Lock()
	s.asked++
	s.last = p
	s.mu.Unlock()
	return s.Sampler.ShouldSample(p)
}

func TestSamplerIsAskedOnce(t *testing.T) {
	s := &countingSampler{Sampler: sdktrace.NeverSample()}
	r := newRig(t, s)
	var sent []string
	next := statuses(500, 500, 200)
	rt := client(t, r.Telemetry, retryOn(t, "5xx", 2), 0, transport(func(req *http.Request) (*http.Response, error) {
		sent = append(sent, req.Header.Get("Traceparent"))
		return next(req)
	}))
	if _, err := send(t, rt, request(t, context.Background(), "GET", "http://a.example/")); err != nil {
		t.Fatal(err)
	}
	if s.asked != 1 {
		t.Errorf("asked %d times for a call without a parent", s.asked)
	}
	check(t, "sampler", attrsOf(s.last.Attributes), map[string]string{
		"http.request.method": "GET", "server.address": "a.example", "server.port": "80",
	})
	// The decision goes to the server, so that it does not begin a trace of its own.
	if len(sent) != 3 || !strings.HasSuffix(sent[0], "-00") || sent[1] != sent[0] || sent[2] != sent[0] {
		t.Errorf("sent %q", sent)
	}
	// Under an unsampled parent nobody is asked.
	ctx := r.Extract(context.Background(), http.Header{"Traceparent": {unsampled}})
	next = statuses(200)
	if _, err := send(t, rt, request(t, ctx, "GET", "http://a.example/")); err != nil {
		t.Fatal(err)
	}
	if s.asked != 1 || sent[3] != unsampled {
		t.Errorf("asked %d times, sent %s", s.asked, sent[3])
	}
	if n := len(r.spans.Started()); n != 0 {
		t.Errorf("%d spans", n)
	}
}

// A global provider that is installed after New makes the spans from then on.
func TestProviderInstalledLater(t *testing.T) {
	tel, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	rt := client(t, tel, nil, 0, transport(func(*http.Request) (*http.Response, error) { return answer(200), nil }))
	call := func() {
		t.Helper()
		if _, err := send(t, rt, request(t, context.Background(), "GET", "http://a.example/")); err != nil {
			t.Fatal(err)
		}
	}
	call()
	if tel.spans() != nil {
		t.Error("the provider that makes no spans is asked again")
	}
	rec := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	otel.SetTracerProvider(tp)
	// The global provider can not be made the first one again.
	defer otel.SetTracerProvider(noop.NewTracerProvider())
	defer tp.Shutdown(context.Background())
	call()
	if n := len(rec.Ended()); n != 2 {
		t.Errorf("%d spans after the installation", n)
	}
}

// uncomparable is a provider that panics if it is compared.
type uncomparable struct {
	noop.TracerProvider
	_ []int
}

func TestUncomparableProvider(t *testing.T) {
	s := newTracing(uncomparable{})
	if !s.alike(uncomparable{}) || s.alike(noop.NewTracerProvider()) {
		t.Error("providers are told apart wrongly")
	}
}

func TestEjectionsAndBreakers(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	o := r.Observer()
	o.Ejection("c", "10.0.0.1:80", "consecutive_5xx", true)
	o.Ejection("c", "10.0.0.2:80", "consecutive_5xx", true)
	o.Ejection("c", "10.0.0.1:80", "", false)
	o.Breaker("c", "open")
	o.Breaker("c", "half-open")
	if p := r.only(t, "mesh.client.ejected"); p.value != 1 {
		t.Errorf("%d ejected", p.value)
	}
	p := r.only(t, "mesh.client.ejections")
	check(t, "ejections", p.attrs, map[string]string{"mesh.cluster": "c", "mesh.ejection.reason": "consecutive_5xx"})
	if p.value != 2 {
		t.Errorf("%d ejections", p.value)
	}
	if n := len(r.points(t, "mesh.client.breaker")); n != 2 {
		t.Errorf("%d states of breakers", n)
	}
}

func TestXDSEvents(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	for _, name := range []string{"listener.v3.Listener", "route.v3.RouteConfiguration", "cluster.v3.Cluster", "endpoint.v3.ClusterLoadAssignment"} {
		r.XDSUpdate("type.googleapis.com/envoy.config." + name)
	}
	r.XDSUpdate("type.googleapis.com/x.y.Odd")
	r.XDSUpdate("odd")
	r.XDSNack("type.googleapis.com/envoy.config.cluster.v3.Cluster")
	r.XDSConnected(true)
	if p := r.only(t, "mesh.xds.connected"); p.value != 1 {
		t.Errorf("connected %d", p.value)
	}
	r.XDSConnected(false)
	if p := r.only(t, "mesh.xds.connected"); p.value != 0 {
		t.Errorf("connected %d", p.value)
	}
	check(t, "nacks", r.only(t, "mesh.xds.nacks").attrs, map[string]string{"mesh.xds.type": "Cluster"})
	if n := len(r.points(t, "mesh.xds.updates")); n != 5 {
		t.Errorf("%d types", n)
	}
}

// However many hosts are called, the number of series stays the same.
func TestHostsAreBounded(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	o := r.Observer()
	e := outbound.New(outbound.Options{External: policy(nil, 0), Observer: o})
	defer e.Close()
	series := func() (n int, total uint64) {
		for _, name := range []string{"http.client.request.duration", "mesh.client.call.duration"} {
			for _, p := range r.points(t, name) {
				n, total = n+1, total+p.count
			}
		}
		return n, total
	}
	visit := func(i int) {
		host := "h" + strconv.Itoa(i) + ".example"
		var c outbound.Call
		c.Request = routing.Request{Method: "GET", Scheme: "http", Authority: host, Path: "/"}
		if err := e.Decide(context.Background(), &c, host, "http"); err != nil {
			t.Fatal(err)
		}
		ctx := o.CallStart(context.Background(), &c)
		out := resilience.Outcome{Status: 200, GRPC: -1}
		var try outbound.Try
		if err := c.Begin(&try); err != nil {
			t.Fatal(err)
		}
		ctx = o.TryStart(ctx, &try, nil)
		o.TryEnd(ctx, &try, &out, time.Time{})
		c.Finish(&out)
	}
	for i := range 1000 {
		visit(i)
	}
	before, _ := series()
	for i := range 100_000 {
		visit(i)
	}
	after, total := series()
	if before != after || before != 2*(maxHosts+1) || total != 2*101_000 {
		t.Errorf("%d series, then %d; %d recorded", before, after, total)
	}
	others := 0
	for _, p := range r.points(t, "http.client.request.duration") {
		if v := p.attrs["server.address"]; v.AsString() == other {
			others++
			check(t, "beyond", p.attrs, map[string]string{"server.port": ""})
		}
	}
	if others != 1 {
		t.Errorf("%d series beyond the bound", others)
	}
	// One leg for all such hosts, and calls without a route, are bounded alike.
	fresh := newRig(t, sdktrace.NeverSample())
	l := fresh.Observer().Leg(outbound.LegInfo{Cluster: "passthrough"}).(*leg)
	if l.to != nil {
		t.Fatal("a leg of all hosts has one destination")
	}
	for i := range 10_000 {
		host := "g" + strconv.Itoa(i) + ".example"
		for _, cluster := range []string{"", l.cluster} {
			fresh.client.options(fresh.client.external(host, "http", cluster), setKey{status: 200, method: 1})
		}
	}
	if n := len(fresh.client.destinations); n != 2*(maxHosts+1) {
		t.Errorf("%d destinations", n)
	}
	if n := len(*fresh.client.byAuthority.Load()); n > 2*maxHosts {
		t.Errorf("%d authorities kept", n)
	}
}

func TestPolicyIsBounded(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	o := r.Observer().(observer)
	ctx := context.Background()
	for i := range 3000 {
		l := o.Leg(outbound.LegInfo{Host: "reviews:9080", Route: "r" + strconv.Itoa(i), Cluster: "c" + strconv.Itoa(i)}).(*leg)
		for status := range uint16(5) {
			r.calls.Record(ctx, 1, r.client.options(l.to, setKey{status: 200 + status, method: 1}).call...)
		}
		o.Ejection("c"+strconv.Itoa(i), "a", "consecutive_5xx", true)
	}
	points := r.points(t, "mesh.client.call.duration")
	if n := len(points); n > maxClientSets+maxOtherSets+1 || n < maxClientSets {
		t.Errorf("%d series", n)
	}
	for _, p := range points {
		if v := p.attrs["otel.metric.overflow"]; v.AsBool() {
			t.Error("the SDK's own limit was reached")
		}
	}
	if n := len(r.points(t, "mesh.client.ejected")); n != maxClusters+1 {
		t.Errorf("%d clusters", n)
	}
	// One server's odd codes do not use up everyone's share.
	fresh := newRig(t, sdktrace.NeverSample())
	l := fresh.Observer().Leg(outbound.LegInfo{Host: "odd:80", Cluster: "odd"}).(*leg)
	for status := range uint16(900) {
		fresh.client.options(l.to, setKey{status: 100 + status, method: 1})
	}
	if fresh.client.sets > maxPerDestination || fresh.client.otherSets > maxOtherSets {
		t.Errorf("%d sets and %d others", fresh.client.sets, fresh.client.otherSets)
	}
}

// The same host, route and cluster in a later snapshot goes on in the same series.
func TestLegsShareSeries(t *testing.T) {
	r := newRig(t, sdktrace.NeverSample())
	info := outbound.LegInfo{Host: "reviews:9080", Route: "r", Cluster: "c"}
	a, b := r.Observer().Leg(info).(*leg), r.Observer().Leg(info).(*leg)
	if a.to != b.to {
		t.Error("two destinations for one name")
	}
}

func TestConcurrentCalls(t *testing.T) {
	r := newRig(t, sdktrace.AlwaysSample())
	rt := client(t, r.Telemetry, nil, time.Minute, transport(func(req *http.Request) (*http.Response, error) {
		return answer(200 + int(req.URL.Path[1]-'0')), nil
	}))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 50 {
				url := fmt.Sprintf("http://h%d.example/%d", (g+i)%20, i%5)
				if _, err := send(t, rt, request(t, context.Background(), "GET", url)); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	var n uint64
	for _, p := range r.points(t, "http.client.request.duration") {
		n += p.count
	}
	if n != 400 || len(r.spans.Ended()) != 800 {
		t.Errorf("%d recorded, %d spans", n, len(r.spans.Ended()))
	}
}
