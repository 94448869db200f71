// Package ads serves policy to xDS clients over aggregated streams: the
// incremental protocol and the state-of-the-world one, on go-control-plane's
// server over a cache that is indexed by resource.
//
// What clients may rely on:
//
//   - A name is answered at once, also one that nobody knows: as removed on an
//     incremental stream, by a response without it on the other.
//   - A name that is asked for again is answered, even if its version is the same.
//   - A version that was refused is not sent again until it changes.
//   - Versions are hashes of content: after a restart nothing is sent to a
//     client that says it has it.
//   - Of one change of policy, clusters and endpoints go before listeners and
//     routes. A cluster or endpoint set that is gone is served for two seconds
//     more, in which clients go over to what the new routes name.
package ads

import (
	"cmp"
	"context"
	"log/slog"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Server serves one policy at a time to any number of clients.
type Server struct {
	store  *store
	ledger *ledger
	xds    serverv3.Server
}

// NewServer returns a server without policy: every name is answered as unknown
// until SetPolicy. Streams end when ctx does. A nil log discards.
func NewServer(ctx context.Context, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{store: newStore(log), ledger: newLedger()}
	// Ordered streams send responses in the order they were made, across types.
	s.xds = serverv3.NewServer(ctx, s.store, s.ledger, sotw.WithOrderedADS())
	return s
}

// Register adds the aggregated discovery service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s.xds)
}

// SetPolicy puts a policy in force and sends every client what it watches and
// what changed in it. It returns once all is handed to the streams. The set
// must not change afterwards.
func (s *Server) SetPolicy(set *policy.Set) { s.store.setPolicy(set) }

// Status reports the connected clients, what each was sent, accepted and
// refused, and what could not be made of the policy.
func (s *Server) Status() Status {
	out := Status{Clients: s.ledger.status(), Problems: []Problem{}}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	for i := range out.Clients {
		c := &out.Clients[i]
		if c.client == nil {
			continue
		}
		for j := range c.Resources {
			r := &c.Resources[j]
			if e := s.store.find(r.typeURL, r.Name, c.client); e != nil {
				r.Notes = e.notes
			}
		}
	}
	for _, e := range s.store.entries {
		if e.err != nil && !e.stale {
			p := Problem{Type: short(e.typeURL), Name: e.name, Error: e.err.Error()}
			if !slices.Contains(out.Problems, p) {
				out.Problems = append(out.Problems, p)
			}
		}
	}
	slices.SortFunc(out.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Error, b.Error))
	})
	return out
}
