package meshgrpc

import (
	"testing"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// TestRoomOfAConnection: how many RPCs a connection takes at a time and in all;
// one that could not begin after all counts for neither.
func TestRoomOfAConnection(t *testing.T) {
	c := &connection{cluster: &snapshot.Cluster{MaxConcurrentStreams: 2, MaxRequestsPerConnection: 4}}
	is := func(what string, active, requests int64, room bool) {
		t.Helper()
		if a, r := c.active.Load(), c.requests.Load(); a != active || r != requests || c.hasRoom() != room {
			t.Errorf("%s: %d at a time, %d in all, room %t; want %d, %d, %t", what, a, r, c.hasRoom(), active, requests, room)
		}
	}
	take := func(want bool) {
		t.Helper()
		if got := c.take(); got != want {
			t.Errorf("taken %t, want %t", got, want)
		}
	}
	is("new", 0, 0, true)
	take(true)
	is("one", 1, 1, true)
	take(true)
	is("two", 2, 2, false)
	take(false)
	is("a third", 2, 2, false)
	c.leave()
	is("one has ended", 1, 2, true)
	take(true)
	c.untake()
	is("one that did not begin", 1, 2, true)
	take(true)
	c.leave()
	take(true)
	is("the last", 2, 4, false)
	c.leave()
	is("the last but one has ended", 1, 4, false)
	take(false)
	is("one too many", 1, 4, false)

	unlimited := &connection{cluster: &snapshot.Cluster{}}
	for range 1000 {
		if !unlimited.hasRoom() || !unlimited.take() {
			t.Fatal("no room without limits")
		}
	}
}
