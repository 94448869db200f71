package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"time"
)

// External names the files, in PEM, of an issuing certificate that another authority
// has given out, as cert-manager or a company's own PKI writes them. Tick reads them
// again when they have changed; files that do not fit together (half of them written,
// say) leave the last good ones in force.
type External struct {
	// ChainFile has the issuing certificate first, then those between it and the root.
	// A root at its end is ignored.
	ChainFile string
	// KeyFile has the private key of the issuing certificate.
	KeyFile string
	// RootsFile has the roots to trust. To replace one, add the new root here, wait
	// for the longest life of a leaf, change chain and key, wait as long, and take the
	// old root out.
	RootsFile string
}

// loaded is the last good content of the files.
type loaded struct {
	sum [sha256.Size]byte
	set bool
}

func (c *CA) reload(ctx context.Context, now time.Time) error {
	x := c.opts.External
	var files [3][]byte
	h := sha256.New()
	for i, path := range []string{x.ChainFile, x.KeyFile, x.RootsFile} {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("external authority: %w", err)
		}
		files[i] = data
		fmt.Fprintf(h, "%d:", len(data))
		h.Write(data)
	}
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	if v := c.view.Load(); v != nil && v.blocked == nil && c.external.set && c.external.sum == sum {
		return nil
	}
	roots, err := parseCerts(files[2])
	if err != nil {
		return fmt.Errorf("external authority: %s: %w", x.RootsFile, err)
	}
	v, err := c.externalView(files[0], files[1], roots, now)
	if err != nil {
		return err
	}
	s := c.state
	if !slices.EqualFunc(s.roots, roots, (*x509.Certificate).Equal) {
		s = s.clone()
		s.roots = roots
		s.version++
		if err := c.commit(ctx, s); err != nil {
			return err
		}
	}
	v.state, v.bundle = s, c.bundle(s)
	c.external = loaded{sum: sum, set: true}
	c.show(v)
	c.opts.Log.Info("certificate authority: external issuer loaded", "authority", v.authority, "not_after", v.issuer.NotAfter, "bundle_version", s.version)
	return nil
}

// externalView proves that chain, key and roots make an issuer for the trust domain.
func (c *CA) externalView(chainPEM, keyPEM []byte, roots []*x509.Certificate, now time.Time) (*view, error) {
	x := c.opts.External
	chain, err := parseCerts(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("external authority: %s: %w", x.ChainFile, err)
	}
	issuer := chain[0]
	if !issuer.IsCA || issuer.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("external authority: %s: the first certificate may not sign certificates", x.ChainFile)
	}
	if bytes.Equal(issuer.RawSubject, issuer.RawIssuer) && issuer.CheckSignatureFrom(issuer) == nil {
		return nil, fmt.Errorf("external authority: %s: the first certificate is a root; it must be one that a root has signed", x.ChainFile)
	}
	for _, u := range issuer.URIs {
		if u.String() != c.td.IDString() {
			return nil, fmt.Errorf("external authority: %s: the issuing certificate is for %s, not for %s", x.ChainFile, u, c.td.IDString())
		}
	}
	pair, err := tls.X509KeyPair(chainPEM, keyPEM)
	if err != nil {
		// Neither the parser's text nor anything of the file: it is a key.
		return nil, fmt.Errorf("external authority: %s: not the private key of the first certificate in %s", x.KeyFile, x.ChainFile)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("external authority: %s: the key can not sign", x.KeyFile)
	}
	v := &view{issuer: issuer, key: key, authority: "external " + issuer.SerialNumber.Text(16)}
	for i, cert := range chain {
		if i > 0 && bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			continue
		}
		v.chain = append(v.chain, string(certsPEM([]*x509.Certificate{cert})))
		if i > 0 {
			v.above = append(v.above, cert)
		}
	}
	v.roots, v.middle = pool(roots), pool(append([]*x509.Certificate{issuer}, v.above...))
	if err := c.probe(v, now); err != nil {
		return nil, fmt.Errorf("external authority: what it issues does not verify against %s: %w", x.RootsFile, err)
	}
	return v, nil
}

// probe issues a leaf that nobody gets.
func (c *CA) probe(v *view, now time.Time) error {
	if err := v.ready(now); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t, err := c.leafTemplate(0)
	if err != nil {
		return err
	}
	t.URIs = []*url.URL{c.td.ID().URL().JoinPath("probe")}
	t.NotBefore, t.NotAfter = later(now.Add(-Backdate), v.issuer.NotBefore), earlier(now.Add(time.Minute), v.issuer.NotAfter)
	_, err = v.sign(t, key.Public(), now)
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		return errors.New("the chain does not end at one of the roots")
	}
	return err
}
