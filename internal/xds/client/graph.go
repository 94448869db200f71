package client

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// refs is what one configuration of a host is made of.
type refs struct {
	route    *resource // nil where the listener has its routes inline
	clusters []*cluster
}

// host is one subscribed "host:port".
type host struct {
	name     string
	listener *resource
	used     *atomic.Bool
	lastUsed time.Time   // as the sweep saw it
	since    time.Time   // of the subscription
	ready    *time.Timer // ends ReadyWait
	answered bool        // resolved at least once

	current refs // of the published configuration
	next    refs // of the one that is being completed, if any

	published *snapshot.Host
	bound     bound
}

// bound is a host's configuration that was made of a listener and routes, kept
// so that the same two give the same one again.
type bound struct {
	listener *snapshot.Listener
	routes   *snapshot.RouteConfig
	host     *snapshot.Host
}

// bind returns what the listener and the routes say of the host.
func (h *host) bind(l *snapshot.Listener, rc *snapshot.RouteConfig) *snapshot.Host {
	if h.bound.host == nil || h.bound.listener != l || h.bound.routes != rc {
		h.bound = bound{l, rc, l.Host(h.name, rc)}
	}
	p := *h.bound.host
	return &p
}

func (h *host) touched(c *Client) { c.dirtyHosts[h] = struct{}{} }

// inbound is one subscribed address.
type inbound struct {
	addr      string
	listener  *resource // nil where the name can not be built
	published *snapshot.Inbound
}

func (in *inbound) touched(c *Client) { c.dirtyInbounds[in] = struct{}{} }

// cluster is one cluster with its endpoints, shared by all that need it.
type cluster struct {
	name string
	// users are hosts, demands, and aggregates that have it among their members; with
	// the number of holds each has.
	users map[user]int
	roots int          // holds by hosts and demands
	shown int          // how many published hosts and demands name it
	live  int          // shown, and how many shown aggregates have it as a leaf
	below int          // how many aggregates have it as a leaf in force
	used  *atomic.Bool // by a request whose header names it

	resource  *resource
	endpoints *resource // that built is made of; nil where they came with the cluster
	next      *resource // awaited, before it takes the place of endpoints
	under     members   // of an aggregate that built is made of
	nextUnder members   // awaited

	built *snapshot.Cluster // nil before the first answer
	base  *snapshot.Cluster // the compiled resource that built is made of
	set   *lb.Endpoints     // the compiled endpoints that built is made of
	told  *snapshot.Cluster // the compiled resource that aggregates above were told of
}

func (n *cluster) touched(c *Client) { c.dirtyClusters[n] = struct{}{} }

// noEndpoints is the endpoint set of a cluster that has none.
var noEndpoints = lb.NewEndpoints(nil, nil)

// settle brings hosts, inbound listeners and clusters up to date with their resources.
func (c *Client) settle() {
	for len(c.dirtyHosts) > 0 || len(c.dirtyClusters) > 0 {
		for h := range c.dirtyHosts {
			delete(c.dirtyHosts, h)
			if c.hosts[h.name] == h {
				c.resolveHost(h)
			}
		}
		for n := range c.dirtyClusters {
			delete(c.dirtyClusters, n)
			if c.clusters[n.name] == n {
				c.resolveCluster(n)
			}
		}
	}
	for in := range c.dirtyInbounds {
		delete(c.dirtyInbounds, in)
		c.resolveInbound(in)
	}
}

// resolveHost completes the host's configuration from its listener, routes
// and clusters. What is published stays whole until the next configuration is
// whole too, or known to stay incomplete (gRFC A74).
func (c *Client) resolveHost(h *host) {
	l := h.listener
	if l.value == nil {
		if !l.pending() {
			c.hold(h, refs{})
			c.adopt(h, &snapshot.Host{Absent: l.absent(), Err: l.trouble()})
		}
		return
	}
	lis := l.value.(*snapshot.Listener)
	rc := lis.Inline
	var next refs
	if rc == nil {
		if lis.RouteName == "" {
			c.hold(h, refs{})
			c.adopt(h, &snapshot.Host{Err: fmt.Errorf("%v %q: has no routes: it is not an API listener", l.kind, l.name)})
			return
		}
		next.route = c.acquire(routes, lis.RouteName, h)
		defer c.release(next.route, h) // hold takes its own
		switch r := next.route; {
		case r.value != nil:
			rc = r.value.(*snapshot.RouteConfig)
		case r.pending(), r.state == Nacked && r != h.current.route && h.published != nil && h.published.VirtualHost != nil:
			// Not here yet, or a bad update: what works stays in force.
			c.hold(h, next)
			return
		default:
			c.hold(h, next)
			p := lis.Host(h.name, nil)
			p.Err = r.failure()
			c.adopt(h, p)
			return
		}
	}
	p := h.bind(lis, rc)
	if p.VirtualHost == nil {
		p.Err = fmt.Errorf("RouteConfiguration %q: no virtual host has a domain for %q", rc.Name, h.name)
		c.hold(h, next)
		c.adopt(h, p)
		return
	}
	complete := true
	for _, name := range clusterNames(p.VirtualHost) {
		n := c.useCluster(name, h)
		defer c.leaveCluster(n, h)
		next.clusters = append(next.clusters, n)
		complete = complete && n.built != nil
	}
	c.hold(h, next)
	if complete {
		c.adopt(h, p)
	}
}

// clusterNames lists the clusters that a virtual host's routes name, those of
// mirrors too, each once. Those that a header names are not known before (SubscribeCluster).
func clusterNames(vh *snapshot.VirtualHost) []string {
	var names []string
	seen := map[string]struct{}{"": {}} // one that a header names has no name here
	add := func(name string) {
		if _, twice := seen[name]; !twice {
			seen[name] = struct{}{}
			names = append(names, name)
		}
	}
	for i := range vh.Routes {
		for _, w := range vh.Routes[i].Clusters.Clusters {
			add(w.Name)
		}
		for _, m := range vh.Routes[i].Mirrors {
			add(m.Cluster)
		}
	}
	return names
}

// hold makes next the configuration that the host waits for.
func (c *Client) hold(h *host, next refs) {
	old := h.next
	h.next = next
	if next.route != nil {
		c.acquire(routes, next.route.name, h)
	}
	for _, n := range next.clusters {
		c.useCluster(n.name, h)
	}
	c.let(h, old)
}

// let releases what hold took.
func (c *Client) let(h *host, r refs) {
	c.release(r.route, h)
	for _, n := range r.clusters {
		c.leaveCluster(n, h)
	}
}

// adopt puts the configuration that the host waited for in force.
func (c *Client) adopt(h *host, p *snapshot.Host) {
	old := h.current
	h.current, h.next = h.next, refs{}
	for _, n := range h.current.clusters {
		c.live(n, +1)
	}
	for _, n := range old.clusters {
		c.live(n, -1)
	}
	c.let(h, old)
	if !h.answered {
		h.answered = true
		h.ready.Stop()
		delete(c.unanswered, h)
	}
	c.show(h, p)
}

// show publishes p for the host unless it says what is published already.
func (c *Client) show(h *host, p *snapshot.Host) {
	p.Name, p.Used = h.name, h.used
	if o := h.published; o != nil && sameError(o.Err, p.Err) {
		old, now := *o, *p
		if old.Err, now.Err = nil, nil; old == now {
			return
		}
	}
	h.published = p
	c.hostsChanged = true
}

func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.Error() == b.Error()
}

// live counts the published hosts and demands that name the cluster, and the
// leaves of one that is an aggregate with it.
func (c *Client) live(n *cluster, by int) {
	before := n.shown > 0
	n.shown += by
	c.count(n, by)
	if after := n.shown > 0; before != after {
		for _, leaf := range n.under.leaves {
			c.count(leaf, by)
		}
	}
}

// count counts what has the cluster in the snapshot; one that nothing has is not in it.
func (c *Client) count(n *cluster, by int) {
	before := n.live
	n.live += by
	if (before > 0) != (n.live > 0) {
		c.clustersChanged = true
	}
}

// useCluster makes u a user of the cluster, which is asked for if it is new.
func (c *Client) useCluster(name string, u user) *cluster {
	n := c.clusters[name]
	if n == nil {
		n = &cluster{name: name, users: map[user]int{}, used: new(atomic.Bool)}
		c.clusters[name] = n
		n.resource = c.acquire(clusters, name, n)
		n.touched(c)
	}
	n.users[u]++
	if isRoot(u) {
		if n.roots++; n.roots == 1 && isAggregate(n.resource) {
			n.touched(c) // it has not looked for its members before
		}
	}
	return n
}

func (c *Client) leaveCluster(n *cluster, u user) {
	if n.users[u]--; n.users[u] <= 0 {
		delete(n.users, u)
	}
	if isRoot(u) {
		if n.roots--; n.roots == 0 {
			c.unroot(n)
		}
	}
	if len(n.users) == 0 && c.clusters[n.name] == n {
		delete(c.clusters, n.name)
		c.release(n.resource, n)
		c.release(n.endpoints, n)
		c.release(n.next, n)
	}
}

// resolveCluster builds the cluster from its resource and its endpoints. One
// that can not be had is built with the error and without endpoints, so that
// only requests routed to it fail.
func (c *Client) resolveCluster(n *cluster) {
	r := n.resource
	if r.value == nil {
		if !r.pending() {
			c.await(n, nil)
			c.awaitUnder(n, members{})
			c.build(n, nil, noEndpoints, r.failure())
			c.tell(n, nil)
		}
		return
	}
	base := r.value.(*snapshot.Cluster)
	defer c.tell(n, base)
	if made(base) {
		c.resolveAggregate(n, base)
		return
	}
	c.awaitUnder(n, members{})
	if base.EndpointsName == "" {
		set := base.Endpoints
		if set == nil {
			set = noEndpoints
		}
		c.await(n, nil)
		c.build(n, base, set, base.Err)
		return
	}
	eds := c.acquire(endpoints, base.EndpointsName, n)
	defer c.release(eds, n) // await takes its own
	c.await(n, eds)
	switch {
	case eds.value != nil:
		c.build(n, base, eds.value.(*lb.Endpoints), base.Err)
	case eds.pending(), eds.state == Nacked && eds != n.endpoints && n.built != nil && n.built.Err == nil:
		// Not here yet, or a bad update: what works stays in force.
	default:
		c.build(n, base, noEndpoints, eds.failure())
	}
}

// await makes eds the endpoints that the cluster waits for; nil if none.
func (c *Client) await(n *cluster, eds *resource) {
	old := n.next
	n.next = eds
	if eds != nil {
		c.acquire(endpoints, eds.name, n)
	}
	c.release(old, n)
}

// build puts the awaited endpoints and the given parts in force. A cluster
// whose parts are all the same keeps its identity.
func (c *Client) build(n *cluster, base *snapshot.Cluster, set *lb.Endpoints, err error) {
	old := n.endpoints
	n.endpoints, n.next = n.next, nil
	c.release(old, n)
	c.adoptUnder(n)
	leaves := n.under.names()
	if n.built != nil && n.base == base && n.set == set && sameError(n.built.Err, err) && slices.Equal(n.built.Underlying, leaves) {
		return
	}
	var b snapshot.Cluster
	if base != nil {
		b = *base
	}
	b.Name, b.Endpoints, b.Err, b.Underlying, b.Used = n.name, set, err, leaves, n.used
	b.Absent = base == nil && n.resource.absent()
	// Aggregates above wait for a leaf that was an aggregate too.
	first := n.built == nil || made(n.built)
	n.built, n.base, n.set = &b, base, set
	if n.live > 0 {
		c.clustersChanged = true
	}
	if first {
		for u := range n.users {
			u.touched(c)
		}
	}
}

func (c *Client) resolveInbound(in *inbound) {
	r := in.listener
	var p snapshot.Inbound
	switch {
	case r.value != nil:
		p = *r.value.(*snapshot.Inbound)
	case r.pending():
		return
	default:
		p = snapshot.Inbound{Name: r.name, Absent: r.absent(), Err: r.trouble()}
	}
	if o := in.published; o != nil && r.value == nil && o.Absent == p.Absent && sameError(o.Err, p.Err) {
		return
	}
	in.published = &p
	c.inboundsChanged = true
}

// publish yields a snapshot if anything in it changed. Maps that did not change are shared with the one before.
func (c *Client) publish() {
	if !c.hostsChanged && !c.clustersChanged && !c.inboundsChanged {
		return
	}
	s := *c.published
	if c.hostsChanged {
		s.Hosts = make(map[string]*snapshot.Host, len(c.hosts)+len(c.refused))
		for name, h := range c.refused {
			s.Hosts[name] = h
		}
		for name, h := range c.hosts {
			if h.published != nil {
				s.Hosts[name] = h.published
			}
		}
	}
	if c.clustersChanged {
		s.Clusters = make(map[string]*snapshot.Cluster, len(c.clusters))
		for name, n := range c.clusters {
			if n.live > 0 {
				s.Clusters[name] = n.built
			}
		}
		c.publishDemands(s.Clusters)
	}
	if c.inboundsChanged {
		s.Inbound = make(map[string]*snapshot.Inbound, len(c.inbounds))
		for addr, in := range c.inbounds {
			if in.published != nil {
				s.Inbound[addr] = in.published
			}
		}
	}
	c.hostsChanged, c.clustersChanged, c.inboundsChanged = false, false, false
	c.published = &s
	c.opts.OnSnapshot(&s)
}
