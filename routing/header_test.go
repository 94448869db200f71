package routing

import (
	"strconv"
	"strings"
	"testing"
)

func header(name string, values ...string) *Request {
	return &Request{Header: map[string][]string{name: values}}
}

func TestHeaderMatch(t *testing.T) {
	x := NewHeaderName("X-a")
	is := func(v string) HeaderMatch { return HeaderMatch{Name: x, Kind: HeaderString, String: Exact(v, false)} }
	with := func(m HeaderMatch, f func(*HeaderMatch)) HeaderMatch { f(&m); return m }
	invert := func(m *HeaderMatch) { m.Invert = true }
	missingEmpty := func(m *HeaderMatch) { m.MissingAsEmpty = true }
	both := func(m *HeaderMatch) { m.Invert, m.MissingAsEmpty = true, true }
	number := HeaderMatch{Name: x, Kind: HeaderRange, Start: -2, End: 10}
	present := HeaderMatch{Name: x, Kind: HeaderPresent, Present: true}
	absent := HeaderMatch{Name: x, Kind: HeaderPresent}

	none := &Request{}
	for _, c := range []struct {
		name string
		m    HeaderMatch
		r    *Request
		want bool
	}{
		{"equal", is("v"), header("X-A", "v"), true},
		{"not equal", is("v"), header("X-A", "w"), false},
		{"one value of several", is("v"), header("X-A", "w", "v"), true},
		{"values are not joined", is("w,v"), header("X-A", "w", "v"), false},
		{"inverted, one value of several matches", with(is("v"), invert), header("X-A", "w", "v"), false},
		{"inverted, no value matches", with(is("v"), invert), header("X-A", "w", "u"), true},
		{"missing", is("v"), none, false},
		{"missing, inverted", with(is("v"), invert), none, false},
		{"missing as empty", with(is(""), missingEmpty), none, true},
		{"missing as empty, inverted", with(is("v"), both), none, true},
		{"no values is missing", with(is("v"), invert), header("X-A"), false},
		{"empty value is there", is(""), header("X-A", ""), true},

		{"first of the range", number, header("X-A", "-2"), true},
		{"end of the range", number, header("X-A", "10"), false},
		{"below the range", number, header("X-A", "-3"), false},
		{"plus sign and spaces", number, header("X-A", " +9 "), true},
		{"not a number", number, header("X-A", "9x"), false},
		{"no digits", number, header("X-A", "-"), false},
		{"too large a number", number, header("X-A", "99999999999999999999"), false},
		{"second value in the range", number, header("X-A", "x", "1"), true},
		{"inverted range, not a number", with(number, invert), header("X-A", "x"), true},
		{"inverted range, missing", with(number, invert), none, false},
		{"inverted range, missing as empty", with(number, both), none, true},

		{"present", present, header("X-A", ""), true},
		{"present, missing", present, none, false},
		{"present, inverted", with(present, invert), header("X-A", "v"), false},
		{"present, inverted, missing", with(present, invert), none, true},
		{"present, missing as empty", with(present, missingEmpty), none, true},
		{"absent", absent, none, true},
		{"absent, there", absent, header("X-A", "v"), false},
		{"absent, missing as empty", with(absent, missingEmpty), none, false},
		{"absent, inverted, missing", with(absent, invert), none, false},
	} {
		if got := c.m.Matches(c.r); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		lower := Request{Form: LowerHeaders, Header: map[string][]string{}}
		for k, v := range c.r.Header {
			lower.Header[strings.ToLower(k)] = v
		}
		if got := c.m.Matches(&lower); got != c.want {
			t.Errorf("%s, lower-case keys: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPseudoHeaders(t *testing.T) {
	r := &Request{
		Method: "POST", Scheme: "https", Authority: "a.test:80", Path: "/p", RawQuery: "q=1",
		Header: map[string][]string{":method": {"GET"}, "Host": {"other"}},
	}
	for name, want := range map[string]string{
		":method": "POST", ":Scheme": "https", ":authority": "a.test:80", "Host": "a.test:80", ":path": "/p?q=1",
	} {
		m := HeaderMatch{Name: NewHeaderName(name), String: Exact(want, false)}
		if !m.Matches(r) {
			t.Errorf("%s is not %q", name, want)
		}
		present := HeaderMatch{Name: m.Name, Kind: HeaderPresent, Present: true}
		if !present.Matches(r) || present.Matches(&Request{}) {
			t.Errorf("%s: present is %v, and %v in an empty request", name, present.Matches(r), present.Matches(&Request{}))
		}
	}
	path := HeaderMatch{Name: NewHeaderName(":path"), String: Exact("/p", false)}
	if !path.Matches(&Request{Path: "/p"}) {
		t.Error(":path without a query does not match")
	}
	status := HeaderMatch{Name: NewHeaderName(":status"), Kind: HeaderPresent, Present: true}
	if status.Matches(&Request{Header: map[string][]string{":status": {"200"}}}) {
		t.Error("a request has a :status")
	}
}

func TestParseInt(t *testing.T) {
	for _, s := range []string{
		"0", "-0", "+0", "007", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
		"18446744073709551616", "", " ", "+", "-", "--1", "1 2", "1.0", "0x1", "1e3", "\t4\n", "٣", "4_0",
	} {
		checkInt(t, s)
	}
}

func checkInt(t *testing.T, s string) {
	t.Helper()
	want, err := strconv.ParseInt(strings.Trim(s, " \t\n\v\f\r"), 10, 64)
	if got, ok := parseInt(s); ok != (err == nil) || ok && got != want {
		t.Errorf("parseInt(%q) = %d, %v; want %d, %v", s, got, ok, want, err)
	}
}

// dumbHeader decides by writing out what each combination means.
func dumbHeader(kind HeaderKind, want string, start, end int64, present, invert, missingAsEmpty bool, values []string) bool {
	if len(values) == 0 && missingAsEmpty {
		values = []string{""}
	}
	var hits int
	for _, v := range values {
		switch kind {
		case HeaderString:
			if v == want {
				hits++
			}
		case HeaderRange:
			if n, err := strconv.ParseInt(strings.Trim(v, " \t\n\v\f\r"), 10, 64); err == nil && n >= start && n < end {
				hits++
			}
		}
	}
	if kind == HeaderPresent {
		return ((len(values) > 0) == present) != invert
	}
	if len(values) == 0 {
		return false
	}
	return (hits > 0) != invert
}

func FuzzHeaderMatch(f *testing.F) {
	f.Add(uint8(0), "v", int64(1), int64(5), uint8(0), "v|w")
	f.Fuzz(func(t *testing.T, kind uint8, want string, start, end int64, flags uint8, joined string) {
		var values []string
		if joined != "" {
			values = strings.Split(joined, "|")
		}
		m := HeaderMatch{
			Name: NewHeaderName("x-a"), Kind: HeaderKind(kind % 3), String: Exact(want, false), Start: start, End: end,
			Present: flags&1 != 0, Invert: flags&2 != 0, MissingAsEmpty: flags&4 != 0,
		}
		expected := dumbHeader(m.Kind, want, start, end, m.Present, m.Invert, m.MissingAsEmpty, values)
		if got := m.Matches(header("X-A", values...)); got != expected {
			t.Errorf("%+v on %q: %v, want %v", m, values, got, expected)
		}
		for _, v := range values {
			checkInt(t, v)
		}
	})
}
