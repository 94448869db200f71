package outbound

import (
	"context"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Resolver looks names up. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

const (
	defaultRefresh = 5 * time.Second
	// lookupTimeout bounds one lookup: longer than a resolver's own attempts take.
	lookupTimeout = 20 * time.Second
)

// dns looks up the names of a STRICT_DNS or LOGICAL_DNS cluster, for as long as
// the cluster is there, as Envoy does. What a name stood for last stays in force
// while lookups fail. Until the first answer the name itself is the endpoint,
// which whoever connects looks up: so no request has to fail or wait for it.
type dns struct {
	cluster *Cluster
	config  *snapshot.DNS
	logical bool
	cancel  context.CancelFunc

	// Guarded by the cluster's mutex.
	answers   [][]netip.Addr // by name; nil where none has come
	endpoints []lb.Endpoint
}

func (d *dns) stop() { d.cancel() }

// lookUp begins or ends a cluster's lookups. The caller holds mu.
func (c *Cluster) lookUp(config *snapshot.Cluster) {
	wants := config.DNS != nil && (config.Discovery == snapshot.StrictDNS || config.Discovery == snapshot.LogicalDNS)
	logical := config.Discovery == snapshot.LogicalDNS
	if d := c.names; d != nil {
		if wants && d.logical == logical && reflect.DeepEqual(d.config, config.DNS) {
			return
		}
		d.stop()
		c.names = nil
	}
	if !wants {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &dns{cluster: c, config: config.DNS, logical: logical, cancel: cancel, answers: make([][]netip.Addr, len(config.DNS.Names))}
	c.names = d
	d.build()
	for i := range d.config.Names {
		if _, err := netip.ParseAddr(d.config.Names[i].Host); err != nil {
			go d.follow(ctx, i)
		}
	}
}

// build makes the endpoints of the answers. The caller holds the cluster's mutex.
func (d *dns) build() {
	d.endpoints = nil
	for i := range d.config.Names {
		name := &d.config.Names[i]
		e := name.Endpoint
		e.Weight = max(e.Weight, 1)
		if e.Hostname == "" {
			e.Hostname = name.Host
		}
		port := strconv.Itoa(int(name.Port))
		if d.logical || len(d.answers[i]) == 0 {
			e.Address = net.JoinHostPort(name.Host, port)
			d.endpoints = append(d.endpoints, e)
			continue
		}
		for _, a := range d.answers[i] {
			e.Address = net.JoinHostPort(a.String(), port)
			d.endpoints = append(d.endpoints, e)
		}
	}
}

// follow looks one name up until the context ends.
func (d *dns) follow(ctx context.Context, i int) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		addrs, err := d.resolve(ctx, &d.config.Names[i])
		if ctx.Err() != nil {
			return
		}
		if err != nil || len(addrs) == 0 {
			failures++
			timer.Reset(d.afterFailure(failures))
			continue
		}
		failures = 0
		d.answered(ctx, i, addrs)
		timer.Reset(d.cluster.jittered(d.refresh(), d.config.Jitter))
	}
}

func (d *dns) refresh() time.Duration {
	if d.config.RefreshRate > 0 {
		return d.config.RefreshRate
	}
	return defaultRefresh
}

// afterFailure is the pause after so many failures in a row: a random time below
// a bound that doubles from FailureBase to FailureMax, at least a tenth of it.
func (d *dns) afterFailure(failures int) time.Duration {
	base, most := d.config.FailureBase, d.config.FailureMax
	if base <= 0 {
		return d.cluster.jittered(d.refresh(), d.config.Jitter)
	}
	if most <= 0 {
		most = 10 * base
	}
	bound := base
	for range min(failures-1, 62) {
		if bound >= most/2 {
			bound = most
			break
		}
		bound *= 2
	}
	bound = min(bound, max(most, base))
	return bound/10 + d.cluster.jitter(bound-bound/10)
}

func (d *dns) resolve(ctx context.Context, name *snapshot.DNSName) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var resolver Resolver = net.DefaultResolver
	if r := d.cluster.engine.options.Resolver; r != nil {
		resolver = r
	}
	network := d.config.Family
	if network == "" {
		network = "ip"
	}
	found, err := resolver.LookupNetIP(ctx, network, name.Host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		addrs = append(addrs, a.Unmap())
	}
	return d.preferred(addrs), nil
}

// preferred keeps the addresses of the family that policy prefers, if there are any.
func (d *dns) preferred(addrs []netip.Addr) []netip.Addr {
	if !d.config.PreferIPv4 && !d.config.PreferIPv6 {
		return addrs
	}
	var of []netip.Addr
	for _, a := range addrs {
		if a.Is4() == d.config.PreferIPv4 {
			of = append(of, a)
		}
	}
	if len(of) == 0 {
		return addrs
	}
	return of
}

// answered takes the addresses of a name into the cluster.
func (d *dns) answered(ctx context.Context, i int, addrs []netip.Addr) {
	c := d.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || ctx.Err() != nil || c.names != d {
		return
	}
	if sameAddrs(d.answers[i], addrs) {
		return
	}
	d.answers[i] = addrs
	d.build()
	next := *c.current.Load()
	c.replace(&next, d.endpoints)
	if d.logical {
		d.point(i)
	}
}

// point has new connections of a logical name go to its first address. The caller holds the cluster's mutex.
func (d *dns) point(i int) {
	name := &d.config.Names[i]
	port := strconv.Itoa(int(name.Port))
	if e := d.cluster.known[net.JoinHostPort(name.Host, port)]; e != nil {
		dial := net.JoinHostPort(d.answers[i][0].String(), port)
		e.dial.Store(&dial)
	}
}

// sameAddrs compares answers as they stand: the first one matters to a logical name.
func sameAddrs(a, b []netip.Addr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
