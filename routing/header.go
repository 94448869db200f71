package routing

import "math"

// HeaderKind says what a HeaderMatch looks at.
type HeaderKind uint8

const (
	// HeaderString compares the value with String.
	HeaderString HeaderKind = iota
	// HeaderRange asks for a whole decimal number with Start <= number < End.
	HeaderRange
	// HeaderPresent asks whether the header is there (Present) or is not.
	HeaderPresent
)

// HeaderMatch is one condition on a header (envoy.config.route.v3.HeaderMatcher).
//
// A header that comes several times is matched value by value: one value that
// matches is enough, and with Invert none may match. Joining the values by
// commas, as HTTP allows, would let a sender step around a rule by sending the
// header twice.
//
// A missing header matches neither a HeaderString nor a HeaderRange, inverted
// or not, unless MissingAsEmpty is set: then it counts as present and empty.
type HeaderMatch struct {
	Name       HeaderName
	Kind       HeaderKind
	String     StringMatch // for HeaderString
	Start, End int64       // for HeaderRange, End exclusive
	Present    bool        // for HeaderPresent: what is asked for

	Invert         bool
	MissingAsEmpty bool
}

// Matches reports whether the request fulfils the condition. Pseudo-headers are
// answered from the request's fields; an empty field counts as missing. It does
// not allocate, except that ":path" of a request with a query is put together.
func (m *HeaderMatch) Matches(r *Request) bool {
	if m.Name.pseudo == noPseudo {
		return m.MatchesValues(m.Name.In(r.Header, r.Form))
	}
	v := m.Name.field(r)
	if v == "" {
		return m.missing()
	}
	return m.value(v) != m.Invert
}

// MatchesValues reports whether a header with these values fulfils the
// condition; none means that the header is missing. It is what a rule on a
// response uses.
func (m *HeaderMatch) MatchesValues(values []string) bool {
	if len(values) == 0 {
		return m.missing()
	}
	for _, v := range values {
		if m.value(v) {
			return !m.Invert
		}
	}
	return m.Invert
}

func (m *HeaderMatch) missing() bool {
	if m.MissingAsEmpty {
		return m.value("") != m.Invert
	}
	if m.Kind == HeaderPresent {
		return m.Present == m.Invert
	}
	return false
}

// value reports whether one value of a header that is there matches.
func (m *HeaderMatch) value(v string) bool {
	switch m.Kind {
	case HeaderString:
		return m.String.Matches(v)
	case HeaderRange:
		n, ok := parseInt(v)
		return ok && m.Start <= n && n < m.End
	default:
		return m.Present
	}
}

// parseInt reads a whole decimal number with an optional sign, and spaces
// around it, which is what Envoy takes as a number. It exists because strconv
// allocates an error for each value that is not a number.
func parseInt(s string) (int64, bool) {
	for s != "" && isSpace(s[0]) {
		s = s[1:]
	}
	for s != "" && isSpace(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	negative := false
	if s != "" && (s[0] == '-' || s[0] == '+') {
		negative = s[0] == '-'
		s = s[1:]
	}
	if s == "" {
		return 0, false
	}
	limit := uint64(math.MaxInt64)
	if negative {
		limit++
	}
	n := uint64(0)
	for i := 0; i < len(s); i++ {
		d := uint64(s[i]) - '0'
		if d > 9 || n > (limit-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	if negative {
		return -int64(n), true
	}
	return int64(n), true
}

func isSpace(c byte) bool { return c == ' ' || ('\t' <= c && c <= '\r') }
