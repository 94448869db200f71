package outbound

import (
	"slices"
	"strings"
	"time"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// Status is what the engine knows, for the admin page.
type Status struct {
	Hosts    []HostStatus    `json:"hosts"`
	Clusters []ClusterStatus `json:"clusters"`
}

// HostStatus is one host that this process calls.
type HostStatus struct {
	Name   string        `json:"name"`
	State  string        `json:"state"` // "ready", "absent", "error" or "external"
	Error  string        `json:"error,omitempty"`
	Routes []RouteStatus `json:"routes,omitempty"`
}

// RouteStatus is one route of a host, in the order in which they are tried.
type RouteStatus struct {
	Name     string      `json:"name,omitempty"`
	Timeout  string      `json:"timeout,omitempty"`
	Retries  uint32      `json:"retries,omitempty"`
	Clusters []LegStatus `json:"clusters"`
}

// LegStatus is one destination of a route.
type LegStatus struct {
	Cluster string `json:"cluster"`
	Weight  uint32 `json:"weight"`
}

// ClusterStatus is one cluster with the live state of its endpoints.
type ClusterStatus struct {
	Name     string `json:"name"`
	Error    string `json:"error,omitempty"`
	Requests int64  `json:"requests"` // in flight
	Retries  int64  `json:"retries"`  // in flight
	Breaker  string `json:"breaker,omitempty"`
	Panicked bool   `json:"panicked,omitempty"` // too few endpoints are usable, so all are used
	// Underlying are the clusters of an aggregate.
	Underlying []string         `json:"underlying,omitempty"`
	Endpoints  []EndpointStatus `json:"endpoints"`
}

// EndpointStatus is the live state of one endpoint.
type EndpointStatus struct {
	Address  string `json:"address"`
	Active   int64  `json:"active"`   // requests in flight
	Requests uint64 `json:"requests"` // attempts ever
	Failures uint64 `json:"failures"` // attempts ever that failed or had a 5xx status
	Ejected  bool   `json:"ejected,omitempty"`
	Priority uint32 `json:"priority,omitempty"`
	Health   string `json:"health,omitempty"`  // as the control plane has it: "degraded", "draining", "unhealthy", or "" for healthy
	Check    string `json:"check,omitempty"`   // of active health checks: "pending", "passed", "degraded" or "failed"
	Accrual  string `json:"accrual,omitempty"` // of the endpoint's breaker: "open", "penalty", "waiting" or "probing"
	Latency  string `json:"latency,omitempty"` // its moving average, where the policy is peak EWMA
}

var healthNames = [...]string{lb.Healthy: "", lb.Degraded: "degraded", lb.Draining: "draining", lb.Unhealthy: "unhealthy"}

func (a *accrual) status() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return [...]string{"open", "penalty", "waiting", "probing", "ended"}[a.state]
}

func checkStatus(checks []*check) string {
	worst := -1
	for _, k := range checks {
		worst = max(worst, int(k.state))
	}
	if worst < 0 {
		return ""
	}
	return [...]string{"pending", "passed", "degraded", "failed"}[worst]
}

// Status returns the present state, sorted by name.
func (e *Engine) Status() Status {
	s := Status{Hosts: []HostStatus{}, Clusters: []ClusterStatus{}}
	v := e.view.Load()
	for _, h := range v.hosts {
		s.Hosts = append(s.Hosts, h.status())
	}
	for _, c := range v.clusters {
		s.Clusters = append(s.Clusters, c.status())
	}
	e.mu.Lock()
	for name, h := range e.external {
		if v.hosts[name] == nil {
			s.Hosts = append(s.Hosts, h.status())
		}
		s.Clusters = append(s.Clusters, h.routes[0].legs[0].cluster.status())
	}
	e.mu.Unlock()
	slices.SortFunc(s.Hosts, func(a, b HostStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Clusters, func(a, b ClusterStatus) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func (h *host) status() HostStatus {
	s := HostStatus{Name: h.snap.Name, State: "ready"}
	switch {
	case h.pass:
		s.State = "external"
	case h.snap.VirtualHost != nil:
	case h.snap.Absent:
		s.State = "absent"
	default:
		s.State = "error"
	}
	if h.snap.Err != nil {
		s.Error = h.snap.Err.Error()
	}
	for _, r := range h.routes {
		rs := RouteStatus{Name: r.snap.Name, Clusters: []LegStatus{}}
		if r.snap.Timeout > 0 {
			rs.Timeout = r.snap.Timeout.String()
		}
		if r.snap.Retry != nil {
			rs.Retries = r.snap.Retry.NumRetries
		}
		for _, wc := range r.snap.Clusters.Clusters {
			rs.Clusters = append(rs.Clusters, LegStatus{Cluster: wc.Name, Weight: wc.Weight})
		}
		s.Routes = append(s.Routes, rs)
	}
	return s
}

func (c *Cluster) status() ClusterStatus {
	state := c.current.Load()
	s := ClusterStatus{
		Name:      c.name,
		Requests:  c.requests.Load(),
		Retries:   c.retries.Load(),
		Panicked:  state.picker.Panics(),
		Endpoints: []EndpointStatus{},
	}
	if state.config.Err != nil {
		s.Error = state.config.Err.Error()
	}
	if state.breaker != nil {
		s.Breaker = state.breaker.two.State().String()
	}
	state.slots.all(func(e *Endpoint) {
		spec := e.spec.Load()
		es := EndpointStatus{
			Address: e.Address, Active: e.active.Load(), Requests: e.requests.Load(), Failures: e.failures.Load(), Ejected: e.ejected.Load(),
			Priority: spec.Priority, Health: healthNames[spec.Health],
		}
		if a := e.accrual.Load(); a != nil {
			es.Accrual = a.status()
		}
		if l := lb.Latency(e.latency.Load()); l != 0 {
			es.Latency = time.Duration(l.Estimate(time.Since(c.epoch), state.config.LB.Decay)).Round(time.Microsecond).String()
		}
		s.Endpoints = append(s.Endpoints, es)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range s.Endpoints {
		if e := c.known[s.Endpoints[i].Address]; e != nil {
			s.Endpoints[i].Check = checkStatus(e.checks)
		}
	}
	s.Underlying = slices.Clone(state.config.Underlying)
	return s
}
