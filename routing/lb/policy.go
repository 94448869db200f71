package lb

import "time"

// Kind is a load balancing algorithm.
type Kind uint8

const (
	LeastRequest Kind = iota
	RoundRobin
	Random
	RingHash
	Maglev
	PeakEWMA
	// ClientWeighted is round robin by the load that endpoints report (gRFC A58).
	ClientWeighted
)

// Policy is a cluster's load balancing policy.
type Policy struct {
	Kind Kind
	// Choices is how many endpoints least request and peak EWMA compare. Default 2 (Envoy).
	Choices uint32
	// FullScan has least request compare all endpoints (selection_method FULL_SCAN).
	FullScan bool
	// ActiveBias is how much requests in flight count against an endpoint's weight where
	// weights differ (active_request_bias). nil means 1.
	ActiveBias *float64
	Ring       Ring
	Table      Table
	// Decay is the window of peak EWMA. Default 10 s (Linkerd).
	Decay     time.Duration
	Client    ClientWeights
	SlowStart *SlowStart // nil has new endpoints take their full share at once

	// PanicThreshold: when fewer than this percentage of endpoints are usable, all are used. 0 disables.
	PanicThreshold float64
	// LocalityWeighted chooses a locality by its weight first (locality_weighted_lb_config, wrr_locality).
	LocalityWeighted bool
	// ZoneAware prefers the client's own zone; nil does not.
	ZoneAware *ZoneAware
	Subsets   *Subsets // nil has no subsets
	// Subset is how many endpoints of a cluster this client uses at most, chosen by its
	// identity; 0 means DefaultSubsetSize, 2^32-1 all of them. Hash policies always use all.
	Subset uint32
}

// HashFunction places endpoints on a ring.
type HashFunction uint8

const (
	XXHash HashFunction = iota
	MurmurHash2
)

// Ring is the configuration of ring hash
// (envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash).
type Ring struct {
	MinSize, MaxSize uint64 // default 1024 and 8M
	Function         HashFunction
	Options          HashOptions
}

// Table is the configuration of maglev.
type Table struct {
	Size    uint64 // default 65537; a prime
	Options HashOptions
}

// HashOptions are common to ring hash and maglev (consistent_hashing_lb_config).
type HashOptions struct {
	// UseHostname takes the hostname in place of the address for the key.
	UseHostname bool
	// BalanceFactor bounds an endpoint's requests by so many per cent of the mean; 0 does not (hash_balance_factor).
	BalanceFactor uint32
}

// SlowStart raises the weight of an endpoint over time after it has come
// (envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig).
type SlowStart struct {
	Window     time.Duration
	Aggression float64 // default 1
	MinWeight  float64 // per cent of the weight at the beginning; default 10
}

// ZoneAware is envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig.
type ZoneAware struct {
	Enabled      float64 // per cent of the requests; default 100
	MinCluster   uint64  // fewer endpoints use all zones; default 6
	FailOnPanic  bool
	ForceLocal   bool   // force_local_zone
	ForceMinimum uint32 // of endpoints in the local zone; default 1
}

// ClientWeights is the configuration of ClientWeighted
// (envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3).
type ClientWeights struct {
	Blackout     time.Duration // default 10 s: reports that are younger do not count
	Expiration   time.Duration // default 3 min
	Update       time.Duration // default 1 s, at least 100 ms
	ErrorPenalty float64       // default 1
	Metrics      []string      // for the utilization, where the report has no application utilization
}

// Subsets splits a cluster by the metadata of its endpoints
// (envoy.extensions.load_balancing_policies.subset.v3.Subset).
type Subsets struct {
	Selectors []SubsetSelector
	Fallback  SubsetFallback
	// Default is the subset for DefaultSubset.
	Default map[string]string
}

// SubsetSelector names the metadata keys by which endpoints form subsets.
type SubsetSelector struct {
	Keys     []string
	Fallback SubsetFallback // UseClusterFallback by default
}

// SubsetFallback says what a request gets whose subset has no endpoint.
type SubsetFallback uint8

const (
	NoFallback SubsetFallback = iota
	AnyEndpoint
	DefaultSubset
	UseClusterFallback
)
