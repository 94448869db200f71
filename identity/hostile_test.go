package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// hostileNow is the time at which the generated certificates are verified.
var hostileNow = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// An authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate // nil where crypto/x509 refuses to parse it
	key  *ecdsa.PrivateKey
	der  []byte
}

// issue signs a certificate; signer nil is a certificate that signs itself.
func (signer *authority) issue(t testing.TB, template *x509.Certificate) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, parentKey := template, key
	if signer != nil {
		parent, parentKey = signer.cert, signer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		cert = nil // a case of its own
	}
	return &authority{cert, key, der}
}

func caTemplate(name string, change ...func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: hostileNow.Add(-time.Hour), NotAfter: hostileNow.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func leafTemplate(uris []string, change ...func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "workload"},
		NotBefore: hostileNow.Add(-time.Minute), NotAfter: hostileNow.Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{sanExtension(rawNames{uris: uris})},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// rawNames are subject alternative names written byte for byte, as crypto/x509 would not.
type rawNames struct{ uris, dns, emails []string }

func sanExtension(n rawNames) pkix.Extension {
	var list []asn1.RawValue
	add := func(tag int, values []string) {
		for _, v := range values {
			list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(v)})
		}
	}
	add(6, n.uris)
	add(2, n.dns)
	add(1, n.emails)
	der, err := asn1.Marshal(list)
	if err != nil {
		panic(err)
	}
	return pkix.Extension{Id: subjectAltName, Value: der}
}

func withNames(n rawNames) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{sanExtension(n)} }
}

const hostileID = "spiffe://td.example/ns/a/sa/b"

func TestHostileCertificates(t *testing.T) {
	td, other := TrustDomain{"td.example"}, TrustDomain{"other.example"}
	root := (*authority)(nil).issue(t, caTemplate("root"))
	otherRoot := (*authority)(nil).issue(t, caTemplate("other root"))
	strangerRoot := (*authority)(nil).issue(t, caTemplate("root")) // the same name, another key
	set := BundleSet{td: mustBundle(t, root.cert), other: mustBundle(t, otherRoot.cert)}

	leaf := func(signer *authority, uri string, change ...func(*x509.Certificate)) [][]byte {
		return [][]byte{signer.issue(t, leafTemplate([]string{uri}, change...)).der}
	}
	under := func(ca *x509.Certificate, uri string, change ...func(*x509.Certificate)) [][]byte {
		intermediate := root.issue(t, ca)
		return append(leaf(intermediate, uri, change...), intermediate.der)
	}
	usage := func(u x509.KeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.KeyUsage = u }
	}
	extended := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	constrained := func(permitted, excluded []string) *x509.Certificate {
		return caTemplate("constrained", func(c *x509.Certificate) {
			c.PermittedURIDomains, c.ExcludedURIDomains, c.PermittedDNSDomainsCritical = permitted, excluded, true
		})
	}
	selfListed := (*authority)(nil).issue(t, leafTemplate([]string{hostileID}))
	critical := func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
	}
	deep := root.issue(t, caTemplate("pathlen 0", func(c *x509.Certificate) { c.MaxPathLenZero = true }))
	deeper := deep.issue(t, caTemplate("below pathlen 0"))

	cases := []struct {
		name  string
		chain [][]byte
		rule  VerifyRule
	}{
		{"good", leaf(root, hostileID), ""},
		{"good under an intermediate", under(caTemplate("sub"), hostileID), ""},
		{"good with an intermediate that names the trust domain", under(caTemplate("sub", withNames(rawNames{uris: []string{"spiffe://td.example"}})), hostileID), ""},
		{"good within constraints", under(constrained([]string{"td.example"}, nil), hostileID), ""},
		{"good outside an exclusion", under(constrained(nil, []string{"other.example"}), hostileID), ""},
		{"good with the root attached", append(leaf(root, hostileID), root.der), ""},
		{"good without extended key usage", leaf(root, hostileID, extended()), ""},
		{"good with keyEncipherment", leaf(root, hostileID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment)), ""},
		{"good with DNS names", leaf(root, hostileID, withNames(rawNames{uris: []string{hostileID}, dns: []string{"*.b.example"}})), ""},

		{"no certificate", nil, RulePresent},
		{"garbage", [][]byte{{0x30, 0x03, 1, 2, 3}}, RuleParse},
		{"long chain", append(leaf(root, hostileID), repeat(root.der, maxChain)...), RuleParse},
		{"trust domain without a bundle", leaf(root, "spiffe://unknown.example/ns/a/sa/b"), RuleTrustDomain},
		{"another trust domain's root", leaf(otherRoot, hostileID), RuleChain},
		{"our root for another trust domain", leaf(root, "spiffe://other.example/ns/a/sa/b"), RuleChain},
		{"other root attached", append(leaf(otherRoot, hostileID), otherRoot.der), RuleChain},
		{"unknown root of the same name", leaf(strangerRoot, hostileID), RuleChain},
		{"self-signed", [][]byte{selfListed.der}, RuleChain},
		{"missing intermediate", under(caTemplate("sub"), hostileID)[:1], RuleChain},

		{"no SAN", leaf(root, "", func(c *x509.Certificate) { c.ExtraExtensions = nil }), RuleOneURI},
		{"only a DNS SAN", leaf(root, "", withNames(rawNames{dns: []string{"td.example"}})), RuleOneURI},
		{"the ID in the common name only", leaf(root, "", func(c *x509.Certificate) { c.ExtraExtensions, c.Subject.CommonName = nil, hostileID }), RuleOneURI},
		{"two URI SANs", leaf(root, "", withNames(rawNames{uris: []string{hostileID, "spiffe://td.example/ns/a/sa/admin"}})), RuleOneURI},
		{"the same URI SAN twice", leaf(root, "", withNames(rawNames{uris: []string{hostileID, hostileID}})), RuleOneURI},
		{"a second URI of another scheme", leaf(root, "", withNames(rawNames{uris: []string{hostileID, "https://x.example"}})), RuleOneURI},
		{"the ID as DNS name", leaf(root, "", withNames(rawNames{dns: []string{hostileID}})), RuleOneURI},
		{"root path", leaf(root, "spiffe://td.example"), RuleRootPath},
		{"root path with a slash", leaf(root, "spiffe://td.example/"), RuleID},
		{"another scheme", leaf(root, "https://td.example/ns/a/sa/b"), RuleID},
		{"scheme in upper case", leaf(root, "SPIFFE://td.example/ns/a/sa/b"), RuleID},
		{"scheme in mixed case", leaf(root, "sPiffe://td.example/ns/a/sa/b"), RuleID},
		{"trust domain in upper case", leaf(root, "spiffe://TD.example/ns/a/sa/b"), RuleID},
		{"empty fragment", leaf(root, hostileID+"#"), RuleID},
		{"fragment", leaf(root, hostileID+"#x"), RuleID},
		{"empty query", leaf(root, hostileID+"?"), RuleID},
		{"port", leaf(root, "spiffe://td.example:443/ns/a/sa/b"), RuleID},
		{"empty port", leaf(root, "spiffe://td.example:/ns/a/sa/b"), RuleID},
		{"user information", leaf(root, "spiffe://x@td.example/ns/a/sa/b"), RuleID},
		{"trailing dot in the trust domain is another one", leaf(root, "spiffe://td.example./ns/a/sa/b"), RuleParse},
		{"percent-encoded NUL", leaf(root, "spiffe://td.example/ns/a/sa/b%00"), RuleID},
		{"percent-encoded slash", leaf(root, "spiffe://td.example/ns/a%2Fsa/b"), RuleID},
		{"dot segments", leaf(root, "spiffe://td.example/ns/x/../a/sa/b"), RuleID},
		{"empty segment", leaf(root, "spiffe://td.example//ns/a/sa/b"), RuleID},
		{"a space", leaf(root, "spiffe://td.example/ns/a/sa/b c"), RuleNameText},
		{"NUL in the URI", leaf(root, hostileID+"\x00.evil"), RuleParse},
		{"NUL in a DNS name", leaf(root, "", withNames(rawNames{uris: []string{hostileID}, dns: []string{"bank.example\x00.evil.example"}})), RuleNameText},
		{"NUL in an e-mail address", leaf(root, "", withNames(rawNames{uris: []string{hostileID}, emails: []string{"a@b.example\x00"}})), RuleNameText},
		{"an ID that is too long", leaf(root, "spiffe://td.example/"+strings.Repeat("x", MaxIDLength)), RuleID},

		{"CA:true", leaf(root, hostileID, func(c *x509.Certificate) { c.IsCA = true }), RuleLeafCA},
		{"no key usage", leaf(root, hostileID, usage(0)), RuleKeyUsage},
		{"keyCertSign", leaf(root, hostileID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign)), RuleKeyUsage},
		{"cRLSign", leaf(root, hostileID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCRLSign)), RuleKeyUsage},
		{"no digitalSignature", leaf(root, hostileID, usage(x509.KeyUsageKeyEncipherment)), RuleKeyUsage},
		{"code signing only", leaf(root, hostileID, extended(x509.ExtKeyUsageCodeSigning)), RuleExtendedKeyUsage},
		{"server only", leaf(root, hostileID, extended(x509.ExtKeyUsageServerAuth)), RuleExtendedKeyUsage},
		{"client only", leaf(root, hostileID, extended(x509.ExtKeyUsageClientAuth)), RuleExtendedKeyUsage},
		{"any extended key usage", leaf(root, hostileID, extended(x509.ExtKeyUsageAny)), RuleExtendedKeyUsage},
		{"unknown extended key usage", leaf(root, hostileID, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
		}), RuleExtendedKeyUsage},
		{"an intermediate for code signing", under(caTemplate("sub", extended(x509.ExtKeyUsageCodeSigning)), hostileID), RuleExtendedKeyUsage},
		{"unknown critical extension", leaf(root, hostileID, critical), RuleCriticalExtension},

		{"expired", leaf(root, hostileID, func(c *x509.Certificate) { c.NotAfter = hostileNow.Add(-time.Second) }), RuleExpired},
		{"not yet valid", leaf(root, hostileID, func(c *x509.Certificate) { c.NotBefore = hostileNow.Add(time.Second) }), RuleNotYetValid},
		{"expired intermediate", under(caTemplate("sub", func(c *x509.Certificate) { c.NotAfter = hostileNow.Add(-time.Second) }), hostileID), RuleExpired},
		{"intermediate not yet valid", under(caTemplate("sub", func(c *x509.Certificate) { c.NotBefore = hostileNow.Add(time.Second) }), hostileID), RuleNotYetValid},

		{"intermediate without CA", under(caTemplate("sub", func(c *x509.Certificate) { c.IsCA = false }), hostileID), RuleChain},
		{"intermediate without keyCertSign", under(caTemplate("sub", usage(x509.KeyUsageDigitalSignature)), hostileID), RuleChain},
		{"a workload signs", under(leafTemplate([]string{"spiffe://td.example/ns/a/sa/evil"}), hostileID), RuleChain},
		{"a CA that carries a workload's ID signs", under(caTemplate("sub", withNames(rawNames{uris: []string{"spiffe://td.example/ns/a/sa/evil"}})), hostileID), RuleIssuer},
		{"path length", append(leaf(deeper, hostileID), deeper.der, deep.der), RulePathLength},

		{"constraint on another domain", under(constrained([]string{"other.example"}, nil), hostileID), RuleNameConstraints},
		{"constraint on a parent domain", under(constrained([]string{"example"}, nil), hostileID), RuleNameConstraints},
		{"constraint on the domains below", under(constrained([]string{".td.example"}, nil), hostileID), RuleNameConstraints},
		{"excluded domain", under(constrained(nil, []string{"td.example"}), hostileID), RuleNameConstraints},
		{"excluded in upper case", under(constrained(nil, []string{"TD.Example"}), hostileID), RuleNameConstraints},
		{"permitted and excluded", under(constrained([]string{"td.example"}, []string{"td.example"}), hostileID), RuleNameConstraints},
		{"constraint on DNS names, another DNS name", under(caTemplate("sub", func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"good.example"}, true
		}), "", withNames(rawNames{uris: []string{hostileID}, dns: []string{"bad.example"}})), RuleNameConstraints},
		{"constraint on addresses, another address", under(caTemplate("sub", func(c *x509.Certificate) {
			c.PermittedIPRanges = []*net.IPNet{{IP: net.IP{10, 0, 0, 0}, Mask: net.CIDRMask(8, 32)}}
		}), "", func(c *x509.Certificate) {
			ext := sanExtension(rawNames{uris: []string{hostileID}})
			ext.Value = append(ext.Value, 0x87, 4, 192, 0, 2, 1)
			ext.Value[1] += 6
			c.ExtraExtensions = []pkix.Extension{ext}
		}), RuleNameConstraints},
	}
	refused := 0
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			id, err := verify(c.chain, set, UsageAny)
			if got := ruleOf(t, err); got != c.rule {
				t.Fatalf("%v, want rule %q", err, c.rule)
			}
			if err != nil && (!id.IsZero() || !strings.Contains(err.Error(), string(c.rule))) {
				t.Errorf("ID %q with the error %q, which must name rule %s", id, err, c.rule)
			}
			if err == nil && id.String() != hostileID {
				t.Errorf("ID %q", id)
			}
			for _, u := range []Usage{UsageClient, UsageServer} {
				if _, err := verify(c.chain, set, u); ruleOf(t, err) != c.rule {
					t.Errorf("as usage %d: %v", u, err)
				}
			}
		})
		if c.rule != "" {
			refused++
		}
	}
	t.Logf("%d hostile chains, %d good ones", refused, len(cases)-refused)

	t.Run("subdomain of a constraint", func(t *testing.T) {
		evil := TrustDomain{"evil.td.example"}
		chain := under(constrained([]string{"td.example"}, nil), "spiffe://evil.td.example/ns/a/sa/b")
		_, err := verify(chain, BundleSet{evil: mustBundle(t, root.cert)}, UsageAny)
		if ruleOf(t, err) != RuleNameConstraints {
			t.Error(err)
		}
		chain = under(constrained([]string{".td.example"}, nil), "spiffe://evil.td.example/ns/a/sa/b")
		if _, err := verify(chain, BundleSet{evil: mustBundle(t, root.cert)}, UsageAny); err != nil {
			t.Error(err)
		}
	})
	t.Run("address under constraints", func(t *testing.T) {
		chain := under(constrained([]string{"td.example"}, nil), "spiffe://10.1.2.3/ns/a/sa/b")
		_, err := verify(chain, BundleSet{{"10.1.2.3"}: mustBundle(t, root.cert)}, UsageAny)
		if ruleOf(t, err) != RuleNameConstraints {
			t.Error(err)
		}
	})
	t.Run("a chain with a hole", func(t *testing.T) {
		good := root.issue(t, leafTemplate([]string{hostileID})).cert
		if _, err := VerifySVID([]*x509.Certificate{good, nil}, set, hostileNow, UsageAny); ruleOf(t, err) != RulePresent {
			t.Error(err)
		}
	})
	t.Run("a leaf in the bundle", func(t *testing.T) {
		if _, err := NewBundle([]*x509.Certificate{selfListed.cert}, nil); err == nil {
			t.Error("a leaf is accepted as root")
		}
		pool := x509.NewCertPool()
		pool.AddCert(selfListed.cert)
		set := BundleSet{td: {roots: []*x509.Certificate{selfListed.cert}, pool: pool}}
		if _, err := VerifySVID([]*x509.Certificate{selfListed.cert}, set, hostileNow, UsageAny); ruleOf(t, err) != RuleIssuer {
			t.Error(err)
		}
	})
	t.Run("a sound path beside a bad one", func(t *testing.T) {
		// Two CAs of the same name and key; the first carries a workload's ID.
		bad := root.issue(t, caTemplate("twin", withNames(rawNames{uris: []string{"spiffe://td.example/ns/a/sa/evil"}})))
		template := caTemplate("twin")
		der, err := x509.CreateCertificate(rand.Reader, template, root.cert, &bad.key.PublicKey, root.key)
		if err != nil {
			t.Fatal(err)
		}
		good, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain := append(leaf(bad, hostileID), bad.der, good.Raw)
		if _, err := verify(chain, set, UsageAny); err != nil {
			t.Error(err)
		}
	})
}

// parseChain parses certificates in DER, leaf first, as TLS carries them.
func parseChain(der [][]byte) (chain []*x509.Certificate, err error) {
	for _, b := range der {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, &VerifyError{Rule: RuleParse, Detail: err.Error(), Err: err}
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// verify does what a TLS stack and then VerifySVID do.
func verify(der [][]byte, set BundleSet, usage Usage) (ID, error) {
	chain, err := parseChain(der)
	if err != nil {
		return ID{}, err
	}
	return VerifySVID(chain, set, hostileNow, usage)
}

func repeat(c []byte, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = c
	}
	return out
}

// TestRootsByTrustDomain: the roots are those under the peer's trust domain,
// however many others there are.
func TestRootsByTrustDomain(t *testing.T) {
	foo, bar := TrustDomain{"foo.domain.com"}, TrustDomain{"bar.domain.com"}
	one := (*authority)(nil).issue(t, caTemplate("root 1"))
	two := (*authority)(nil).issue(t, caTemplate("root 2"))
	sub := one.issue(t, caTemplate("sub"))
	chain := []*x509.Certificate{sub.issue(t, leafTemplate([]string{"spiffe://foo.domain.com/ns/foo/sa/bar"})).cert, sub.cert}
	for name, c := range map[string]struct {
		set  BundleSet
		rule VerifyRule
	}{
		"ok":                                {BundleSet{foo: mustBundle(t, one.cert)}, ""},
		"multiple roots":                    {BundleSet{foo: mustBundle(t, two.cert, one.cert)}, ""},
		"multiple roots, multiple mappings": {BundleSet{foo: mustBundle(t, one.cert, two.cert), bar: mustBundle(t, two.cert)}, ""},
		"no trusted root":                   {BundleSet{foo: mustBundle(t, two.cert)}, RuleChain},
		"unknown trust domain":              {BundleSet{bar: mustBundle(t, one.cert)}, RuleTrustDomain},
		"right root, wrong trust domain":    {BundleSet{foo: mustBundle(t, two.cert), bar: mustBundle(t, one.cert)}, RuleChain},
		"no bundles":                        {nil, RuleTrustDomain},
		"an empty bundle":                   {BundleSet{foo: mustBundle(t)}, RuleTrustDomain},
		"a nil bundle":                      {BundleSet{foo: nil}, RuleTrustDomain},
	} {
		if _, err := VerifySVID(chain, c.set, hostileNow, UsageServer); ruleOf(t, err) != c.rule {
			t.Errorf("%s: %v, want rule %q", name, err, c.rule)
		}
	}
}

func FuzzVerifySVID(f *testing.F) {
	root := (*authority)(nil).issue(f, caTemplate("root"))
	set := BundleSet{{"td.example"}: mustBundle(f, root.cert)}
	f.Add(root.issue(f, leafTemplate([]string{hostileID})).cert.Raw, root.cert.Raw)
	f.Add(root.issue(f, leafTemplate([]string{hostileID, hostileID})).cert.Raw, []byte{})
	f.Add([]byte{0x30, 0x80}, []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, leaf, intermediate []byte) {
		chain, err := parseChain([][]byte{leaf, intermediate})
		if err != nil {
			if ruleOf(t, err) != RuleParse {
				t.Fatal(err)
			}
			if chain, err = parseChain([][]byte{leaf}); err != nil {
				return
			}
		}
		id, err := VerifySVID(chain, set, hostileNow, UsageClient)
		if err != nil {
			ruleOf(t, err)
			if !id.IsZero() {
				t.Fatalf("%q and %v", id, err)
			}
			_ = MatchSANs(chain[0], []SANMatch{SANExact(SANAny, "x")})
			return
		}
		// Whoever is believed was signed by the one root.
		if id.TrustDomain().String() != "td.example" || chain[0].CheckSignatureFrom(root.cert) != nil && len(chain) == 1 {
			t.Fatalf("%q was believed", id)
		}
		if p := PeerOfChain(chain); p.ID != id {
			t.Fatalf("the peer has ID %q, not %q", p.ID, id)
		}
	})
}
