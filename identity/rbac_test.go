package identity

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/routing"
)

func rule(name string, permission, principal Condition) Rule {
	return Rule{Name: name, Permissions: []Condition{permission}, Principals: []Condition{principal}}
}

func TestDecide(t *testing.T) {
	admin, web := PathBegins("/admin"), must(PrincipalIs("spiffe://td/ns/d/sa/web"))
	deny := ruleSet(t, Deny, rule("no-admin", admin, must(Not(web))))
	allow := ruleSet(t, Allow, rule("web", Any(), web), rule("open", PathIs("/open"), Any()))
	audit := ruleSet(t, Audit, rule("seen", admin, Any()))
	for _, c := range []struct {
		name, path, principal string
		sets                  []*RuleSet
		want                  Decision
	}{
		{"no sets", "/admin", "", nil, Decision{Allowed: true}},
		{"denied before allowed", "/admin", "", []*RuleSet{allow, deny}, Decision{Reason: RefusedByRule, Rule: "no-admin"}},
		{"allowed", "/admin", "spiffe://td/ns/d/sa/web", []*RuleSet{allow, deny, audit}, Decision{Allowed: true, Rule: "web", Audited: "seen"}},
		{"no rule allows", "/x", "", []*RuleSet{allow, deny}, Decision{Reason: RefusedByNone}},
		{"open to all", "/open", "", []*RuleSet{allow, deny}, Decision{Allowed: true, Rule: "open"}},
		{"ALLOW without rules", "/open", "", []*RuleSet{ruleSet(t, Allow)}, Decision{Reason: RefusedByNone}},
		{"DENY without rules", "/open", "", []*RuleSet{ruleSet(t, Deny)}, Decision{Allowed: true}},
		{"AUDIT alone", "/admin", "", []*RuleSet{audit}, Decision{Allowed: true, Audited: "seen"}},
		{"two ALLOW sets", "/open", "", []*RuleSet{allow, ruleSet(t, Allow)}, Decision{Reason: RefusedByNone}},
		{"no path", "/open?x", "", []*RuleSet{allow}, Decision{Reason: RefusedByPath}},
	} {
		r := &AccessRequest{Request: routing.Request{Path: c.path}, Principal: c.principal}
		if got := authorizer(t, c.sets...).Decide(r); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	d := authorizer(t, deny).Decide(&AccessRequest{Request: routing.Request{Path: "/admin/secret"}})
	if s := d.String(); s != `refused: a DENY rule matches, "no-admin"` {
		t.Error(s)
	}
}

// TestFirstRuleByName: whichever list of the index they are in, the rule that a
// decision names is the first by name.
func TestFirstRuleByName(t *testing.T) {
	id := "spiffe://td/ns/d/sa/web"
	all := []Rule{
		rule("a", PathBegins("/"), Any()), rule("b", PathIs("/x"), Any()), rule("c", Any(), must(PrincipalIs(id))),
		rule("d", Any(), must(NamespaceIs("d"))), rule("e", Any(), Any()), rule("f", PathBegins("/x"), Any()),
	}
	r := &AccessRequest{Request: routing.Request{Path: "/x"}, Principal: id}
	for i := range all {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		for range 20 {
			rules := slices.Clone(all)
			for i, name := range rng.Perm(len(rules)) {
				rules[i].Name = fmt.Sprint(name)
			}
			if d := authorizer(t, ruleSet(t, Deny, rules...)).Decide(r); d.Rule != "0" {
				t.Fatalf("%q is named", d.Rule)
			}
		}
	}
}

func TestPrincipals(t *testing.T) {
	anything, err := routing.Regex(".*")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		principal string
		condition Condition
		want      bool
	}{
		{"", PrincipalMatches(anything), false},
		{"", PrincipalMatches(routing.Exact("", false)), false},
		{"", PrincipalMatches(routing.Suffix("", false)), false},
		{"", Authenticated(), false},
		{"spiffe://td/x", PrincipalMatches(anything), true},
		{"spiffe://td/ns/a/sa/x", must(NamespaceIs("a")), true},
		{"spiffe://td/ns/a", must(NamespaceIs("a")), false},
		{"spiffe://td/ns/a/ns/b/sa/x", must(NamespaceIs("b")), true},
		{"spiffe://td/ns/ns/b/sa/x", must(NamespaceIs("b")), true},
		{"spiffe://td/ns/ns/ns/sa/x", must(NamespaceIs("ns")), true},
		{"spiffe://td/ns/ab/sa/x", must(NamespaceIs("b")), false},
	} {
		// Alone, and by way of the index.
		set := authorizer(t, ruleSet(t, Deny, rule("d", Any(), c.condition)))
		r := &AccessRequest{Request: routing.Request{Path: "/"}, Principal: c.principal}
		if c.condition.holds(r, "/", true) != c.want || set.Decide(r).Allowed == c.want {
			t.Errorf("%q: want %v", c.principal, c.want)
		}
	}
}

func TestDryRun(t *testing.T) {
	dry := func(action Action, rules ...Rule) *RuleSet {
		s, err := NewRuleSet(action, true, rules)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := rule("a", PathIs("/a"), Any()), rule("b", PathIs("/b"), Any())
	for _, c := range []struct {
		name    string
		path    string
		sets    []*RuleSet
		allowed bool
		would   DryRunDecision
	}{
		{"would be denied", "/a", []*RuleSet{dry(Deny, a)}, true, DryRunDecision{true, true, RefusedByRule, "a"}},
		{"would not be denied", "/b", []*RuleSet{dry(Deny, a)}, true, DryRunDecision{Ran: true}},
		{"would be the first ALLOW", "/b", []*RuleSet{dry(Allow, a)}, true, DryRunDecision{true, true, RefusedByNone, ""}},
		{"would be default deny", "/b", []*RuleSet{dry(Allow)}, true, DryRunDecision{true, true, RefusedByNone, ""}},
		{"an ALLOW rule in force is enough", "/b", []*RuleSet{ruleSet(t, Allow, b), dry(Allow, a)}, true, DryRunDecision{Ran: true}},
		{"would be let in", "/a", []*RuleSet{ruleSet(t, Allow, b), dry(Allow, a)}, false, DryRunDecision{Ran: true}},
		{"is refused and would be", "/a", []*RuleSet{ruleSet(t, Deny, a), dry(Allow, a)}, false, DryRunDecision{true, true, RefusedByRule, "a"}},
		{"none", "/a", []*RuleSet{ruleSet(t, Allow, a)}, true, DryRunDecision{}},
	} {
		got := authorizer(t, c.sets...).Decide(&AccessRequest{Request: routing.Request{Path: c.path}})
		if got.Allowed != c.allowed || got.DryRun != c.would {
			t.Errorf("%s: %+v, want %v, %+v", c.name, got, c.allowed, c.would)
		}
	}
	for _, action := range []Action{Audit, Custom} {
		if _, err := NewRuleSet(action, true, nil); err == nil {
			t.Errorf("a dry run of %v was accepted", action)
		}
	}
}

func TestCustom(t *testing.T) {
	s := ruleSet(t, Custom, rule("ask", PathBegins("/pay"), Any()))
	s.Provider = "opa"
	a := authorizer(t, s, ruleSet(t, Allow, rule("a", Any(), Any())))
	r := &AccessRequest{Request: routing.Request{Path: "/pay/x"}}
	if provider, name, ask := a.Custom(r); provider != "opa" || name != "ask" || !ask {
		t.Error(provider, name, ask)
	}
	if d := a.Decide(r); !d.Allowed {
		t.Error("a CUSTOM rule decided by itself")
	}
	r.Path = "/x"
	if _, _, ask := a.Custom(r); ask {
		t.Error("asked without a rule")
	}
	if _, err := NewAuthorizer(s, s); err == nil {
		t.Error("two CUSTOM sets were accepted")
	}
	if _, err := NewAuthorizer(nil); err == nil {
		t.Error("no set was accepted")
	}
	if _, err := NewRuleSet(Custom+1, false, nil); err == nil {
		t.Error("an unknown action was accepted")
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		block string
		bits  int
		addr  string
		want  bool
	}{
		{"10.1.2.3", 8, "10.9.9.9", true}, // bits behind the prefix do not count
		{"10.0.0.0", 8, "::ffff:10.1.1.1", true},
		{"::ffff:10.0.0.0", 104, "10.1.1.1", true},
		{"fe80::", 10, "fe80::1%eth0", true},
		{"::", 0, "10.0.0.1", false},
		{"0.0.0.0", 0, "::1", false},
		{"0.0.0.0", 0, "1.2.3.4", true},
	} {
		p, err := CIDR(c.block, c.bits)
		if err != nil {
			t.Fatal(err)
		}
		condition := must(PeerIPIn(p))
		if got := condition.holds(&AccessRequest{PeerIP: netip.MustParseAddr(c.addr)}, "", true); got != c.want {
			t.Errorf("%s in %s/%d: %v", c.addr, c.block, c.bits, got)
		}
	}
	everything := must(RemoteIPIn(netip.MustParsePrefix("::/0")))
	if everything.holds(&AccessRequest{}, "", true) {
		t.Error("no address is in a range")
	}
	for _, bad := range []string{"", "x", "10.0.0.0/8", "10.0.0"} {
		if _, err := CIDR(bad, 8); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := CIDR("10.0.0.0", 33); err == nil {
		t.Error("33 bits were accepted")
	}
}

func TestClientIP(t *testing.T) {
	peer := netip.MustParseAddr("10.0.0.9")
	for _, c := range []struct {
		forwarded []string
		hops      int
		want      string
	}{
		{nil, 0, "10.0.0.9"}, {[]string{"1.1.1.1"}, 0, "10.0.0.9"}, {nil, 1, "10.0.0.9"},
		{[]string{"1.1.1.1"}, 1, "1.1.1.1"}, {[]string{"6.6.6.6, 1.1.1.1"}, 1, "1.1.1.1"},
		{[]string{"6.6.6.6", "1.1.1.1"}, 1, "1.1.1.1"}, {[]string{"6.6.6.6, 1.1.1.1 , 2.2.2.2"}, 2, "1.1.1.1"},
		{[]string{"6.6.6.6", "1.1.1.1", "2.2.2.2"}, 2, "1.1.1.1"}, {[]string{"1.1.1.1"}, 2, "10.0.0.9"},
		{[]string{"x"}, 1, "10.0.0.9"}, {[]string{"::ffff:1.1.1.1"}, 1, "1.1.1.1"},
	} {
		if got := ClientIP(peer, c.forwarded, c.hops); got.String() != c.want {
			t.Errorf("%q, %d hops: %s, want %s", c.forwarded, c.hops, got, c.want)
		}
	}
}

// TestPathFits: a template of a rule that refuses must not be stepped around by an odd byte.
func TestPathFits(t *testing.T) {
	template, err := routing.ParseTemplate("/admin/*")
	if err != nil {
		t.Fatal(err)
	}
	a := denySet(t, must(PathFits(template)))
	for path, refused := range map[string]bool{"/admin/a": true, "/admin/a*=b|{} \xff": true, "/admin/a/b": false, "/admin/": false} {
		if got := a.Decide(&AccessRequest{Request: routing.Request{Path: path}}).Reason == RefusedByRule; got != refused {
			t.Errorf("%q: refused %v, want %v", path, got, refused)
		}
	}
	if _, err := PathFits(nil); err == nil {
		t.Error("no template is taken")
	}
}

func TestConditionsNestedTooDeep(t *testing.T) {
	c := Any()
	var err error
	for range maxConditionDepth + 1 {
		if err != nil {
			break
		}
		c, err = Not(c)
	}
	if err == nil {
		t.Error("accepted")
	}
}

// TestPrefixIndex holds the search for prefixes against looking at all of them.
func TestPrefixIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	word := func() string {
		b := make([]byte, rng.IntN(6))
		for i := range b {
			b[i] = "/ab"[rng.IntN(3)]
		}
		return string(b)
	}
	for range 500 {
		prefixes := map[string][]int32{}
		for i := range int32(rng.IntN(20)) {
			prefixes[word()] = []int32{i}
		}
		x := newPrefixIndex(prefixes)
		for range 30 {
			path := word()
			var got, want []string
			for i := x.longest(path); i >= 0; i = x.shorter[i] {
				got = append(got, x.texts[i])
			}
			for p := range prefixes {
				if strings.HasPrefix(path, p) {
					want = append(want, p)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("%q in %q: %q, want %q", path, x.texts, got, want)
			}
		}
	}
}

// manyRules are 1,000 policies of 10 rules, of which one in 100 is about the
// caller. indexed says whether their conditions are such that can be indexed.
func manyRules(t testing.TB, indexed bool) *Authorizer {
	var rules []Rule
	for policy := range 1000 {
		principal := must(PrincipalIs(fmt.Sprintf("spiffe://cluster.local/ns/shop/sa/caller-%d", policy%100)))
		if !indexed {
			re, err := routing.Regex(fmt.Sprintf(`.*/ns/shop/sa/caller-%d`, policy%100))
			if err != nil {
				t.Fatal(err)
			}
			principal = PrincipalMatches(re)
		}
		for i := range 10 {
			path := must(AllOf(PathBegins(fmt.Sprintf("/api/v1/service-%d/%d", policy, i)), must(istioHeader(":method", false)("GET"))))
			if !indexed {
				path = must(AllOf(must(istioHeader(":method", false)("GET")), PathMatches(routing.Suffix(fmt.Sprintf("/service-%d/%d", policy, i), false))))
			}
			rules = append(rules, rule(fmt.Sprintf("ns[shop]-policy[p%04d]-rule[%d]", policy, i), path, principal))
		}
	}
	return authorizer(t, ruleSet(t, Deny, rules...), ruleSet(t, Allow, append(rules, rule("z", PathBegins("/open"), Authenticated()))...))
}

func manyRequest(path string) *AccessRequest {
	return &AccessRequest{
		Request:   routing.Request{Method: "GET", Scheme: "https", Authority: "shop:80", Path: path, Header: map[string][]string{"X-Role": {"user"}}},
		Principal: "spiffe://cluster.local/ns/shop/sa/caller-7", PeerIP: netip.MustParseAddr("10.0.0.1"),
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	// Regular expressions are left out: the race detector makes their pools forget.
	a := manyRules(t, true)
	for _, path := range []string{"/open/x", "/api/v1/service-7/3/x", "/api/v1/service-7/3", "/other"} {
		r := manyRequest(path)
		if n := testing.AllocsPerRun(100, func() { a.Decide(r) }); n != 0 {
			t.Errorf("%s: %v allocations", path, n)
		}
	}
	role := must(HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName("x-role"), String: routing.Exact("admin", false)}))
	host := must(istioHeader(":authority", true)("shop"))
	claim := must(ClaimIs([]string{"a", "b"}, ValueInList(ValueText(routing.Exact("x", false))), false))
	r := manyRequest("/x")
	r.Claims = mustKey(parseClaims([]byte(`{"a":{"b":["y","x"]}}`), nil))
	for _, c := range []Condition{role, host, claim, ServerNameMatches(routing.Exact("x", false)), must(PeerIPIn(netip.MustParsePrefix("10.0.0.0/8")))} {
		a := authorizer(t, ruleSet(t, Deny, rule("a", c, Any())), ruleSet(t, Allow, rule("b", must(Not(c)), Any())))
		if n := testing.AllocsPerRun(100, func() { a.Decide(r) }); n != 0 {
			t.Errorf("condition %d: %v allocations", c.kind, n)
		}
	}
}

func benchmarkDecide(b *testing.B, indexed bool, path string) {
	a, r := manyRules(b, indexed), manyRequest(path)
	b.ReportAllocs()
	for b.Loop() {
		a.Decide(r)
	}
}

// Each decision is over 20,000 rules: 10,000 DENY and 10,000 ALLOW.
func BenchmarkDecideAllowed(b *testing.B)    { benchmarkDecide(b, true, "/open/x") }
func BenchmarkDecideDenied(b *testing.B)     { benchmarkDecide(b, true, "/api/v1/service-7/3/x") }
func BenchmarkDecideNoMatch(b *testing.B)    { benchmarkDecide(b, true, "/other") }
func BenchmarkDecideNotIndexed(b *testing.B) { benchmarkDecide(b, false, "/other") }

// BenchmarkDecideSamePrincipal is the worst of what is indexed by principal
// alone: all 100 rules that name the caller are compared.
func BenchmarkDecideSamePrincipal(b *testing.B) {
	var rules []Rule
	for i := range 10000 {
		c := must(AllOf(must(istioHeader(":method", false)("GET")), PathMatches(routing.Suffix(fmt.Sprintf("/%d", i), false))))
		rules = append(rules, rule(fmt.Sprintf("r%05d", i), c, must(PrincipalIs(fmt.Sprintf("spiffe://cluster.local/ns/shop/sa/caller-%d", i%100)))))
	}
	a, r := authorizer(b, ruleSet(b, Deny, rules...)), manyRequest("/other")
	b.ReportAllocs()
	for b.Loop() {
		a.Decide(r)
	}
}
