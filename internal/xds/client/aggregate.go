package client

import (
	"fmt"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// maxAggregateDepth bounds how deep aggregates may be nested (gRFC A37).
const maxAggregateDepth = 16

// members are what an aggregate is made of: all clusters below it, and those of
// them that are no aggregates, in order and each once. Only an aggregate that a
// host or a demand names has members; one that is inside of others is looked
// through. So aggregates that name each other do not keep each other alive.
type members struct{ all, leaves []*cluster }

func (m members) names() []string {
	if len(m.leaves) == 0 {
		return nil
	}
	names := make([]string, len(m.leaves))
	for i, n := range m.leaves {
		names[i] = n.name
	}
	return names
}

// isRoot reports whether a user of a cluster is a host or a demand.
func isRoot(u user) bool {
	_, inner := u.(*cluster)
	return !inner
}

func isAggregate(r *resource) bool {
	base, _ := r.value.(*snapshot.Cluster)
	return made(base)
}

// resolveAggregate builds an aggregate when all its leaves are built, or known
// not to be had. What is in force stays whole until then.
func (c *Client) resolveAggregate(n *cluster, base *snapshot.Cluster) {
	// What it was before stays in force while an aggregate above has it as a leaf:
	// that one does not wait for it, and has it changed when its own leaves are built.
	c.await(n, nil)
	if n.roots == 0 {
		if n.below == 0 { // it is looked through
			c.release(n.endpoints, n)
			n.endpoints, n.built, n.base, n.set = nil, nil, nil, nil
		}
		return
	}
	next, ready, err := c.expand(n, base)
	c.awaitUnder(n, next)
	if wasLeaf := n.built != nil && !made(n.built); ready && (n.below == 0 || !wasLeaf) {
		c.build(n, base, noEndpoints, err)
	}
}

// expand makes n a user of every cluster below it, which asks for those that are
// new. ready is false while it is not known what one of them is.
func (c *Client) expand(n *cluster, base *snapshot.Cluster) (next members, ready bool, err error) {
	seen := map[string]bool{n.name: true}
	ready, deep := true, false
	var walk func(names []string, depth int)
	walk = func(names []string, depth int) {
		if depth >= maxAggregateDepth {
			deep = true
			return
		}
		for _, name := range names {
			if seen[name] {
				continue
			}
			seen[name] = true
			m := c.useCluster(name, n)
			next.all = append(next.all, m)
			switch {
			case m.resource.pending() && m.resource.value == nil:
				ready = false
			case isAggregate(m.resource):
				walk(m.resource.value.(*snapshot.Cluster).Underlying, depth+1)
			default:
				next.leaves = append(next.leaves, m)
				ready = ready && m.built != nil && !made(m.built)
			}
		}
	}
	walk(base.Underlying, 1)
	switch {
	case deep:
		next.leaves = nil
		return next, true, fmt.Errorf("%v %q: aggregates are nested more than %d deep", clusters, n.name, maxAggregateDepth)
	case ready && len(next.leaves) == 0:
		return next, true, fmt.Errorf("%v %q: is made of aggregates only", clusters, n.name)
	}
	return next, ready, nil
}

// awaitUnder makes next, which expand holds, the members that the cluster waits for.
func (c *Client) awaitUnder(n *cluster, next members) {
	old := n.nextUnder
	n.nextUnder = next
	c.leaveMembers(n, old)
}

// adoptUnder puts the awaited members in force.
func (c *Client) adoptUnder(n *cluster) {
	old := n.under
	n.under, n.nextUnder = n.nextUnder, members{}
	for _, leaf := range n.under.leaves {
		leaf.below++
		if n.shown > 0 {
			c.count(leaf, +1)
		}
	}
	for _, leaf := range old.leaves {
		if n.shown > 0 {
			c.count(leaf, -1)
		}
	}
	c.rise(old)
	c.leaveMembers(n, old)
}

// rise notes that an aggregate has its leaves in force no more. One that is an
// aggregate itself by now has waited for that.
func (c *Client) rise(m members) {
	for _, leaf := range m.leaves {
		if leaf.below--; leaf.below == 0 && isAggregate(leaf.resource) {
			leaf.touched(c)
		}
	}
}

func (c *Client) leaveMembers(n *cluster, m members) {
	for _, member := range m.all {
		c.leaveCluster(member, n)
	}
}

// unroot lets go of what an aggregate is made of: no host and no demand names it any more.
func (c *Client) unroot(n *cluster) {
	under, next := n.under, n.nextUnder
	n.under, n.nextUnder = members{}, members{}
	c.rise(under)
	c.leaveMembers(n, under)
	c.leaveMembers(n, next)
	if made(n.built) {
		n.built, n.base, n.set = nil, nil, nil
	}
	if isAggregate(n.resource) {
		n.touched(c)
	}
}

// tell has the aggregates above look again where an aggregate is another than
// before, or is one no more.
func (c *Client) tell(n *cluster, base *snapshot.Cluster) {
	old := n.told
	if old == base {
		return
	}
	n.told = base
	if !made(old) && !made(base) {
		return
	}
	for u := range n.users {
		if !isRoot(u) {
			u.touched(c)
		}
	}
}

// made reports whether a cluster is made of others.
func made(base *snapshot.Cluster) bool {
	return base != nil && base.Discovery == snapshot.Aggregate
}
