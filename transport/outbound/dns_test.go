package outbound

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// fakeResolver answers lookups by name.
type fakeResolver struct {
	answer chan struct{} // closed when answers may come; nil: at once

	mu      sync.Mutex
	answers map[string][]string
	at      []time.Duration
	began   time.Time
	family  string
}

func (f *fakeResolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if f.answer != nil {
		<-f.answer
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = append(f.at, time.Since(f.began))
	f.family = network
	var out []netip.Addr
	for _, a := range f.answers[host] {
		if a == "fail" {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func (f *fakeResolver) set(host string, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[host] = addrs
}

func named(discovery snapshot.Discovery, hosts ...string) *snapshot.Cluster {
	c := cluster("c")
	c.Discovery, c.DNS = discovery, &snapshot.DNS{RefreshRate: 10 * time.Second}
	for _, h := range hosts {
		c.DNS.Names = append(c.DNS.Names, snapshot.DNSName{Host: h, Port: 80})
	}
	return c
}

func TestStrictDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeResolver{answers: map[string][]string{"x.example": {"10.0.0.1", "10.0.0.2"}, "y.example": {"fail"}}, began: time.Now(), answer: make(chan struct{})}
		config := named(snapshot.StrictDNS, "x.example", "y.example", "10.9.9.9")
		e, c := live(t, Options{Resolver: f}, config)
		defer e.Close()
		if got := inUse(c); !slices.Equal(got, []string{"10.9.9.9:80", "x.example:80", "y.example:80"}) {
			t.Errorf("before any answer the names stand for themselves: %v", got)
		}
		close(f.answer)
		want(t, "answers", c, "10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:80", "y.example:80")
		kept := c.known["10.0.0.2:80"]
		if kept.Hostname() != "x.example" {
			t.Errorf("hostname %q", kept.Hostname())
		}
		f.set("x.example", "10.0.0.2", "::ffff:10.0.0.3")
		f.set("y.example", "fd00::1")
		time.Sleep(11 * time.Second)
		want(t, "refreshed", c, "10.0.0.2:80", "10.0.0.3:80", "10.9.9.9:80", "[fd00::1]:80")
		if c.known["10.0.0.2:80"] != kept {
			t.Error("the live state of an address that stays is lost")
		}
		f.set("x.example", "fail")
		time.Sleep(time.Minute)
		f.set("y.example")
		time.Sleep(time.Minute)
		want(t, "the last good stays", c, "10.0.0.2:80", "10.0.0.3:80", "10.9.9.9:80", "[fd00::1]:80")
		// The same names go on without being asked again; others begin anew.
		again := *config
		again.ConnectTimeout = time.Second
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": &again}})
		if got := inUse(c); len(got) != 4 || slices.Contains(got, "x.example:80") {
			t.Errorf("%v", got)
		}
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": cluster("c", "static:1")}})
		n := len(f.at)
		time.Sleep(time.Minute)
		want(t, "no names any more", c, "static:1")
		if len(f.at) != n {
			t.Error("names are looked up that nobody wants")
		}
	})
}

func TestDNSTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeResolver{answers: map[string][]string{"x.example": {"fail"}}, began: time.Now()}
		config := named(snapshot.StrictDNS, "x.example")
		config.DNS.FailureBase, config.DNS.FailureMax = time.Second, 8*time.Second
		top := uint64(0) // the largest jitter
		e, _ := live(t, Options{Resolver: f, Draw: func() uint64 { return top - 1 }}, config)
		defer e.Close()
		time.Sleep(30 * time.Second)
		f.mu.Lock()
		got := slices.Clone(f.at)
		f.mu.Unlock()
		// The bound doubles from 1 s to 8 s, and each pause is between a tenth of it and all.
		bound := []time.Duration{1, 2, 4, 8, 8, 8}
		for i := 1; i < min(len(got), len(bound)+1); i++ {
			pause := got[i] - got[i-1]
			if b := bound[i-1] * time.Second; pause < b/10 || pause > b {
				t.Errorf("pause %d is %v, want at most %v", i, pause, b)
			}
		}
		if len(got) < 5 {
			t.Errorf("%d lookups: %v", len(got), got)
		}
		f.set("x.example", "10.0.0.1")
		time.Sleep(9 * time.Second)
		f.mu.Lock()
		n := len(f.at)
		f.mu.Unlock()
		time.Sleep(50 * time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if more := len(f.at) - n; more != 5 {
			t.Errorf("%d lookups in 50 s, want 5", more)
		}
	})
}

func TestLogicalDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeResolver{answers: map[string][]string{"x.example": {"10.0.0.1", "10.0.0.2"}}, began: time.Now(), answer: make(chan struct{})}
		config := named(snapshot.LogicalDNS, "x.example")
		config.DNS.Family = "ip4"
		e, c := live(t, Options{Resolver: f}, config)
		defer e.Close()
		end := c.known["x.example:80"]
		if end.Dial() != "x.example:80" {
			t.Errorf("before any answer connections go to %s", end.Dial())
		}
		close(f.answer)
		synctest.Wait()
		if end.Dial() != "10.0.0.1:80" || f.family != "ip4" {
			t.Errorf("connections go to %s, of family %s", end.Dial(), f.family)
		}
		f.set("x.example", "10.0.0.2", "10.0.0.1")
		time.Sleep(11 * time.Second)
		if end.Dial() != "10.0.0.2:80" || end.Gone() || len(c.known) != 1 {
			t.Errorf("then to %s", end.Dial())
		}
	})
}

func TestPreferredFamily(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for _, c := range []struct {
		config      snapshot.DNS
		found, want []netip.Addr
	}{
		{snapshot.DNS{}, []netip.Addr{v6, v4}, []netip.Addr{v6, v4}},
		{snapshot.DNS{PreferIPv4: true}, []netip.Addr{v6, v4}, []netip.Addr{v4}},
		{snapshot.DNS{PreferIPv6: true}, []netip.Addr{v6, v4}, []netip.Addr{v6}},
		{snapshot.DNS{PreferIPv6: true}, []netip.Addr{v4}, []netip.Addr{v4}},
	} {
		d := &dns{config: &c.config}
		if got := d.preferred(c.found); !slices.Equal(got, c.want) {
			t.Errorf("%+v of %v: %v, want %v", c.config, c.found, got, c.want)
		}
	}
}
