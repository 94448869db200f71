package resilience

import (
	"fmt"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

// HealthCheckKind says how an endpoint is asked whether it is healthy.
type HealthCheckKind uint8

const (
	HealthHTTP HealthCheckKind = iota
	HealthGRPC                 // grpc.health.v1.Health/Check
	HealthTCP                  // a connection that comes about is enough
)

// HealthCheck asks each endpoint from time to time
// (envoy.config.core.v3.HealthCheck).
type HealthCheck struct {
	Kind               HealthCheckKind
	Timeout            time.Duration
	Interval           time.Duration
	IntervalJitter     time.Duration
	InitialJitter      time.Duration
	NoTrafficInterval  time.Duration // default 60 s: while the cluster has had no request
	UnhealthyInterval  time.Duration // default Interval
	UnhealthyThreshold uint32        // failures in a row; an HTTP status out of Expected counts at once
	HealthyThreshold   uint32        // successes in a row; the first check alone suffices
	// HTTP: Host is sent as the authority, the cluster's name by default.
	Method, Path, Host string
	Headers            routing.HeaderChanges
	Expected           []StatusRange // default 200
	Retriable          []StatusRange // count towards UnhealthyThreshold rather than at once
	HTTP2              bool
	// GRPC: the service that is asked about.
	Service   string
	Authority string
	// Port replaces the endpoint's port; 0 keeps it.
	Port uint32
}

// StatusRange is HTTP statuses from Start up to but without End.
type StatusRange struct{ Start, End int }

// Validate reports the first field with a value that has no meaning.
func (h *HealthCheck) Validate() error {
	switch {
	case h.Kind > HealthTCP:
		return fmt.Errorf("health_checker: unknown kind %d", h.Kind)
	case h.Timeout <= 0:
		return fmt.Errorf("timeout: %v is not positive", h.Timeout)
	case h.Interval <= 0:
		return fmt.Errorf("interval: %v is not positive", h.Interval)
	case h.UnhealthyThreshold == 0:
		return fmt.Errorf("unhealthy_threshold: must be at least 1")
	case h.HealthyThreshold == 0:
		return fmt.Errorf("healthy_threshold: must be at least 1")
	case h.Kind == HealthHTTP && h.Path == "":
		return fmt.Errorf("http_health_check.path: is empty")
	case h.Port > 65535:
		return fmt.Errorf("port: %d is no port", h.Port)
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"interval_jitter", h.IntervalJitter}, {"initial_jitter", h.InitialJitter},
		{"no_traffic_interval", h.NoTrafficInterval}, {"unhealthy_interval", h.UnhealthyInterval},
	} {
		if f.value < 0 {
			return fmt.Errorf("%s: %v is negative", f.name, f.value)
		}
	}
	for name, ranges := range map[string][]StatusRange{"expected_statuses": h.Expected, "retriable_statuses": h.Retriable} {
		for i, r := range ranges {
			if r.Start < 100 || r.End > 600 || r.Start >= r.End {
				return fmt.Errorf("http_health_check.%s[%d]: %d to %d is no range of statuses", name, i, r.Start, r.End)
			}
		}
	}
	return nil
}
