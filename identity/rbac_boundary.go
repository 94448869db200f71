package identity

import (
	"net/netip"
	"strings"
)

// ClientIP returns the address of the client on whose behalf the peer calls
// (Istio's remote.ip). forwarded are the values of X-Forwarded-For, in order.
// Each proxy appends whom it was called by, so with that many trusted hops in
// front of us it is that entry from the end that a trusted one wrote; what stands
// before it anybody can have written. With no trusted hops, too few entries or
// one that is not an address, it is the peer itself.
func ClientIP(peer netip.Addr, forwarded []string, trustedHops int) netip.Addr {
	if trustedHops <= 0 {
		return peer
	}
	for i := len(forwarded) - 1; i >= 0; i-- {
		rest := forwarded[i]
		for more := true; more; {
			entry := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				entry, rest = rest[comma+1:], rest[:comma]
			} else {
				more = false
			}
			if trustedHops--; trustedHops > 0 {
				continue
			}
			addr, err := netip.ParseAddr(strings.Trim(entry, " \t"))
			if err != nil {
				return peer
			}
			return addr.Unmap()
		}
	}
	return peer
}

// InternalHeader reports whether a header is one that proxies of the mesh set
// for each other, and that a request from outside the mesh must not bring along:
// it would choose its own timeout, retries, route or identity. The name is in any letter case.
func InternalHeader(name string) bool {
	return hasPrefixFold(name, "x-envoy-") || hasPrefixFold(name, "x-istio-") ||
		strings.EqualFold(name, "x-forwarded-client-cert")
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
