package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
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
	// The rule that each refused case breaks.
	rules := map[string]VerifyRule{
		"intermediate-not-ca": RuleChain, "intermediate-pathlen": RulePathLength, "no-roots": RuleTrustDomain, "wrong-roots": RuleChain,
		"http-uri": RuleID, "two-spiffe-uris": RuleOneURI, "leaf-is-ca": RuleLeafCA, "leaf-crlsign": RuleKeyUsage, "expired": RuleExpired,
		"uppercase-trust-domain": RuleID, "userinfo": RuleID, "fragment": RuleID, "dot-segment": RuleID, "empty-segment": RuleID,
	}
	var tally conformance.Tally
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

// TestSVIDFolder runs every certificate that was issued for the collection,
// also those that no recorded case names.
func TestSVIDFolder(t *testing.T) {
	at := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	dir := filepath.Join(conformance.Dir(t), "spiffe", "certs", "generated")
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
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
	set := BundleSet{
		TrustDomain{"domain1.test"}: mustBundle(t, conformanceChain(t, "certs/generated/bundle-domain1.test-rotated.pem")...),
		TrustDomain{"domain2.test"}: mustBundle(t, conformanceChain(t, "certs/generated/bundle-domain2.test.pem")...),
	}
	ran := 0
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".pem")
		if strings.HasPrefix(name, "bundle-") {
			continue
		}
		rule, known := want[name]
		if !known {
			t.Errorf("%s: the table does not know it", name)
		}
		with := set
		if name == "no-bundle-for-domain" {
			with = BundleSet{TrustDomain{"domain2.test"}: set[TrustDomain{"domain2.test"}]}
		}
		ran++
		for _, usage := range []Usage{UsageAny, UsageServer, UsageClient} {
			if _, err := VerifySVID(conformanceChain(t, "certs/generated/"+name+".pem"), with, at, usage); ruleOf(t, err) != rule {
				t.Errorf("%s: %v, want rule %q", name, err, rule)
			}
		}
	}
	if ran != len(want) {
		t.Errorf("%d certificates ran, the table has %d", ran, len(want))
	}
}

// TestSVIDRulesAreHeld names, for each rule of the specification's list, the
// check that holds it, so that the list can not grow unseen.
func TestSVIDRulesAreHeld(t *testing.T) {
	var f map[string]any
	conformance.Load(t, "spiffe/x509_svid_rules.json", &f)
	held := map[string]int{
		"leaf_validator_must":      6, // TestSVIDFolder, TestHostileCertificates
		"leaf_issuer_must":         2, // digitalSignature and extended key usage are demanded, the critical mark is not
		"signing_certificate_must": 4, // CA, keyCertSign, no workload's ID, path length and name constraints: TestHostileCertificates
		"bundle_must":              4, // TestBundleRules
	}
	var tally conformance.Tally
	for group, n := range held {
		list, _ := f[group].([]any)
		if len(list) != n {
			tally.Fail(t, "%s has %d rules, %d are known here: %v", group, len(list), n, list)
			continue
		}
		for range list {
			tally.Pass()
		}
	}
	tally.Check(t, "spiffe/x509_svid_rules.json", 16, 0)
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
	var tally conformance.Tally
	for _, c := range f.ExtractTrustDomain {
		id, _ := ParseID(c[0])
		if got := id.TrustDomain().String(); got != c[1] {
			tally.Fail(t, "trust domain of %q: %q, want %q", c[0], got, c[1])
			continue
		}
		tally.Pass()
	}
	for _, c := range f.LeafPrecheck {
		_, err := SVIDID(conformanceChain(t, c.Cert))
		rule := ruleOf(t, err)
		// Envoy reads the name later: a leaf without one passes its first look and fails then.
		if ok := rule == RuleOneURI; ok != c.OK && !(rule == RuleOneURI && !c.OK) {
			tally.Fail(t, "%s: %v, want %v (%s)", c.Cert, err, c.OK, c.Why)
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
			tally.SetAside("an expired certificate is never accepted: there is no such option")
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
