package identity

import (
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

func TestSANConformance(t *testing.T) {
	var f struct {
		CertificateSANs struct{ DNS, Email, IP, URI []string } `json:"certificate_sans"`
		Cases           []struct {
			Name     string
			Matchers []struct {
				ExactMatch, PrefixMatch, SuffixMatch, ContainsMatch, RegexMatch string
				IgnoreCase                                                      bool
			} `json:"match_subject_alt_names"`
			Match bool
		}
		DNSMatch []struct {
			Name    string
			Pattern string `json:"pattern_in_cert"`
			Host    string
			Match   bool
		} `json:"dns_match"`
	}
	conformance.Load(t, "grpc-facts/san_matching.json", &f)
	template := leafTemplate(nil)
	template.ExtraExtensions = nil
	template.DNSNames, template.EmailAddresses = f.CertificateSANs.DNS, f.CertificateSANs.Email
	for _, s := range f.CertificateSANs.URI {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	for _, s := range f.CertificateSANs.IP {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(s))
	}
	cert := (*authority)(nil).issue(t, template).cert
	tally := conformance.Deciding(t, "grpc-facts/san_matching.json")
	for _, c := range f.Cases {
		var accepted []SANMatch
		for _, m := range c.Matchers {
			switch {
			case m.ExactMatch != "":
				accepted = append(accepted, SANExact(SANAny, m.ExactMatch))
			case m.PrefixMatch != "":
				accepted = append(accepted, SANText(SANAny, m.PrefixMatch, routing.Prefix(m.PrefixMatch, m.IgnoreCase)))
			case m.SuffixMatch != "":
				accepted = append(accepted, SANText(SANAny, m.SuffixMatch, routing.Suffix(m.SuffixMatch, m.IgnoreCase)))
			case m.ContainsMatch != "":
				accepted = append(accepted, SANText(SANAny, m.ContainsMatch, routing.Contains(m.ContainsMatch, m.IgnoreCase)))
			default:
				re, err := routing.Regex(m.RegexMatch)
				if err != nil {
					t.Fatal(err)
				}
				accepted = append(accepted, SANText(SANAny, m.RegexMatch, re))
			}
		}
		err := MatchSANs(cert, accepted)
		if (err == nil) != c.Match || err != nil && ruleOf(t, err) != RulePeerSAN {
			tally.Fail(t, "%s: %v, want %v", c.Name, err, c.Match)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.DNSMatch {
		if got := wildcardMatches(c.Pattern, c.Host); got != c.Match {
			tally.Fail(t, "%s: %q and %q: %v", c.Name, c.Pattern, c.Host, got)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "grpc-facts/san_matching.json", 13, 0)
}

func TestSANTypes(t *testing.T) {
	n := &names{
		uris: []string{"spiffe://td/a"}, dns: []string{"*.b.example", "c.example\x00.evil", "spiffe://td/a"}, emails: []string{"x@d.example"},
		ips: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
	for _, c := range []struct {
		m    SANMatch
		want bool
	}{
		{SANExact(SANURI, "spiffe://td/a"), true},
		{SANExact(SANURI, "SPIFFE://td/a"), false},
		{SANExact(SANURI, "x@d.example"), false},
		{SANExact(SANEmail, "x@d.example"), true},
		{SANExact(SANIP, "192.0.2.1"), true},
		{SANExact(SANDNS, "192.0.2.1"), false},
		{SANExact(SANDNS, "a.b.example"), true},
		{SANExact(SANDNS, "A.B.Example."), true},
		{SANExact(SANDNS, "x.a.b.example"), false},
		{SANExact(SANDNS, "b.example"), false},
		{SANExact(SANDNS, ".b.example"), false},
		{SANExact(SANDNS, "*.b.example"), false},
		{SANExact(SANDNS, "c.example"), false},
		// A name with a NUL matches nothing, however it is compared.
		{SANText(SANDNS, "c.example", routing.Prefix("c.example", false)), false},
		{SANText(SANAny, "evil", routing.Suffix("evil", false)), false},
		{SANText(SANDNS, "b.example", routing.Suffix("b.example", false)), true},
		{SANExact(SANAny, ""), false},
		{SANMatch{}, false},
	} {
		if got := c.m.matches(n); got != c.want {
			t.Errorf("%s: %v, want %v", c.m.String(), got, c.want)
		}
	}
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a", false}, {"*.", "a.", false}, {"*.*.example", "a.b.example", false}, {"**.example", "a.example", false},
		{"", "", false}, {".", ".", false}, {"*.example", "*.example", false}, {"A.example", "a.EXAMPLE", true},
	} {
		if got := wildcardMatches(c.pattern, c.host); got != c.want {
			t.Errorf("%q and %q: %v", c.pattern, c.host, got)
		}
	}
}

func TestPeer(t *testing.T) {
	root := (*authority)(nil).issue(t, caTemplate("root"))
	leaf := root.issue(t, leafTemplate(nil, withNames(rawNames{uris: []string{hostileID}, dns: []string{"b.example"}}))).cert
	p := PeerOfChain([]*x509.Certificate{leaf, root.cert})
	if p.ID.String() != hostileID || !p.TLS || !p.Authenticated() || len(p.DNSNames) != 1 || !p.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("%+v", p)
	}
	for name, c := range map[string]*Peer{
		"no certificate": PeerOfChain(nil),
		"plaintext":      PlaintextPeer(),
		"no SVID":        PeerOfChain([]*x509.Certificate{root.cert}),
		"two IDs":        PeerOfChain([]*x509.Certificate{root.issue(t, leafTemplate([]string{hostileID, hostileID + "x"})).cert}),
		"trust domain":   PeerOfChain([]*x509.Certificate{root.issue(t, leafTemplate([]string{"spiffe://td.example"})).cert}),
		"nil":            nil,
	} {
		if c.Authenticated() {
			t.Errorf("%s: authenticated as %q", name, c.ID)
		}
	}
	if _, ok := PeerFromContext(context.Background()); ok {
		t.Error("a peer out of nowhere")
	}
	if _, ok := PeerFromContext(ContextWithPeer(context.Background(), nil)); ok {
		t.Error("a nil peer is found")
	}
	if got, ok := PeerFromContext(ContextWithPeer(context.Background(), p)); !ok || got != p {
		t.Errorf("%v, %v", got, ok)
	}
}
