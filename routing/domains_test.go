package routing

import (
	"fmt"
	"strings"
	"testing"
)

func TestDomainsLookup(t *testing.T) {
	d, err := NewDomains([][]string{
		0: {"foo.test", "Foo.Test:80", "10.0.0.1"},
		1: {"*.test", "*-bar.test"},
		2: {"*.foo.test"},
		3: {"foo.*", "x*"},
		4: {"foo.test.*"},
		5: {"*"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for authority, want := range map[string]int{
		"foo.test":         0,
		"FOO.test":         0,
		"foo.test:80":      0,
		"foo.test:8080":    3, // the port is part of the authority
		"10.0.0.1":         0,
		"a.test":           1,
		"a.A.TEST":         1,
		"baz-bar.test":     1,
		"-bar.test":        1, // by "*.test": "*-bar.test" needs one character more
		"a.foo.test":       2, // longest suffix first
		".foo.test":        1, // a wildcard stands for at least one character
		".test":            5,
		"foo.org":          3,
		"foo.":             5,
		"foo.test.org":     4,
		"foo.a.test":       1, // suffix before prefix
		"x":                5,
		"xy":               3,
		"":                 5,
		"anything.else:80": 5,
	} {
		if got := d.Lookup(authority); got != want {
			t.Errorf("%q: virtual host %d, want %d", authority, got, want)
		}
	}
	none, err := NewDomains([][]string{{"a"}})
	if err != nil || none.Lookup("b") != -1 {
		t.Errorf("an unknown authority gives %d, %v", none.Lookup("b"), err)
	}
	if zero := (Domains{}); zero.Lookup("a") != -1 {
		t.Error("the zero value finds something")
	}
}

func TestNewDomainsErrors(t *testing.T) {
	for _, c := range []struct {
		domains [][]string
		want    string
	}{
		{[][]string{{"a"}, {}}, "virtual_hosts[1].domains: there is none"},
		{[][]string{{"a", ""}}, `virtual_hosts[0].domains[1]: "" is empty`},
		{[][]string{{"a"}, {"b", "A"}}, `virtual_hosts[1].domains[1]: "a" occurs twice`},
		{[][]string{{"*"}, {"*"}}, `virtual_hosts[1].domains[0]: "*" occurs twice`},
		{[][]string{{"*.a", "*.A"}}, "occurs twice"},
		{[][]string{{"a.*", "A.*"}}, "occurs twice"},
		{[][]string{{"a.*.b"}}, "neither its first nor its last"},
		{[][]string{{"*a*"}}, "neither its first nor its last"},
		{[][]string{{"**"}}, "neither its first nor its last"},
	} {
		if _, err := NewDomains(c.domains); err == nil || !strings.Contains(strings.ToLower(err.Error()), c.want) {
			t.Errorf("%q: the error is %v, want one with %q", c.domains, err, c.want)
		}
	}
	if _, err := NewDomains(nil); err != nil {
		t.Errorf("no virtual host: %v", err)
	}
}

// dumbLookup looks at every pattern and keeps the best.
func dumbLookup(perVirtualHost [][]string, authority string) int {
	best, bestRank := -1, [2]int{-1, -1}
	host := dumbLower(authority)
	for i, domains := range perVirtualHost {
		for _, domain := range domains {
			domain = dumbLower(domain)
			rank := [2]int{-1, len(domain)}
			switch {
			case domain == "*":
				rank[0] = 0
			case strings.HasPrefix(domain, "*"):
				if strings.HasSuffix(host, domain[1:]) && len(host) >= len(domain) {
					rank[0] = 2
				}
			case strings.HasSuffix(domain, "*"):
				if strings.HasPrefix(host, domain[:len(domain)-1]) && len(host) >= len(domain) {
					rank[0] = 1
				}
			case domain == host:
				rank[0] = 3
			}
			if rank[0] > bestRank[0] || rank[0] == bestRank[0] && rank[0] >= 0 && rank[1] > bestRank[1] {
				best, bestRank = i, rank
			}
		}
	}
	return best
}

func FuzzDomains(f *testing.F) {
	f.Add("a.b *.b|a.* *", "x.b")
	f.Fuzz(func(t *testing.T, hosts, authority string) {
		var perVirtualHost [][]string
		for part := range strings.SplitSeq(hosts, "|") {
			perVirtualHost = append(perVirtualHost, strings.Split(part, " "))
		}
		d, err := NewDomains(perVirtualHost)
		seen, bad := map[string]bool{}, false
		for _, domains := range perVirtualHost {
			for _, domain := range domains {
				domain = dumbLower(domain)
				inner := strings.TrimSuffix(domain, "*")
				if inner == domain || inner == "" {
					inner = strings.TrimPrefix(domain, "*")
				}
				bad = bad || domain == "" || seen[domain] || strings.Contains(inner, "*")
				seen[domain] = true
			}
		}
		if bad != (err != nil) {
			t.Fatalf("%q: the error is %v, want one: %v", perVirtualHost, err, bad)
		}
		if err != nil {
			return
		}
		for _, a := range []string{authority, strings.ReplaceAll(hosts, "*", authority), perVirtualHost[0][0]} {
			if got, want := d.Lookup(a), dumbLookup(perVirtualHost, a); got != want {
				t.Errorf("%q among %q: %d, want %d", a, perVirtualHost, got, want)
			}
		}
	})
}

func BenchmarkDomains(b *testing.B) {
	var perVirtualHost [][]string
	for i := range 1000 {
		perVirtualHost = append(perVirtualHost, []string{fmt.Sprintf("svc%d", i), fmt.Sprintf("svc%d.ns.svc.cluster.local:80", i), fmt.Sprintf("*.svc%d.test", i)})
	}
	d, err := NewDomains(perVirtualHost)
	if err != nil {
		b.Fatal(err)
	}
	for _, authority := range []string{"svc500.ns.svc.cluster.local:80", "a.svc999.test", "unknown.test:80"} {
		b.Run(authority, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d.Lookup(authority)
			}
		})
	}
}
