package meshgrpc

import (
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/transport/outbound"
)

// A target "mesh:///host:port" is gRPC's transport and streams under a resolver
// and a balancer of the mesh, which ask the same engine as HTTP does:
//
//	interceptor   Decide ▸ fault ▸ limits ▸ { Begin ▸ Pick ▸ Outgoing ▸ send ▸ Report ▸ Next } ▸ Finish
//	picker        the connection to the endpoint that the attempt has picked, which it has made where there is none
//	credentials   TLS as policy says for that endpoint
//
// The endpoint is picked before the RPC is handed to gRPC, because what is sent
// may depend on it; the picker picks again where that endpoint can not be used.

const meshScheme = "mesh"

// meshClient is what the channels of one DialOptions share for "mesh:///" targets.
type meshClient struct {
	engine     *outbound.Engine
	identities *outbound.Identities
	health     *string

	targets atomic.Pointer[map[string]string] // target as dialled -> authority; "" for another scheme
	mu      sync.Mutex                        // serialises changes of targets
}

func newMeshClient(e *outbound.Engine, sources outbound.Sources, health *string) *meshClient {
	m := &meshClient{engine: e, identities: outbound.NewIdentities(sources), health: health}
	m.targets.Store(&map[string]string{})
	return m
}

// maxTargets bounds the targets that are remembered; more are looked at anew each time.
const maxTargets = 4096

// authority returns the authority of a channel's target, "host:port" as it was
// given; "" where the target is of another scheme.
func (m *meshClient) authority(cc *grpc.ClientConn) string {
	target := cc.Target()
	if a, ok := (*m.targets.Load())[target]; ok {
		return a
	}
	// The canonical target has the scheme that gRPC has understood.
	authority := ""
	if rest, ok := strings.CutPrefix(cc.CanonicalTarget(), meshScheme+"://"); ok {
		if _, endpoint, ok := strings.Cut(rest, "/"); ok {
			authority = endpoint
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if all := *m.targets.Load(); len(all) < maxTargets {
		all = maps.Clone(all)
		all[target] = authority
		m.targets.Store(&all)
	}
	return authority
}

// hostOf is the name of an authority, without its port.
func hostOf(authority string) string {
	if host, _, err := net.SplitHostPort(authority); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(authority, "["), "]")
}
