package identity

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

func conformanceFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(conformance.Dir(t), "spiffe", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func conformanceChain(t testing.TB, names ...string) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, name := range names {
		for rest := conformanceFile(t, name); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				continue
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			chain = append(chain, c)
		}
	}
	return chain
}

func mustBundle(t testing.TB, roots ...*x509.Certificate) *Bundle {
	t.Helper()
	b, err := NewBundle(roots, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ruleOf returns the rule that an error names, "" for no error.
func ruleOf(t testing.TB, err error) VerifyRule {
	t.Helper()
	if err == nil {
		return ""
	}
	var v *VerifyError
	if !errors.As(err, &v) || v.Rule == "" || v.Detail == "" {
		t.Fatalf("%v (%T) names no rule", err, err)
	}
	return v.Rule
}

func TestSVIDConformance(t *testing.T) {
	var f struct {
		VerifyAt time.Time `json:"verify_at"`
		Verify   []struct {
			Name, Bundles, Chain, ID, What string
			Valid                          bool
		}
	}
	conformance.Load(t, "spiffe/x509_svid_cases.json", &f)
	tally := conformance.Deciding(t, "spiffe/x509_svid_cases.json")
	// The rule that each refused case breaks.
	rules := map[string]VerifyRule{
		"intermediate-not-ca": RuleChain, "intermediate-pathlen": RulePathLength, "no-roots": RuleTrustDomain, "wrong-roots": RuleChain,
		"http-uri": RuleID, "two-spiffe-uris": RuleOneURI, "leaf-is-ca": RuleLeafCA, "leaf-crlsign": RuleKeyUsage, "expired": RuleExpired,
		"uppercase-trust-domain": RuleID, "userinfo": RuleID, "fragment": RuleID, "dot-segment": RuleID, "empty-segment": RuleID,
	}
	for _, c := range f.Verify {
		set := make(BundleSet)
		for _, entry := range strings.Split(c.Bundles, ", ") {
			name, file, _ := strings.Cut(entry, ": ")
			if file == "(empty)" {
				set[TrustDomain{name}] = mustBundle(t)
				continue
			}
			set[TrustDomain{name}] = mustBundle(t, conformanceChain(t, "certs/generated/"+file)...)
		}
		id, err := VerifySVID(conformanceChain(t, c.Chain), set, f.VerifyAt, UsageAny)
		if (err == nil) != c.Valid || id.String() != c.ID || ruleOf(t, err) != rules[c.Name] {
			tally.Fail(t, "%s (%s): %q, %v; want %v, %q, rule %q", c.Name, c.What, id, err, c.Valid, c.ID, rules[c.Name])
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "spiffe/x509_svid_cases.json", 20, 0)
}

// TestSVIDFolder runs every certificate of the collection, also those that no recorded case names.
func TestSVIDFolder(t *testing.T) {
	at := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	dir := filepath.Join(conformance.Dir(t), "spiffe", "certs")
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.pem"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	tally := conformance.Deciding(t, "spiffe/certs")
	want := map[string]VerifyRule{
		"bad-scheme": RuleID, "case-sensitive-path": "", "cross-domain-forgery": RuleChain, "dot-segment": RuleID, "empty-segment": RuleID,
		"expired": RuleExpired, "federated-good": "", "fragment": RuleID, "good-both-bundles": "", "good-dns-and-uri": "", "good-intermediate": "",
		"good-no-eku": "", "good-root-id": RuleRootPath, "good-rotated": "", "good": "", "http-uri": RuleID, "intermediate-no-certsign": RuleChain,
		"intermediate-not-ca": RuleChain, "intermediate-pathlen": RulePathLength, "istio-identity": "", "leaf-certsign": RuleKeyUsage,
		"leaf-crlsign": RuleKeyUsage, "leaf-is-ca": RuleLeafCA, "leaf-no-digitalsignature": RuleKeyUsage, "missing-intermediate": RuleChain,
		"no-bundle-for-domain": RuleTrustDomain, "no-roots": "", "no-uri": RuleOneURI, "not-yet-valid": RuleNotYetValid, "old-root-only": "",
		"percent-encoded": RuleID, "port-in-trust-domain": RuleID, "query": RuleID, "spiffe-and-https-uri": RuleOneURI, "trailing-slash": RuleID,
		"two-spiffe-uris": RuleOneURI, "uppercase-trust-domain": RuleID, "userinfo": RuleID, "wrong-roots": "",
	}
	// Those of Envoy's tests, under the root of theirs.
	envoy := map[string]VerifyRule{
		"ca_cert": RuleOneURI, "ca_cert_with_crl": RuleOneURI, "fake_ca_cert": RuleOneURI, "intermediate_ca_cert": RuleOneURI,
		"extensions_cert": RuleOneURI, "keyusage_cert_sign_cert": RuleOneURI, "keyusage_crl_sign_cert": RuleOneURI,
		"expired_spiffe_san_cert": RuleExpired, "non_spiffe_san_cert": RuleID, "san_uri_cert": "", "spiffe_san_cert": "",
		"spiffe_san_signed_by_intermediate_cert": "",
	}
	set := BundleSet{
		TrustDomain{"domain1.test"}: mustBundle(t, conformanceChain(t, "certs/generated/bundle-domain1.test-rotated.pem")...),
		TrustDomain{"domain2.test"}: mustBundle(t, conformanceChain(t, "certs/generated/bundle-domain2.test.pem")...),
	}
	envoyRoots := mustBundle(t, conformanceChain(t, "certs/envoy/ca_cert.pem")...)
	bundles := 0
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".pem")
		folder := filepath.Base(filepath.Dir(file))
		chain := conformanceChain(t, "certs/"+folder+"/"+name+".pem")
		if strings.HasPrefix(name, "bundle-") {
			bundles++
			if b := mustBundle(t, chain...); len(b.Roots()) != len(chain) {
				tally.Fail(t, "%s: %d roots of %d", name, len(b.Roots()), len(chain))
				continue
			}
			tally.Pass()
			continue
		}
		rule, known := want[name]
		with, present := set, at
		switch {
		case folder == "envoy":
			rule, known = envoy[name]
			with, present = BundleSet{TrustDomain{"example.com"}: envoyRoots, TrustDomain{"lyft.com"}: envoyRoots}, time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)
			if strings.Contains(name, "by_intermediate") {
				chain = append(chain, conformanceChain(t, "certs/envoy/intermediate_ca_cert.pem")...)
			}
		case name == "no-bundle-for-domain":
			with = BundleSet{TrustDomain{"domain2.test"}: set[TrustDomain{"domain2.test"}]}
		}
		ok := known
		for _, usage := range []Usage{UsageAny, UsageServer, UsageClient} {
			_, err := VerifySVID(chain, with, present, usage)
			if got := ruleOf(t, err); got != rule || !known {
				ok = false
				t.Logf("%s: %v, want rule %q", name, err, rule)
			}
		}
		if !ok {
			tally.Fail(t, "%s: not as recorded, or the table does not know it", name)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "spiffe/certs", len(want)+len(envoy)+bundles, 0)
}

// TestSVIDRulesAreHeld shows each rule of the specification's list a chain or bundle that
// breaks it. A rule that issuers alone are held to is shown to the issuer's own tests.
func TestSVIDRulesAreHeld(t *testing.T) {
	var f struct {
		Leaf   []string          `json:"leaf_validator_must"`
		Issuer []string          `json:"leaf_issuer_must"`
		CA     []string          `json:"signing_certificate_must"`
		Bundle []string          `json:"bundle_must"`
		Fields map[string]string `json:"san_field_reference"`
	}
	conformance.Load(t, "spiffe/x509_svid_rules.json", &f)
	tally := conformance.Deciding(t, "spiffe/x509_svid_rules.json")
	td := TrustDomain{"td.example"}
	root, stranger := (*authority)(nil).issue(t, caTemplate("root")), (*authority)(nil).issue(t, caTemplate("stranger"))
	set := BundleSet{td: mustBundle(t, root.cert), {"other.example"}: mustBundle(t, stranger.cert)}
	leaf := func(change ...func(*x509.Certificate)) VerifyRule {
		_, err := verify([][]byte{root.issue(t, leafTemplate([]string{hostileID}, change...)).der}, set, UsageAny)
		return ruleOf(t, err)
	}
	named := func(uris ...string) func(*x509.Certificate) {
		return withNames(rawNames{uris: uris, dns: []string{"a.example", "b.example"}})
	}
	usage := func(u x509.KeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.KeyUsage = u }
	}
	under := func(change ...func(*x509.Certificate)) VerifyRule {
		ca := root.issue(t, caTemplate("sub", change...))
		_, err := verify([][]byte{ca.issue(t, leafTemplate([]string{hostileID})).der, ca.der}, set, UsageAny)
		return ruleOf(t, err)
	}
	roots := func(keys string) int {
		b, err := ParseBundle([]byte(`{"keys": [` + keys + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		return len(b.Roots())
	}
	x5c := base64.StdEncoding.EncodeToString(root.cert.Raw)
	sign, both := x509.KeyUsageDigitalSignature, x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement
	for _, group := range []struct {
		rules []string
		held  []func() bool
	}{
		{f.Leaf, []func() bool{
			func() bool {
				return leaf(named(hostileID)) == "" && leaf(named(hostileID, hostileID+"x")) == RuleOneURI && leaf(named()) == RuleOneURI
			},
			func() bool { return leaf(named("https://td.example/ns/a/sa/b")) == RuleID },
			func() bool { return leaf(named("spiffe://td.example")) == RuleRootPath },
			func() bool { return leaf(func(c *x509.Certificate) { c.IsCA = true }) == RuleLeafCA },
			func() bool {
				return leaf(usage(sign|x509.KeyUsageCertSign)) == RuleKeyUsage && leaf(usage(sign|x509.KeyUsageCRLSign)) == RuleKeyUsage
			},
			func() bool { return leaf(named("spiffe://other.example/ns/a/sa/b")) == RuleChain },
		}},
		{f.Issuer, []func() bool{
			func() bool {
				return leaf(usage(0)) == RuleKeyUsage && leaf(usage(x509.KeyUsageKeyEncipherment)) == RuleKeyUsage && leaf(usage(both)) == ""
			},
			func() bool {
				return leaf(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }) == RuleExtendedKeyUsage &&
					leaf(func(c *x509.Certificate) { c.ExtKeyUsage = nil }) == ""
			},
		}},
		{f.CA, []func() bool{
			func() bool { return under(func(c *x509.Certificate) { c.IsCA = false }) == RuleChain },
			func() bool {
				return under(usage(sign)) == RuleChain && under(usage(x509.KeyUsageCertSign)) == ""
			},
			func() bool {
				return under(named("spiffe://td.example")) == "" && under(named("spiffe://td.example/ns/a/sa/evil")) == RuleIssuer
			},
			func() bool {
				return under(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.example"} }) == RuleNameConstraints
			},
		}},
		{f.Bundle, []func() bool{
			func() bool {
				return roots(fmt.Sprintf(`{"use": "x509-svid", "x5c": [%q, "AAAA"]}`, x5c)) == 1 && roots(`{"use": "x509-svid"}`) == 0
			},
			func() bool {
				return roots(fmt.Sprintf(`{"x5c": [%q]}, {"use": "sig", "x5c": [%q]}`, x5c, x5c)) == 0
			},
			// A publisher's rule: a reader has no use for the key ID, and is not hindered by it.
			func() bool { return roots(fmt.Sprintf(`{"use": "x509-svid", "kid": "k", "x5c": [%q]}`, x5c)) == 1 },
			func() bool {
				_, err := verify([][]byte{root.issue(t, leafTemplate([]string{hostileID})).der}, BundleSet{td: mustBundle(t)}, UsageAny)
				return ruleOf(t, err) == RuleTrustDomain
			},
		}},
	} {
		if len(group.rules) != len(group.held) {
			tally.Fail(t, "%d rules, %d are known here: %q", len(group.rules), len(group.held), group.rules)
			continue
		}
		for i, held := range group.held {
			if !held() {
				tally.Fail(t, "not held: %s", group.rules[i])
				continue
			}
			tally.Pass()
		}
	}
	fields := map[string]func() bool{
		"URI SAN":              func() bool { return leaf(named(hostileID, "https://x.example")) == RuleOneURI },
		"Basic Constraints CA": func() bool { return leaf(func(c *x509.Certificate) { c.IsCA = true }) == RuleLeafCA },
		"keyCertSign": func() bool {
			return leaf(usage(sign|x509.KeyUsageCertSign)) == RuleKeyUsage && under(usage(sign)) == RuleChain
		},
		"cRLSign":                      func() bool { return leaf(usage(sign|x509.KeyUsageCRLSign)) == RuleKeyUsage },
		"keyAgreement/keyEncipherment": func() bool { return leaf(usage(both)) == "" },
		"digitalSignature":             func() bool { return leaf(usage(x509.KeyUsageKeyAgreement)) == RuleKeyUsage },
	}
	for name := range f.Fields {
		if held := fields[name]; held == nil || !held() {
			tally.Fail(t, "not held, or not known: %s", name)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "spiffe/x509_svid_rules.json", 22, 0)
}

func TestEnvoyValidatorConformance(t *testing.T) {
	type matcher struct {
		Exact, Prefix string
		SafeRegex     struct{ Regex string } `json:"safe_regex"`
	}
	var f struct {
		ExtractTrustDomain [][2]string `json:"extract_trust_domain"`
		LeafPrecheck       []struct {
			Cert, Why string
			OK        bool
		} `json:"leaf_precheck"`
		Chains []struct {
			TrustDomains any `json:"trust_domains"`
			Chain        []string
			Accept       bool
			AllowExpired bool `json:"allow_expired_certificate"`
			Why          string
			Match        []matcher `json:"match_subject_alt_names"`
		}
		SANMatch struct {
			Matchers []matcher
			URISANs  [][2]any `json:"uri_sans"`
		} `json:"san_match"`
		SANMatchNonURI struct {
			Matchers []matcher
			SANs     [][3]any
		} `json:"san_match_non_uri"`
		TrustBundleMapRejected []struct{ File, Why string } `json:"trust_bundle_map_rejected"`
		ConfigRejected         []string                     `json:"config_rejected"`
	}
	conformance.Load(t, "spiffe/envoy_spiffe_validator.json", &f)
	tally := conformance.Deciding(t, "spiffe/envoy_spiffe_validator.json")
	at := time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)
	build := func(kind SANType, ms []matcher) (out []SANMatch) {
		for _, m := range ms {
			switch {
			case m.Exact != "":
				out = append(out, SANExact(kind, m.Exact))
			case m.Prefix != "":
				out = append(out, SANText(kind, m.Prefix, routing.Prefix(m.Prefix, false)))
			default:
				re, err := routing.Regex(m.SafeRegex.Regex)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, SANText(kind, m.SafeRegex.Regex, re))
			}
		}
		return out
	}
	for _, c := range f.ExtractTrustDomain {
		id, _ := ParseID(c[0])
		if got := id.TrustDomain().String(); got != c[1] {
			tally.Fail(t, "trust domain of %q: %q, want %q", c[0], got, c[1])
			continue
		}
		tally.Pass()
	}
	for _, c := range f.LeafPrecheck {
		// Envoy reads the name later, and these have none: all of the certificate that
		// its first look is about, with a name.
		recorded := conformanceChain(t, c.Cert)[0]
		_, err := SVIDID([]*x509.Certificate{(*authority)(nil).issue(t, leafTemplate([]string{hostileID}, func(leaf *x509.Certificate) {
			leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage, leaf.UnknownExtKeyUsage = recorded.IsCA, recorded.KeyUsage, recorded.ExtKeyUsage, recorded.UnknownExtKeyUsage
		})).cert})
		if _, bare := SVIDID([]*x509.Certificate{recorded}); (err == nil) != c.OK || bare == nil {
			tally.Fail(t, "%s: %v, want %v (%s); without a name %v", c.Cert, err, c.OK, c.Why, bare)
			continue
		}
		tally.Pass()
	}
	for i, c := range f.Chains {
		set := make(BundleSet)
		switch tds := c.TrustDomains.(type) {
		case string:
			var err error
			if set, err = ParseBundleMap(conformanceFile(t, tds)); err != nil {
				t.Fatal(err)
			}
		case map[string]any:
			for name, file := range tds {
				set[TrustDomain{name}] = mustBundle(t, conformanceChain(t, file.(string))...)
			}
		}
		chain := conformanceChain(t, c.Chain...)
		_, err := VerifySVID(chain, set, at, UsageAny)
		if err == nil && len(c.Match) > 0 {
			err = MatchSANs(chain[0], build(SANURI, c.Match))
		}
		if c.AllowExpired {
			if ruleOf(t, err) != RuleExpired {
				t.Errorf("chain %d: %v", i, err)
			}
			tally.Differs(t, fmt.Sprintf("chains [%d]", i))
			continue
		}
		if (err == nil) != c.Accept {
			tally.Fail(t, "chain %d %v: %v, want %v (%s)", i, c.Chain, err, c.Accept, c.Why)
			continue
		}
		tally.Pass()
	}
	matchAny := func(kind SANType, ms []matcher, n *names) bool {
		for _, m := range build(kind, ms) {
			if m.matches(n) {
				return true
			}
		}
		return false
	}
	for _, c := range f.SANMatch.URISANs {
		if got := matchAny(SANURI, f.SANMatch.Matchers, &names{uris: []string{c[0].(string)}}); got != c[1].(bool) {
			tally.Fail(t, "URI %v: %v", c[0], got)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.SANMatchNonURI.SANs {
		n := &names{}
		if c[0] == "DNS" {
			n.dns = []string{c[1].(string)}
		} else {
			n.emails = []string{c[1].(string)}
		}
		if got := matchAny(SANURI, f.SANMatchNonURI.Matchers, n); got != c[2].(bool) {
			tally.Fail(t, "%v: %v", c, got)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.TrustBundleMapRejected {
		if _, err := ParseBundleMap(conformanceFile(t, c.File)); err == nil {
			tally.Fail(t, "%s is accepted (%s)", c.File, c.Why)
			continue
		}
		tally.Pass()
	}
	// Two trust domains of the same name; a bundle that is no certificate.
	for i, doc := range []string{
		`{"trust_domains": {"a.test": {"keys": []}, "a.test": {"keys": []}}}`,
		`{"trust_domains": {"a.test": {"keys": [{"use": "x509-svid", "x5c": ["bm8="]}]}}}`,
	} {
		if _, err := ParseBundleMap([]byte(doc)); err == nil || i >= len(f.ConfigRejected) {
			tally.Fail(t, "%s is accepted", doc)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "spiffe/envoy_spiffe_validator.json", 28, 1)
}
