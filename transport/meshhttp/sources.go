package meshhttp

import "github.com/sinew-mesh/sinew/transport/outbound"

// connecting is what all wires connect with.
type connecting struct {
	identities *outbound.Identities
	// network is what wires dial; nil is the machine's own. A test has one in memory.
	network dialFunc
}
