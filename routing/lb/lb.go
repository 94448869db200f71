// Package lb chooses endpoints. Endpoint sets and pickers are immutable; what
// changes from request to request (the number of requests in flight, a random
// draw, a sequence number) is an argument. A Builder follows a set as it changes
// and makes its pickers, each of which shares with the last one what is the same.
package lb

import "slices"

// Health is an endpoint's state as the control plane reports it (envoy.config.core.v3.HealthStatus).
type Health uint8

const (
	Healthy   Health = iota // UNKNOWN and HEALTHY
	Degraded                // takes what the healthy endpoints can not carry
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
	Priority uint32 // 0 is used first
	// HashKey places the endpoint on a ring or in a table; "" means its Address (filter_metadata "envoy.lb" "hash_key").
	HashKey string
	// HealthPort replaces the port of health checks; 0 means none of its own. HealthHost is their authority.
	HealthPort uint32
	HealthHost string
	// Socket has the string values of filter_metadata "envoy.transport_socket_match", such as tlsMode: "istio".
	Socket   map[string]string
	Metadata map[string]string // string values of filter_metadata "envoy.lb", and "istio" keys such as tlsMode
}

// Endpoints is an immutable endpoint set.
type Endpoints struct {
	All []Endpoint
	// Localities have what policy says of each locality in each priority; one that is not here has the weight 0.
	Localities []LocalityWeight
	// Overprovisioning is the factor, in per cent, by which healthy endpoints count for
	// more than their share before load goes to the next priority or locality. Default 140.
	Overprovisioning uint32
	// WeightedPriorityHealth counts endpoints by their weight where the health of a priority is computed.
	WeightedPriorityHealth bool
	// Drops are the shares of requests to refuse (drop_overloads), in order.
	Drops []Drop
}

// LocalityWeight is the share of the load of one locality in one priority.
type LocalityWeight struct {
	Locality Locality
	Priority uint32
	Weight   uint32
}

// LoadReport is what an endpoint says of its own load, in a response
// (xds.data.orca.v3.OrcaLoadReport, gRFC A51).
type LoadReport struct {
	CPU         float64 // cpu_utilization
	Application float64 // application_utilization
	Memory      float64
	QPS         float64 // rps_fractional
	EPS         float64
	Named       map[string]float64 // "named_metrics.x", "utilization.x", "request_cost.x"
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

// NewPicker returns the picker of a set that never changes: slots are indices
// in eps.All, and all endpoints are as the control plane reports them.
func NewPicker(p Policy, eps *Endpoints) *Picker {
	b := NewBuilder(p, Locality{})
	b.Describe(eps)
	for i := range eps.All {
		b.Put(int32(i), eps.All[i].Member(&p))
	}
	return b.Picker()
}

// Member returns the endpoint as the policy's pickers see it.
func (e *Endpoint) Member(p *Policy) Member {
	m := Member{Weight: e.Weight, Health: e.Health, Priority: e.Priority, Locality: e.Locality}
	if p.Kind.hashes() {
		options := &p.Ring.Options
		if p.Kind == Maglev {
			options = &p.Table.Options
		}
		switch {
		case e.HashKey != "":
			m.Key = e.HashKey
		case options.UseHostname && e.Hostname != "":
			m.Key = e.Hostname
		default:
			m.Key = e.Address
		}
	}
	return m
}
