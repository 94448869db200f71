package identity

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/routing"
)

// This file holds the engine against an evaluator that is written from Istio's
// documentation of AuthorizationPolicy with nothing but loops over texts.

// dumbGlob is Istio's string match.
func dumbGlob(pattern, s string) bool {
	switch {
	case pattern == "*":
		return s != ""
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(s, pattern[:len(pattern)-1])
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(s, pattern[1:])
	}
	return s == pattern
}

// dumbField decides on one field. readings are what the request may mean by it;
// refusing tells rules that take access away from those that give it.
func dumbField(values, notValues, readings []string, refusing bool, match func(pattern, s string) bool) bool {
	some := func(pattern string) bool {
		return slices.ContainsFunc(readings, func(s string) bool { return match(pattern, s) })
	}
	all := func(pattern string) bool {
		return len(readings) > 0 && !slices.ContainsFunc(readings, func(s string) bool { return !match(pattern, s) })
	}
	take, leave := all, some
	if refusing {
		take, leave = some, all
	}
	if len(values) > 0 && !slices.ContainsFunc(values, take) {
		return false
	}
	return !slices.ContainsFunc(notValues, leave)
}

func dumbCIDR(block, ip string) bool {
	if ip == "invalid IP" {
		return false
	}
	if !strings.Contains(block, "/") {
		return block == ip
	}
	return netip.MustParsePrefix(block).Contains(netip.MustParseAddr(ip))
}

type dumbPeer struct{ principal, domain, namespace, account string }

func dumbPeerOf(uri string) dumbPeer {
	p := dumbPeer{principal: strings.TrimPrefix(uri, "spiffe://")}
	if parts := strings.Split(p.principal, "/"); len(parts) == 5 {
		p.domain, p.namespace, p.account = parts[0], parts[2], parts[2]+"/"+parts[4]
	}
	return p
}

// dumbNamed matches what a peer may lack: without it no pattern fits.
func dumbNamed(pattern, s string) bool { return s != "" && dumbGlob(pattern, s) }

func dumbRequestPrincipal(pattern, s string) bool {
	if pattern == "*" || s == "" {
		return s != ""
	}
	at, cut := strings.LastIndex(pattern, "/"), strings.LastIndex(s, "/")
	return dumbGlob(pattern[:at], s[:cut]) && dumbGlob(pattern[at+1:], s[cut+1:])
}

func dumbSource(s *istioSource, r *AccessRequest, refusing bool) bool {
	p := dumbPeerOf(r.Principal)
	field := func(values, notValues []string, v string, match func(pattern, s string) bool) bool {
		return dumbField(values, notValues, []string{v}, refusing, match)
	}
	return field(s.Principals, s.NotPrincipals, p.principal, dumbNamed) &&
		field(s.Namespaces, s.NotNamespaces, p.namespace, dumbNamed) &&
		field(s.TrustDomains, s.NotTrustDomains, p.domain, dumbNamed) &&
		field(s.ServiceAccounts, s.NotServiceAccounts, p.account, func(pattern, s string) bool { return s == pattern }) &&
		field(s.IPBlocks, s.NotIPBlocks, r.PeerIP.String(), dumbCIDR) &&
		field(s.RemoteIPBlocks, s.NotRemoteIPBlocks, r.RemoteIP.String(), dumbCIDR) &&
		field(s.RequestPrincipals, s.NotRequestPrincipals, r.Claims.Principal(), dumbRequestPrincipal)
}

func dumbOperation(o *istioOperation, r *AccessRequest, path string, refusing bool) bool {
	host := strings.ToLower(r.Authority)
	name := strings.TrimSuffix(strings.Split(host, ":")[0], ".")
	// A port or dot behind the host takes no access and gives none: rules that
	// forbid a host, by a DENY with it or an ALLOW without it, see through it.
	hosts := func(values, notValues []string) bool {
		in := func(patterns []string, narrow bool) bool {
			return slices.ContainsFunc(patterns, func(p string) bool {
				return dumbGlob(strings.ToLower(p), host) || narrow && dumbGlob(strings.ToLower(p), name)
			})
		}
		return (len(values) == 0 || in(values, refusing)) && !in(notValues, !refusing)
	}
	return hosts(o.Hosts, o.NotHosts) &&
		dumbField(o.Ports, o.NotPorts, []string{fmt.Sprint(r.DestinationPort)}, refusing, func(p, s string) bool { return p == s }) &&
		dumbField(o.Methods, o.NotMethods, []string{r.Method}, refusing, dumbGlob) &&
		dumbField(o.Paths, o.NotPaths, []string{path}, refusing, func(p, s string) bool {
			if before, after, ok := strings.Cut(p, "{**}"); ok {
				return strings.HasPrefix(s, before) && strings.HasSuffix(s, after) && len(s) >= len(before)+len(after)
			}
			if strings.Contains(p, "{*}") {
				parts, segments := strings.Split(p, "/"), strings.Split(s, "/")
				return len(parts) == len(segments) && !slices.ContainsFunc(parts, func(part string) bool {
					i := slices.Index(parts, part)
					return part == "{*}" && segments[i] == "" || part != "{*}" && segments[i] != part
				})
			}
			return dumbGlob(p, s)
		})
}

func dumbWhen(w *istioCondition, r *AccessRequest, refusing bool) bool {
	if name, ok := strings.CutPrefix(w.Key, "request.headers["); ok {
		return dumbField(w.Values, w.NotValues, r.Header[strings.TrimSuffix(name, "]")], refusing, func(p, s string) bool { return p == "*" || dumbGlob(p, s) })
	}
	claims := map[string]string{"request.auth.claims[groups]": "groups", "request.auth.audiences": "aud", "request.auth.presenter": "azp"}
	if claim := claims[w.Key]; claim != "" {
		v, _ := r.Claims.Lookup(claim)
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		has := func(p string) bool {
			return slices.ContainsFunc(list, func(e any) bool { s, ok := e.(string); return ok && dumbGlob(p, s) })
		}
		return (len(w.Values) == 0 || slices.ContainsFunc(w.Values, has)) && !slices.ContainsFunc(w.NotValues, has)
	}
	p := dumbPeerOf(r.Principal)
	field := map[string]struct {
		value string
		match func(pattern, s string) bool
	}{
		"source.ip":              {r.PeerIP.String(), dumbCIDR},
		"remote.ip":              {r.RemoteIP.String(), dumbCIDR},
		"destination.ip":         {r.DestinationIP.String(), dumbCIDR},
		"destination.port":       {fmt.Sprint(r.DestinationPort), func(p, s string) bool { return p == s }},
		"source.principal":       {p.principal, dumbNamed},
		"source.namespace":       {p.namespace, dumbNamed},
		"request.auth.principal": {r.Claims.Principal(), dumbRequestPrincipal},
		"connection.sni":         {r.ServerName, dumbGlob},
	}[w.Key]
	return dumbField(w.Values, w.NotValues, []string{field.value}, refusing, field.match)
}

func dumbRule(rule *istioRule, r *AccessRequest, path string, refusing bool) bool {
	from, to := rule.From == nil, rule.To == nil
	for i := range rule.From {
		from = from || dumbSource(&rule.From[i].Source, r, refusing)
	}
	for i := range rule.To {
		to = to || dumbOperation(&rule.To[i].Operation, r, path, refusing)
	}
	for i := range rule.When {
		if !dumbWhen(&rule.When[i], r, refusing) {
			return false
		}
	}
	return from && to
}

// dumbDecide is the order that Istio documents: deny if a DENY policy matches,
// allow if there is no ALLOW policy, allow if one matches, else deny.
func dumbDecide(policies []istioPolicy, r *AccessRequest, path string) bool {
	allows, allowed := false, false
	for i := range policies {
		p := &policies[i]
		for j := range p.Spec.Rules {
			matches := dumbRule(&p.Spec.Rules[j], r, path, p.Spec.Action == "DENY")
			if matches && p.Spec.Action == "DENY" {
				return false
			}
			allowed = allowed || matches && p.Spec.Action == "ALLOW"
		}
		allows = allows || p.Spec.Action == "ALLOW"
	}
	return !allows || allowed
}

// chance makes random policies and requests out of few texts, so that they meet.
type chance struct{ *rand.Rand }

func (c chance) one(from ...string) string { return from[c.IntN(len(from))] }

func (c chance) some(from ...string) (out []string) {
	if c.IntN(3) > 0 {
		return nil
	}
	for range 1 + c.IntN(2) {
		out = append(out, c.one(from...))
	}
	return out
}

var (
	oraclePrincipals = []string{"td/ns/foo/sa/a", "td/ns/bar/sa/a", "t.d/ns/foo/sa/a", "td/ns/foo/sa/ab", "td/ns/fo.o/sa/a", "tXd/ns/fooX/sa/a"}
	oraclePaths      = []string{"/", "/a", "/a/b", "/a/b/c", "/ab", "/admin", "/x/admin"}
)

func (c chance) source() (s istioSource) {
	principals := append([]string{"*", "td/*", "*/sa/a", "td/ns/foo*", "*b"}, oraclePrincipals...)
	s.Principals, s.NotPrincipals = c.some(principals...), c.some(principals...)
	s.Namespaces, s.NotNamespaces = c.some("foo", "bar", "fo.o", "f*", "*o"), c.some("foo", "bar", "*o")
	s.TrustDomains, s.NotTrustDomains = c.some("td", "t.d"), c.some("td", "t.d")
	s.ServiceAccounts, s.NotServiceAccounts = c.some("foo/a", "bar/a", "fo.o/a"), c.some("foo/a", "foo/ab")
	s.IPBlocks, s.NotIPBlocks = c.some("10.0.0.0/8", "10.1.2.3", "::/0"), c.some("10.1.0.0/16", "0.0.0.0/0")
	s.RemoteIPBlocks, s.NotRemoteIPBlocks = c.some("10.0.0.0/8", "192.168.0.1"), c.some("10.1.0.0/16")
	s.RequestPrincipals, s.NotRequestPrincipals = c.some("*", "iss/x/sub", "iss*/sub", "iss/x/*", "iss/sub"), c.some("iss/x/sub", "*")
	return s
}

func (c chance) operation() (o istioOperation) {
	paths := append([]string{"*", "/a*", "*admin", "/{*}/b", "/{*}", "/a/{**}", "/{**}/admin"}, oraclePaths...)
	o.Paths, o.NotPaths = c.some(paths...), c.some(paths...)
	o.Hosts, o.NotHosts = c.some("a.b", "A.b:80", "*.b", "a.*", "*"), c.some("a.b", "c.b", "*.b")
	o.Methods, o.NotMethods = c.some("GET", "POST", "P*", "*"), c.some("GET", "*T")
	o.Ports, o.NotPorts = c.some("80", "81"), c.some("80")
	return o
}

// oracleKeys are the conditions of "when" with values that occur in requests.
var oracleKeys = map[string][]string{
	"request.headers[X-Role]":     {"admin", "user", "adm*", "*in", "*"},
	"request.headers[X-Team]":     {"admin", "user", "adm*", "*in", "*"},
	"request.auth.claims[groups]": {"admin", "user", "adm*", "*in", "*"},
	"connection.sni":              {"admin", "user", "adm*", "*in", "*"},
	"source.ip":                   {"10.0.0.0/8", "10.1.2.3", "::/0", "192.168.0.1"},
	"remote.ip":                   {"10.0.0.0/8", "192.168.0.1"},
	"destination.ip":              {"10.9.0.0/16", "10.9.0.1", "fd00::/8", "0.0.0.0/0"},
	"destination.port":            {"80", "81"},
	"source.principal":            {"*", "td/*", "*/sa/a", "td/ns/foo/sa/a", "tXd/ns/fooX/sa/a"},
	"source.namespace":            {"foo", "bar", "f*", "*o", "fo.o"},
	"request.auth.principal":      {"*", "iss/x/sub", "iss*/sub", "iss/sub"},
	"request.auth.audiences":      {"web", "app", "w*", "*"},
	"request.auth.presenter":      {"web", "app", "*p"},
}

var oracleKeyNames = slices.Sorted(maps.Keys(oracleKeys))

func (c chance) when() (w istioCondition) {
	w.Key = c.one(oracleKeyNames...)
	values := oracleKeys[w.Key]
	w.Values, w.NotValues = c.some(values...), c.some(values...)
	if w.Values == nil && w.NotValues == nil {
		w.Values = values[:1]
	}
	return w
}

func (c chance) policies() (out []istioPolicy) {
	for i := range 1 + c.IntN(4) {
		var p istioPolicy
		p.Kind, p.Metadata.Name, p.Spec.Action = "AuthorizationPolicy", fmt.Sprint("p", i), c.one("ALLOW", "DENY")
		for range c.IntN(4) {
			var rule istioRule
			for range c.IntN(3) {
				rule.From = append(rule.From, struct{ Source istioSource }{c.source()})
			}
			for range c.IntN(3) {
				rule.To = append(rule.To, struct{ Operation istioOperation }{c.operation()})
			}
			for range c.IntN(6) / 3 {
				rule.When = append(rule.When, c.when())
			}
			p.Spec.Rules = append(p.Spec.Rules, rule)
		}
		out = append(out, p)
	}
	return out
}

func (c chance) request() *AccessRequest {
	r := &AccessRequest{Request: routing.Request{
		Method: c.one("GET", "POST", "PUT"), Path: c.one(oraclePaths...), Authority: c.one("a.b", "A.B", "a.b:80", "a.b.", "a.b.:80", "c.b", "x"),
		Header: map[string][]string{},
	}}
	if c.IntN(4) > 0 {
		r.Principal = "spiffe://" + c.one(oraclePrincipals...)
	}
	if c.IntN(8) == 0 {
		r.DecodedPath = c.one(oraclePaths...)
	}
	for _, name := range []string{"X-Role", "X-Team"} {
		for range c.IntN(3) {
			r.Header[name] = append(r.Header[name], c.one("admin", "user", "other", ""))
		}
	}
	r.PeerIP = netip.MustParseAddr(c.one("10.1.2.3", "10.2.2.3", "192.168.0.1", "fd00::1"))
	r.RemoteIP = netip.MustParseAddr(c.one("10.1.2.3", "192.168.0.1"))
	if c.IntN(8) == 0 {
		r.PeerIP = netip.Addr{}
	}
	r.DestinationIP = netip.MustParseAddr(c.one("10.9.0.1", "10.9.1.1", "fd00::2"))
	r.DestinationPort = uint16(80 + c.IntN(3))
	r.ServerName = c.one("", "admin", "user")
	if c.IntN(2) == 0 {
		doc := c.one(`{"iss":"iss/x","sub":"sub","groups":["user","admin"],"aud":["api","web"],"azp":"app"}`, `{"iss":"iss","sub":"sub","groups":"admin","aud":"app","azp":"web"}`, `{"sub":"sub"}`, `{"iss":"iss/x","sub":"sub","groups":[1]}`)
		r.Claims = mustKey(parseClaims([]byte(doc), nil))
	}
	return r
}

// againstOracle compares the engine with the dumb evaluator on random policies
// and counts the requests that were let through.
func againstOracle(t *testing.T, seed uint64, requests int) (allowed int) {
	c := chance{rand.New(rand.NewPCG(seed, 1))}
	policies := c.policies()
	sets, err := istioSets(policies)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	a := authorizer(t, sets...)
	for range requests {
		r := c.request()
		want := dumbDecide(policies, r, r.Path)
		if r.DecodedPath != "" {
			want = want && dumbDecide(policies, r, r.DecodedPath)
		}
		got := a.Decide(r)
		if got.Allowed != want {
			t.Fatalf("seed %d: %v, want allowed %v\n%+v\n%+v", seed, &got, want, policies, r)
		}
		if got.Allowed {
			allowed++
		}
	}
	return allowed
}

func TestRulesAgainstOracle(t *testing.T) {
	const seeds, requests = 4000, 30
	allowed := 0
	for seed := range uint64(seeds) {
		allowed += againstOracle(t, seed, requests)
	}
	// Where nearly all or nearly nothing passes, agreement says little.
	if allowed < seeds*requests/10 || allowed > seeds*requests*9/10 {
		t.Errorf("%d of %d requests pass", allowed, seeds*requests)
	}
}

func FuzzRules(f *testing.F) {
	f.Add(uint64(1), uint64(0))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		againstOracle(t, a^b<<32, 20)
		againstTrees(t, a^b<<32, 20)
	})
}

// dumbTree is a tree of conditions on one header and the path, with the plain
// meaning of each node spelled out for both sides of a Not.
type dumbTree struct {
	kind  string // "and", "or", "not", "header", "path", "any"
	text  string
	parts []*dumbTree
}

func (c chance) tree(depth int) *dumbTree {
	kind := c.one("and", "or", "not", "header", "header", "path", "any")
	if depth == 0 {
		kind = c.one("header", "path")
	}
	n := &dumbTree{kind: kind, text: c.one("a", "b", "c")}
	count := map[string]int{"and": 1 + c.IntN(3), "or": 1 + c.IntN(3), "not": 1}[kind]
	for range count {
		n.parts = append(n.parts, c.tree(depth-1))
	}
	return n
}

func (n *dumbTree) condition() Condition {
	var parts []Condition
	for _, p := range n.parts {
		parts = append(parts, p.condition())
	}
	switch n.kind {
	case "and":
		return must(AllOf(parts...))
	case "or":
		return must(AnyOf(parts...))
	case "not":
		return must(Not(parts[0]))
	case "header":
		return must(HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName("x"), String: routing.Exact(n.text, false)}))
	case "path":
		return PathIs(n.text)
	}
	return Any()
}

// surely and maybe say whether every reading of the request, or any, fulfils the tree.
func (n *dumbTree) surely(values []string, path string) bool {
	switch n.kind {
	case "and":
		return !slices.ContainsFunc(n.parts, func(p *dumbTree) bool { return !p.surely(values, path) })
	case "or":
		return slices.ContainsFunc(n.parts, func(p *dumbTree) bool { return p.surely(values, path) })
	case "not":
		return !n.parts[0].maybe(values, path)
	case "header":
		return len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return v != n.text })
	case "path":
		return path == n.text
	}
	return true
}

func (n *dumbTree) maybe(values []string, path string) bool {
	switch n.kind {
	case "and":
		return !slices.ContainsFunc(n.parts, func(p *dumbTree) bool { return !p.maybe(values, path) })
	case "or":
		return slices.ContainsFunc(n.parts, func(p *dumbTree) bool { return p.maybe(values, path) })
	case "not":
		return !n.parts[0].surely(values, path)
	case "header":
		return slices.Contains(values, n.text)
	case "path":
		return path == n.text
	}
	return true
}

func againstTrees(t *testing.T, seed uint64, requests int) {
	c := chance{rand.New(rand.NewPCG(seed, 2))}
	var trees []*dumbTree
	var rules []Rule
	for i := range 1 + c.IntN(6) {
		permission, principal := c.tree(3), c.tree(2)
		trees = append(trees, &dumbTree{kind: "and", parts: []*dumbTree{permission, principal}})
		rules = append(rules, Rule{Name: fmt.Sprint(i), Permissions: []Condition{permission.condition()}, Principals: []Condition{principal.condition()}})
	}
	for _, action := range []Action{Allow, Deny} {
		a := authorizer(t, ruleSet(t, action, rules...))
		for range requests {
			r := &AccessRequest{Request: routing.Request{Path: c.one("a", "b", "c"), Header: map[string][]string{}}}
			for range c.IntN(4) {
				r.Header["X"] = append(r.Header["X"], c.one("a", "b", "c"))
			}
			want := slices.ContainsFunc(trees, func(n *dumbTree) bool { return n.surely(r.Header["X"], r.Path) })
			if action == Deny {
				want = !slices.ContainsFunc(trees, func(n *dumbTree) bool { return n.maybe(r.Header["X"], r.Path) })
			}
			if got := a.Decide(r); got.Allowed != want {
				t.Fatalf("seed %d, %v: %v, want allowed %v\n%+v", seed, action, &got, want, r)
			}
		}
	}
}

func TestTreesAgainstOracle(t *testing.T) {
	for seed := range uint64(3000) {
		againstTrees(t, seed, 10)
	}
}
