package routing

import "strings"

// QueryKind says what a QueryMatch looks at.
type QueryKind uint8

const (
	// QueryPresent asks whether the parameter is there (Present) or is not.
	QueryPresent QueryKind = iota
	// QueryString compares the parameter's first value with String.
	QueryString
)

// QueryMatch is one condition on a query parameter
// (envoy.config.route.v3.QueryParameterMatcher). Only the first value of a
// parameter counts, and a missing parameter never matches a QueryString.
type QueryMatch struct {
	Name    string
	Kind    QueryKind
	Present bool // for QueryPresent: what is asked for
	String  StringMatch
}

// Matches reports whether the request fulfils the condition. It does not allocate.
func (m *QueryMatch) Matches(r *Request) bool {
	v, ok := firstParameter(r.RawQuery, m.Name)
	if m.Kind == QueryPresent {
		return ok == m.Present
	}
	return ok && m.String.Matches(v)
}

// firstParameter returns the parameter's first value. A parameter without "=" has the empty value.
func firstParameter(query, name string) (string, bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if k, v, _ := strings.Cut(pair, "="); k == name {
			return v, true
		}
	}
	return "", false
}
