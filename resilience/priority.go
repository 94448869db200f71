package resilience

// Priority chooses the thresholds that a request counts against
// (envoy.config.core.v3.RoutingPriority).
type Priority uint8

const (
	DefaultPriority Priority = iota
	HighPriority
	Priorities = 2 // how many there are
)
