package meshgrpc

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/sinew-mesh/sinew/internal/leak"
)

// several returns a target that resolves to the backends, without a service config.
func several(backends ...*backend) (string, grpc.DialOption) {
	var addresses []string
	for _, b := range backends {
		addresses = append(addresses, b.address)
	}
	return resolvesTo(addresses...)
}

// resolvesTo returns a target that resolves to the addresses, without a service config.
func resolvesTo(addresses ...string) (string, grpc.DialOption) {
	r := manual.NewBuilderWithScheme("several")
	var s resolver.State
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	r.InitialState(s)
	return "several:///x", grpc.WithResolvers(r)
}

func TestDefaultPolicyBalances(t *testing.T) {
	leak.Check(t)
	a, b := newBackend(t, "a", nil), newBackend(t, "b", nil)
	target, with := several(a, b)
	c, _ := dial(t, target, append(DialOptions(ClientOptions{Default: &DefaultPolicy{}}), with)...)
	ctx := testContext(t)
	for a.calls.Load() == 0 || b.calls.Load() == 0 {
		unary(t, ctx, c)
	}
	was := a.calls.Load()
	for range 20 {
		unary(t, ctx, c)
	}
	if got := a.calls.Load() - was; got != 10 {
		t.Errorf("a got %d of 20 calls", got)
	}
}

func TestDefaultPolicyRetries(t *testing.T) {
	leak.Check(t)
	good, bad := newBackend(t, "good", nil), newBackend(t, "bad", unavailable)
	target, with := several(good, bad)
	c, _ := dial(t, target, append(DialOptions(ClientOptions{Default: &DefaultPolicy{Retries: 1, RetryMin: 100, RetryPercent: 100}}), with)...)
	checkRetryHides(t, c, good, bad)
}

func TestDefaultPolicyAttempts(t *testing.T) {
	leak.Check(t)
	for _, tt := range []struct {
		name   string
		policy DefaultPolicy
		target string // before the address
		want   int64
	}{
		{"none", DefaultPolicy{}, "passthrough:///", 1},
		{"some", DefaultPolicy{Retries: 2}, "passthrough:///", 3},
		{"dns", DefaultPolicy{Retries: 2}, "dns:///", 3},
		{"more than gRPC's own limit", DefaultPolicy{Retries: 6, RetryMin: 50}, "passthrough:///", 7},
		{"the budget is smaller", DefaultPolicy{Retries: 6}, "passthrough:///", 4},
		{"another code", DefaultPolicy{Retries: 2, RetryOn: []codes.Code{codes.Aborted}}, "passthrough:///", 1},
		{"among codes", DefaultPolicy{Retries: 2, RetryOn: []codes.Code{codes.Aborted, codes.Unavailable}}, "passthrough:///", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, "b", unavailable)
			c, _ := dial(t, tt.target+b.address, DialOptions(ClientOptions{Default: &tt.policy})...)
			wantCode(t, kinds[0].call(testContext(t), c), codes.Unavailable)
			if got := b.calls.Load(); got != tt.want {
				t.Errorf("%d attempts, want %d", got, tt.want)
			}
		})
	}
}

func TestDefaultPolicyBudget(t *testing.T) {
	leak.Check(t)
	healthy := true
	b := newBackend(t, "b", func(ctx context.Context, n int64) error {
		if healthy {
			return nil
		}
		return unavailable(ctx, n)
	})
	c, _ := dial(t, b.address, DialOptions(ClientOptions{Default: &DefaultPolicy{Retries: 2, RetryPercent: 20, RetryMin: 3}})...)
	ctx := testContext(t)
	// attempts makes calls one after another and returns the attempts of all.
	attempts := func(ok bool, calls int) int64 {
		t.Helper()
		healthy = ok
		before := b.calls.Load()
		for range calls {
			want := codes.OK
			if !ok {
				want = codes.Unavailable
			}
			wantCode(t, kinds[0].call(ctx, c), want)
		}
		return b.calls.Load() - before
	}
	// Of 8 tokens each failure costs one, and a retry needs more than 4 to be left.
	for i, step := range []struct {
		ok    bool
		calls int
		want  int64
	}{
		{false, 1, 3}, // 8 to 5
		{false, 3, 3}, // 5 to 2: no retry
		{true, 5, 5},  // 2 to 3
		{false, 1, 1}, // 3 to 2
		{true, 17, 17},
		{false, 1, 2}, // 5.4 to 3.4: one retry
		{false, 20, 20},
	} {
		if got := attempts(step.ok, step.calls); got != step.want {
			t.Errorf("step %d: %d attempts, want %d", i, got, step.want)
		}
	}
}

func TestDefaultPolicyTimeout(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", func(ctx context.Context, _ int64) error {
		if err := noDeadline(ctx); err == nil {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	})
	c, _ := dial(t, b.address, DialOptions(ClientOptions{Default: &DefaultPolicy{Timeout: 10 * time.Millisecond}})...)
	for i, k := range kinds {
		want := codes.OK // a stream has no limit, so the server answers
		if i == 0 {
			want = codes.DeadlineExceeded
		}
		wantCode(t, k.call(unlimited(t), c), want)
	}
}

func TestDefaultPolicyYields(t *testing.T) {
	leak.Check(t)
	b := newBackend(t, "b", unavailable)
	options := DialOptions(ClientOptions{Default: &DefaultPolicy{Retries: 2}})
	t.Run("to the resolver", func(t *testing.T) {
		r := manual.NewBuilderWithScheme("several")
		r.BuildCallback = func(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) {
			r.InitialState(resolver.State{
				Endpoints:     []resolver.Endpoint{{Addresses: []resolver.Address{{Addr: b.address}}}},
				ServiceConfig: cc.ParseServiceConfig(`{}`),
			})
		}
		c, _ := dial(t, "several:///x", append(options, grpc.WithResolvers(r))...)
		before := b.calls.Load()
		wantCode(t, kinds[0].call(testContext(t), c), codes.Unavailable)
		if got := b.calls.Load() - before; got != 1 {
			t.Errorf("%d attempts, want 1", got)
		}
	})
	t.Run("to the caller", func(t *testing.T) {
		c, _ := dial(t, b.address, append(options, grpc.WithDefaultServiceConfig(`{}`))...)
		before := b.calls.Load()
		wantCode(t, kinds[0].call(testContext(t), c), codes.Unavailable)
		if got := b.calls.Load() - before; got != 1 {
			t.Errorf("%d attempts, want 1", got)
		}
	})
}

func TestDefaultPolicyValidate(t *testing.T) {
	for _, tt := range []struct {
		policy DefaultPolicy
		want   string // the field; empty means valid
	}{
		{DefaultPolicy{}, ""},
		{DefaultPolicy{Retries: 99, RetryMin: 499, RetryPercent: 100, RetryOn: []codes.Code{codes.Unauthenticated, codes.Canceled}}, ""},
		{DefaultPolicy{Retries: 1, RetryPercent: 0.001}, ""},
		{DefaultPolicy{Timeout: -1}, "Timeout"},
		{DefaultPolicy{Retries: 100}, "Retries"},
		{DefaultPolicy{RetryMin: 500}, "RetryMin"},
		{DefaultPolicy{RetryPercent: -1}, "RetryPercent"},
		{DefaultPolicy{RetryPercent: 100.1}, "RetryPercent"},
		{DefaultPolicy{RetryPercent: math.NaN()}, "RetryPercent"},
		{DefaultPolicy{RetryOn: []codes.Code{codes.Aborted, codes.OK}}, "RetryOn[1]"},
		{DefaultPolicy{RetryOn: []codes.Code{17}}, "RetryOn[0]"},
	} {
		err := tt.policy.Validate()
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want+":")):
			t.Errorf("%+v: %v, want %q", tt.policy, err, tt.want)
		case tt.want == "":
			// gRPC takes what Validate lets through.
			conn, err := grpc.NewClient("passthrough:///x", DialOptions(ClientOptions{Default: &tt.policy})...)
			if err != nil {
				t.Errorf("%+v: %v", tt.policy, err)
				continue
			}
			conn.Close()
		}
	}
}

func TestWithoutDefaultPolicyNothingIsAdded(t *testing.T) {
	leak.Check(t)
	ours, plain := newBackend(t, "ours", unavailable), newBackend(t, "plain", unavailable)
	for b, options := range map[*backend][]grpc.DialOption{
		ours:  DialOptions(ClientOptions{}),
		plain: {grpc.WithTransportCredentials(insecure.NewCredentials())},
	} {
		c, _ := dial(t, b.address, options...)
		if _, err := c.UnaryCall(testContext(t), &pb.SimpleRequest{}); err == nil {
			t.Error("no error")
		}
		if got := b.calls.Load(); got != 1 {
			t.Errorf("%s: %d attempts", b.name, got)
		}
	}
}
