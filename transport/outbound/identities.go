package outbound

import (
	"errors"
	"sync"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// Sources opens the identity source that policy names: the certificate that is
// presented, which is the zero value where none is, and what verifies the
// server. It is asked again, at the next request that needs the source, where
// it returns an error. Whoever is given a source closes it when it is no longer used.
type Sources func(certificate snapshot.CertificateSource, trust snapshot.TrustSource) (source.Source, error)

// ErrNoSources is the error of Hold where the process opens no sources.
var ErrNoSources = errors.New("the process has no identity sources")

// Identities are the identity sources that an adapter's connections use at
// present, each opened once and watched by one goroutine, however many use it.
// Its methods are safe for concurrent use.
type Identities struct {
	open Sources // may be nil

	mu   sync.Mutex
	held map[identityKey]*heldSource
}

// NewIdentities returns Identities that open their sources so. With nil Hold fails.
func NewIdentities(open Sources) *Identities {
	return &Identities{open: open, held: make(map[identityKey]*heldSource)}
}

type identityKey struct {
	certificate snapshot.CertificateSource
	trust       snapshot.TrustSource
}

// heldSource is a source with its users. Its fields do not change, but for users.
type heldSource struct {
	source.Source
	all  *Identities
	key  identityKey
	stop chan struct{} // closed when the last user has gone
	done chan struct{} // closed when the source is, after that

	users map[*Identity]struct{} // guarded by all.mu
}

// Identity is one user's hold on a source.
type Identity struct {
	*heldSource
	renew func()
}

// Hold returns the source that policy names. Whenever the source changes, renew
// is called, which may be once more when the hold has just ended. Close or
// Release must follow.
func (all *Identities) Hold(policy *snapshot.ClientTLS, renew func()) (*Identity, error) {
	if all.open == nil {
		return nil, ErrNoSources
	}
	key := identityKey{policy.Certificate, policy.Trust}
	all.mu.Lock()
	defer all.mu.Unlock()
	h := all.held[key]
	if h == nil {
		src, err := all.open(key.certificate, key.trust)
		if err != nil {
			return nil, err
		}
		h = &heldSource{
			Source: src, all: all, key: key, stop: make(chan struct{}), done: make(chan struct{}),
			users: make(map[*Identity]struct{}),
		}
		all.held[key] = h
		// The channel before the first handshake, so that no change is missed.
		go h.watch(src.Changed())
	}
	i := &Identity{heldSource: h, renew: renew}
	h.users[i] = struct{}{}
	return i, nil
}

// Close ends the hold. Where it was the last on its source, it waits until no
// renew is under way and the source is closed, so renew must not wait for
// whoever calls Close. It implements source.Source; the error is nil.
func (i *Identity) Close() error {
	if i.Release() {
		<-i.done
	}
	return nil
}

// Release is Close without the waiting. It reports whether the hold was the
// last on its source, and false where it had ended before.
func (i *Identity) Release() (last bool) {
	i.all.mu.Lock()
	_, holds := i.users[i]
	delete(i.users, i)
	last = holds && len(i.users) == 0
	if last {
		delete(i.all.held, i.key)
	}
	i.all.mu.Unlock()
	if last {
		close(i.stop)
	}
	return last
}

// watch tells the users when the source has changed, and closes it when they have gone.
func (h *heldSource) watch(changed <-chan struct{}) {
	defer close(h.done)
	defer h.Source.Close() // its material stays readable for handshakes under way
	for {
		select {
		case <-changed:
		case <-h.stop:
			return
		}
		changed = h.Changed()
		h.all.mu.Lock()
		users := make([]*Identity, 0, len(h.users))
		for i := range h.users {
			users = append(users, i)
		}
		h.all.mu.Unlock()
		for _, i := range users {
			i.renew()
		}
	}
}
