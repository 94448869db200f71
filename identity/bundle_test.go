package identity

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

// TestBundleDocuments reads every recorded document.
func TestBundleDocuments(t *testing.T) {
	type want struct {
		roots, jwt int
		err        string
	}
	single := map[string]want{
		"missing_kid": {err: "keys[1].kid"}, "multiple_x509": {roots: 1, jwt: 1}, "no_keys": {err: `no "keys"`},
		"valid_1": {roots: 1, jwt: 1}, "valid_2": {roots: 1, jwt: 6}, "valid_with_wit": {roots: 1, jwt: 2},
	}
	maps := map[string]want{ // roots: over all trust domains
		"": {roots: 2}, "_empty_keys": {}, "_invalid_json": {err: "trust bundle map"}, "_invalid_key": {err: `trust_domains["example.com"]: SPIFFE bundle: keys[0].x5c[0]`},
		"_invalid_x5c": {err: "keys[0].x5c[0]"}, "_missing_use": {}, "_missing_x5c": {err: "missing or empty"}, "_zero_domains": {},
	}
	tally := conformance.Deciding(t, "spiffe/bundles")
	files, err := filepath.Glob(filepath.Join(conformance.Dir(t), "spiffe", "bundles", "*.json"))
	if err != nil || len(files) != len(single)+len(maps) {
		t.Fatalf("%d documents, %d are known: %v", len(files), len(single)+len(maps), err)
	}
	for name, w := range single {
		b, err := ParseBundle(conformanceFile(t, "bundles/go-spiffe_spiffebundle_"+name+".json"))
		if w.err != "" {
			if err == nil || !strings.Contains(err.Error(), w.err) {
				tally.Fail(t, "%s: %v, want %q", name, err, w.err)
				continue
			}
			tally.Pass()
			continue
		}
		if err != nil || len(b.Roots()) != w.roots || len(b.JWTKeys()) != w.jwt {
			tally.Fail(t, "%s: %+v, %v; want %+v", name, b, err, w)
			continue
		}
		if name == "valid_2" && (b.RefreshHint != time.Minute || b.Sequence != 1) {
			tally.Fail(t, "%s: hint %v, sequence %d", name, b.RefreshHint, b.Sequence)
			continue
		}
		tally.Pass()
	}
	for name, w := range maps {
		set, err := ParseBundleMap(conformanceFile(t, "bundles/envoy_trust_bundles"+name+".json"))
		if w.err != "" {
			if err == nil || !strings.Contains(err.Error(), w.err) {
				tally.Fail(t, "map%s: %v, want %q", name, err, w.err)
				continue
			}
			tally.Pass()
			continue
		}
		roots := 0
		for _, b := range set {
			roots += len(b.Roots())
		}
		if err != nil || roots != w.roots {
			tally.Fail(t, "map%s: %d roots, %v; want %+v", name, roots, err, w)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "spiffe/bundles", len(files), 0)
}

func TestBundleRules(t *testing.T) {
	root := (*authority)(nil).issue(t, caTemplate("root"))
	leaf := root.issue(t, leafTemplate([]string{hostileID}))
	x5c := func(a *authority) string { return base64.StdEncoding.EncodeToString(a.cert.Raw) }
	for _, c := range []struct {
		name, keys string
		roots      int
		err        string
	}{
		{"one", fmt.Sprintf(`[{"use":"x509-svid","kty":"EC","x5c":[%q]}]`, x5c(root)), 1, ""},
		{"the same twice", fmt.Sprintf(`[{"use":"x509-svid","x5c":[%q]},{"use":"x509-svid","x5c":[%[1]q]}]`, x5c(root)), 1, ""},
		{"first of several", fmt.Sprintf(`[{"use":"x509-svid","x5c":[%q,"AAAA"]}]`, x5c(root)), 1, ""},
		{"no certificate", `[{"use":"x509-svid"},{"use":"x509-svid","x5c":[]}]`, 0, ""},
		{"no use", fmt.Sprintf(`[{"x5c":[%q]}]`, x5c(root)), 0, ""},
		{"unknown use", fmt.Sprintf(`[{"use":"sig","kty":"what","x5c":[%q]}]`, x5c(root)), 0, ""},
		{"a leaf", fmt.Sprintf(`[{"use":"x509-svid","x5c":[%q]}]`, x5c(leaf)), 0, "no CA certificate"},
		{"no base64", `[{"use":"x509-svid","x5c":["!"]}]`, 0, "keys[0].x5c[0]"},
		{"a JWT key without an ID", `[{"use":"jwt-svid","kty":"EC"}]`, 0, "keys[0].kid"},
		{"a JWT key of unknown type", `[{"use":"jwt-svid","kid":"a","kty":"what"}]`, 0, "keys[0]"},
		{"a symmetric JWT key", `[{"use":"jwt-svid","kid":"a","kty":"oct","k":"c2VjcmV0"}]`, 0, "no public key"},
		{"a key that is no object", `[1]`, 0, "keys[0]"},
		{"null keys", `null`, 0, `no "keys"`},
	} {
		b, err := ParseBundle([]byte(`{"keys":` + c.keys + `}`))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || len(b.Roots()) != c.roots {
			t.Errorf("%s: %v, %v", c.name, b, err)
		}
	}
	for _, doc := range []string{`{}`, `[]`, `{"trust_domains":[]}`, `{"trust_domains":{"BAD":{"keys":[]}}}`, `{"trust_domains":{"a":1}}`, `{"trust_domains":null}`} {
		if _, err := ParseBundleMap([]byte(doc)); err == nil {
			t.Errorf("%s is accepted", doc)
		}
	}
	if _, err := ParseBundle([]byte(`{"keys":[],"spiffe_refresh_hint":-1}`)); err == nil {
		t.Error("a negative refresh hint is accepted")
	}
	// No X.509 entry: every SVID of the trust domain is refused.
	b, err := ParseBundle([]byte(`{"keys":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifySVID([]*x509.Certificate{leaf.cert}, BundleSet{{"td.example"}: b}, hostileNow, UsageAny); ruleOf(t, err) != RuleTrustDomain {
		t.Error(err)
	}
}

func FuzzParseBundle(f *testing.F) {
	root := (*authority)(nil).issue(f, caTemplate("root"))
	x5c := base64.StdEncoding.EncodeToString(root.cert.Raw)
	f.Add([]byte(fmt.Sprintf(`{"keys":[{"use":"x509-svid","x5c":[%q]}],"spiffe_sequence":1}`, x5c)))
	f.Add([]byte(fmt.Sprintf(`{"trust_domains":{"a.test":{"keys":[{"use":"x509-svid","x5c":[%q]}]}}}`, x5c)))
	f.Add([]byte(`{"keys":[{"use":"jwt-svid","kid":"a","kty":"EC","crv":"P-256","x":"ngLYQnlfF6GsojUwqtcEE3WgTNG2RUlsGhK73RNEl5k","y":"tKbiDSUSsQ3F1P7wteeHNXIcU-cx6CgSbroeQrQHTLM"}]}`))
	f.Add([]byte(`{"trust_domains":{"a":{"keys":[]},"a":{"keys":[]}}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		check := func(b *Bundle) {
			for _, r := range b.Roots() {
				if !r.IsCA {
					t.Fatalf("a root that is no CA: %q", r.Subject)
				}
			}
			for kid, key := range b.JWTKeys() {
				if kid == "" || key == nil {
					t.Fatalf("key %q: %v", kid, key)
				}
			}
		}
		if b, err := ParseBundle(doc); err == nil {
			check(b)
		}
		if set, err := ParseBundleMap(doc); err == nil {
			for td, b := range set {
				if _, err := ParseTrustDomain(td.String()); err != nil {
					t.Fatal(err)
				}
				check(b)
			}
		}
	})
}
