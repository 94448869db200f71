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
//   - What says who may call, and can not be made of the policy in force, is not
//     served at all, not even as it was.
//
// On connections with client certificates (Credentials, RegisterVerified) a client
// is served as the namespace and service account that it has proved, and as nobody
// else. Beside policy it may report who speaks plaintext to it (Report).
package ads

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadv3 "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Server serves one policy at a time to any number of clients.
type Server struct {
	store  *store
	ledger *ledger
	loads  *loads
	ctx    context.Context
	log    *slog.Logger

	loadInterval time.Duration // as in the constant

	refusals struct {
		mu       sync.Mutex
		last     []Refusal
		second   time.Time // when the present second of logging began
		inSecond int
	}
}

// NewServer returns a server without policy: every name is answered as unknown
// until SetPolicy. Streams end when ctx does. A nil log discards.
func NewServer(ctx context.Context, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{store: newStore(log), ledger: newLedger(), loads: newLoads(), ctx: ctx, log: log, loadInterval: loadInterval}
}

// Register adds the aggregated discovery service and the load reporting service
// to a gRPC server whose clients prove nothing: a node is taken at its word. It is for connections that nobody
// else can reach, as on loopback.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	register(r, door{server: s})
}

// RegisterVerified adds the services to a gRPC server with Credentials, or others
// that leave the client's certificates in credentials.TLSInfo. Each stream needs a
// client certificate that is an SVID under the source's bundles, whose trust
// domains are the mesh's own and its aliases; without one it is Unauthenticated.
//
// The node must be of the certificate's namespace and service account, else the
// stream ends with PermissionDenied and says what differs. When the certificate
// expires the stream ends with Unavailable.
func (s *Server) RegisterVerified(r grpc.ServiceRegistrar, trust source.Source) {
	register(r, door{server: s, trust: trust})
}

func register(r grpc.ServiceRegistrar, d door) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, &gate{door: d})
	loadv3.RegisterLoadReportingServiceServer(r, &loadGate{door: d})
}

// SetPolicy puts a policy in force and sends every client what it watches and
// what changed in it. It returns once all is handed to the streams. The set
// must not change afterwards.
func (s *Server) SetPolicy(set *policy.Set) { s.store.setPolicy(set) }

// Status reports the connected clients, what each was sent, accepted and
// refused, and what could not be made of the policy.
func (s *Server) Status() Status {
	out := Status{Clients: s.ledger.status(), Problems: []Problem{}}
	s.refusals.mu.Lock()
	out.Refused = append([]Refusal{}, s.refusals.last...)
	s.refusals.mu.Unlock()
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
				if e.err != nil && !e.stale {
					r.Withheld = e.err.Error()
				}
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
