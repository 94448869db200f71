package routing

import "strings"

// PathKind says how a path is compared.
type PathKind uint8

const (
	PathPrefix          PathKind = iota // begins with Value
	PathExact                           // is Value
	PathRegex                           // Regex matches the whole path
	PathSeparatedPrefix                 // is Value or begins with Value and "/"
	PathTemplate                        // Template matches the whole path
)

// PathMatch is the condition on the path (envoy.config.route.v3.RouteMatch.path_specifier).
// It sees the path as it is on the wire, still escaped and without the query. The zero value matches every path.
type PathMatch struct {
	Kind       PathKind
	Value      string
	IgnoreCase bool        // ASCII letters; not for PathRegex
	Regex      StringMatch // for PathRegex
	Template   *Template   // for PathTemplate
	// IgnoreParameters cuts the path at its first ";" before it is compared
	// (RouteConfiguration.ignore_path_parameters_in_path_matching).
	IgnoreParameters bool
}

// Matches reports whether the path fulfils the condition. It does not allocate.
func (m *PathMatch) Matches(path string) bool {
	if m.IgnoreParameters {
		path, _, _ = strings.Cut(path, ";")
	}
	switch m.Kind {
	case PathExact:
		return len(path) == len(m.Value) && m.begins(path)
	case PathRegex:
		return m.Regex.Matches(path)
	case PathTemplate:
		return m.Template.Matches(path)
	case PathSeparatedPrefix:
		return m.begins(path) && (len(path) == len(m.Value) || path[len(m.Value)] == '/')
	default:
		return m.begins(path)
	}
}

func (m *PathMatch) begins(path string) bool {
	if !m.IgnoreCase {
		return strings.HasPrefix(path, m.Value)
	}
	if len(path) < len(m.Value) {
		return false
	}
	for i := 0; i < len(m.Value); i++ {
		if toLower(path[i]) != toLower(m.Value[i]) {
			return false
		}
	}
	return true
}

// Fraction is a share of requests (envoy.config.core.v3.RuntimeFractionalPercent).
type Fraction struct {
	// PerMillion is the share in millionths: 0 matches nothing, 1,000,000 or more everything.
	PerMillion uint32
}

// Matches reports whether the draw falls into the share: its remainder by a
// million is less than PerMillion (Envoy's rule; "less or equal" would let 0 match).
func (f Fraction) Matches(draw uint64) bool { return draw%1_000_000 < uint64(f.PerMillion) }

// Match is all the conditions of one route (envoy.config.route.v3.RouteMatch):
// every one of them must be fulfilled. The zero value matches every request.
type Match struct {
	Path     PathMatch
	Headers  []HeaderMatch
	Query    []QueryMatch
	Cookies  []CookieMatch
	Claims   []ClaimMatch
	GRPC     bool      // only gRPC requests, by their content type
	Fraction *Fraction // only a share of the requests; nil means all
}

// Matches reports whether the request fulfils every condition. draw is 64
// random bits. It does not allocate.
func (m *Match) Matches(r *Request, draw uint64) bool {
	if !m.Path.Matches(r.Path) {
		return false
	}
	for i := range m.Headers {
		if !m.Headers[i].Matches(r) {
			return false
		}
	}
	for i := range m.Query {
		if !m.Query[i].Matches(r) {
			return false
		}
	}
	for i := range m.Cookies {
		if !m.Cookies[i].Matches(r) {
			return false
		}
	}
	for i := range m.Claims {
		if !m.Claims[i].Matches(r.Claims) {
			return false
		}
	}
	if m.GRPC && !IsGRPC(r) {
		return false
	}
	return m.Fraction == nil || m.Fraction.Matches(draw)
}

var contentType = NewHeaderName("content-type")

// IsGRPC reports whether the content type is "application/grpc" or begins with
// "application/grpc+" (gRPC over HTTP/2, PROTOCOL-HTTP2.md). "application/grpc-web" is not gRPC.
func IsGRPC(r *Request) bool {
	values := contentType.In(r.Header, r.Form)
	if len(values) == 0 {
		return false
	}
	rest, ok := strings.CutPrefix(values[0], "application/grpc")
	return ok && (rest == "" || rest[0] == '+')
}
