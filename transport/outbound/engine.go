// Package outbound takes one outbound request through a snapshot: host, route,
// cluster, admission, endpoint, attempts, outcome. HTTP and gRPC use the same
// steps and differ only in how they send.
//
// The engine offers steps rather than one function that calls back, because a
// gRPC call picks its endpoint inside the attempt, a stream's retry starts in
// Recv or Send, and an HTTP request ends where its response's body ends:
//
//	Engine.Decide    host and route, once per call
//	Call.Delay       how long a fault holds the request
//	Call.Local       the answer that policy itself gives
//	Call.Shadows     the copies that go to other clusters
//	Call.Begin       admission: limits, breaker; begins a Try
//	Try.Pick         a lease on an endpoint
//	Try.Outgoing     what is sent: rewrites, header changes
//	  (the adapter sends, and classifies what came back)
//	Lease.Report     the outcome counts for the endpoint
//	Try.Next         shall there be another attempt, and after what pause
//	Call.Hedge       may there be another attempt beside this one
//	Try.Commit       the response is the call's
//	Call.Incoming    what the caller sees of the response
//	Lease.Release    the endpoint is free of this request
//	Call.Finish      the call has ended: limits, telemetry
//
// The package owns the live state: counters, breakers and ejections, which
// carry over from one snapshot to the next.
package outbound

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Options configure an Engine.
type Options struct {
	// Subscribe asks the control plane for a host, "host:port"; it returns at
	// once and may be called again. nil means there is no control plane and
	// every host is external.
	Subscribe func(host string)
	// SubscribeCluster asks the control plane for a cluster that a request's header
	// names; it returns at once and may be called again. nil knows only the
	// clusters that routes name.
	SubscribeCluster func(name string)
	// Trouble returns the control plane's present trouble, or nil, for errors.
	Trouble func() error
	// PolicyWait limits how long a call waits for its host's policy; zero means 15 s.
	PolicyWait time.Duration
	// External builds the policy of a host that the mesh does not know;
	// nil refuses such hosts.
	External func(host string) (*snapshot.Host, *snapshot.Cluster)
	// NewWire makes an adapter's state for a cluster; may be nil.
	NewWire func(*snapshot.Cluster) Wire
	// Observer may be nil.
	Observer Observer
	// Draw returns 64 random bits; nil means math/rand/v2.
	Draw func() uint64
	// Source is what hash policies and header values know of this process where
	// they ask for a connection's two ends. Channel is drawn where it is 0.
	Source routing.HashOrigin
	// Checker makes the health checks of clusters that ask for them; nil makes none.
	Checker Checker
	// Resolver looks up the names of DNS clusters; nil means net.DefaultResolver.
	Resolver Resolver
	// Locality is where this process runs.
	Locality lb.Locality
	// Client tells this process from others, for its subset of a cluster's endpoints.
	Client string
	// Hostname is this machine's, for header values; "" means os.Hostname.
	Hostname string
	// MaxShadows bounds the copies of requests (mirrors) at one time; zero means 1024.
	MaxShadows int
}

// Engine is the outbound side of a process.
type Engine struct {
	options Options
	draw    func() uint64
	view    atomic.Pointer[view]

	changed atomic.Pointer[chan struct{}] // closed and replaced by each Install
	closed  chan struct{}

	hostname string
	shadows  atomic.Int64 // copies of requests in flight
	watches  watches

	mu       sync.Mutex // serialises Install, Close and what follows
	external map[string]*host
	// direct is external under the spelling of URLs, with "https" kept apart,
	// so that a process without a control plane looks a host up without a lock.
	direct, directTLS sync.Map
	spellings         int // in both, about; whoever writes requests can spell one host in many ways
}

// view is a snapshot with the live state that its names stand for.
type view struct {
	snap     *snapshot.Snapshot
	hosts    map[string]*host
	bare     map[string]*host // hosts on port 80 under their name without a port
	bareTLS  map[string]*host // hosts on port 443, likewise
	clusters map[string]*Cluster
}

// host is a snapshot's host with its routes' live clusters.
type host struct {
	snap   *snapshot.Host
	routes []route       // as snap.VirtualHost.Routes
	pass   bool          // outside the mesh: the request goes where its URL says
	via    *host         // what to use instead of an absent host; nil if external hosts are refused
	claims bool          // a route looks at claims
	faults *atomic.Int64 // active; carried over from one snapshot to the next
	// adaptive bounds the requests by their latency; nil does not. It is carried
	// over while its policy stays.
	adaptive *Adaptive
}

type route struct {
	snap     *snapshot.Route
	legs     []leg // as snap.Clusters.Clusters
	mirrors  []mirror
	named    *sync.Map // *leg by the cluster's name, for clusters that a header names
	expected []string  // x-envoy-expected-rq-timeout-ms of first attempts; nil without a time limit
	// What Decide, Outgoing and Incoming have to look at; false for plain routes.
	special, outgoing, incoming bool
	rewrites                    bool // of outgoing: more than the number of the attempt
	names                       bool // of rewrites: values of headers name something of the request
	echoes                      bool // values of responses' headers name something of the call
	issues                      bool // requests without a cookie get one to be known by
	rehash                      bool // the hash is of something that the way out changes
	adds                        int  // how many headers requests get, about
}

// leg is one way that a request can go: a route to one of its clusters.
type leg struct {
	cluster   *Cluster      // nil where a header names it
	snap      *snapshot.Leg // nil where nothing is particular to the destination
	telemetry any
	subset    map[string]string // the metadata that an endpoint must have; nil asks for none
}

const (
	defaultPolicyWait = 15 * time.Second
	// maxExternal bounds the hosts outside the mesh whose live state is kept.
	maxExternal = 4096
)

// ErrClosed is the cause of errors after Close.
var ErrClosed = errors.New("mesh: closed")

// New returns an engine without policy.
func New(o Options) *Engine {
	if o.PolicyWait == 0 {
		o.PolicyWait = defaultPolicyWait
	}
	e := &Engine{options: o, draw: o.Draw, external: make(map[string]*host), closed: make(chan struct{})}
	if e.draw == nil {
		e.draw = rand.Uint64
	}
	if e.options.MaxShadows == 0 {
		e.options.MaxShadows = defaultMaxShadows
	}
	if e.options.Source.Channel == 0 {
		e.options.Source.Channel = rand.Uint64()
	}
	if e.hostname = o.Hostname; e.hostname == "" {
		e.hostname, _ = os.Hostname()
	}
	e.view.Store(&view{})
	changed := make(chan struct{})
	e.changed.Store(&changed)
	return e
}

// Install makes a snapshot the policy of calls that begin from now on. Calls
// in flight keep the routes that they have.
func (e *Engine) Install(s *snapshot.Snapshot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.closed:
		return
	default:
	}
	old := e.view.Load()
	next := &view{
		snap:     s,
		hosts:    make(map[string]*host, len(s.Hosts)),
		bare:     make(map[string]*host),
		bareTLS:  make(map[string]*host),
		clusters: make(map[string]*Cluster, len(s.Clusters)),
	}
	for name, config := range s.Clusters {
		c := old.clusters[name]
		if c == nil {
			c = e.newCluster(name)
		}
		c.update(config)
		next.clusters[name] = c
	}
	for name, sh := range s.Hosts {
		h := old.hosts[name]
		if h == nil || h.snap != sh || !h.current(next.clusters) {
			h = e.newHost(sh, next.clusters, h)
		}
		next.hosts[name] = h
		if bare, ok := strings.CutSuffix(name, ":80"); ok {
			next.bare[bare] = h
		} else if bare, ok := strings.CutSuffix(name, ":443"); ok {
			next.bareTLS[bare] = h
		}
	}
	e.view.Store(next)
	changed := make(chan struct{})
	close(*e.changed.Swap(&changed))
	gone := false
	for name, c := range old.clusters {
		if next.clusters[name] == nil {
			c.close()
			gone = true
		}
	}
	if gone {
		next.forgetNamed()
	}
}

// forgetNamed has routes keep no cluster that requests' headers named once and that is gone.
func (v *view) forgetNamed() {
	for _, h := range v.hosts {
		for i := range h.routes {
			h.routes[i].named.Range(func(name, to any) bool {
				if v.clusters[name.(string)] != to.(*leg).cluster {
					h.routes[i].named.Delete(name)
				}
				return true
			})
		}
	}
}

// current reports whether the host's live clusters are still the ones that their names stand for.
func (h *host) current(clusters map[string]*Cluster) bool {
	for i := range h.routes {
		r := &h.routes[i]
		for j := range r.legs {
			if r.legs[j].cluster != clusters[r.snap.Clusters.Clusters[j].Name] {
				return false
			}
		}
		for j := range r.mirrors {
			if r.mirrors[j].leg.cluster != clusters[r.mirrors[j].snap.Cluster] {
				return false
			}
		}
	}
	return true
}

// newHost returns the live state of a host; old is the one before it, or nil.
func (e *Engine) newHost(sh *snapshot.Host, clusters map[string]*Cluster, old *host) *host {
	h := &host{snap: sh}
	if old != nil {
		h.faults = old.faults
	} else {
		h.faults = new(atomic.Int64)
	}
	if limit := sh.Concurrency; limit != nil && limit.Enabled {
		if old != nil && old.adaptive != nil && old.adaptive.policy == *limit {
			h.adaptive = old.adaptive
		} else {
			h.adaptive = NewAdaptive(*limit, time.Now(), e.draw)
		}
	}
	if sh.Absent && e.options.External != nil {
		h.via = e.externalHost(sh.Name)
	}
	if sh.VirtualHost == nil {
		return h
	}
	h.routes = make([]route, len(sh.VirtualHost.Routes))
	for i := range sh.VirtualHost.Routes {
		h.routes[i] = e.newRoute(sh.Name, &sh.VirtualHost.Routes[i], clusters)
		h.claims = h.claims || len(sh.VirtualHost.Routes[i].Match.Claims) > 0
	}
	return h
}

func (e *Engine) newRoute(host string, sr *snapshot.Route, clusters map[string]*Cluster) route {
	r := route{
		snap: sr, legs: make([]leg, len(sr.Clusters.Clusters)), mirrors: make([]mirror, len(sr.Mirrors)), named: new(sync.Map), expected: firstExpected(sr),
		special:  sr.Fault != nil || sr.CORS != nil || sr.Redirect != nil || sr.Direct != nil || sr.ClusterHeader.String() != "",
		rewrites: sr.Rewrite.Changes(),
		incoming: sr.AttemptCountResponse,
		adds:     2, // a time limit and a trace, say
	}
	for i := range sr.Hash {
		r.issues = r.issues || sr.Hash[i].Cookie.Issue
	}
	for i := range sr.RequestHeaders {
		r.rewrites = r.rewrites || !sr.RequestHeaders[i].Empty()
		r.names = r.names || !constant(&sr.RequestHeaders[i])
		r.adds += len(sr.RequestHeaders[i].Set)
	}
	for i := range sr.ResponseHeaders {
		r.incoming = r.incoming || !sr.ResponseHeaders[i].Empty()
		r.echoes = r.echoes || !constant(&sr.ResponseHeaders[i])
	}
	for j, wc := range sr.Clusters.Clusters {
		c := clusters[wc.Name]
		r.legs[j] = leg{cluster: c, subset: sr.Subset, telemetry: e.describe(host, sr.Name, wc.Name, c)}
		if j >= len(sr.Legs) {
			continue
		}
		sl := &sr.Legs[j]
		r.legs[j].snap, r.legs[j].subset = sl, sl.Subset
		r.special = r.special || sl.Fault != nil || sl.CORS != nil || sl.ClusterHeader.String() != ""
		r.rewrites = r.rewrites || sl.Host != "" || !sl.RequestHeaders.Empty()
		r.names = r.names || !constant(&sl.RequestHeaders)
		r.incoming = r.incoming || !sl.ResponseHeaders.Empty()
		r.echoes = r.echoes || !constant(&sl.ResponseHeaders)
	}
	if sr.AttemptCount {
		r.adds++
	}
	if sr.Rewrite.Changes() {
		r.adds++
	}
	r.outgoing = r.rewrites || sr.AttemptCount
	r.rehash = r.rewrites && rehashes(sr)
	for j := range sr.Mirrors {
		m := &sr.Mirrors[j]
		c := clusters[m.Cluster]
		r.mirrors[j] = mirror{snap: m, leg: leg{cluster: c, telemetry: e.describe(host, sr.Name, m.Cluster, c)}}
	}
	return r
}

// constant reports whether no value of the changes names anything of the request or the response.
func constant(c *routing.HeaderChanges) bool {
	for i := range c.Set {
		if _, ok := c.Set[i].Value.Constant(); !ok {
			return false
		}
	}
	return true
}

// rehashes reports whether the changes that a route makes to requests may change
// what its hash policies look at. It may say so too often: then a request's
// header is copied once more.
func rehashes(r *snapshot.Route) bool {
	for i := range r.Hash {
		name := ""
		switch p := &r.Hash[i]; p.Kind {
		case routing.HashSource, routing.HashChannel:
			continue
		case routing.HashQuery:
			w := &r.Rewrite
			if w.Regex != nil || w.Template != nil || w.PathFormat != nil || w.HasPrefix && strings.Contains(w.Prefix, "?") {
				return true
			}
			continue
		case routing.HashCookie:
			name = "cookie"
		default:
			name = p.Header.String()
		}
		if strings.HasPrefix(name, ":") || strings.HasPrefix(name, "x-envoy-") || name == "host" || name == "x-forwarded-host" {
			return true
		}
		for j := range r.RequestHeaders {
			if changes(&r.RequestHeaders[j], name) {
				return true
			}
		}
		for j := range r.Legs {
			if changes(&r.Legs[j].RequestHeaders, name) {
				return true
			}
		}
	}
	return false
}

// changes reports whether the changes set or remove a header.
func changes(c *routing.HeaderChanges, name string) bool {
	for i := range c.Remove {
		if c.Remove[i].String() == name {
			return true
		}
	}
	for i := range c.Set {
		if c.Set[i].Name.String() == name {
			return true
		}
	}
	return false
}

// describe asks the observer for what it records of one way that requests go.
func (e *Engine) describe(host, route, cluster string, c *Cluster) any {
	if e.options.Observer == nil {
		return nil
	}
	info := LegInfo{Host: host, Route: route, Cluster: cluster}
	if c != nil {
		config := c.current.Load().config
		info.Service, info.Subset = config.Service, config.Subset
	}
	return e.options.Observer.Leg(info)
}

// Close ends the engine: calls that wait fail, timers stop, connections close when idle.
func (e *Engine) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.closed:
		return
	default:
		close(e.closed)
	}
	e.watches.close()
	for _, c := range e.view.Load().clusters {
		c.close()
	}
	for _, h := range e.external {
		h.routes[0].legs[0].cluster.close()
	}
}

// hostFor returns the host of an authority as a URL gives it, and whether it had to wait for its policy.
func (e *Engine) hostFor(ctx context.Context, authority, scheme string) (h *host, waited bool, err error) {
	if e.options.Subscribe == nil {
		h, err = e.directHost(authority, scheme)
		return h, false, err
	}
	v := e.view.Load()
	h = v.hosts[authority]
	if h == nil {
		if scheme == "https" {
			h = v.bareTLS[authority]
		} else {
			h = v.bare[authority]
		}
	}
	if h == nil {
		return e.slowHost(ctx, authority, scheme)
	}
	h, err = h.use(Place{Host: h.snap.Name})
	return h, false, err
}

// use marks the host as used and returns it, what stands for it, or why there is no policy.
func (h *host) use(place Place) (*host, error) {
	if used := h.snap.Used; used != nil && !used.Load() {
		used.Store(true)
	}
	switch {
	case h.snap.VirtualHost != nil:
		return h, nil
	case h.via != nil:
		return h.via, nil
	case h.snap.Err != nil:
		return nil, &NoRouteError{Place: place, Reason: "its policy is in error", Err: h.snap.Err}
	default:
		return nil, &NoRouteError{Place: place, Reason: externalRefused}
	}
}

const externalRefused = "the mesh does not know the host, and external hosts are refused"

// slowHost is hostFor for a host that is spelled unlike its policy's name, or has no policy yet.
func (e *Engine) slowHost(ctx context.Context, authority, scheme string) (h *host, waited bool, err error) {
	key := HostKey(authority, scheme)
	place := Place{Host: key}
	var began time.Time
	var timer *time.Timer
	for {
		// The channel first: an install after this line closes it.
		changed := *e.changed.Load()
		if h := e.view.Load().hosts[key]; h != nil {
			h, err := h.use(place)
			return h, timer != nil, err
		}
		if timer == nil {
			began = time.Now()
			timer = time.NewTimer(e.options.PolicyWait)
			defer timer.Stop()
			e.options.Subscribe(key)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, true, &NotReadyError{Place: place, Missing: "policy", Waited: time.Since(began), Err: e.trouble(ctx.Err())}
		case <-timer.C:
			return nil, true, &NotReadyError{Place: place, Missing: "policy", Waited: time.Since(began), Err: e.trouble(nil)}
		case <-e.closed:
			return nil, true, &NotReadyError{Place: place, Missing: "policy", Waited: time.Since(began), Err: ErrClosed}
		}
	}
}

// trouble joins the context's error, if any, with what the control plane's trouble is.
func (e *Engine) trouble(ctxErr error) error {
	if e.options.Trouble == nil {
		return ctxErr
	}
	return errors.Join(ctxErr, e.options.Trouble())
}

// directHost is hostFor in a process without a control plane: every host is external.
func (e *Engine) directHost(authority, scheme string) (*host, error) {
	index := &e.direct
	if scheme == "https" {
		index = &e.directTLS
	}
	if h, ok := index.Load(authority); ok {
		return h.(*host), nil
	}
	key := HostKey(authority, scheme)
	if e.options.External == nil {
		return nil, &NoRouteError{Place: Place{Host: key}, Reason: externalRefused}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.externalHost(key)
	if e.spellings >= maxExternal {
		e.forgetSpellings()
	}
	index.Store(authority, h)
	e.spellings++
	return h, nil
}

// forgetSpellings has hosts outside the mesh be looked up by their names again. The caller holds mu.
func (e *Engine) forgetSpellings() {
	e.direct.Clear()
	e.directTLS.Clear()
	e.spellings = 0
}

// externalHost returns the live state of a host outside the mesh. The caller holds mu.
func (e *Engine) externalHost(key string) *host {
	if h := e.external[key]; h != nil {
		return h
	}
	if len(e.external) >= maxExternal {
		// Calls in flight keep what they hold; the counters of the forgotten start again.
		for _, h := range e.external {
			h.routes[0].legs[0].cluster.close()
		}
		clear(e.external)
		e.forgetSpellings()
	}
	sh, config := e.options.External(key)
	c := e.newCluster(config.Name)
	c.update(config)
	h := e.newHost(sh, map[string]*Cluster{config.Name: c}, nil)
	h.pass = true
	e.external[key] = h
	return h
}

// HostKey returns the listener name of a URL's authority: lower case, no
// trailing dot, port 80 or 443 filled in by scheme.
func HostKey(authority, scheme string) string {
	host, port := authority, ""
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		host, port = authority[:i], authority[i+1:]
	}
	if port == "" {
		if port = "80"; scheme == "https" {
			port = "443"
		}
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	return net.JoinHostPort(host, port)
}
