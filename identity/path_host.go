package identity

import (
	"strconv"
	"strings"
)

// HostPort splits the port off an authority: "a:80" is "a" and "80", "[::1]"
// has none. An authority whose last part is not a number has no port.
func HostPort(authority string) (host, port string) {
	host, port = cutPort(authority)
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' {
			return authority, ""
		}
	}
	if port == "" {
		return authority, ""
	}
	return host, port
}

// cutPort splits off what stands where a port does, which may be empty or no number.
func cutPort(authority string) (host, port string) {
	colon := strings.LastIndexByte(authority, ':')
	if colon < 0 || strings.IndexByte(authority[colon:], ']') >= 0 {
		return authority, ""
	}
	if strings.IndexByte(authority[:colon], ':') >= 0 && !strings.HasSuffix(authority[:colon], "]") {
		return authority, "" // a bare IPv6 address
	}
	return authority[:colon], authority[colon+1:]
}

// PortStripping says from which authorities the port is removed
// (HttpConnectionManager.strip_matching_host_port and strip_any_host_port).
type PortStripping uint8

const (
	KeepPort     PortStripping = iota
	StripOwnPort               // where it is the listener's own
	StripAnyPort
)

// HostOptions bring the authority of a request into one spelling, before any
// rule or handler sees it. The zero value leaves it as it came.
type HostOptions struct {
	Port PortStripping
	// Dot removes the dot that ends the host and keeps the port (strip_trailing_host_dot).
	Dot bool
}

// Apply returns the authority as the options have it, for a listener at the
// port. It allocates only where a dot goes and a port stays.
func (o HostOptions) Apply(authority string, listenerPort uint16) string {
	if o == (HostOptions{}) {
		return authority
	}
	host, port := HostPort(authority)
	switch {
	case port == "":
	case o.Port == StripAnyPort, o.Port == StripOwnPort && port == strconv.Itoa(int(listenerPort)):
		authority, port = host, ""
	}
	bare, ok := strings.CutSuffix(host, ".")
	switch {
	case !o.Dot || !ok:
		return authority
	case port == "":
		return bare
	default:
		return bare + ":" + port
	}
}

// bareHost is the authority without port and without the dot at its end: the
// name that two spellings of one host share but for letter case. What can not be
// a port goes too: a server such as http.ServeMux takes "a:" and "a:x" for "a".
func bareHost(authority string) string {
	host, _ := cutPort(authority)
	return strings.TrimSuffix(host, ".")
}
