package routing

// ClaimMatch is one condition on the verified claims of the request that is
// being served while the matched request is made: Istio's "@request.auth.claims"
// in the headers of a match, envoy.config.route.v3.RouteMatch.dynamic_metadata
// on the wire.
type ClaimMatch struct {
	// Path leads from the claims to the value, key by key.
	Path []string
	// Present asks only that the claim is there; else Value has to match it, or
	// one of its elements where it is a list.
	Present bool
	Value   StringMatch
	Invert  bool
}

// Matches reports whether the claims fulfil the condition. Only text matches
// Value: a number, a boolean or an object does not, and neither does a claim
// that is not there; Invert turns that round (envoy.type.matcher.v3.MetadataMatcher).
// It does not allocate.
func (m *ClaimMatch) Matches(claims map[string]any) bool { return m.matches(claims) != m.Invert }

func (m *ClaimMatch) matches(claims map[string]any) bool {
	if len(m.Path) == 0 {
		return false
	}
	var value any
	for i, key := range m.Path {
		v, ok := claims[key]
		if !ok {
			return false
		}
		value = v
		if i < len(m.Path)-1 {
			if claims, ok = v.(map[string]any); !ok {
				return false
			}
		}
	}
	if m.Present {
		return true
	}
	switch v := value.(type) {
	case string:
		return m.Value.Matches(v)
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok && m.Value.Matches(s) {
				return true
			}
		}
	case []string:
		for _, s := range v {
			if m.Value.Matches(s) {
				return true
			}
		}
	}
	return false
}
