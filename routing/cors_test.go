package routing

import (
	"reflect"
	"strings"
	"testing"
)

func TestCORSPreflight(t *testing.T) {
	full := CORS{
		Origins: []StringMatch{Exact("https://a.test", false), Suffix(".b.test", false)},
		Methods: "GET,PUT", Headers: "x-a", Expose: "x-e", MaxAge: "86400", Credentials: true,
	}
	with := func(change func(*CORS)) CORS {
		c := full
		change(&c)
		return c
	}
	preflight := func(origin string, more ...string) *Request {
		r := &Request{Method: "OPTIONS", Path: "/", Header: map[string][]string{"Origin": {origin}, "Access-Control-Request-Method": {"PUT"}}}
		for i := 0; i < len(more); i += 2 {
			r.Header[more[i]] = []string{more[i+1]}
		}
		return r
	}
	allowed := map[string][]string{
		"Access-Control-Allow-Origin": {"https://a.test"}, "Access-Control-Allow-Credentials": {"true"}, "Access-Control-Allow-Methods": {"GET,PUT"},
		"Access-Control-Allow-Headers": {"x-a"}, "Access-Control-Max-Age": {"86400"},
	}
	but := func(h map[string][]string, more ...string) map[string][]string {
		out := map[string][]string{}
		for k, v := range h {
			out[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			switch more[i+1] {
			case "":
				delete(out, more[i])
			case " ": // there, with an empty value
				out[more[i]] = []string{""}
			default:
				out[more[i]] = []string{more[i+1]}
			}
		}
		return out
	}
	for _, c := range []struct {
		name string
		c    CORS
		r    *Request
		want map[string][]string // nil: not answered
	}{
		{"allowed", full, preflight("https://a.test"), allowed},
		{"allowed by suffix", full, preflight("https://x.b.test"), but(allowed, "Access-Control-Allow-Origin", "https://x.b.test")},
		{"the zero value", CORS{}, preflight("https://a.test"), nil},
		{"any origin is repeated, not a star", CORS{Origins: []StringMatch{Exact("*", false)}}, preflight("null"), map[string][]string{"Access-Control-Allow-Origin": {"null"}}},
		{"any by expression", CORS{Origins: []StringMatch{mustRegex(t, ".*")}}, preflight("https://c.test"), map[string][]string{"Access-Control-Allow-Origin": {"https://c.test"}}},
		{"other origin goes on", full, preflight("https://c.test"), nil},
		{"other origin is refused", with(func(c *CORS) { c.RefuseUnmatched = true }), preflight("https://c.test"), but(allowed, "Access-Control-Allow-Origin", "")},
		{"longer origin", full, preflight("https://a.test.evil.test"), nil},
		{"other scheme", full, preflight("http://a.test"), nil},
		{"origin in another case", full, preflight("https://A.test"), nil},
		{"no origin", full, &Request{Method: "OPTIONS", Header: map[string][]string{"Access-Control-Request-Method": {"PUT"}}}, nil},
		{"empty origin", with(func(c *CORS) { c.Origins = []StringMatch{mustRegex(t, ".*")} }), preflight(""), nil},
		{"no method asked for", full, &Request{Method: "OPTIONS", Header: map[string][]string{"Origin": {"https://a.test"}}}, nil},
		{"not OPTIONS", full, &Request{Method: "GET", Header: preflight("https://a.test").Header}, nil},
		{"options in lower case", full, &Request{Method: "options", Header: preflight("https://a.test").Header}, nil},
		{"only the first origin counts", full, &Request{Method: "OPTIONS", Header: map[string][]string{"Origin": {"https://c.test", "https://a.test"}, "Access-Control-Request-Method": {"PUT"}}}, nil},
		{"any method", with(func(c *CORS) { c.Methods = "*" }), preflight("https://a.test"), but(allowed, "Access-Control-Allow-Methods", "PUT")},
		{"any header", with(func(c *CORS) { c.Headers = "*" }), preflight("https://a.test", "Access-Control-Request-Headers", "x-b, x-c"), but(allowed, "Access-Control-Allow-Headers", "x-b, x-c")},
		{"any header, none asked for", with(func(c *CORS) { c.Headers = "*" }), preflight("https://a.test"), but(allowed, "Access-Control-Allow-Headers", " ")},
		{"a star in a list is a name", with(func(c *CORS) { c.Methods = "GET,*" }), preflight("https://a.test"), but(allowed, "Access-Control-Allow-Methods", "GET,*")},
		{"private network", with(func(c *CORS) { c.PrivateNetwork = true }), preflight("https://a.test", "Access-Control-Request-Private-Network", "true"), but(allowed, "Access-Control-Allow-Private-Network", "true")},
		{"private network, not asked for", with(func(c *CORS) { c.PrivateNetwork = true }), preflight("https://a.test", "Access-Control-Request-Private-Network", "1"), allowed},
		{"private network, not allowed", full, preflight("https://a.test", "Access-Control-Request-Private-Network", "true"), allowed},
	} {
		lower := *c.r
		lower.Form, lower.Header = LowerHeaders, map[string][]string{}
		for k, v := range c.r.Header {
			lower.Header[strings.ToLower(k)] = v
		}
		for _, r := range []*Request{c.r, &lower} {
			header, status, answered := c.c.Preflight(r)
			if answered != (c.want != nil) || !reflect.DeepEqual(header, c.want) || answered && status != 200 {
				t.Errorf("%s: %v %d %v, want %v", c.name, header, status, answered, c.want)
			}
		}
	}
}

func TestCORSApply(t *testing.T) {
	full := CORS{Origins: []StringMatch{Exact("https://a.test", false)}, Methods: "GET", Headers: "x-a", MaxAge: "1", Expose: "x-e", Credentials: true}
	bare := CORS{Origins: []StringMatch{Exact("*", false)}}
	for _, c := range []struct {
		name   string
		c      CORS
		origin []string
		want   map[string][]string
	}{
		{"allowed", full, []string{"https://a.test"}, map[string][]string{"access-control-allow-origin": {"https://a.test"}, "access-control-allow-credentials": {"true"}, "access-control-expose-headers": {"x-e"}, "x-old": {"1"}}},
		{"bare", bare, []string{"https://c.test"}, map[string][]string{"access-control-allow-origin": {"https://c.test"}, "access-control-expose-headers": {"theirs"}, "x-old": {"1"}}},
		{"other origin", full, []string{"https://c.test"}, map[string][]string{"access-control-allow-origin": {"theirs"}, "access-control-expose-headers": {"theirs"}, "x-old": {"1"}}},
		{"no origin", full, nil, map[string][]string{"access-control-allow-origin": {"theirs"}, "access-control-expose-headers": {"theirs"}, "x-old": {"1"}}},
		{"empty origin", bare, []string{""}, map[string][]string{"access-control-allow-origin": {"theirs"}, "access-control-expose-headers": {"theirs"}, "x-old": {"1"}}},
	} {
		r := &Request{Method: "GET", Header: map[string][]string{}}
		if c.origin != nil {
			r.Header["Origin"] = c.origin
		}
		response := map[string][]string{"access-control-allow-origin": {"theirs"}, "access-control-expose-headers": {"theirs"}, "x-old": {"1"}}
		c.c.Apply(r, response, LowerHeaders)
		if !reflect.DeepEqual(response, c.want) {
			t.Errorf("%s: %v, want %v", c.name, response, c.want)
		}
	}
	canonical := map[string][]string{}
	full.Apply(header("Origin", "https://a.test"), canonical, CanonicalHeaders)
	if len(canonical["Access-Control-Allow-Origin"]) != 1 || len(canonical["Access-Control-Expose-Headers"]) != 1 || len(canonical) != 3 {
		t.Errorf("canonical: %v", canonical)
	}
}

func TestCORSApplies(t *testing.T) {
	all, half, none := CORS{}, CORS{Enabled: &Fraction{500_000}}, CORS{Enabled: &Fraction{}}
	for draw, want := range map[uint64]bool{499_999: true, 500_000: false} {
		if !all.Applies(draw) || half.Applies(draw) != want || none.Applies(draw) {
			t.Errorf("draw %d: %v %v %v", draw, all.Applies(draw), half.Applies(draw), none.Applies(draw))
		}
	}
}

// FuzzCORS asks what must never happen, whatever the headers: an origin that is
// not allowed gets no permission, and no answer permits more than policy or
// (with a star) the request names.
func FuzzCORS(f *testing.F) {
	f.Add("OPTIONS", "https://a.test", "https://a.test", "PUT", "x-a", uint8(15))
	f.Fuzz(func(t *testing.T, method, policy, origin, asked, headers string, flags uint8) {
		c := CORS{Origins: []StringMatch{Exact(policy, false)}, Methods: "GET", Headers: "*", Credentials: flags&1 != 0, RefuseUnmatched: flags&2 != 0, PrivateNetwork: flags&4 != 0}
		if flags&8 != 0 {
			c.Methods = "*"
		}
		r := &Request{Method: method, Header: map[string][]string{"Origin": {origin}, "Access-Control-Request-Method": {asked}, "Access-Control-Request-Headers": {headers}}}
		allowed := origin != "" && (policy == origin || policy == "*")
		isPreflight := method == "OPTIONS" && origin != "" && asked != ""
		h, _, answered := c.Preflight(r)
		if answered != (isPreflight && (allowed || c.RefuseUnmatched)) {
			t.Fatalf("answered: %v", answered)
		}
		if got := h["Access-Control-Allow-Origin"]; len(got) > 0 != (answered && allowed) || len(got) > 0 && got[0] != origin {
			t.Fatalf("%q is allowed by %q", got, policy)
		}
		if got := h["Access-Control-Allow-Methods"]; len(got) > 0 && got[0] != "GET" && got[0] != asked {
			t.Fatalf("the methods are %q", got)
		}
		response := map[string][]string{}
		c.Apply(r, response, CanonicalHeaders)
		if _, is := response["Access-Control-Allow-Origin"]; is != allowed || !allowed && len(response) > 0 {
			t.Fatalf("the response gets %v", response)
		}
	})
}
