package telemetry

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

type attributeRule struct{ Key, Stability, Level, Type string }

type semconvFile struct {
	Metrics []struct {
		Name, Instrument, Unit, Requirement string
		Buckets                             []float64 `json:"bucket_boundaries"`
		Attributes                          []attributeRule
	}
	Spans []struct {
		Kind       string
		Attributes []attributeRule
	}
	Rules struct {
		Methods    []string                                 `json:"known_methods"`
		SpanStatus []struct{ Range, Server, Client string } `json:"span_status"`
		Versions   map[string]string                        `json:"network_protocol_version"`
	}
	Examples []struct {
		Name     string
		Request  string
		Response int
		SpanName string         `json:"span_name"`
		Attrs    map[string]any `json:"attributes"`
		In       string
		URLFull  string `json:"url.full"`
		Attempts []map[string]any
	}
}

// allowed reports what is wrong with attributes beside the rules: one that they
// do not have (but for the mesh's own), or a required one that is missing.
func allowed(rules []attributeRule, got map[attribute.Key]attribute.Value) (bad []string) {
	known := make(map[string]attributeRule)
	for _, r := range rules {
		known[r.Key] = r
		if _, ok := got[attribute.Key(r.Key)]; r.Level == "required" && !ok {
			bad = append(bad, r.Key+" is missing")
		}
	}
	types := map[string]attribute.Type{"string": attribute.STRING, "int": attribute.INT64}
	for key, v := range got {
		r, ok := known[string(key)]
		if !ok && !strings.HasPrefix(string(key), "mesh.") {
			bad = append(bad, string(key)+" is not in the conventions")
		}
		if ok && types[r.Type] != v.Type() {
			bad = append(bad, string(key)+" is a "+v.Type().String())
		}
	}
	return bad
}

// scenario makes every kind of span and series over HTTP.
func scenario(t *testing.T, r *rig) {
	rt := client(t, r.Telemetry, retryOn(t, "5xx", 1), 0, transport(func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == "/fail" {
			return nil, context.DeadlineExceeded
		}
		return answer(500), nil
	}))
	mux := http.NewServeMux()
	mux.HandleFunc("/items/{id}", func(w http.ResponseWriter, in *http.Request) {
		for _, path := range []string{"/ok?a=b", "/fail"} {
			_, _ = send(t, rt, request(t, in.Context(), "GET", "http://a.example"+path))
			_, _ = send(t, rt, request(t, in.Context(), "ODD", "https://b.example:8443"+path))
		}
		w.WriteHeader(502)
	})
	for _, method := range []string{"GET", "ODD"} {
		req := httptest.NewRequest(method, "/items/7?q=1", nil)
		req.Header.Set("User-Agent", "test")
		r.Handler(mux).ServeHTTP(httptest.NewRecorder(), req)
	}
}

func TestSemanticConventions(t *testing.T) {
	var file semconvFile
	conformance.Load(t, "otel/otel_http_semconv.json", &file)
	r := newRig(t, sdktrace.AlwaysSample())
	scenario(t, r)
	metrics := r.metrics(t)

	var tally conformance.Tally
	result := func(what string, bad ...string) {
		if len(bad) > 0 {
			tally.Fail(t, "%s: %s", what, strings.Join(bad, "; "))
		} else {
			tally.Pass()
		}
	}
	for _, m := range file.Metrics {
		if m.Requirement == "opt-in" {
			tally.SetAside("metrics that are opt-in and not recorded")
			if _, ok := metrics[m.Name]; ok {
				t.Errorf("%s is recorded", m.Name)
			}
			continue
		}
		got, ok := metrics[m.Name]
		if !ok {
			result(m.Name, "not recorded")
			continue
		}
		var bad []string
		if got.Unit != m.Unit {
			bad = append(bad, "unit "+got.Unit)
		}
		h := got.Data.(metricdata.Histogram[float64])
		for _, p := range h.DataPoints {
			if !reflect.DeepEqual(p.Bounds, m.Buckets) {
				bad = append(bad, "boundaries")
			}
			bad = append(bad, allowed(m.Attributes, attrsOf(p.Attributes.ToSlice()))...)
		}
		result(m.Name, bad...)
	}
	for _, s := range file.Spans {
		kind := map[string]trace.SpanKind{"CLIENT": trace.SpanKindClient, "SERVER": trace.SpanKindServer}[s.Kind]
		spans := r.ended(kind)
		if len(spans) == 0 {
			t.Errorf("no %s span", s.Kind)
		}
		var bad []string
		for _, span := range spans {
			bad = append(bad, allowed(s.Attributes, attrsOf(span.Attributes()))...)
		}
		result(s.Kind, bad...)
	}
	for _, m := range file.Rules.Methods {
		name, _, _ := strings.Cut(m, " ")
		if methodOf(name) == otherMethod || methods[methodOf(name)] != name {
			result(m, "unknown")
		} else {
			result(m)
		}
	}
	for proto, want := range file.Rules.Versions {
		req := &http.Request{}
		req.ProtoMajor, req.ProtoMinor, _ = http.ParseHTTPVersion(proto)
		if req.ProtoMajor == 0 {
			req.ProtoMajor = int(proto[len("HTTP/")] - '0') // "HTTP/2" has no minor version
		}
		if got := versions[versionOf(req)]; got != want {
			result(proto, got)
		} else {
			result(proto)
		}
	}
	tally.Check(t, "otel_http_semconv.json", 3+1+10+4, 7+1)
}

func TestSemanticConventionExamples(t *testing.T) {
	var file semconvFile
	conformance.Load(t, "otel/otel_http_semconv.json", &file)
	var tally conformance.Tally
	for _, c := range file.Examples {
		t.Run(c.Name, func(t *testing.T) {
			r := newRig(t, sdktrace.AlwaysSample())
			var span sdktrace.ReadOnlySpan
			failed := false
			fail := func(format string, args ...any) {
				failed = true
				tally.Fail(t, format, args...)
			}
			switch {
			case strings.HasPrefix(c.Name, "redirect"), strings.HasPrefix(c.Name, "auth"):
				tally.SetAside("http.Client sends again by itself: each is a call of its own here")
				return
			case c.In != "":
				if got := fullURL("https", "u:p@www.example.com", "/path", "color=blue&sig=abc"); got != c.URLFull {
					fail("url.full %s", got)
				}
			case len(c.Attempts) > 0:
				var list []int
				for _, a := range c.Attempts {
					list = append(list, int(a["status"].(float64)))
				}
				rt := client(t, r.Telemetry, retryOn(t, "5xx", 5), 0, statuses(list...))
				_, _ = send(t, rt, request(t, context.Background(), "GET", "http://a.example/"))
				spans := r.ended(trace.SpanKindClient)
				if len(spans) != len(c.Attempts) {
					fail("%d attempts", len(spans))
					break
				}
				for i, a := range c.Attempts {
					got := attrsOf(spans[i].Attributes())
					count, ok := a["http.request.resend_count"].(float64)
					v, has := got["http.request.resend_count"]
					if status := got["http.response.status_code"]; ok != has || v.AsInt64() != int64(count) || status.AsInt64() != int64(list[i]) {
						fail("attempt %d: %v", i, got)
					}
				}
			case c.Name == "server span":
				mux := http.NewServeMux()
				mux.HandleFunc("/webshop/articles/{article_id}", nothing)
				req := httptest.NewRequest("GET", "https://example.com:8080/webshop/articles/4?s=1&t=2", nil)
				req.RemoteAddr = "192.0.2.5:4711"
				// No proxy is trusted: the client is the peer.
				c.Attrs["client.address"] = "192.0.2.5"
				c.Attrs["http.route"] = "/webshop/articles/{article_id}"
				c.SpanName = "GET /webshop/articles/{article_id}"
				r.Handler(mux).ServeHTTP(httptest.NewRecorder(), req)
				span = r.ended(trace.SpanKindServer)[0]
			case c.Name == "client DNS error":
				attemptOnce(t, r, "https", "does-not-exist-123.com", &resilience.Outcome{
					GRPC: -1, Failure: resilience.ConnectFailure, Err: &net.DNSError{Name: "does-not-exist-123.com"},
				})
				c.Attrs["error.type"] = "name_resolution_error"
				c.Attrs["url.full"] = "https://does-not-exist-123.com/" // in normal form
				span = r.ended(trace.SpanKindClient)[0]
			case strings.HasPrefix(c.Name, "server connection dropped"):
				rt := client(t, r.Telemetry, nil, 0, transport(func(*http.Request) (*http.Response, error) {
					resp := answer(201)
					resp.Body = &brokenBody{}
					return resp, nil
				}))
				_, _ = send(t, rt, request(t, context.Background(), "GET", "http://a.example/"))
				c.Attrs["error.type"] = "reset"
				span = r.ended(trace.SpanKindClient)[0]
			default:
				method, url, _ := strings.Cut(c.Request, " ")
				rt := client(t, r.Telemetry, nil, 0, statuses(c.Response))
				_, _ = send(t, rt, request(t, context.Background(), method, url))
				if full, _ := c.Attrs["url.full"].(string); strings.Count(full, "/") == 2 {
					c.Attrs["url.full"] = full + "/" // in normal form
				}
				// What the transport knows and does not tell.
				for _, key := range []string{"network.peer.address", "network.peer.port", "network.protocol.version"} {
					delete(c.Attrs, key)
				}
				span = r.ended(trace.SpanKindClient)[0]
			}
			if span != nil {
				if c.SpanName != "" && span.Name() != c.SpanName {
					fail("name %q", span.Name())
				}
				got := attrsOf(span.Attributes())
				for key, want := range c.Attrs {
					v := got[attribute.Key(key)]
					if n, ok := want.(float64); (ok && v.AsInt64() != int64(n)) || (!ok && v.String() != want) {
						fail("%s is %q, want %v", key, v.String(), want)
					}
				}
			}
			if !failed {
				tally.Pass()
			}
		})
	}
	tally.Check(t, "otel_http_semconv.json examples", 7, 2)
}

// attemptOnce takes one call with one attempt through the observer.
func attemptOnce(t testing.TB, r *rig, scheme, authority string, out *resilience.Outcome) {
	t.Helper()
	o := r.Observer()
	e := outbound.New(outbound.Options{External: policy(nil, 0), Observer: o})
	defer e.Close()
	var c outbound.Call
	c.Request = routing.Request{Method: "GET", Scheme: scheme, Authority: authority, Path: "/"}
	if err := e.Decide(context.Background(), &c, authority, scheme); err != nil {
		t.Fatal(err)
	}
	ctx := o.CallStart(context.Background(), &c)
	var try outbound.Try
	if err := c.Begin(&try); err != nil {
		t.Fatal(err)
	}
	ctx = o.TryStart(ctx, &try, nil)
	o.TryEnd(ctx, &try, out, time.Time{})
	c.Finish(out)
}
