package snapshot

import (
	"slices"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// FilterKind says what an HTTP filter does.
type FilterKind uint8

const (
	FaultFilter FilterKind = iota
	CORSFilter
	ConcurrencyFilter
)

// Filter is an HTTP filter of a listener
// (envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter).
type Filter struct {
	// Name is how routes refer to it.
	Name string
	Kind FilterKind
	// Disabled has it do nothing where no route says otherwise.
	Disabled bool
	// Fault is a FaultFilter's where no route has another; nil injects none.
	Fault *FaultSetting
}

// FaultSetting is a fault, and to which of the route's clusters it is for.
type FaultSetting struct {
	Fault *resilience.Fault
	// Cluster is the only one; "" means all.
	Cluster string
}

// FilterSettings is what a route, with the levels above it, says of filters.
type FilterSettings struct {
	// ByName has the filters that any level names.
	ByName map[string]FilterSetting
	// CORS is of the routes' own field, for a CORS filter that no level names.
	CORS *routing.CORS
}

// FilterSetting is what a route says of one filter.
type FilterSetting struct {
	Disabled bool
	Fault    *FaultSetting // nil: the filter's own
	CORS     *routing.CORS
}

// FaultOf returns the fault for requests to the destination with that index in Clusters; nil injects none.
func (r *Route) FaultOf(leg int) *resilience.Fault {
	if leg >= 0 && leg < len(r.Legs) && r.Legs[leg].OwnFilters {
		return r.Legs[leg].Fault
	}
	return r.Fault
}

// CORSOf returns the rules for requests to the destination with that index in Clusters; nil applies none.
func (r *Route) CORSOf(leg int) *routing.CORS {
	if leg >= 0 && leg < len(r.Legs) && r.Legs[leg].OwnFilters {
		return r.Legs[leg].CORS
	}
	return r.CORS
}

// Host returns what the listener says of the requests to a host; Name, Used and,
// where no virtual host is for it, Err are the caller's to set.
func (l *Listener) Host(authority string, rc *RouteConfig) *Host {
	h := &Host{
		Routes: rc, MaxStreamDuration: l.MaxStreamDuration, Concurrency: l.Concurrency,
		SuppressHeaders: l.SuppressHeaders, RespectExpectedTimeout: l.RespectExpectedTimeout,
	}
	for i := range l.Filters {
		if l.Filters[i].Kind == FaultFilter {
			break
		}
		h.CORSFirst = h.CORSFirst || l.Filters[i].Kind == CORSFilter
	}
	if rc != nil {
		h.VirtualHost = l.Bind(rc.Lookup(authority))
	}
	return h
}

// Bind returns the virtual host as it is behind the listener: a route's
// settings for a filter count where the listener has the filter, and the
// listener's own where the route has none. It returns vh itself where both say
// nothing. The result shares with vh whatever does not differ.
func (l *Listener) Bind(vh *VirtualHost) *VirtualHost {
	if vh == nil || len(l.Filters) == 0 && l.IdleTimeout == 0 {
		return vh
	}
	bound := &VirtualHost{Name: vh.Name, Routes: slices.Clone(vh.Routes)}
	for i := range bound.Routes {
		l.bind(&bound.Routes[i])
	}
	return bound
}

// bind sets what the listener decides on a route of its own.
func (l *Listener) bind(r *Route) {
	if !r.OwnIdleTimeout {
		r.IdleTimeout = l.IdleTimeout
	}
	forwards := r.Redirect == nil && r.Direct == nil
	fault, cors, bounded := l.filters(&r.Filters)
	r.NoConcurrency = !bounded
	if forwards { // Envoy's filter leaves what a route answers by itself alone
		r.CORS = cors
	}
	own := fault != nil && fault.Cluster != "" && len(r.Clusters.Clusters) > 1
	for i := range r.Legs {
		own = own || r.Legs[i].OwnFilters
	}
	switch {
	case !own && !forwards:
		r.Fault = fault.to("")
	case !own && r.ClusterHeader.String() != "":
		r.Fault = fault.toHeader(r.ClusterHeader)
	case !own:
		r.Fault = fault.to(r.Clusters.Clusters[0].Name)
		if len(r.Legs) == 1 && r.Legs[0].ClusterHeader.String() != "" {
			r.Fault = fault.toHeader(r.Legs[0].ClusterHeader)
		}
	default:
		legs := make([]Leg, len(r.Clusters.Clusters))
		copy(legs, r.Legs)
		if r.Legs == nil {
			for i := range legs {
				legs[i].Subset = r.Subset
			}
		}
		for i := range legs {
			leg := &legs[i]
			fault, cors := fault, cors
			if leg.OwnFilters {
				fault, cors, _ = l.filters(&leg.Filters)
			}
			leg.OwnFilters, leg.CORS, leg.Fault = true, cors, fault.to(r.Clusters.Clusters[i].Name)
			if leg.ClusterHeader.String() != "" {
				leg.Fault = fault.toHeader(leg.ClusterHeader)
			}
		}
		r.Legs = legs
	}
}

// filters returns what the listener's filters do under the settings.
func (l *Listener) filters(s *FilterSettings) (fault *FaultSetting, cors *routing.CORS, bounded bool) {
	for i := range l.Filters {
		f := &l.Filters[i]
		own, ok := s.ByName[f.Name]
		if disabled := f.Disabled && !ok || own.Disabled; disabled {
			continue
		}
		switch f.Kind {
		case FaultFilter:
			if fault = f.Fault; own.Fault != nil {
				fault = own.Fault
			}
		case CORSFilter:
			if cors = own.CORS; cors == nil {
				cors = s.CORS
			}
		case ConcurrencyFilter:
			bounded = true
		}
	}
	return fault, cors, bounded
}

// to returns the fault for requests to a cluster.
func (s *FaultSetting) to(cluster string) *resilience.Fault {
	if s == nil || s.Cluster != "" && s.Cluster != cluster {
		return nil
	}
	return s.Fault
}

// toHeader returns the fault for requests to the cluster that a header names.
func (s *FaultSetting) toHeader(name routing.HeaderName) *resilience.Fault {
	if s == nil || s.Cluster == "" {
		return s.to("")
	}
	f := *s.Fault
	f.Headers = append(slices.Clone(f.Headers), routing.HeaderMatch{Name: name, String: routing.Exact(s.Cluster, false)})
	return &f
}
