// Package inbound takes one inbound request through a snapshot: the listener
// that it came in on decides whether it reaches the user's handler. HTTP and
// gRPC servers pass through the same code.
package inbound

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// Options configure an Engine.
type Options struct {
	// Subscribe asks the control plane for the listener at an address; it
	// returns at once and may be called again. nil means that there is no
	// control plane, and every request is let in.
	Subscribe func(address string)
	// Trouble returns the control plane's present trouble, or nil, for errors.
	Trouble func() error
	// PolicyWait limits how long a request waits for its listener's policy; zero means 15 s.
	PolicyWait time.Duration
}

// Engine is the inbound side of a process.
type Engine struct {
	options Options
	view    atomic.Pointer[view]
	changed atomic.Pointer[chan struct{}] // closed and replaced by each change of view
	closed  chan struct{}
	once    sync.Once

	mu sync.Mutex // serialises changes of view
}

// view is a snapshot's listeners in the form that a connection's address finds.
type view struct {
	listeners map[netip.AddrPort]*snapshot.Inbound
	// wildcards has the address of each listener of this process that
	// accepts on every address, by port.
	wildcards map[uint16]netip.AddrPort
}

const defaultPolicyWait = 15 * time.Second

// NotReadyError reports that no usable policy for the listener is there, so
// that nothing may be let in.
type NotReadyError struct {
	Address string
	Err     error // may be nil
}

func (e *NotReadyError) Error() string {
	s := fmt.Sprintf("mesh: not ready: no policy for the listener at %s", e.Address)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}
func (e *NotReadyError) Unwrap() error { return e.Err }

var (
	errAbsent    = errors.New("the control plane has none for this address")
	errNoAddress = errors.New("not a TCP address")
	errClosed    = errors.New("mesh: closed")
)

// New returns an engine without policy.
func New(o Options) *Engine {
	if o.PolicyWait == 0 {
		o.PolicyWait = defaultPolicyWait
	}
	e := &Engine{options: o, closed: make(chan struct{})}
	e.view.Store(&view{})
	changed := make(chan struct{})
	e.changed.Store(&changed)
	return e
}

// Install makes a snapshot the policy of requests that come in from now on.
func (e *Engine) Install(s *snapshot.Snapshot) {
	listeners := make(map[netip.AddrPort]*snapshot.Inbound, len(s.Inbound))
	for name, in := range s.Inbound {
		// Names are addresses that this engine has asked for, so they parse.
		if at, err := netip.ParseAddrPort(name); err == nil {
			listeners[unmap(at)] = in
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publish(&view{listeners: listeners, wildcards: e.view.Load().wildcards})
}

func (e *Engine) publish(v *view) {
	e.view.Store(v)
	changed := make(chan struct{})
	close(*e.changed.Swap(&changed))
}

// unmap makes an IPv4 address that came as IPv6 an IPv4 address, and drops the
// zone, so that an address has one spelling.
func unmap(at netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// Close makes requests that wait for policy fail.
func (e *Engine) Close() { e.once.Do(func() { close(e.closed) }) }

// Listening tells the engine of a listener before its first connection, so
// that its policy is asked for early, and so that connections to any address of
// a listener on all of them share one policy.
func (e *Engine) Listening(address net.Addr) {
	if e.options.Subscribe == nil {
		return
	}
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return
	}
	at := unmap(tcp.AddrPort())
	if at.Addr().IsUnspecified() {
		e.mu.Lock()
		old := e.view.Load()
		wildcards := maps.Clone(old.wildcards)
		if wildcards == nil {
			wildcards = make(map[uint16]netip.AddrPort)
		}
		wildcards[at.Port()] = at
		e.publish(&view{listeners: old.listeners, wildcards: wildcards})
		e.mu.Unlock()
	}
	e.options.Subscribe(at.String())
}

// Request is what inbound rules see of a request.
type Request struct {
	// Local is the address that the connection was accepted at.
	Local net.Addr
}

// Admit decides whether a request may reach the handler; nil lets it in. It
// waits for policy that has not come yet. The error is *NotReadyError.
func (e *Engine) Admit(ctx context.Context, r *Request) error {
	if e.options.Subscribe == nil {
		return nil
	}
	tcp, ok := r.Local.(*net.TCPAddr)
	if !ok {
		return &NotReadyError{Address: fmt.Sprint(r.Local), Err: errNoAddress}
	}
	v := e.view.Load()
	at := v.listener(tcp)
	if in := v.listeners[at]; in != nil {
		return verdict(in, at)
	}
	return e.await(ctx, tcp)
}

// listener returns the address of the listener behind a connection's local address.
func (v *view) listener(local *net.TCPAddr) netip.AddrPort {
	if at, ok := v.wildcards[uint16(local.Port)]; ok {
		return at
	}
	return unmap(local.AddrPort())
}

func verdict(in *snapshot.Inbound, at netip.AddrPort) error {
	switch {
	case in.Err != nil:
		return &NotReadyError{Address: at.String(), Err: in.Err}
	case in.Absent:
		return &NotReadyError{Address: at.String(), Err: errAbsent}
	default:
		return nil
	}
}

func (e *Engine) await(ctx context.Context, local *net.TCPAddr) error {
	timer := time.NewTimer(e.options.PolicyWait)
	defer timer.Stop()
	asked := false
	for {
		// The channel first: a change after this line closes it.
		changed := *e.changed.Load()
		v := e.view.Load()
		at := v.listener(local)
		if in := v.listeners[at]; in != nil {
			return verdict(in, at)
		}
		if !asked {
			asked = true
			e.options.Subscribe(at.String())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &NotReadyError{Address: at.String(), Err: errors.Join(ctx.Err(), e.trouble())}
		case <-timer.C:
			return &NotReadyError{Address: at.String(), Err: e.trouble()}
		case <-e.closed:
			return &NotReadyError{Address: at.String(), Err: errClosed}
		}
	}
}

func (e *Engine) trouble() error {
	if e.options.Trouble == nil {
		return nil
	}
	return e.options.Trouble()
}
