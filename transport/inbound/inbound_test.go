package inbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// asked is a control plane that only notes what it is asked for.
type asked struct {
	mu        sync.Mutex
	addresses []string
}

func (a *asked) subscribe(address string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addresses = append(a.addresses, address)
}

func (a *asked) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.addresses)
}

func at(t testing.TB, address string) *net.TCPAddr {
	t.Helper()
	tcp, err := net.ResolveTCPAddr("tcp", address) // literals only: nothing is looked up
	if err != nil {
		t.Fatal(err)
	}
	return tcp
}

// open is a policy that lets everything in.
func open() *snapshot.Inbound {
	return &snapshot.Inbound{Plain: &snapshot.FilterChain{}}
}

func listeners(names ...string) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{}}
	for _, name := range names {
		s.Inbound[name] = open()
	}
	return s
}

// TestAdmitFindsTheListener: an address has one spelling, and a listener on all
// addresses stands for each of them on its port.
func TestAdmitFindsTheListener(t *testing.T) {
	for _, c := range []struct {
		name      string
		listening []string
		policies  []string
		local     net.Addr
		found     string // the listener that must have had the policy; "" for none
	}{
		{"as named", nil, []string{"10.0.0.7:9080"}, at(t, "10.0.0.7:9080"), "10.0.0.7:9080"},
		{"other port", nil, []string{"10.0.0.7:9080"}, at(t, "10.0.0.7:9081"), ""},
		{"other address", nil, []string{"10.0.0.7:9080"}, at(t, "10.0.0.8:9080"), ""},
		{"IPv4 in IPv6", nil, []string{"10.0.0.7:9080"}, &net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.7"), Port: 9080}, "10.0.0.7:9080"},
		{"policy named as IPv4 in IPv6", nil, []string{"[::ffff:10.0.0.7]:9080"}, at(t, "10.0.0.7:9080"), "10.0.0.7:9080"},
		{"IPv6", nil, []string{"[fd00::1]:9080"}, at(t, "[fd00::1]:9080"), "[fd00::1]:9080"},
		{"a zone does not count", nil, []string{"[fe80::1]:9080"}, &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 9080}, "[fe80::1]:9080"},
		{"wildcard", []string{"0.0.0.0:9080"}, []string{"0.0.0.0:9080"}, at(t, "10.0.0.7:9080"), "0.0.0.0:9080"},
		{"IPv6 wildcard takes IPv4 connections", []string{"[::]:9080"}, []string{"[::]:9080"}, at(t, "10.0.0.7:9080"), "[::]:9080"},
		{"wildcard of another port", []string{"[::]:9081"}, []string{"[::]:9081"}, at(t, "10.0.0.7:9080"), ""},
		{"two wildcards", []string{"[::]:9081", "[::]:9080"}, []string{"[::]:9080"}, at(t, "10.0.0.7:9080"), "[::]:9080"},
		// Policy for one address says nothing about a listener on all of them.
		{"wildcard without a policy of its own", []string{"0.0.0.0:9080"}, []string{"10.0.0.7:9080"}, at(t, "10.0.0.7:9080"), ""},
		{"a name that is no address is no policy", nil, []string{"reviews:9080"}, at(t, "10.0.0.7:9080"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				control := &asked{}
				e := New(Options{Subscribe: control.subscribe, PolicyWait: time.Second})
				for _, l := range c.listening {
					e.Listening(at(t, l))
				}
				if got := control.list(); !slices.Equal(got, c.listening) {
					t.Errorf("asked for %v when it began to listen, want %v", got, c.listening)
				}
				e.Install(listeners(c.policies...))
				err := e.Admit(t.Context(), &Request{Local: c.local}, new(Admission))
				var notReady *NotReadyError
				if (err == nil) != (c.found != "") || err != nil && !errors.As(err, &notReady) {
					t.Errorf("error %v, want a listener: %v", err, c.found)
				}
			})
		})
	}
}

func TestVerdict(t *testing.T) {
	broken := errors.New("filter_chains[0]: refused")
	trouble := errors.New("connection refused")
	local := at(t, "10.0.0.7:9080")
	for _, c := range []struct {
		name string
		in   *snapshot.Inbound // nil: no policy comes
		want []string          // parts of the error; none: admitted
	}{
		{"good", open(), nil},
		{"good, and says nothing", &snapshot.Inbound{}, []string{"takes no connections"}},
		{"in error", &snapshot.Inbound{Err: broken}, []string{"10.0.0.7:9080", "filter_chains[0]: refused"}},
		{"absent", &snapshot.Inbound{Absent: true}, []string{"10.0.0.7:9080", "has none"}},
		{"in error and absent", &snapshot.Inbound{Err: broken, Absent: true}, []string{"refused"}},
		{"not come", nil, []string{"10.0.0.7:9080", "connection refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := New(Options{Subscribe: func(string) {}, Trouble: func() error { return trouble }})
				s := &snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{}}
				if c.in != nil {
					s.Inbound["10.0.0.7:9080"] = c.in
				}
				e.Install(s)
				began := time.Now()
				err := e.Admit(t.Context(), &Request{Local: local}, new(Admission))
				if (err == nil) != (c.want == nil) {
					t.Fatalf("error %v", err)
				}
				for _, part := range c.want {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q does not say %q", err, part)
					}
				}
				if took := time.Since(began); took != map[bool]time.Duration{true: 15 * time.Second}[c.in == nil] {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

func TestWithoutControlPlane(t *testing.T) {
	e := New(Options{})
	e.Listening(at(t, "[::]:9080"))
	for _, local := range []net.Addr{at(t, "10.0.0.7:9080"), &net.UnixAddr{Name: "/run/x"}, nil} {
		if err := e.Admit(t.Context(), &Request{Local: local}, new(Admission)); err != nil {
			t.Errorf("%v: %v", local, err)
		}
	}
}

func TestNotTCP(t *testing.T) {
	control := &asked{}
	e := New(Options{Subscribe: control.subscribe})
	e.Listening(&net.UnixAddr{Name: "/run/x", Net: "unix"})
	for _, local := range []net.Addr{&net.UnixAddr{Name: "/run/x", Net: "unix"}, nil} {
		var notReady *NotReadyError
		if err := e.Admit(t.Context(), &Request{Local: local}, new(Admission)); !errors.As(err, &notReady) || !errors.Is(err, errNoAddress) {
			t.Errorf("%v: error %v", local, err)
		}
	}
	if got := control.list(); len(got) != 0 {
		t.Errorf("asked for %v", got)
	}
}

// TestWaiting: whoever waits goes on with the policy, with their own end, or
// with the engine's, whichever comes first.
func TestWaiting(t *testing.T) {
	local := "10.0.0.7:9080"
	for _, c := range []struct {
		name  string
		event func(*Engine)
		after time.Duration // of the event
		limit time.Duration // of the request; zero: none
		want  error         // nil: admitted
		took  time.Duration
	}{
		{"policy", func(e *Engine) { e.Install(listeners(local)) }, 2 * time.Second, 0, nil, 2 * time.Second},
		{"policy for others", func(e *Engine) { e.Install(listeners("10.0.0.7:1")) }, 2 * time.Second, 5 * time.Second, context.DeadlineExceeded, 5 * time.Second},
		{"close", (*Engine).Close, 2 * time.Second, 0, errClosed, 2 * time.Second},
		{"the request's end", func(*Engine) {}, 0, time.Second, context.DeadlineExceeded, time.Second},
		// The wait is for the listener that the connection belongs to in the end.
		{"the listener is announced and has its policy", func(e *Engine) {
			e.Listening(&net.TCPAddr{IP: net.IPv6unspecified, Port: 9080})
			e.Install(listeners("[::]:9080"))
		}, 2 * time.Second, 0, nil, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				control := &asked{}
				e := New(Options{Subscribe: control.subscribe})
				time.AfterFunc(c.after, func() { c.event(e) })
				ctx := t.Context()
				if c.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.limit)
					defer cancel()
				}
				began := time.Now()
				err := e.Admit(ctx, &Request{Local: at(t, local)}, new(Admission))
				if took := time.Since(began); !errors.Is(err, c.want) || took != c.took {
					t.Errorf("%v after %s, want %v after %s", err, took, c.want, c.took)
				}
				if got := control.list(); len(got) == 0 || got[0] != local {
					t.Errorf("asked for %v", got)
				}
				time.Sleep(c.after)
			})
		})
	}
}

// TestConcurrently admits while listeners come, policies change and the engine closes.
func TestConcurrently(t *testing.T) {
	e := New(Options{Subscribe: func(string) {}, PolicyWait: time.Minute})
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			local := at(t, fmt.Sprintf("10.0.0.%d:9080", i))
			for range 200 {
				if err := e.Admit(t.Context(), &Request{Local: local}, new(Admission)); err != nil {
					t.Errorf("%s: %v", local, err)
					return
				}
			}
		})
	}
	running.Go(func() {
		for n := range 50 {
			var names []string
			for i := range 8 {
				// Each is away in one of two snapshots, and is waited for.
				if (n+i)%2 == 0 {
					names = append(names, fmt.Sprintf("10.0.0.%d:9080", i))
				}
			}
			e.Install(listeners(names...))
			e.Listening(&net.TCPAddr{IP: net.IPv4zero, Port: 10_000 + n})
		}
		var all []string
		for i := range 8 {
			all = append(all, fmt.Sprintf("10.0.0.%d:9080", i))
		}
		e.Install(listeners(all...))
	})
	running.Wait()
	e.Close()
	e.Close() // again is nothing
	if err := e.Admit(t.Context(), &Request{Local: at(t, "10.9.9.9:1")}, new(Admission)); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func BenchmarkAdmit(b *testing.B) {
	e := New(Options{Subscribe: func(string) {}})
	e.Install(listeners("10.0.0.7:9080"))
	r := &Request{Local: at(b, "10.0.0.7:9080")}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Admit(b.Context(), r, new(Admission)); err != nil {
			b.Fatal(err)
		}
	}
}
