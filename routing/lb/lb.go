// Package lb chooses endpoints. Endpoint sets and pickers are immutable; what
// changes from request to request (the number of requests in flight, a random
// draw, a sequence number) is an argument.
package lb

import "slices"

// Health is an endpoint's state as the control plane reports it (envoy.config.core.v3.HealthStatus).
type Health uint8

const (
	Healthy   Health = iota // UNKNOWN and HEALTHY
	Degraded                // used only when no healthy endpoint is left
	Draining                // takes no new requests, unless panic uses every endpoint
	Unhealthy               // UNHEALTHY and TIMEOUT
)

// Locality is where an endpoint runs.
type Locality struct{ Region, Zone, SubZone string }

// Endpoint is one address of a cluster.
type Endpoint struct {
	Address  string // "ip:port" or "host:port", as given to net.Dial
	Hostname string // for host rewriting and health checks; may be empty
	Weight   uint32 // at least 1
	Health   Health
	Locality Locality
	// Socket has the string values of filter_metadata "envoy.transport_socket_match", such as tlsMode: "istio".
	Socket   map[string]string
	Metadata map[string]string // string values of filter_metadata "envoy.lb", and "istio" keys such as tlsMode
}

// Endpoints is an immutable endpoint set.
type Endpoints struct {
	All []Endpoint
	// Drops are the shares of requests to refuse (drop_overloads), in order.
	Drops []Drop
}

// Drop refuses a share of requests, for one category.
type Drop struct {
	Category   string
	PerMillion uint32
}

// NewEndpoints returns a set of copies of the endpoints; a weight of 0 becomes 1
// (Envoy's default of load_balancing_weight).
func NewEndpoints(all []Endpoint, drops []Drop) *Endpoints {
	e := &Endpoints{All: slices.Clone(all), Drops: slices.Clone(drops)}
	for i := range e.All {
		e.All[i].Weight = max(e.All[i].Weight, 1)
	}
	return e
}
