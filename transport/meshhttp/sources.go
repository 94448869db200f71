package meshhttp

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

var errNoSources = errors.New("the process has no identity sources")

// identities are the sources that wires use at present, each opened once and
// watched by one goroutine, however many clusters name it.
type identities struct {
	open Sources // may be nil
	// network is what wires dial; nil is the machine's own. A test has one in memory.
	network dialFunc

	mu   sync.Mutex
	held map[identityKey]*heldSource
}

type identityKey struct {
	certificate snapshot.CertificateSource
	trust       snapshot.TrustSource
}

type heldSource struct {
	source.Source
	all  *identities
	key  identityKey
	stop chan struct{}
	done chan struct{}

	users map[*secured]struct{} // guarded by all.mu
}

// hold returns the source that a user's policy names. release must follow.
func (all *identities) hold(user *secured) (*heldSource, error) {
	if all.open == nil {
		return nil, errNoSources
	}
	key := identityKey{user.policy.Certificate, user.policy.Trust}
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
			users: make(map[*secured]struct{}),
		}
		if all.held == nil {
			all.held = make(map[identityKey]*heldSource)
		}
		all.held[key] = h
		// The channel before the first handshake, so that no change is missed.
		go h.watch(src.Changed())
	}
	h.users[user] = struct{}{}
	return h, nil
}

// release gives back what hold returned.
func (h *heldSource) release(user *secured) {
	h.all.mu.Lock()
	delete(h.users, user)
	last := len(h.users) == 0
	if last {
		delete(h.all.held, h.key)
	}
	h.all.mu.Unlock()
	if last {
		close(h.stop)
		<-h.done
		_ = h.Close() // its material stays readable for handshakes under way
	}
}

// watch has the users make new connections when the source has changed.
func (h *heldSource) watch(changed <-chan struct{}) {
	defer close(h.done)
	for {
		select {
		case <-changed:
		case <-h.stop:
			return
		}
		changed = h.Changed()
		h.all.mu.Lock()
		users := make([]*secured, 0, len(h.users))
		for u := range h.users {
			users = append(users, u)
		}
		h.all.mu.Unlock()
		for _, u := range users {
			u.renew()
		}
	}
}
