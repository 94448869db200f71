package meshhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

type key struct{}

// TestDeadlineIsWithTimeout runs each script against the deadline and against
// context.WithTimeout, and wants the same of both.
func TestDeadlineIsWithTimeout(t *testing.T) {
	for _, c := range []struct {
		name   string
		script func(above context.CancelCauseFunc, end func())
	}{
		{"time passes", func(context.CancelCauseFunc, func()) { time.Sleep(2 * time.Second) }},
		{"ended early", func(_ context.CancelCauseFunc, end func()) { end(); time.Sleep(2 * time.Second) }},
		{"cancelled above", func(above context.CancelCauseFunc, _ func()) { above(nil) }},
		{"cancelled above with a cause", func(above context.CancelCauseFunc, _ func()) { above(errors.New("why")) }},
		{"nothing happens", func(context.CancelCauseFunc, func()) {}},
	} {
		for _, limit := range []time.Duration{time.Second, time.Hour} {
			t.Run(fmt.Sprintf("%s, %v", c.name, limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					observe := func(make func(context.Context) (context.Context, func())) string {
						base, cancelBase := context.WithTimeout(context.WithValue(context.Background(), key{}, "v"), time.Minute)
						defer cancelBase()
						above, cancel := context.WithCancelCause(base)
						defer cancel(nil)
						ctx, end := make(above)
						child, cancelChild := context.WithCancelCause(ctx)
						defer cancelChild(nil)
						ran, kept := 0, 0
						context.AfterFunc(ctx, func() { ran++ })
						stop := context.AfterFunc(ctx, func() { kept++ })
						stopped, again := stop(), stop()
						at, ok := ctx.Deadline()
						c.script(cancel, end)
						synctest.Wait()
						done := false
						select {
						case <-ctx.Done():
							done = true
						default:
						}
						childDone := false
						select {
						case <-child.Done():
							childDone = true
						default:
						}
						end()
						synctest.Wait()
						return fmt.Sprint(done, childDone, ctx.Err(), child.Err(), context.Cause(child), ran, kept, stopped, again, time.Until(at).Round(time.Second), ok, ctx.Value(key{}))
					}
					std := observe(func(above context.Context) (context.Context, func()) {
						ctx, cancel := context.WithTimeout(above, limit)
						return ctx, cancel
					})
					own := observe(func(above context.Context) (context.Context, func()) {
						d := new(deadline)
						d.begin(new(clock), above, time.Now(), limit)
						return d, d.end
					})
					if std != own {
						t.Errorf("context.WithTimeout: %s\ndeadline:            %s", std, own)
					}
				})
			})
		}
	}
}

// TestEarlierDeadlineAbove: where the caller's deadline comes first, it is the
// caller's context that ends, and nothing here ends before it.
func TestEarlierDeadlineAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			above, cancel := context.WithTimeout(context.Background(), time.Second)
			d := new(deadline)
			d.begin(new(clock), above, time.Now(), time.Minute)
			if at, _ := d.Deadline(); !at.Equal(time.Now().Add(time.Second)) {
				t.Fatalf("deadline in %v", time.Until(at))
			}
			<-d.Done()
			if above.Err() == nil {
				t.Fatal("ended before the context above")
			}
			d.end()
			cancel()
		}
	})
}

// TestDeadlineStartsNoGoroutine: a context made from one, also with the values
// of another, hooks itself in instead of waiting in a goroutine.
func TestDeadlineStartsNoGoroutine(t *testing.T) {
	d := new(deadline)
	d.begin(new(clock), context.Background(), time.Now(), time.Hour)
	defer d.end()
	before := runtime.NumGoroutine()
	for _, ctx := range []context.Context{d, within{d, context.WithValue(d, key{}, "v")}} {
		_, cancel := context.WithCancel(ctx)
		defer cancel()
	}
	if n := runtime.NumGoroutine(); n != before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	if v := (within{d, context.WithValue(d, key{}, "v")}).Value(key{}); v != "v" {
		t.Errorf("value %v", v)
	}
}

// contexts is a transport that keeps the context of each request.
type contexts struct {
	stub
	seen []context.Context
}

func (c *contexts) RoundTrip(req *http.Request) (*http.Response, error) {
	c.seen = append(c.seen, req.Context())
	return c.stub.RoundTrip(req)
}

// TestOutermostContext: whatever is armed, the context that the transport sees
// is one that others can be made from without a goroutine.
func TestOutermostContext(t *testing.T) {
	for _, conditions := range []string{"5xx", "reset-before-request"} {
		base := &contexts{stub: stub{resp: http.Response{StatusCode: 200}}}
		s := routed(time.Minute, "127.0.0.1:1")
		for i := range s.Hosts["reviews:9080"].VirtualHost.Routes {
			s.Hosts["reviews:9080"].VirtualHost.Routes[i].Retry = retryOn(t, conditions, 1)
		}
		e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: func(c *snapshot.Cluster) outbound.Wire { return &wire{config: c, plain: base} }})
		e.Install(s)
		req := request(t, "GET", "http://reviews:9080/", nil)
		resp, err := NewRoundTripper(e, ClientOptions{}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if _, ok := base.seen[0].(interface{ AfterFunc(func()) func() bool }); !ok {
			t.Errorf("%s: the transport sees a %T", conditions, base.seen[0])
		}
	}
}

// TestDeadlineJoin: a joined context ends with its parent and never before, has
// the values of another, and leaves nothing with the parent.
func TestDeadlineJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent := new(deadline)
		parent.begin(new(clock), context.Background(), time.Now(), time.Minute)
		var children [3]deadline
		for i := range children {
			children[i].join(parent, context.WithValue(parent, key{}, i))
		}
		below, cancel := context.WithCancel(&children[2])
		defer cancel()
		children[0].end()
		if children[0].Err() != context.Canceled || children[1].Err() != nil || parent.Err() != nil {
			t.Errorf("one ended: %v %v, parent %v", children[0].Err(), children[1].Err(), parent.Err())
		}
		if at, ok := children[1].Deadline(); !ok || time.Until(at) != time.Minute || children[1].Value(key{}) != 1 {
			t.Errorf("deadline in %v (%t), value %v", time.Until(at), ok, children[1].Value(key{}))
		}
		<-children[1].Done()
		<-below.Done()
		for _, ctx := range []context.Context{parent, &children[1], &children[2], below} {
			if ctx.Err() != context.DeadlineExceeded {
				t.Errorf("after a minute: %v", ctx.Err())
			}
		}
		late := new(deadline)
		late.join(parent, parent)
		if late.Err() != context.DeadlineExceeded {
			t.Errorf("joined after the end: %v", late.Err())
		}
		children[1].end()
		children[2].end()
		late.end()
		if parent.children != nil {
			t.Error("the parent keeps children")
		}
		parent.end()
	})
}
