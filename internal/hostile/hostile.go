// Package hostile makes certificates that no member of a mesh may accept, and
// a few odd ones that it must, each with the rule that decides. Whatever
// terminates or begins mutual TLS is held against all of them. It is used by
// tests only.
package hostile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity"
)

const (
	// VictimID is who verifies, PeerID is whom the certificates claim to be.
	VictimID = "spiffe://td.example/ns/a/sa/victim"
	PeerID   = "spiffe://td.example/ns/a/sa/peer"
)

// Matrix is a victim, what it believes, and those who try.
type Matrix struct {
	// Victim is the certificate of the side that verifies.
	Victim *tls.Certificate
	// Bundles are the victim's: those of td.example, other.example and
	// evil.td.example, the last with the root of the first.
	Bundles identity.BundleSet
	// Cases are what peers present, to be tried as client and as server.
	Cases []Case
}

// Case is one certificate.
type Case struct {
	Name        string
	Certificate *tls.Certificate
	// Rule is the one that refuses it; "" where it is sound.
	Rule identity.VerifyRule
	// ByTLS says that crypto/tls itself refuses it, with an error of its own
	// before any rule is asked.
	ByTLS bool
}

// Good reports whether the certificate must be accepted.
func (c *Case) Good() bool { return c.Rule == "" }

// Attacker returns the configuration of a peer that presents the case's
// certificate, as client or as server, and believes whatever it is shown.
func (c *Case) Attacker() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.Certificate, nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate, nil },
	}
}

// signer is a certificate with its key.
type signer struct {
	cert *x509.Certificate // nil where crypto/x509 can not parse it
	der  []byte
	key  *ecdsa.PrivateKey
}

type maker struct {
	t   testing.TB
	now time.Time
}

// issue signs a certificate; by nil, it signs itself.
func (m *maker) issue(by *signer, template *x509.Certificate) *signer {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		m.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der) // what can not be parsed is a case too
	return &signer{cert, der, key}
}

type change = func(*x509.Certificate)

func (m *maker) authority(name string, changes ...change) *x509.Certificate {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: m.now.Add(-time.Hour), NotAfter: m.now.Add(30 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, f := range changes {
		f(c)
	}
	return c
}

func (m *maker) leaf(uri string, changes ...change) *x509.Certificate {
	c := &x509.Certificate{
		NotBefore: m.now.Add(-time.Minute), NotAfter: m.now.Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{alternativeNames(names{uris: []string{uri}})},
	}
	for _, f := range changes {
		f(c)
	}
	return c
}

// names are subject alternative names byte for byte, as crypto/x509 would not write them.
type names struct{ uris, dns []string }

func alternativeNames(n names) pkix.Extension {
	var list []asn1.RawValue
	for _, v := range n.uris {
		list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(v)})
	}
	for _, v := range n.dns {
		list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(v)})
	}
	der, err := asn1.Marshal(list)
	if err != nil {
		panic(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der}
}

func named(n names) change {
	return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{alternativeNames(n)} }
}

func usage(u x509.KeyUsage) change { return func(c *x509.Certificate) { c.KeyUsage = u } }

func extended(u ...x509.ExtKeyUsage) change { return func(c *x509.Certificate) { c.ExtKeyUsage = u } }

func constrained(permitted, excluded []string) change {
	return func(c *x509.Certificate) {
		c.PermittedURIDomains, c.ExcludedURIDomains, c.PermittedDNSDomainsCritical = permitted, excluded, true
	}
}

// pair is what a peer presents: the leaf and then what is attached.
func pair(leaf *signer, attached ...*signer) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{leaf.der}, PrivateKey: leaf.key}
	for _, a := range attached {
		c.Certificate = append(c.Certificate, a.der)
	}
	return c
}

// New makes the certificates for the time now, which is when they are tried,
// within an hour or so.
func New(t testing.TB, now time.Time) *Matrix {
	t.Helper()
	m := &maker{t, now}
	root, otherRoot := m.issue(nil, m.authority("root")), m.issue(nil, m.authority("other root"))
	stranger := m.issue(nil, m.authority("root")) // the same name, another key
	bundles := identity.BundleSet{}
	for name, r := range map[string]*signer{"td.example": root, "other.example": otherRoot, "evil.td.example": root} {
		td, err := identity.ParseTrustDomain(name)
		if err != nil {
			t.Fatal(err)
		}
		if bundles[td], err = identity.NewBundle([]*x509.Certificate{r.cert}, nil); err != nil {
			t.Fatal(err)
		}
	}
	matrix := &Matrix{Victim: pair(m.issue(root, m.leaf(VictimID))), Bundles: bundles}
	add := func(name string, rule identity.VerifyRule, c *tls.Certificate) {
		matrix.Cases = append(matrix.Cases, Case{Name: name, Certificate: c, Rule: rule})
	}
	byTLS := func(name string, c *tls.Certificate) {
		matrix.Cases = append(matrix.Cases, Case{Name: name, Certificate: c, Rule: identity.RuleParse, ByTLS: true})
	}
	direct := func(uri string, changes ...change) *tls.Certificate {
		return pair(m.issue(root, m.leaf(uri, changes...)))
	}
	under := func(uri string, changes ...change) *tls.Certificate {
		sub := m.issue(root, m.authority("sub", changes...))
		return pair(m.issue(sub, m.leaf(uri)), sub)
	}

	add("sound", "", direct(PeerID))
	add("sound under an intermediate", "", under(PeerID))
	add("sound with the root attached", "", pair(m.issue(root, m.leaf(PeerID)), root))
	add("sound within a constraint", "", under(PeerID, constrained([]string{"td.example"}, nil)))

	add("trust domain without a bundle", identity.RuleTrustDomain, direct("spiffe://nowhere.example/ns/a/sa/peer"))
	add("trust domain of another bundle", identity.RuleChain, direct("spiffe://other.example/ns/a/sa/peer"))
	add("root of another trust domain", identity.RuleChain, pair(m.issue(otherRoot, m.leaf(PeerID)), otherRoot))
	add("unknown root", identity.RuleChain, pair(m.issue(stranger, m.leaf(PeerID)), stranger))
	add("signs itself", identity.RuleChain, pair(m.issue(nil, m.leaf(PeerID))))
	sub := m.issue(root, m.authority("sub"))
	add("missing intermediate", identity.RuleChain, pair(m.issue(sub, m.leaf(PeerID))))
	workload := m.issue(root, m.leaf("spiffe://td.example/ns/a/sa/evil"))
	add("a workload signs", identity.RuleChain, pair(m.issue(workload, m.leaf(PeerID)), workload))
	add("an authority with a workload's ID signs", identity.RuleIssuer, under(PeerID, named(names{uris: []string{"spiffe://td.example/ns/a/sa/evil"}})))
	short := m.issue(root, m.authority("no authority below", func(c *x509.Certificate) { c.MaxPathLenZero = true }))
	below := m.issue(short, m.authority("below"))
	add("path length", identity.RulePathLength, pair(m.issue(below, m.leaf(PeerID)), below, short))

	add("two URI SANs", identity.RuleOneURI, direct("", named(names{uris: []string{PeerID, VictimID}})))
	add("the same URI SAN twice", identity.RuleOneURI, direct("", named(names{uris: []string{PeerID, PeerID}})))
	add("no SAN", identity.RuleOneURI, direct("", func(c *x509.Certificate) { c.ExtraExtensions = nil }))
	add("the ID as common name", identity.RuleOneURI, direct("", func(c *x509.Certificate) { c.ExtraExtensions, c.Subject.CommonName = nil, PeerID }))
	add("a DNS SAN only", identity.RuleOneURI, direct("", named(names{dns: []string{"td.example"}})))
	add("root path", identity.RuleRootPath, direct("spiffe://td.example"))
	for name, uri := range map[string]string{
		"root path with a slash": "spiffe://td.example/", "another scheme": "https://td.example/ns/a/sa/peer",
		"scheme in upper case": "SPIFFE://td.example/ns/a/sa/peer", "trust domain in upper case": "spiffe://TD.example/ns/a/sa/peer",
		"percent-encoded NUL": PeerID + "%00", "percent-encoded slash": "spiffe://td.example/ns/a%2Fsa/peer",
		"dot segments": "spiffe://td.example/ns/x/../a/sa/peer", "empty segment": "spiffe://td.example//ns/a/sa/peer",
		"fragment": PeerID + "#x", "query": PeerID + "?x", "port": "spiffe://td.example:1/ns/a/sa/peer", "user": "spiffe://x@td.example/ns/a/sa/peer",
		"too long": "spiffe://td.example/" + strings.Repeat("x", identity.MaxIDLength),
	} {
		add(name, identity.RuleID, direct(uri))
	}
	add("NUL in a DNS SAN", identity.RuleNameText, direct("", named(names{uris: []string{PeerID}, dns: []string{"bank.example\x00.evil.example"}})))
	add("a space", identity.RuleNameText, direct(PeerID+" x"))
	byTLS("NUL in the URI", direct(PeerID+"\x00.evil"))
	garbage := direct(PeerID)
	garbage.Certificate[0] = []byte{0x30, 0x03, 1, 2, 3}
	byTLS("garbage", garbage)

	add("CA:true", identity.RuleLeafCA, direct(PeerID, func(c *x509.Certificate) { c.IsCA = true }))
	add("no key usage", identity.RuleKeyUsage, direct(PeerID, usage(0)))
	add("keyCertSign", identity.RuleKeyUsage, direct(PeerID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign)))
	add("cRLSign", identity.RuleKeyUsage, direct(PeerID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCRLSign)))
	add("no digitalSignature", identity.RuleKeyUsage, direct(PeerID, usage(x509.KeyUsageKeyEncipherment)))
	add("code signing only", identity.RuleExtendedKeyUsage, direct(PeerID, extended(x509.ExtKeyUsageCodeSigning)))
	add("for servers only", identity.RuleExtendedKeyUsage, direct(PeerID, extended(x509.ExtKeyUsageServerAuth)))
	add("for clients only", identity.RuleExtendedKeyUsage, direct(PeerID, extended(x509.ExtKeyUsageClientAuth)))
	add("an authority for code signing", identity.RuleExtendedKeyUsage, under(PeerID, extended(x509.ExtKeyUsageCodeSigning)))
	add("unknown critical extension", identity.RuleCriticalExtension, direct(PeerID, func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
	}))

	add("expired", identity.RuleExpired, direct(PeerID, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }))
	add("expired authority", identity.RuleExpired, under(PeerID, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }))
	add("not yet valid", identity.RuleNotYetValid, direct(PeerID, func(c *x509.Certificate) { c.NotBefore = now.Add(2 * time.Hour) }))
	add("authority not yet valid", identity.RuleNotYetValid, under(PeerID, func(c *x509.Certificate) { c.NotBefore = now.Add(2 * time.Hour) }))

	// crypto/x509 lets a URI constraint speak for the domains below it too.
	add("constraint that admits the domains below", identity.RuleNameConstraints, under("spiffe://evil.td.example/ns/a/sa/peer", constrained([]string{"td.example"}, nil)))
	add("constraint on a parent domain", identity.RuleNameConstraints, under(PeerID, constrained([]string{"example"}, nil)))
	add("constraint on another domain", identity.RuleNameConstraints, under(PeerID, constrained([]string{"other.example"}, nil)))
	add("excluded domain", identity.RuleNameConstraints, under(PeerID, constrained(nil, []string{"td.example"})))
	add("excluded in upper case", identity.RuleNameConstraints, under(PeerID, constrained(nil, []string{"TD.Example"})))
	return matrix
}
