package client

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// maxDemands bounds the clusters that are subscribed because a request named
// them: whoever writes requests can name as many as he likes.
const maxDemands = 1000

// ErrTooManyClusters is the error of a cluster that was refused because as many
// as may be named by requests are in use.
var ErrTooManyClusters = errors.New("xds: too many clusters are named by requests")

// ErrClusterName is the error of a cluster that no resource can be named like.
var ErrClusterName = errors.New("xds: not a cluster name")

// SubscribeCluster asks for a cluster that no route names, because a header of a
// request does (cluster_header). It does not block. The cluster appears in a
// later snapshot: complete, or with Err. A request that uses it says so in its
// Used; one that no request used for IdleTimeout goes away, as hosts do. At most
// 1,000 are subscribed at one time: beyond it the one unused for longest makes
// room, or the new one is refused for a short time.
func (c *Client) SubscribeCluster(name string) { c.mail.postCluster(name) }

// demand is a cluster that a request named.
type demand struct {
	cluster  *cluster
	since    time.Time
	lastUsed time.Time // as the sweep saw it
	ready    *time.Timer
	shown    bool
	err      error // published while there is no answer
}

// touched shows the cluster once it is built.
func (d *demand) touched(c *Client) {
	if d.shown || d.cluster.built == nil {
		return
	}
	d.shown, d.err = true, nil
	d.ready.Stop()
	c.clustersChanged = true
	c.live(d.cluster, +1)
}

// demandCluster starts to follow a cluster that a request named.
func (c *Client) demandCluster(name string) {
	if d := c.demands[name]; d != nil {
		d.cluster.used.Store(true)
		return
	}
	if c.refusedClusters[name] != nil {
		return
	}
	if name == "" || len(name) > maxHostName || !utf8.ValidString(name) {
		c.refuseCluster(name, ErrClusterName)
		return
	}
	if len(c.demands) >= maxDemands && !c.evictDemand() {
		c.refuseCluster(name, fmt.Errorf("%w (%d)", ErrTooManyClusters, maxDemands))
		return
	}
	now := time.Now()
	d := &demand{since: now, lastUsed: now}
	d.ready = time.AfterFunc(max(0, c.opts.ReadyWait), func() { c.mail.post(c.outOfReach) })
	c.demands[name] = d
	d.cluster = c.useCluster(name, d)
	d.cluster.used.Store(true)
	d.touched(c)
}

// endDemand ends the subscription of a cluster that a request named.
func (c *Client) endDemand(d *demand) {
	d.ready.Stop()
	delete(c.demands, d.cluster.name)
	if d.shown {
		c.live(d.cluster, -1)
	}
	c.clustersChanged = c.clustersChanged || d.err != nil
	c.leaveCluster(d.cluster, d)
}

// sweepDemands ends those that no request used for IdleTimeout.
func (c *Client) sweepDemands(now time.Time) {
	for _, d := range c.demands {
		if d.cluster.used.Swap(false) {
			d.lastUsed = now
		} else if now.Sub(d.lastUsed) >= c.opts.IdleTimeout {
			c.endDemand(d)
		}
	}
}

// evictDemand ends the one that was unused for longest; false if all are in use.
func (c *Client) evictDemand() bool {
	var oldest *demand
	for _, d := range c.demands {
		if !d.cluster.used.Load() && (oldest == nil || d.lastUsed.Before(oldest.lastUsed)) {
			oldest = d
		}
	}
	if oldest == nil {
		return false
	}
	c.endDemand(oldest)
	return true
}

// refuseCluster publishes a cluster with an error, for a short time.
func (c *Client) refuseCluster(name string, err error) {
	if len(c.refusedClusters) >= maxRefused {
		return // the request fails when it has waited
	}
	refused := &snapshot.Cluster{Name: name, Endpoints: noEndpoints, Err: err, Used: new(atomic.Bool)}
	c.refusedClusters[name] = refused
	c.clustersChanged = true
	time.AfterFunc(refusedFor, func() {
		c.mail.post(func() {
			delete(c.refusedClusters, name)
			c.clustersChanged = true
		})
	})
}

// publishDemands adds the clusters that were asked for and are not there.
func (c *Client) publishDemands(all map[string]*snapshot.Cluster) {
	for name, refused := range c.refusedClusters {
		if all[name] == nil {
			all[name] = refused
		}
	}
	for name, d := range c.demands {
		if d.err != nil {
			all[name] = &snapshot.Cluster{Name: name, Endpoints: noEndpoints, Err: d.err, Used: d.cluster.used}
		}
	}
}

// demandsOutOfReach publishes the clusters that have waited for ReadyWait with an error.
func (c *Client) demandsOutOfReach(err error) {
	for _, d := range c.demands {
		if !d.shown && d.err == nil && time.Since(d.since) >= c.opts.ReadyWait {
			d.err = err
			c.clustersChanged = true
		}
	}
}
