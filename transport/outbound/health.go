package outbound

import (
	"context"
	"math"
	"net"
	"reflect"
	"strconv"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Checker asks endpoints whether they are healthy. Adapters implement it.
type Checker interface {
	// Check makes one check within the context's time. The error is for people; the result decides.
	Check(ctx context.Context, t *CheckTarget) (CheckResult, error)
}

// CheckTarget is what one health check is for.
type CheckTarget struct {
	Cluster *snapshot.Cluster
	// Wire is the adapter's state for the cluster; it may be retired while the check runs.
	Wire Wire
	// Security is how the connection is secured; nil means plaintext.
	Security *snapshot.ClientTLS
	// Address is where to connect to: the endpoint's, with the port that policy has for checks.
	Address string
	// Authority is the host that is asked for: the check's own, the endpoint's, or the cluster's name.
	Authority string
	Endpoint  *lb.Endpoint
	Check     *resilience.HealthCheck
}

// CheckResult is what a health check came to.
type CheckResult uint8

const (
	CheckPassed    CheckResult = iota
	CheckDegraded              // healthy, but to be used after others
	CheckFailed                // the answer says unhealthy: counts at once
	CheckRetriable             // the answer says unhealthy, and counts towards the threshold
	CheckNoAnswer              // no connection, no answer in time: counts towards the threshold
)

// healthChecks is what a cluster's checks have in common.
type healthChecks struct {
	checks []resilience.HealthCheck
	stop   context.CancelFunc
	ctx    context.Context
	// began reports that the cluster's first endpoints are there: later ones are not
	// used before their first check has passed.
	began bool
}

type checkState uint8

const (
	checkPending checkState = iota // not checked yet, and used as if it passed
	checkPassed
	checkDegraded
	checkFailed
)

// check is one health check of one endpoint. All but what run reads at its
// beginning is guarded by the cluster's mutex.
type check struct {
	endpoint *Endpoint
	config   *resilience.HealthCheck
	group    *healthChecks
	target   [3]string // the fields of the endpoint that matter to it
	state    checkState
	checked  bool // at least once
	passes   uint32
	fails    uint32
	timer    *time.Timer
	stopped  bool
}

// stop ends the check; one under way is not counted. The caller holds the cluster's mutex.
func (k *check) stop() {
	k.stopped = true
	k.timer.Stop()
}

// watchHealth begins or ends a cluster's health checks. The caller holds mu.
func (c *Cluster) watchHealth(old, next *clusterState) {
	checks := next.config.HealthChecks
	if c.engine.options.Checker == nil {
		checks = nil
	}
	if c.health != nil && (len(checks) == 0 || !reflect.DeepEqual(c.health.checks, checks)) {
		c.health.stop()
		c.health = nil
		for _, e := range c.known {
			for _, k := range e.checks {
				k.stop()
			}
			e.checks = nil
		}
	}
	if c.health == nil && len(checks) > 0 {
		ctx, cancel := context.WithCancel(context.Background())
		// Endpoints that were in use without being checked go on until their first check.
		c.health = &healthChecks{checks: checks, ctx: ctx, stop: cancel}
	} else if c.health != nil && len(c.known) > 0 {
		c.health.began = true
	}
}

// checkTarget is what of an endpoint a check depends on.
func checkTarget(spec *lb.Endpoint) [3]string {
	return [3]string{strconv.Itoa(int(spec.HealthPort)), spec.HealthHost, spec.Hostname}
}

// equipHealth gives an endpoint its checks. The caller holds mu.
func (c *Cluster) equipHealth(s *clusterState, e *Endpoint) {
	if c.health == nil {
		return
	}
	target := checkTarget(e.spec.Load())
	if len(e.checks) > 0 && e.checks[0].target == target {
		return
	}
	for _, k := range e.checks {
		k.stop()
	}
	e.checks = nil
	for i := range c.health.checks {
		k := &check{endpoint: e, config: &c.health.checks[i], group: c.health, target: target}
		if c.health.began {
			k.state = checkFailed
		}
		k.timer = time.AfterFunc(c.jitter(k.config.InitialJitter), func() { c.check(k) })
		e.checks = append(e.checks, k)
	}
}

func (c *Cluster) jitter(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return time.Duration(c.engine.draw() % uint64(most))
}

// jittered returns the pause with a random time below most added; never less
// than the pause, which a sum out of its bounds would be.
func (c *Cluster) jittered(pause, most time.Duration) time.Duration {
	return pause + min(c.jitter(most), math.MaxInt64-pause)
}

// check makes one check and plans the next. It runs in a goroutine of its timer.
func (c *Cluster) check(k *check) {
	c.mu.Lock()
	if k.stopped || c.closed {
		c.mu.Unlock()
		return
	}
	s, spec := c.current.Load(), k.endpoint.spec.Load()
	t := CheckTarget{
		Cluster: s.config, Wire: s.wire, Security: s.tlsOf(k.endpoint), Endpoint: spec, Check: k.config,
		Address: checkAddress(k.endpoint.Dial(), spec, k.config), Authority: checkAuthority(s.config, spec, k.config),
	}
	c.mu.Unlock()
	timeout := k.config.Timeout
	if timeout <= 0 {
		timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(k.group.ctx, timeout)
	result, _ := c.engine.options.Checker.Check(ctx, &t)
	cancel()

	c.mu.Lock()
	defer c.mu.Unlock()
	if k.stopped || c.closed {
		return
	}
	before := k.state
	k.count(result)
	changed := before != k.state
	if result <= CheckDegraded && k.endpoint.ejection.Ejected && !keepsEjected(c.current.Load().config.Outlier) && k.state != checkFailed {
		c.restore(k.endpoint)
		changed = true
	}
	if changed {
		if before == checkFailed {
			// Slow start begins where an endpoint becomes healthy.
			k.endpoint.joined.Store(int64(time.Since(c.epoch)))
			c.newest = time.Now()
		}
		c.put(k.endpoint)
		c.republish()
	}
	k.timer = time.AfterFunc(c.untilNext(k), func() { c.check(k) })
}

func keepsEjected(rule *resilience.Outlier) bool { return rule != nil && rule.KeepWhenChecked }

// count takes a result as Envoy does: the first one decides alone; later an
// endpoint passes after HealthyThreshold successes in a row, and fails with
// UnhealthyThreshold failures in a row, or at once where its answer says so.
func (k *check) count(result CheckResult) {
	first := !k.checked
	k.checked = true
	if result <= CheckDegraded {
		k.fails = 0
		k.passes++
		if k.state != checkFailed || first || k.passes >= max(k.config.HealthyThreshold, 1) {
			k.state = checkPassed
			if result == CheckDegraded {
				k.state = checkDegraded
			}
		}
		return
	}
	k.passes = 0
	if k.state == checkFailed {
		return
	}
	k.fails++
	if first || result == CheckFailed || k.fails >= max(k.config.UnhealthyThreshold, 1) {
		k.state, k.fails = checkFailed, 0
	}
}

// untilNext is the pause before the next check. A cluster that has had no
// request is asked rarely. The caller holds mu.
func (c *Cluster) untilNext(k *check) time.Duration {
	pause := k.config.Interval
	switch {
	case !c.used.Load():
		if pause = k.config.NoTrafficInterval; pause <= 0 {
			pause = time.Minute
		}
	case k.state == checkFailed && k.config.UnhealthyInterval > 0:
		pause = k.config.UnhealthyInterval
	}
	if pause <= 0 {
		pause = time.Second
	}
	return c.jittered(pause, k.config.IntervalJitter)
}

func checkAddress(address string, spec *lb.Endpoint, config *resilience.HealthCheck) string {
	port := config.Port
	if port == 0 {
		port = spec.HealthPort
	}
	host, _, err := net.SplitHostPort(address)
	if port == 0 || err != nil {
		return address
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func checkAuthority(cluster *snapshot.Cluster, spec *lb.Endpoint, config *resilience.HealthCheck) string {
	own := config.Host
	if config.Kind == resilience.HealthGRPC {
		own = config.Authority
	}
	for _, name := range [...]string{own, spec.HealthHost, spec.Hostname} {
		if name != "" {
			return name
		}
	}
	return cluster.Name
}
