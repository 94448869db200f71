package inbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// bounded is a limiter that keeps to two requests until its first update.
func bounded() *resilience.AdaptiveConcurrency {
	a := resilience.DefaultAdaptiveConcurrency
	a.MinConcurrency, a.FixedMinRTT, a.Status = 2, time.Millisecond, http.StatusTooManyRequests
	return &a
}

// TestAdaptiveConcurrency: first it counts what the rules refuse too, last it does not.
func TestAdaptiveConcurrency(t *testing.T) {
	deny := sure(identity.NewAuthorizer(set(identity.Deny, false, when("no", header("x", "1")))))
	refused := map[string][]string{"X": {"1"}}
	for _, last := range []bool{false, true} {
		t.Run(fmt.Sprint("last ", last), func(t *testing.T) {
			d := newDesk(t, &snapshot.FilterChain{Authorizer: deny, Concurrency: bounded(), ConcurrencyLast: last}, nil)
			at := func() int64 {
				return d.view.Load().listeners[unmap(localAddress.AddrPort())].plain.adaptive.Active()
			}
			var a, b, c Admission
			for _, admission := range []*Admission{&a, &b} {
				if err := d.Admit(t.Context(), incoming("/", nil), admission); err != nil || admission.Hold == nil {
					t.Fatal(err)
				}
			}
			err := d.Admit(t.Context(), incoming("/", nil), &c)
			var denied *DeniedError
			if !errors.As(err, &denied) || denied.Reason != ReasonOverload || denied.HTTPStatus != 429 || denied.Message != "reached concurrency limit" || denied.GRPC != codes.OK || len(denied.Header) > 0 || c.Hold != nil {
				t.Errorf("the third: %v", err)
			}
			want := ReasonOverload
			if last {
				want = ReasonAuthorization
			}
			if err := d.Admit(t.Context(), incoming("/", refused), &c); reason(err) != want {
				t.Errorf("one that rules refuse: %v, want %s", err, want)
			}
			if at() != 2 {
				t.Errorf("%d under way", at())
			}
			a.Hold.Release(true)
			// One that is refused after it has taken a place gives it back.
			if err := d.Admit(t.Context(), incoming("/", refused), &c); reason(err) != ReasonAuthorization || at() != 1 {
				t.Errorf("%v with %d under way", err, at())
			}

			// The same policy again: what is under way is known still.
			d.install(&snapshot.FilterChain{Authorizer: deny, Concurrency: bounded(), ConcurrencyLast: last})
			if at() != 1 {
				t.Errorf("after the same policy %d under way", at())
			}
			other := bounded()
			other.MinConcurrency = 1
			d.install(&snapshot.FilterChain{Concurrency: other, ConcurrencyLast: last})
			if at() != 0 {
				t.Errorf("after another policy %d under way", at())
			}
			b.Hold.Release(true)
			d.install(&snapshot.FilterChain{})
			if err := d.Admit(t.Context(), incoming("/", nil), &c); err != nil || c.Hold != nil {
				t.Errorf("without a limiter: %v %v", err, c.Hold)
			}
		})
	}
}

// TestAdaptiveConcurrencyLearns: latencies of answered requests move the limit, those of others do not.
func TestAdaptiveConcurrencyLearns(t *testing.T) {
	for _, answered := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			a := bounded()
			a.FixedMinRTT, a.UpdateInterval = 10*time.Millisecond, 20*time.Millisecond
			d := newDesk(t, &snapshot.FilterChain{Concurrency: a}, nil)
			adaptive := d.view.Load().listeners[unmap(localAddress.AddrPort())].plain.adaptive
			for range 20 {
				var a Admission
				if err := d.Admit(t.Context(), incoming("/", nil), &a); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Millisecond)
				a.Hold.Release(answered)
			}
			if limit := adaptive.Limit(); answered != (limit > 2) {
				t.Errorf("answered %v: the limit is %d", answered, limit)
			}
		})
	}
}

// TestDeadline: a request whose time has passed reaches no handler, wherever it passed.
func TestDeadline(t *testing.T) {
	never := func(ctx context.Context) { <-ctx.Done() }
	for _, tt := range []struct {
		name   string
		limit  time.Duration
		chain  *snapshot.FilterChain
		change func(*Options)
		want   Reason
	}{
		{name: "in time", limit: time.Hour, chain: &snapshot.FilterChain{}},
		{name: "0", limit: 0, chain: &snapshot.FilterChain{}, want: ReasonDeadline},
		{name: "passed", limit: -time.Second, chain: &snapshot.FilterChain{}, want: ReasonDeadline},
		{name: "no policy", limit: time.Second, want: ReasonDeadline},
		{name: "no policy for longer than is waited", limit: time.Minute, want: ReasonNotReady},
		{name: "without a control plane", limit: 0, change: func(o *Options) { o.Subscribe = nil }, want: ReasonDeadline},
		{name: "without a control plane, in time", limit: time.Second, change: func(o *Options) { o.Subscribe = nil }},
		{name: "the authorizer", limit: time.Second, chain: asking(false), change: slowAuthorizer(never), want: ReasonDeadline},
		{name: "the authorizer, failing open", limit: time.Second, chain: asking(true), change: slowAuthorizer(never), want: ReasonDeadline},
		{name: "the authorizer, whose own time is shorter", limit: time.Minute, chain: asking(false), change: slowAuthorizer(never), want: ReasonExternal},
		{name: "an authorizer that is in time", limit: time.Minute, chain: asking(true), change: slowAuthorizer(func(context.Context) {})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, tt.chain, func(o *Options) {
					if tt.change != nil {
						tt.change(o)
					}
				})
				if tt.chain == nil {
					d.Install(&snapshot.Snapshot{})
				}
				ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
				defer cancel()
				var a Admission
				err := d.Admit(ctx, incoming("/", nil), &a)
				if reason(err) != tt.want {
					t.Fatalf("%v, want %q", err, tt.want)
				}
				var denied *DeniedError
				if errors.As(err, &denied) && tt.want == ReasonDeadline && (denied.HTTPStatus != 504 || denied.Listener != "10.0.0.7:9080" || a.CloseConnection) {
					t.Errorf("%+v", denied)
				}
				var notReady *NotReadyError
				if tt.name == "no policy" && !errors.As(err, &notReady) {
					t.Errorf("%v does not say what it has waited for", err)
				}
				if n := len(d.seen.list); tt.want != "" && (n != 1 || d.seen.list[0].Reason != tt.want) {
					t.Errorf("outcomes: %+v", d.seen.list)
				}
			})
		})
	}
}

// asking is a chain with a CUSTOM rule for all requests.
func asking(failOpen bool) *snapshot.FilterChain {
	custom := set(identity.Custom, false, when("ask", identity.Any()))
	custom.Provider = "p"
	return &snapshot.FilterChain{
		Authorizer: sure(identity.NewAuthorizer(custom)),
		External:   &snapshot.ExternalAuthorizer{Provider: "p", Host: "ext:80", HTTP: &snapshot.ExternalHTTP{}, Timeout: 10 * time.Second, FailOpen: failOpen},
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func slowAuthorizer(wait func(context.Context)) func(*Options) {
	return func(o *Options) {
		o.HTTP = roundTrip(func(r *http.Request) (*http.Response, error) {
			wait(r.Context())
			if err := r.Context().Err(); err != nil {
				return nil, err
			}
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}, nil
		})
	}
}

// TestHosts: rules and handler see the host as policy spells it.
func TestHosts(t *testing.T) {
	host := func(name string) identity.Condition {
		return sure(identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(":authority"), String: routing.Exact(name, true)}))
	}
	allow := func(name string) *identity.Authorizer {
		return sure(identity.NewAuthorizer(set(identity.Allow, false, when("one", host(name)))))
	}
	for _, tt := range []struct {
		options     identity.HostOptions
		in, allowed string
		out         string // "" where it is refused
	}{
		{identity.HostOptions{}, "a.example.", "a.example", ""},
		{identity.HostOptions{Dot: true}, "a.example.", "a.example", "a.example"},
		{identity.HostOptions{Dot: true}, "a.example.:9080", "a.example:9080", "a.example:9080"},
		{identity.HostOptions{Port: identity.StripOwnPort}, "a.example:9080", "a.example", "a.example"},
		{identity.HostOptions{Port: identity.StripOwnPort}, "a.example:9081", "a.example", ""},
		{identity.HostOptions{Port: identity.StripAnyPort}, "a.example:9081", "a.example", "a.example"},
	} {
		d := newDesk(t, &snapshot.FilterChain{Hosts: tt.options, Authorizer: allow(tt.allowed)}, nil)
		r := incoming("/", nil)
		r.Access.Authority = tt.in
		var a Admission
		err := d.Admit(t.Context(), r, &a)
		switch {
		case tt.out == "" && reason(err) != ReasonAuthorization:
			t.Errorf("%+v %q: %v, want a refusal", tt.options, tt.in, err)
		case tt.out != "" && (err != nil || r.Access.Authority != tt.out || a.HostChanged != (tt.in != tt.out)):
			t.Errorf("%+v %q: %v %q, want %q", tt.options, tt.in, err, r.Access.Authority, tt.out)
		}
	}
}

// TestCountedOnce: a request that passes twice takes one place, of this engine.
func TestCountedOnce(t *testing.T) {
	chain := &snapshot.FilterChain{Concurrency: bounded()}
	chain.Concurrency.MinConcurrency = 1
	d := newDesk(t, chain, shedding(Shedding{MaxConcurrent: 1, MaxQueue: -1}))
	var outer, inner Admission
	if err := d.Admit(t.Context(), incoming("/", nil), &outer); err != nil {
		t.Fatal(err)
	}
	ctx := outer.Hold.Context(t.Context())
	if err := d.Admit(ctx, incoming("/", nil), &inner); err != nil || inner.Hold != nil {
		t.Errorf("the second time: %v %v", err, inner.Hold)
	}
	other := newDesk(t, chain, nil)
	if err := other.Admit(ctx, incoming("/", nil), &inner); err != nil || inner.Hold == nil {
		t.Errorf("at another engine: %v %v", err, inner.Hold)
	}
	outer.Hold.Release(true)
	if v := d.shedder.state.Load(); v != 0 {
		t.Errorf("at the end %x", v)
	}
}
