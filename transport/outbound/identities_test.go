package outbound

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// opener opens sources of the test's, which never have anything but change.
type opener struct {
	mu     sync.Mutex
	fails  error
	opened []*openSource // every one, in order
	asked  []identityKey
}

type openSource struct {
	source.Source
	mu      sync.Mutex
	changed chan struct{}
	closed  atomic.Int64
}

func (o *opener) open(c snapshot.CertificateSource, t snapshot.TrustSource) (source.Source, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, identityKey{c, t})
	if o.fails != nil {
		return nil, o.fails
	}
	s := &openSource{changed: make(chan struct{})}
	o.opened = append(o.opened, s)
	return s, nil
}

func (s *openSource) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *openSource) change() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *openSource) Close() error {
	s.closed.Add(1)
	return nil
}

func policyOf(certificate, trust string) *snapshot.ClientTLS {
	return &snapshot.ClientTLS{Certificate: snapshot.CertificateSource{Instance: certificate}, Trust: snapshot.TrustSource{Instance: trust}}
}

func hold(t *testing.T, all *Identities, policy *snapshot.ClientTLS, renew func()) *Identity {
	t.Helper()
	i, err := all.Hold(policy, renew)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestIdentitiesAreShared: one source for one certificate and trust, however
// many hold it and whatever else their policies say; it is open as long as one does.
func TestIdentitiesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &opener{}
		all := NewIdentities(o.open)
		policy := policyOf("a", "t")
		other := policyOf("a", "t")
		other.ServerName = "another"
		first, second := hold(t, all, policy, func() {}), hold(t, all, other, func() {})
		for _, p := range []*snapshot.ClientTLS{policyOf("b", "t"), policyOf("a", "u"), policyOf("", "t")} {
			defer hold(t, all, p, func() {}).Close()
		}
		if len(o.opened) != 4 || o.asked[0] != (identityKey{policy.Certificate, policy.Trust}) {
			t.Fatalf("asked for %+v", o.asked)
		}
		src := o.opened[0]
		if first.Source != source.Source(src) || second.Source != source.Source(src) {
			t.Error("they do not hold the source that was opened")
		}
		for range 2 {
			if first.Release() {
				t.Error("a hold beside another was the last")
			}
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		if synctest.Wait(); src.closed.Load() != 0 {
			t.Fatal("closed under one that holds it")
		}
		if err := second.Close(); err != nil || src.closed.Load() != 1 {
			t.Errorf("%v, closed %d times when Close returned", err, src.closed.Load())
		}
		if second.Close(); second.Release() || src.closed.Load() != 1 {
			t.Error("a hold ended twice")
		}
		// From here on it is another source.
		third := hold(t, all, policy, func() {})
		if len(o.opened) != 5 || third.Source != source.Source(o.opened[4]) {
			t.Error("a source that was closed is held")
		}
		if !third.Release() {
			t.Error("the last hold was not the last")
		}
		if synctest.Wait(); o.opened[4].closed.Load() != 1 || src.closed.Load() != 1 {
			t.Error("the source is not closed once")
		}
	})
}

// TestIdentitiesTell: whoever holds a source is told of each change, from the
// moment that Hold has returned until the hold ends.
func TestIdentitiesTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &opener{}
		all := NewIdentities(o.open)
		var told [3]int
		user := func(n int, policy *snapshot.ClientTLS) *Identity {
			return hold(t, all, policy, func() { told[n]++ })
		}
		first := user(0, policyOf("a", "t"))
		o.opened[0].change() // at once
		synctest.Wait()
		second, apart := user(1, policyOf("a", "t")), user(2, policyOf("b", "t"))
		o.opened[0].change()
		synctest.Wait()
		first.Release()
		o.opened[0].change()
		synctest.Wait()
		if told != [3]int{2, 2, 0} {
			t.Errorf("told %v times", told)
		}
		o.opened[1].change()
		synctest.Wait()
		if told != [3]int{2, 2, 1} {
			t.Errorf("told %v times", told)
		}
		second.Close()
		apart.Close()
		o.opened[0].change()
		synctest.Wait()
		if told != [3]int{2, 2, 1} {
			t.Errorf("told %v times after the end", told)
		}
	})
}

// TestIdentitiesWhileTold: a user that is being told may hold and release, also
// under a lock that the telling waits for; Close waits for the telling to end.
func TestIdentitiesWhileTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &opener{}
		all := NewIdentities(o.open)
		lock := make(chan struct{}, 1)
		var told atomic.Int64
		i := hold(t, all, policyOf("a", "t"), func() {
			hold(t, all, policyOf("a", "t"), func() {}).Release()
			lock <- struct{}{}
			told.Add(1)
			<-lock
		})
		lock <- struct{}{}
		o.opened[0].change()
		synctest.Wait() // until it is being told
		if !i.Release() || o.opened[0].closed.Load() != 0 {
			t.Error("the source is closed while a user is told")
		}
		<-lock
		if synctest.Wait(); told.Load() != 1 || o.opened[0].closed.Load() != 1 {
			t.Errorf("told %d times, closed %d times", told.Load(), o.opened[0].closed.Load())
		}

		leave := make(chan struct{})
		i = hold(t, all, policyOf("a", "t"), func() { <-leave })
		o.opened[1].change()
		synctest.Wait()
		closed := make(chan struct{})
		go func() {
			i.Close()
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close returned while a user was being told")
		default:
		}
		close(leave)
		<-closed
		if len(o.opened) != 2 || o.opened[1].closed.Load() != 1 {
			t.Error("the source is not closed")
		}
	})
}

// TestIdentitiesOfNobody: what can not be opened is asked for again.
func TestIdentitiesOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, err := NewIdentities(nil).Hold(policyOf("a", "t"), func() {}); !errors.Is(err, ErrNoSources) {
			t.Errorf("error %v", err)
		}
		o := &opener{fails: errors.New("no such provider")}
		all := NewIdentities(o.open)
		for range 2 {
			if _, err := all.Hold(policyOf("a", "t"), func() {}); !errors.Is(err, o.fails) {
				t.Errorf("error %v", err)
			}
		}
		o.fails = nil
		defer hold(t, all, policyOf("a", "t"), func() {}).Close()
		if len(o.asked) != 3 || len(o.opened) != 1 {
			t.Errorf("asked %d times, %d opened", len(o.asked), len(o.opened))
		}
	})
}

// TestIdentitiesSideBySide: while many hold, release and change, nobody's source
// is closed, and in the end every one is, once.
func TestIdentitiesSideBySide(t *testing.T) {
	o := &opener{}
	all := NewIdentities(o.open)
	t.Cleanup(func() { // after all goroutines have ended
		for _, src := range o.opened {
			if n := src.closed.Load(); n != 1 {
				t.Errorf("a source was closed %d times", n)
			}
		}
		if len(all.held) != 0 {
			t.Errorf("%d sources are held by nobody", len(all.held))
		}
	})
	leak.Check(t)
	var users sync.WaitGroup
	for n := range 8 {
		users.Go(func() {
			draw := rand.New(rand.NewPCG(uint64(n), 1))
			for range 300 {
				i, err := all.Hold(policyOf("a", string(rune('t'+draw.IntN(2)))), func() {})
				if err != nil {
					t.Error(err)
					return
				}
				src := i.Source.(*openSource)
				if draw.IntN(3) == 0 {
					src.change()
				}
				if src.closed.Load() != 0 {
					t.Error("holds a source that is closed")
				}
				if draw.IntN(2) == 0 {
					i.Release()
				} else {
					i.Close()
				}
			}
		})
	}
	users.Wait()
}
