package outbound

import (
	"sync"
	"time"
)

// watchInterval is how often the hosts of channels are marked as used. It is
// less than any sensible idle time of a subscription.
const watchInterval = 30 * time.Second

// watches are the hosts whose subscriptions are kept though no request uses them.
type watches struct {
	mu     sync.Mutex
	hosts  map[string]int
	timer  *time.Timer // runs while there are hosts
	closed bool
}

// Changed returns a channel that the next Install closes. Who wants to see every
// change asks for the channel first and for the state after it.
func (e *Engine) Changed() <-chan struct{} { return *e.changed.Load() }

// HostState reports whether there is policy for the host, "host:port" as
// HostKey makes it. An error says why there is none: a *NoRouteError. Where
// neither is the case the policy is on its way: it is asked for if it was not
// yet. It does not keep the subscription alive; Watch does.
func (e *Engine) HostState(key string) (ready bool, err error) {
	if e.options.Subscribe == nil {
		_, err := e.directHost(key, "http")
		return err == nil, err
	}
	h := e.view.Load().hosts[key]
	if h == nil {
		e.options.Subscribe(key)
		return false, nil
	}
	_, err = h.use(Place{Host: key})
	return err == nil, err
}

// Watch asks for the host's policy and keeps it subscribed until stop is called,
// which may be done more than once.
func (e *Engine) Watch(key string) (stop func()) {
	if e.options.Subscribe == nil {
		return func() {}
	}
	w := &e.watches
	w.mu.Lock()
	if w.hosts == nil {
		w.hosts = make(map[string]int)
	}
	w.hosts[key]++
	if w.timer == nil && !w.closed {
		w.timer = time.AfterFunc(watchInterval, e.keep)
	}
	w.mu.Unlock()
	_, _ = e.HostState(key)
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.hosts[key]--; w.hosts[key] == 0 {
			delete(w.hosts, key)
		}
		if len(w.hosts) == 0 && w.timer != nil {
			w.timer.Stop()
			w.timer = nil
		}
	})
}

// keep marks the watched hosts as used.
func (e *Engine) keep() {
	w := &e.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.timer == nil {
		return
	}
	for key := range w.hosts {
		_, _ = e.HostState(key)
	}
	w.timer.Reset(watchInterval)
}

func (w *watches) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}
