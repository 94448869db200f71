package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// still is a client without a loop, with a stream to each of n servers, on which
// a test can have two things happen in an order that is chance otherwise.
func still(t *testing.T, n int) *Client {
	b := &bootstrap.Config{Node: &corev3.Node{Id: "node"}, ListenerTemplate: "%s"}
	for i := range n {
		b.Servers = append(b.Servers, bootstrap.Server{
			URI: fmt.Sprintf("passthrough:///%d", i), ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}},
		})
	}
	c, err := newState(Options{Bootstrap: b, OnSnapshot: func(s *snapshot.Snapshot) { consistent(t, s) }}, plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.cancel()
		for _, m := range c.resources {
			for _, r := range m {
				r.stopTimer()
			}
		}
		for h := range c.unanswered {
			h.ready.Stop()
		}
	})
	c.open = n
	for _, s := range c.servers {
		c.connected(newStream(context.Background(), s, false))
	}
	return c
}

// flushed gives the first server the requests that are due, which are not written yet.
func (c *Client) flushed(t *testing.T) *stream {
	c.settle()
	c.flush()
	st := c.servers[0].stream
	select {
	case <-st.out:
	default:
		t.Fatal("there is nothing to send")
	}
	return st
}

// What nobody wants is forgotten when each server has been told, not when one has.
func TestPurgeAsksAllServers(t *testing.T) {
	for known := range 2 {
		c := still(t, 2)
		u := &inbound{}
		r := c.acquire(clusters, "x", u)
		sent := c.servers[known].stream.subs[clusters].sent
		sent["x"] = r
		c.release(r, u)
		c.purge()
		if c.resources[clusters]["x"] != r {
			t.Errorf("forgotten although server %d does not know yet", known)
		}
		delete(sent, "x")
		c.purge()
		if c.resources[clusters]["x"] != nil || len(c.orphans) != 0 {
			t.Error("not forgotten")
		}
	}
}

// Whoever wants a resource again, while it was asked for and given up, does not
// wait for ever; and nobody waits for what is not wanted any more.
func TestWaitForWhatIsWantedAgain(t *testing.T) {
	c := still(t, 1)
	c.subscribe("a:80")
	st := c.flushed(t)
	c.unsubscribe(c.hosts["a:80"])
	c.wrote(st)
	c.subscribe("a:80")
	c.settle()
	c.flush()
	c.purge()
	r := c.wanted(listeners, "a:80")
	if r == nil || r.timer == nil {
		t.Fatal("nothing ends the wait for a server that is silent")
	}
	c.unsubscribe(c.hosts["a:80"])
	c.wrote(c.flushed(t))
	c.purge()
	if c.resources[listeners]["a:80"] != nil || r.timer != nil {
		t.Error("the timer runs on")
	}
}

// A timer that has gone off before it was set anew says nothing.
func TestTimerThatWasSetAnew(t *testing.T) {
	c := still(t, 1)
	st := c.servers[0].stream
	c.subscribe("a:80")
	r := c.resources[listeners]["a:80"]
	c.startTimer(r, st, time.Hour)
	old := r.timer
	c.startTimer(r, st, time.Hour)
	c.expired(r, old, st.server)
	if !r.pending() || r.timer == nil {
		t.Error("the wait was cut short")
	}
	c.expired(r, r.timer, st.server)
	if r.pending() || r.timer != nil {
		t.Error("the wait does not end")
	}
}

// The wait goes on at another server only where that was asked.
func TestTimerMovesToWhoWasAsked(t *testing.T) {
	c := still(t, 2)
	c.subscribe("a:80")
	r := c.resources[listeners]["a:80"]
	first, second := c.servers[0].stream, c.servers[1].stream
	c.startTimer(r, first, time.Hour)
	c.stopTimers(first)
	if r.timer != nil {
		t.Error("a timer runs for a server that was not asked")
	}
	second.subs[listeners].sent["a:80"] = r
	c.startTimer(r, first, time.Hour)
	c.stopTimers(first)
	if r.timed != second || r.timer == nil {
		t.Error("no timer runs")
	}
}

// What is wanted no more does not call for a fallback server.
func TestNoFallbackForTheUnwanted(t *testing.T) {
	c := still(t, 2)
	c.open = 1
	c.servers[0].stream, c.servers[0].failed = nil, true
	u := &inbound{}
	c.release(c.acquire(clusters, "x", u), u)
	if r := c.status().Resources; len(r) != 0 {
		t.Errorf("the status shows %v", r)
	}
	c.fallback()
	if c.open != 1 {
		t.Error("the next server is used")
	}
}

// An absence that is said again is no news.
func TestAbsenceIsToldOnce(t *testing.T) {
	c := still(t, 1)
	told := 0
	c.opts.Events.Missing = func(string, string, error) { told++ }
	c.subscribe("a:80")
	c.settle()
	r := c.resources[listeners]["a:80"]
	for range 3 {
		c.deleted(r, c.servers[0])
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// A stream that has stood is the present one for the loop, also where it has ended.
func TestStreamHasStood(t *testing.T) {
	closed := make(chan struct{})
	close(closed)
	for range 50 {
		if r := (&running{st: &stream{opened: closed}, done: closed}); !r.stands() {
			t.Fatal("taken for one that never stood")
		}
	}
	if r := (&running{st: &stream{opened: make(chan struct{})}, done: closed}); r.stands() {
		t.Error("it never stood")
	}
}

// A stream to a server that is not in use any more is nobody's.
func TestLateStream(t *testing.T) {
	c := still(t, 2)
	lower := c.servers[1]
	ctx, stop := context.WithCancel(context.Background())
	lower.stop = stop
	late := newStream(ctx, lower, false)
	c.closeAfter(c.servers[0])
	c.connected(late)
	if lower.stream != nil {
		t.Error("the stream counts as the server's")
	}
}

// The text of a refusal is bounded, and can be sent.
func TestDetail(t *testing.T) {
	if d := detail(nil); d != nil {
		t.Errorf("an ACK has the detail %v", d)
	}
	for _, text := range []string{strings.Repeat("x", maxErrorDetail), strings.Repeat("x", 3*maxErrorDetail), "a\xffb", strings.Repeat("ü", maxErrorDetail)} {
		d := detail(errors.New(text))
		if n := len(d.GetMessage()); n > maxErrorDetail+len("...") || !utf8.ValidString(d.GetMessage()) || d.GetCode() != int32(codes.InvalidArgument) {
			t.Errorf("%d bytes of %d, code %d", n, len(text), d.GetCode())
		}
		if len(text) == maxErrorDetail && d.GetMessage() != text {
			t.Error("cut although it is not too long")
		}
	}
}

// A name waits in the mailbox once, however often it is asked for.
func TestNamesWaitOnce(t *testing.T) {
	var m mailbox
	m.init()
	for range 3 {
		for range 5 {
			m.postHost("a")
			m.postHost("b")
			m.postCluster("a")
		}
		if _, hosts, clusters := m.take(); !slices.Equal(hosts, []string{"a", "b"}) || !slices.Equal(clusters, []string{"a"}) {
			t.Errorf("hosts %v, clusters %v", hosts, clusters)
		}
	}
}
