package identity

import "strings"

// HostPort splits the port off an authority: "a:80" is "a" and "80", "[::1]"
// has none. An authority whose last part is not a number has no port.
func HostPort(authority string) (host, port string) {
	colon := strings.LastIndexByte(authority, ':')
	if colon < 0 || strings.IndexByte(authority[colon:], ']') >= 0 {
		return authority, ""
	}
	if strings.IndexByte(authority[:colon], ':') >= 0 && !strings.HasSuffix(authority[:colon], "]") {
		return authority, "" // a bare IPv6 address
	}
	port = authority[colon+1:]
	if port == "" {
		return authority, ""
	}
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' {
			return authority, ""
		}
	}
	return authority[:colon], port
}

// StripPort removes the port from an authority where it is the listener's own
// (HttpConnectionManager.strip_matching_host_port).
func StripPort(authority, listenerPort string) string {
	if host, port := HostPort(authority); port == listenerPort && port != "" {
		return host
	}
	return authority
}

// StripDot removes the dot that ends the host of an authority and keeps its
// port (HttpConnectionManager.strip_trailing_host_dot).
func StripDot(authority string) string {
	host, port := HostPort(authority)
	bare, ok := strings.CutSuffix(host, ".")
	switch {
	case !ok:
		return authority
	case port == "":
		return bare
	default:
		return bare + ":" + port
	}
}

// bareHost is the authority without port and without the dot at its end: the
// name that two spellings of one host share but for letter case.
func bareHost(authority string) string {
	host, _ := HostPort(authority)
	return strings.TrimSuffix(host, ".")
}
