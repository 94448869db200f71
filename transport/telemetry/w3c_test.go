package telemetry

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/baggage"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

const (
	traceIDText = "4bf92f3577b34da6a3ce929d0e0e4736"
	sampled     = "00-" + traceIDText + "-00f067aa0ba902b7-01"
	unsampled   = "00-" + traceIDText + "-00f067aa0ba902b7-00"
)

// through sends a request with the headers to a server that calls on n times,
// and returns the headers of those calls.
func through(t testing.TB, tel *Telemetry, headers http.Header, n int) []http.Header {
	t.Helper()
	var out []http.Header
	rt := client(t, tel, nil, 0, transport(func(r *http.Request) (*http.Response, error) {
		out = append(out, r.Header)
		return answer(200), nil
	}))
	h := tel.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		for range n {
			if _, err := send(t, rt, request(t, r.Context(), "GET", "http://next.example/")); err != nil {
				t.Error(err)
			}
		}
	}))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header = headers
	h.ServeHTTP(httptest.NewRecorder(), r)
	return out
}

type w3cCase struct {
	Test     string      `json:"test"`
	Headers  [][2]string `json:"headers"`
	Outgoing int         `json:"outgoing_requests"`
	Expect   struct {
		TraceID     string             `json:"trace_id"`
		TraceIDNot  []string           `json:"trace_id_not"`
		ParentIDNot []string           `json:"parent_id_not"`
		NewTrace    bool               `json:"new_trace"`
		Tracestate  map[string]*string `json:"tracestate"`
		Absent      []string           `json:"tracestate_absent"`
		Members     *int               `json:"tracestate_members"`
		Order       []string           `json:"tracestate_order"`
		OneOf       []string           `json:"tracestate_contains_one_of"`
		Distinct    int                `json:"distinct_parent_ids"`
	} `json:"expect"`
}

var traceparentForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// verdict returns what is wrong with the outgoing headers, or "".
func (c *w3cCase) verdict(calls []http.Header) string {
	parents := make(map[string]bool)
	traces := make(map[string]bool)
	for _, h := range calls {
		v := h.Values("Traceparent")
		if len(v) != 1 || !traceparentForm.MatchString(v[0]) {
			return "traceparent " + strings.Join(v, " and ")
		}
		part := strings.Split(v[0], "-")
		if strings.Trim(part[1], "0") == "" || strings.Trim(part[2], "0") == "" {
			return "zero id in " + v[0]
		}
		traces[part[1]], parents[part[2]] = true, true
		if c.Expect.TraceID != "" && part[1] != c.Expect.TraceID {
			return "trace id " + part[1]
		}
		for _, not := range c.Expect.TraceIDNot {
			if part[1] == not {
				return "kept the trace id"
			}
		}
		for _, not := range c.Expect.ParentIDNot {
			if part[2] == not {
				return "kept the parent id"
			}
		}
		if c.Expect.NewTrace {
			for _, in := range c.Headers {
				if strings.Contains(in[1], part[1]) {
					return "not a new trace"
				}
			}
		}
		var members []string
		for _, m := range strings.Split(strings.Join(h.Values("Tracestate"), ","), ",") {
			if m = strings.Trim(m, " \t"); m != "" {
				members = append(members, m)
			}
		}
		byKey := make(map[string]string)
		for _, m := range members {
			key, value, _ := strings.Cut(m, "=")
			byKey[key] = value
		}
		for key, want := range c.Expect.Tracestate {
			if got, ok := byKey[key]; !ok || (want != nil && strings.Trim(got, " ") != strings.Trim(*want, " ")) {
				return "tracestate " + key + " is " + got
			}
		}
		for _, key := range c.Expect.Absent {
			if _, ok := byKey[key]; ok {
				return "tracestate has " + key
			}
		}
		if n := c.Expect.Members; n != nil && *n != len(members) {
			return "number of members"
		}
		if c.Expect.Order != nil && strings.Join(members, ",") != strings.Join(c.Expect.Order, ",") {
			return "order " + strings.Join(members, ",")
		}
		if c.Expect.OneOf != nil {
			found := false
			for _, m := range c.Expect.OneOf {
				for _, got := range members {
					found = found || m == got
				}
			}
			if !found {
				return "none of " + strings.Join(c.Expect.OneOf, " ")
			}
		}
	}
	if c.Expect.Distinct > 0 && (len(parents) != c.Expect.Distinct || len(traces) != 1) {
		return "parent ids are not distinct"
	}
	return ""
}

func TestW3CTraceContext(t *testing.T) {
	var file struct {
		Cases       []w3cCase `json:"cases"`
		Traceparent []struct {
			In     string `json:"traceparent"`
			Parses bool   `json:"parses"`
		} `json:"traceparent_parse"`
		Tracestate []struct {
			In    string `json:"tracestate"`
			Valid bool   `json:"valid"`
		} `json:"tracestate_member_parse"`
	}
	conformance.Load(t, "otel/trace_context_w3c.json", &file)
	for name, sampler := range map[string]sdktrace.Sampler{
		"always": sdktrace.AlwaysSample(), "parent": sdktrace.ParentBased(sdktrace.AlwaysSample()),
	} {
		t.Run(name, func(t *testing.T) {
			var tally conformance.Tally
			for _, c := range file.Cases {
				h := make(http.Header)
				for _, f := range c.Headers {
					h.Add(f[0], f[1])
				}
				calls := through(t, newRig(t, sampler).Telemetry, h, max(1, c.Outgoing))
				if bad := c.verdict(calls); bad != "" {
					tally.Fail(t, "%s %q: %s; sent %v", c.Test, c.Headers, bad, calls)
				} else {
					tally.Pass()
				}
			}
			tally.Check(t, "trace_context_w3c.json cases", 41, 0)
		})
	}
	var tally conformance.Tally
	for _, c := range file.Traceparent {
		if _, ok := parseTraceparent(c.In); ok != c.Parses {
			tally.Fail(t, "traceparent %q: valid %v", c.In, ok)
		} else {
			tally.Pass()
		}
	}
	for _, c := range file.Tracestate {
		if _, ok := splitTracestate(c.In); ok != c.Valid {
			tally.Fail(t, "tracestate %q: valid %v", c.In, ok)
		} else {
			tally.Pass()
		}
	}
	tally.Check(t, "trace_context_w3c.json parse", 18, 0)
}

func TestTraceContextOfOpenTelemetryGo(t *testing.T) {
	type header struct {
		Name, Traceparent, Tracestate string
		TraceID                       string `json:"trace_id"`
		SpanID                        string `json:"span_id"`
		Flags                         byte
		Result                        string `json:"tracestate_result"`
	}
	var file struct {
		Valid   []header `json:"extract_valid"`
		Invalid []header `json:"extract_invalid"`
		Inject  []header `json:"inject"`
		States  []struct {
			Name, In, Out string
			Valid         bool
		} `json:"tracestate_parse"`
	}
	conformance.Load(t, "otel/trace_context_otel_go.json", &file)
	tel, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	read := func(traceparent, tracestate string) context.Context {
		h := http.Header{"Traceparent": {traceparent}}
		if tracestate != "" {
			h.Set("Tracestate", tracestate)
		}
		return tel.Extract(context.Background(), h)
	}
	// The specification wins where it differs.
	aside := map[string]string{
		"B3 format ending in dash":                        "W3C: version 00 has exactly four fields",
		"version 0 reserved trace flag bits set":          "W3C: flags without a meaning are ignored",
		"duplicate with different values":                 "W3C: a key that comes twice does not make a tracestate invalid",
		"multiple keys, one with empty tenant key":        "W3C: @ may come anywhere after a key's first character",
		"multiple keys, one with double tenant separator": "W3C: @ may come anywhere after a key's first character",
		"tenant too long":                                 "W3C: a key has 256 characters, however they are divided",
	}
	var tally conformance.Tally
	skip := func(name string) bool {
		if reason, ok := aside[name]; ok {
			tally.SetAside(reason)
			return true
		}
		return false
	}
	result := func(name string, ok bool, got any) {
		if ok {
			tally.Pass()
		} else {
			tally.Fail(t, "%s: got %v", name, got)
		}
	}
	for _, c := range file.Valid {
		if skip(c.Name) {
			continue
		}
		sc := trace.SpanContextFromContext(read(c.Traceparent, c.Tracestate))
		result(c.Name, sc.IsRemote() && sc.TraceID().String() == c.TraceID && sc.SpanID().String() == c.SpanID &&
			byte(sc.TraceFlags()) == c.Flags && sc.TraceState().String() == c.Result, sc)
	}
	for _, c := range file.Invalid {
		if skip(c.Name) {
			continue
		}
		sc := trace.SpanContextFromContext(read(c.Traceparent, c.Tracestate))
		result(c.Name, !sc.IsValid(), sc)
	}
	for _, c := range file.Inject {
		h := tel.Inject(read(c.Traceparent, c.Tracestate), http.Header{}, false)
		result(c.Name, h.Get("Traceparent") == c.Traceparent && h.Get("Tracestate") == c.Result, h)
	}
	for _, c := range file.States {
		if skip(c.Name) {
			continue
		}
		h := tel.Inject(read(sampled, c.In), http.Header{}, true)
		result(c.Name, h.Get("Tracestate") == c.Out && h.Get("Traceparent") == sampled, h)
	}
	tally.Check(t, "trace_context_otel_go.json", 26, 6)
}

// Trace context goes on whatever is installed and whatever is sampled.
func TestContextGoesOn(t *testing.T) {
	rigs := map[string]*Telemetry{
		"never":  newRig(t, sdktrace.NeverSample()).Telemetry,
		"parent": newRig(t, sdktrace.ParentBased(sdktrace.NeverSample())).Telemetry,
	}
	none, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	rigs["no tracer"] = none
	for name, tel := range rigs {
		for _, in := range []string{sampled, unsampled} {
			out := through(t, tel, http.Header{"Traceparent": {in}, "Tracestate": {"a=1,b@c@d=2"}, "Baggage": {"k=v"}}, 1)[0]
			got := out.Get("Traceparent")
			if !strings.HasPrefix(got, in[:36]) {
				t.Errorf("%s: %s became %s", name, in, got)
			}
			if name != "never" && !strings.HasSuffix(got, in[len(in)-3:]) {
				t.Errorf("%s: %s became %s: another decision", name, in, got)
			}
			if name == "no tracer" && got != in {
				t.Errorf("%s: %s became %s", name, in, got)
			}
			if s := out.Get("Tracestate"); s != "a=1,b@c@d=2" {
				t.Errorf("%s: tracestate %q", name, s)
			}
			if b := out.Get("Baggage"); b != "k=v" {
				t.Errorf("%s: baggage %q", name, b)
			}
		}
	}
}

func TestTracestateChangedHere(t *testing.T) {
	tel, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := tel.Extract(context.Background(), http.Header{
		"Traceparent": {sampled}, "Tracestate": {"a=1,x@y@z=2", "b=3,c=4"},
	})
	sc := trace.SpanContextFromContext(ctx)
	state, err := sc.TraceState().Insert("b", "9")
	if err != nil {
		t.Fatal(err)
	}
	state = state.Delete("c")
	ctx = trace.ContextWithSpanContext(ctx, sc.WithTraceState(state))
	if got, want := tel.Inject(ctx, nil, true).Get("Tracestate"), "b=9,a=1,x@y@z=2"; got != want {
		t.Errorf("tracestate %q, want %q", got, want)
	}
	// Another trace begun inside has nothing of it.
	fresh := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}})
	if got := tel.Inject(trace.ContextWithSpanContext(ctx, fresh), nil, false).Get("Tracestate"); got != "" {
		t.Errorf("a new trace has tracestate %q", got)
	}
}

func TestInjectLeavesTheHeaderAlone(t *testing.T) {
	tel, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	mine := http.Header{"Traceparent": {unsampled}, "Tracestate": {"old=1"}, "X": {"1", "2"}}
	if got := tel.Inject(context.Background(), mine, false); got.Get("Traceparent") != unsampled || len(got) != len(mine) {
		t.Errorf("without a context: %v", got)
	}
	ctx := tel.Extract(context.Background(), http.Header{"Traceparent": {sampled}})
	bag, err := baggage.Parse("k=v")
	if err != nil {
		t.Fatal(err)
	}
	out := tel.Inject(baggage.ContextWithBaggage(ctx, bag), mine, false)
	if out.Get("Traceparent") != sampled || out.Get("Tracestate") != "" || out.Get("Baggage") != "k=v" || len(out["X"]) != 2 {
		t.Errorf("injected: %v", out)
	}
	if mine.Get("Traceparent") != unsampled || mine.Get("Tracestate") != "old=1" || len(mine) != 3 {
		t.Errorf("the caller's header has changed: %v", mine)
	}
}

func TestSecondTraceparentMakesBothInvalid(t *testing.T) {
	tel, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := tel.Extract(context.Background(), http.Header{"Traceparent": {sampled, unsampled}})
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		t.Errorf("got %v", sc)
	}
}

func FuzzTraceparent(f *testing.F) {
	for _, s := range []string{sampled, unsampled, "cc-" + sampled[3:] + "-x", " " + sampled + "\t", "00-", "ff" + sampled[2:]} {
		f.Add(s)
	}
	form := regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$`)
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := parseTraceparent(s)
		trimmed := strings.Trim(s, " \t")
		plain := strings.ReplaceAll(strings.ReplaceAll(trimmed, "\n", "x"), "\r", "x")
		want := form.MatchString(plain) && trimmed[:2] != "ff" && (trimmed[:2] != "00" || len(trimmed) == 55) &&
			strings.Trim(trimmed[3:35], "0") != "" && strings.Trim(trimmed[36:52], "0") != ""
		if ok != want {
			t.Fatalf("%q: valid %v, want %v", s, ok, want)
		}
		if !ok {
			return
		}
		out := formatTraceparent(trace.NewSpanContext(c))
		if out[2:53] != trimmed[2:53] {
			t.Fatalf("%q became %q", s, out)
		}
		if again, ok := parseTraceparent(out); !ok || again.TraceID != c.TraceID || again.SpanID != c.SpanID || again.TraceFlags != c.TraceFlags {
			t.Fatalf("%q became %q, which is not the same", s, out)
		}
	})
}

func FuzzTracestate(f *testing.F) {
	for _, s := range []string{"a=1,b=2", "foo@bar@baz=1,bar=2", "a=1,a=2", "a= x ,\t,b=2", "FOO=1", strings.Repeat("a=1,", 40)} {
		f.Add(s)
	}
	tel, err := New(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ctx := tel.Extract(context.Background(), http.Header{"Traceparent": {sampled}, "Tracestate": {s}})
		out := tel.Inject(ctx, nil, false)
		if out.Get("Traceparent") != sampled {
			t.Fatalf("tracestate %q changed the traceparent", s)
		}
		got := out.Get("Tracestate")
		want := ""
		if all, ok := splitTracestate(s); ok {
			for _, m := range all {
				want += "," + m.key + "=" + m.value
			}
			want = strings.TrimPrefix(want, ",")
		}
		if got != want {
			t.Fatalf("tracestate %q went out as %q, want %q", s, got, want)
		}
	})
}
