package client

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const (
	// maxHostName bounds "host:port"; a DNS name has at most 255 octets.
	maxHostName = 512
	// maxRefused bounds the hosts that are published with ErrTooMany or ErrHostName.
	maxRefused = 128
	// refusedFor is how long such a host is published, after which it may be subscribed again.
	refusedFor = 15 * time.Second
)

// ErrTooMany is the error of a host that was refused because Options.MaxSubscriptions hosts are in use.
var ErrTooMany = errors.New("xds: too many hosts are in use")

// ErrHostName is the error of a host whose name no listener can have.
var ErrHostName = errors.New("xds: not a host name")

// subscribe starts to follow a host.
func (c *Client) subscribe(name string) {
	if h := c.hosts[name]; h != nil {
		h.used.Store(true) // the request that waits for it can not set what is not published
		return
	}
	if c.refused[name] != nil {
		return
	}
	if name == "" || len(name) > maxHostName || !utf8.ValidString(name) {
		// Invalid UTF-8 can not be sent: the stream would break, again and again.
		c.refuseHost(name, ErrHostName)
		return
	}
	if len(c.hosts) >= c.opts.MaxSubscriptions && !c.evict() {
		c.refuseHost(name, fmt.Errorf("%w (%d)", ErrTooMany, c.opts.MaxSubscriptions))
		return
	}
	now := time.Now()
	h := &host{name: name, used: new(atomic.Bool), since: now, lastUsed: now}
	h.used.Store(true) // by the request that made the subscription
	c.hosts[name] = h
	c.unanswered[h] = struct{}{}
	h.ready = time.AfterFunc(max(0, c.opts.ReadyWait), func() { c.mail.post(c.outOfReach) })
	h.listener = c.acquire(listeners, c.opts.Bootstrap.ListenerName(name), h)
	h.touched(c)
}

// unsubscribe ends the subscription of a host.
func (c *Client) unsubscribe(h *host) {
	delete(c.hosts, h.name)
	delete(c.unanswered, h)
	h.ready.Stop()
	for _, n := range h.current.clusters {
		c.live(n, -1)
	}
	c.let(h, h.current)
	c.let(h, h.next)
	c.release(h.listener, h)
	if h.published != nil {
		c.hostsChanged = true
	}
}

// refuseHost publishes a host with an error, for a short time.
func (c *Client) refuseHost(name string, err error) {
	if len(c.refusedOrder) >= maxRefused {
		c.unrefuse(c.refusedOrder[0])
	}
	h := &snapshot.Host{Name: name, Err: err, Used: new(atomic.Bool)}
	c.refused[name] = h
	c.refusedOrder = append(c.refusedOrder, name)
	c.hostsChanged = true
	c.refusedEnds[name] = time.AfterFunc(refusedFor, func() {
		c.mail.post(func() {
			if c.refused[name] == h {
				c.unrefuse(name)
			}
		})
	})
}

func (c *Client) unrefuse(name string) {
	// A timer that runs on would hold the name: of a flood of names, all of them.
	c.refusedEnds[name].Stop()
	delete(c.refusedEnds, name)
	delete(c.refused, name)
	for i, n := range c.refusedOrder {
		if n == name {
			c.refusedOrder = append(c.refusedOrder[:i], c.refusedOrder[i+1:]...)
			break
		}
	}
	c.hostsChanged = true
}

// sweep ends the subscriptions that no request used for IdleTimeout. It runs
// every quarter of it, and dates a use at the sweep that saw it.
func (c *Client) sweep() {
	now := time.Now()
	for _, h := range c.hosts {
		if h.used.Swap(false) {
			h.lastUsed = now
		} else if now.Sub(h.lastUsed) >= c.opts.IdleTimeout {
			c.unsubscribe(h)
		}
	}
	c.sweepDemands(now)
}

// evict ends the subscription that was unused for longest, to make room; false if all are in use.
func (c *Client) evict() bool {
	var oldest *host
	for _, h := range c.hosts {
		if !h.used.Load() && (oldest == nil || h.lastUsed.Before(oldest.lastUsed)) {
			oldest = h
		}
	}
	if oldest == nil {
		return false
	}
	c.unsubscribe(oldest)
	return true
}

// subscribeInbound starts to follow an inbound address.
func (c *Client) subscribeInbound(addr string) {
	if c.inbounds[addr] != nil {
		return
	}
	in := &inbound{addr: addr}
	c.inbounds[addr] = in
	name, err := c.opts.Bootstrap.InboundName(addr)
	if err == nil && !utf8.ValidString(name) {
		err = fmt.Errorf("xds: inbound address %q: not an address", addr)
	}
	if err != nil {
		in.published = &snapshot.Inbound{Address: addr, Err: err}
		c.inboundsChanged = true
		return
	}
	in.listener = c.acquire(listeners, name, in)
	in.listener.inbound = true
	in.touched(c)
}

// outOfReach publishes the hosts that have waited for ReadyWait with an error
// if no server can be reached: later requests to them fail at once instead of
// waiting too. An answer that comes later replaces it.
func (c *Client) outOfReach() {
	err := c.unreachable()
	if err == nil {
		return
	}
	for h := range c.unanswered {
		if time.Since(h.since) >= c.opts.ReadyWait {
			c.show(h, &snapshot.Host{Err: err})
		}
	}
	c.demandsOutOfReach(err)
}
