package outbound

import (
	"maps"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

// mirror is a route's mirror with its live cluster.
type mirror struct {
	snap *routing.Mirror
	leg  leg // without a cluster where a header names it
}

// defaultMaxShadows is the default of Options.MaxShadows.
const defaultMaxShadows = 1024

// Shadows returns the copies of the request that policy sends to other clusters,
// each a call that is decided already. The adapter sends each by Begin, Pick and
// Outgoing, throws the answer away and calls Finish, all in the background: a
// copy never delays or fails the request. It is called once, after Decide.
//
// Where Options.MaxShadows copies are under way, no more are made.
func (c *Call) Shadows() []*Call {
	if len(c.route.mirrors) == 0 || c.Local() != nil {
		return nil
	}
	var calls []*Call
	for i := range c.route.mirrors {
		m := &c.route.mirrors[i]
		if !m.snap.Fraction.Matches(c.engine.draw()) {
			continue
		}
		to := &m.leg
		if to.cluster == nil {
			if to = c.mirrorByHeader(&m.snap.ClusterHeader); to == nil {
				continue
			}
		}
		if c.engine.shadows.Add(1) > int64(c.engine.options.MaxShadows) {
			c.engine.shadows.Add(-1)
			continue
		}
		calls = append(calls, c.shadow(m, to))
	}
	return calls
}

// mirrorByHeader returns the way to the cluster that a header names, or nil. A
// copy does not wait: where the cluster is not known yet, the next one finds it.
func (c *Call) mirrorByHeader(name *routing.HeaderName) *leg {
	values := name.In(c.Request.Header, c.Request.Form)
	if len(values) == 0 {
		return nil
	}
	to := c.named(values[0])
	if to == nil && c.engine.options.SubscribeCluster != nil && c.engine.view.Load().clusters[values[0]] == nil {
		c.engine.options.SubscribeCluster(values[0])
	}
	return to
}

func (c *Call) shadow(m *mirror, to *leg) *Call {
	s := &Call{
		Request: c.Request, engine: c.engine, host: c.host, route: c.route, leg: to,
		began: time.Now(), global: c.global, limit: c.limit, priority: c.priority, told: c.told, hash: c.hash, hashed: c.hashed,
	}
	// The caller may change its own once it has its response.
	s.Request.Header = maps.Clone(c.Request.Header)
	s.more().shadow, s.rare.parent = m, c.leg
	return s
}

// shadowed makes the mirror's changes to a copy that is as the request is.
func (c *Call) shadowed(t *Try, out *routing.Request) {
	m := c.rare.shadow.snap
	if !m.Changes.Empty() {
		var v routing.Values
		c.values(&v, nil)
		v.Request, v.Attempt = out, t.N()
		m.Changes.Apply(out.Header, out.Form, &v)
	}
	switch {
	case m.Host != "":
		out.Authority = m.Host
	case !m.KeepHost:
		out.Authority = shadowHost(out.Authority)
	}
}
