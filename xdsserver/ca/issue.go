package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

// maxCSR bounds a certificate request in PEM; one for RSA with 4096 bits has under 2 KiB.
const maxCSR = 16 << 10

// Caller is who asks, as an Authenticator has established it.
type Caller struct {
	// ID is the SPIFFE ID that the certificate will name.
	ID string
	// Method is how the caller was authenticated ("join token", "mtls", ...), for the log.
	Method string
	// Confirm, where set, is called once, when the request has been found valid and
	// before anything is signed: it uses a credential up. An error refuses.
	Confirm func(context.Context) error
}

// SVID is an issued certificate.
type SVID struct {
	// Chain is in PEM, one certificate each: the leaf, then the issuers, without the root.
	Chain []string
	Leaf  *x509.Certificate
	// Bundle has the roots that were to be trusted when it was issued.
	Bundle Bundle
}

// Issue signs the public key of a PKCS #10 certificate request (PEM) for a caller.
//
// The certificate names the caller's ID, as its only URI, and nothing from the request.
// It is for client and server (extended key usage), for digital signatures, and no
// authority. It is valid from Backdate ago until ttl from now, or where ttl is 0, until
// Options.WorkloadTTL from now; never beyond Options.MaxTTL or the issuer's own end.
//
// Keys may be ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits. Ed25519 is refused,
// because many TLS peers (Envoy's among them) do not accept it by default.
//
// Errors are ErrRequest, ErrDenied, ErrLimited, ErrUnavailable, what Caller.Confirm
// returns, or the context's.
func (c *CA) Issue(ctx context.Context, who Caller, csrPEM []byte, ttl time.Duration) (*SVID, error) {
	svid, err := c.issue(ctx, who, csrPEM, ttl)
	if err != nil {
		err = redact(ctx, err)
		c.counts.refused(err)
		c.opts.Log.Warn("certificate refused", "identity", who.ID, "method", who.Method, "reason", err)
		return nil, err
	}
	return svid, nil
}

func (c *CA) issue(ctx context.Context, who Caller, csrPEM []byte, ttl time.Duration) (*SVID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id, err := workloadID(c.td, who.ID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if c.opts.Admit != nil {
		if err := c.opts.Admit(ctx, who); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	if !c.limit.allow(who.ID, c.opts.Clock()) {
		return nil, ErrLimited
	}
	public, err := parseCSR(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	t, err := c.leafTemplate(ttl)
	if err != nil {
		return nil, err
	}
	t.URIs = []*url.URL{id.URL()}
	if err := c.view.Load().ready(c.opts.Clock()); err != nil {
		return nil, err // before the credential is used up
	}
	if who.Confirm != nil {
		if err := who.Confirm(ctx); err != nil {
			return nil, err
		}
	}
	return c.signLeaf(t, public, ttl, who)
}

// ServerCertificate makes a key and a certificate for the management server itself. It
// names the given path in the trust domain ("/sinew/xdsserver") and, for clients that
// know the server by its address only, DNS names and IP addresses. ttl is as in Issue.
// Renew it at half of its life.
//
// The chain ends with the roots of the bundle, the one that signs first: a workload that
// has only pinned a root's Fingerprint can not recognise the server without seeing it.
func (c *CA) ServerCertificate(path string, hosts []string, ttl time.Duration) (*tls.Certificate, error) {
	id, err := workloadID(c.td, c.td.IDString()+path)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := c.leafTemplate(ttl)
	if err != nil {
		return nil, err
	}
	t.URIs = []*url.URL{id.URL()}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	svid, err := c.signLeaf(t, key.Public(), ttl, Caller{ID: id.String(), Method: "the server itself"})
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: svid.Leaf}
	for _, p := range svid.Chain {
		block, _ := pem.Decode([]byte(p))
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	for _, root := range svid.Bundle.Roots {
		cert.Certificate = append(cert.Certificate, root.Raw)
	}
	return cert, nil
}

func (c *CA) leafTemplate(ttl time.Duration) (*x509.Certificate, error) {
	if ttl < 0 || ttl > 0 && ttl < time.Second {
		return nil, fmt.Errorf("%w: a validity of %v is shorter than a second", ErrRequest, ttl)
	}
	serial, err := newSerial(c.opts.Random)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	// No subject: the URI is the name, and being alone makes its extension critical
	// (RFC 5280, section 4.2.1.6).
	return &x509.Certificate{
		SerialNumber:          serial,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, nil
}

// ready is an error where the view can not sign at a time.
func (v *view) ready(now time.Time) error {
	switch {
	case v.blocked != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, v.blocked)
	case !now.Before(v.issuer.NotAfter):
		return fmt.Errorf("%w: the issuing certificate expired at %s", ErrUnavailable, v.issuer.NotAfter.Format(time.RFC3339))
	case now.Before(v.issuer.NotBefore):
		return fmt.Errorf("%w: by this clock the issuing certificate is valid only from %s", ErrUnavailable, v.issuer.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func (c *CA) signLeaf(t *x509.Certificate, public crypto.PublicKey, ttl time.Duration, who Caller) (*SVID, error) {
	v, now := c.view.Load(), c.opts.Clock()
	if err := v.ready(now); err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = c.opts.WorkloadTTL
	}
	t.NotBefore = later(now.Add(-Backdate), v.issuer.NotBefore)
	t.NotAfter = earlier(now.Add(min(ttl, c.opts.MaxTTL)), v.issuer.NotAfter)
	leaf, err := v.sign(t, public, now)
	if err != nil {
		// The text of a key manager's error stays in the log of the server.
		c.opts.Log.Error("certificate authority: signing failed", "authority", v.authority, "error", err)
		return nil, fmt.Errorf("%w: signing failed", ErrUnavailable)
	}
	c.counts.issued(who.Method, now)
	c.opts.Log.Info("certificate issued",
		"identity", who.ID, "method", who.Method, "serial", leaf.SerialNumber.Text(16),
		"not_after", leaf.NotAfter, "sha256", Fingerprint(leaf), "authority", v.authority)
	return &SVID{Chain: append([]string{string(certsPEM([]*x509.Certificate{leaf}))}, v.chain...), Leaf: leaf, Bundle: v.bundle}, nil
}

// sign also verifies the result as a peer will, so that what does not verify (by the
// constraints of an external root, say) is never given out.
func (v *view) sign(t *x509.Certificate, public crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	leaf, err := sign(t, v.issuer, public, v.key)
	if err != nil {
		return nil, err
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: v.middle, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return leaf, err
}

// parseCSR gives the public key whose private half has signed the request.
func parseCSR(data []byte) (crypto.PublicKey, error) {
	if len(data) > maxCSR {
		return nil, fmt.Errorf("the CSR is longer than %d bytes", maxCSR)
	}
	data = bytes.TrimSpace(data)
	if !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		return nil, errors.New("the CSR is not PEM")
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, errors.New("the CSR is not PEM")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("the CSR's PEM block is not a CERTIFICATE REQUEST")
	}
	if len(rest) > 0 {
		return nil, errors.New("there is something after the CSR")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("the CSR is not PKCS #10, or malformed")
	}
	// Before the signature: checking one by a huge key would be slow.
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	switch csr.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1:
		return nil, errors.New("the CSR is signed with SHA-1")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("the CSR's signature is not by its key")
	}
	return csr.PublicKey, nil
}

// checkKey is an error for a key that no certificate is issued for.
func checkKey(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return errors.New("the ECDSA key is on neither P-256 nor P-384")
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
			return fmt.Errorf("the RSA key has %d bits, not 2048 to 4096", bits)
		}
		if key.E < 65537 {
			return errors.New("the RSA key's exponent is below 65537")
		}
	default:
		return errors.New("the key is neither ECDSA P-256 or P-384 nor RSA")
	}
	return nil
}
