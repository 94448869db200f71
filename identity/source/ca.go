package source

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/identity"
)

// Dialer connects to an address.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

const (
	// A certificate is renewed at half of its validity, within this part of it
	// to either side, so that processes that started together do not ask together.
	renewJitter = 0.05
	// The pause between attempts grows from firstRetry up to maxRetry.
	firstRetry = time.Second
	maxRetry   = 150 * time.Second
	// One attempt: connect, handshake and answer.
	attemptTimeout = 20 * time.Second
	// How often RootsFile is read.
	rootsInterval = time.Minute
	maxToken      = 64 << 10
	// The member of the metadata that names the cluster (Istio's multi-cluster setup).
	clusterID = "ClusterID"
)

// CA is a source that asks a certificate authority by signing request, over
// Istio's certificate service: xdsserver's own and istiod speak it. Each
// request has a key of its own, ECDSA P-256, which never leaves the process.
//
// The certificate is renewed at half of its validity. While the authority can
// not be reached the old one stays in force and the request is repeated after
// at most 150 s; when the certificate expires Current becomes an error.
type CA struct {
	state
	config CAConfig
	log    *slog.Logger

	// Of the goroutine that renews.
	learned []*x509.Certificate // roots that a recognised authority sent
	pinned  []byte              // the roots file as it was read last
	proof   *tls.Certificate    // a certificate to ask for the next one with

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewCA starts to ask for a certificate and returns at once: Current is an
// error until the first one has come. log may be nil.
func NewCA(config CAConfig, log *slog.Logger) (*CA, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &CA{state: newState("CA"), config: config, log: logger(log), cancel: cancel}
	c.done.Go(func() { c.run(ctx) })
	return c, nil
}

// Close implements Source.
func (c *CA) Close() error {
	c.cancel()
	c.done.Wait()
	return nil
}

func (c *CA) run(ctx context.Context) {
	retry := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstRetry), backoff.WithMultiplier(2), backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxInterval(maxRetry*2/3), // half more by chance is maxRetry
		backoff.WithMaxElapsedTime(0),
	)
	wait := c.restore()
	for {
		if !c.waitAndWatch(ctx, wait) {
			return
		}
		m, err := c.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.failed(err)
			wait = retry.NextBackOff()
			c.log.Warn("no new certificate, asking again", "authority", c.config.Address, "in", wait, "error", err)
		default:
			retry.Reset()
			c.publish(m)
			wait = renewAfter(m.Certificate.Leaf, time.Now(), rand.Float64())
			c.log.Info("certificate issued", "id", m.ID.String(), "serial", m.Certificate.Leaf.SerialNumber.Text(16), "not_after", m.NotAfter, "renewal_in", wait)
		}
	}
}

// waitAndWatch waits for the time of the next request and, in the meantime,
// announces expiry and takes up changes of the roots file.
func (c *CA) waitAndWatch(ctx context.Context, wait time.Duration) bool {
	c.nextAttempt(time.Now().Add(wait))
	for c.config.RootsFile != "" && wait > rootsInterval {
		if !c.sleep(ctx, rootsInterval) {
			return false
		}
		wait -= rootsInterval
		c.refreshRoots()
	}
	return c.sleep(ctx, wait)
}

// refreshRoots puts the roots file's content in force beside the current certificate.
func (c *CA) refreshRoots() {
	b, err := readFile(c.config.RootsFile)
	if err == nil && bytes.Equal(b, c.pinned) {
		return
	}
	current, notReady := c.Current()
	if notReady != nil {
		return
	}
	if err == nil {
		_, err = parseRoots(b)
	}
	var bundles identity.BundleSet
	if err == nil {
		bundles, err = c.bundles(current.ID)
	}
	if err != nil {
		c.log.Warn("the roots file is not sound, the last sound roots stay in force", "error", err)
		return
	}
	next := *current
	next.Bundles, next.Roots = bundles, pool(bundles[current.ID.TrustDomain()].Roots())
	c.publish(&next)
	c.log.Info("trust bundle read", "file", c.config.RootsFile, "roots", len(bundles[current.ID.TrustDomain()].Roots()))
}

// renewAfter returns how long a certificate is used before the next one is
// asked for: half of what is left of it, or of its validity if that is less,
// with jitter. What is left counts from now, so that neither backdating nor a
// clock that differs from the authority's moves the renewal past expiry. draw is in [0, 1).
func renewAfter(leaf *x509.Certificate, now time.Time, draw float64) time.Duration {
	life := min(leaf.NotAfter.Sub(leaf.NotBefore), leaf.NotAfter.Sub(now))
	if life <= 0 {
		return firstRetry
	}
	share := 0.5 + renewJitter*(2*draw-1)
	return max(time.Duration(share*float64(life)), firstRetry)
}

// renew asks for one certificate.
func (c *CA) renew(ctx context.Context) (*Material, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	request, err := c.request(key)
	if err != nil {
		return nil, err
	}
	response, err := c.call(ctx, request)
	if err != nil {
		return nil, err
	}
	m, err := c.accept(response, key)
	if err != nil {
		return nil, fmt.Errorf("authority %s: the answer is refused: %w", c.config.Address, err)
	}
	c.proof = m.Certificate
	if err := c.save(m); err != nil {
		// The certificate is sound; only the next start is in danger.
		c.log.Error("the certificate can not be kept for the next start", "file", c.config.StateFile, "error", err)
	}
	return m, nil
}

func (c *CA) request(key *ecdsa.PrivateKey) (*certificateRequest, error) {
	template := &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}
	if id := c.expectedID(); !id.IsZero() {
		u, err := url.Parse(id.String())
		if err != nil {
			return nil, err
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificateRequest(cryptorand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	r := &certificateRequest{
		csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		validityDuration: int64(c.config.TTL / time.Second),
	}
	if len(c.config.Metadata) > 0 {
		r.metadata = &structpb.Struct{Fields: make(map[string]*structpb.Value)}
		for k, v := range c.config.Metadata {
			r.metadata.Fields[k] = structpb.NewStringValue(v)
		}
	}
	return r, nil
}

// expectedID is the identity that a certificate must have, zero for the first
// one where none is configured.
func (c *CA) expectedID() identity.ID {
	if !c.config.ID.IsZero() || c.proof == nil {
		return c.config.ID
	}
	id, _ := identity.SVIDID([]*x509.Certificate{c.proof.Leaf})
	return id
}

// call sends the request. The connection is made anew for each: it is needed
// once in half a certificate's life, with another certificate each time.
func (c *CA) call(ctx context.Context, request *certificateRequest) (*certificateResponse, error) {
	proof := c.usableProof()
	token, err := c.token(proof != nil)
	if err != nil {
		return nil, err
	}
	roots, err := c.trusted()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		ServerName:             c.config.ServerName,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection does it, by fingerprint and SPIFFE ID too
		VerifyConnection:       func(cs tls.ConnectionState) error { return c.verifyAuthority(cs, roots) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if proof == nil {
				return &tls.Certificate{}, nil
			}
			return proof, nil
		},
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(certificateCodec{}), grpc.MaxCallRecvMsgSize(maxFileSize)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	}
	target := c.config.Address
	if c.config.Dial != nil {
		target = "passthrough:///" + target
		options = append(options, grpc.WithContextDialer(c.config.Dial))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", c.config.Address, err)
	}
	defer conn.Close()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	if cluster := c.config.Metadata[clusterID]; cluster != "" {
		// istiod reads it of the call, to know whose API server reviews the token.
		ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(clusterID), cluster)
	}
	response := &certificateResponse{}
	if err := conn.Invoke(ctx, createCertificate, request, response); err != nil {
		text := err.Error()
		if token != "" {
			// An authority may repeat what it was sent.
			text = strings.ReplaceAll(text, token, "[token]")
		}
		return nil, fmt.Errorf("authority %s: %s", c.config.Address, text)
	}
	return response, nil
}

// usableProof is the certificate to renew with; nil where there is none that is valid.
func (c *CA) usableProof() *tls.Certificate {
	if c.proof == nil || !time.Now().Before(c.proof.Leaf.NotAfter) {
		return nil
	}
	return c.proof
}

// token returns the token to send, "" where the current certificate is proof enough.
func (c *CA) token(haveProof bool) (string, error) {
	switch {
	case c.config.TokenFile != "":
		return readToken(c.config.TokenFile, false)
	case haveProof:
		return "", nil
	case c.config.JoinTokenFile != "":
		return readToken(c.config.JoinTokenFile, true)
	default:
		return "", errors.New("there is neither a token nor a valid certificate to ask with")
	}
}

// readToken reads a token; private asks that only its owner may read the file.
func readToken(path string, private bool) (string, error) {
	if private {
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("join token: %w", err)
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return "", fmt.Errorf("join token: %s has mode %04o: others than its owner may read or write it, it must be 0600", path, mode)
		}
	}
	b, err := readFile(path)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	switch {
	case token == "":
		return "", fmt.Errorf("token: %s is empty", path)
	case len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("token: %s holds something else than one token", path)
	}
	return token, nil
}

// trusted returns the roots that the authority's certificate may lead to: the
// configured ones and those that it has announced itself before.
func (c *CA) trusted() ([]*x509.Certificate, error) {
	roots, err := c.configured()
	return append(roots, c.learned...), err
}

func (c *CA) configured() ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	if len(c.config.RootsPEM) > 0 {
		r, err := parseRoots(c.config.RootsPEM)
		if err != nil {
			return nil, err
		}
		roots = append(roots, r...)
	}
	if c.config.RootsFile != "" {
		b, err := readFile(c.config.RootsFile)
		var r []*x509.Certificate
		if err == nil {
			r, err = parseRoots(b)
		}
		if err != nil {
			if c.pinned == nil {
				return nil, fmt.Errorf("roots: %s: %w", c.config.RootsFile, err)
			}
			// A file in the middle of a change: what it said last holds.
			r, _ = parseRoots(c.pinned)
		} else {
			c.pinned = b
		}
		roots = append(roots, r...)
	}
	return roots, nil
}

// verifyAuthority recognises the authority before anything is sent to it.
func (c *CA) verifyAuthority(cs tls.ConnectionState, roots []*x509.Certificate) error {
	if len(cs.PeerCertificates) == 0 {
		return &identity.VerifyError{Rule: identity.RulePresent, Detail: "the authority presented no certificate"}
	}
	// A pinned root is sent along, since only its hash is known here.
	if want := c.config.fingerprint(); want != nil {
		for _, cert := range cs.PeerCertificates {
			sum := sha256.Sum256(cert.Raw)
			if cert.IsCA && subtle.ConstantTimeCompare(sum[:], want) == 1 {
				roots = append(roots[:len(roots):len(roots)], cert)
			}
		}
	}
	if len(roots) == 0 {
		return &identity.VerifyError{Rule: identity.RuleChain, Detail: "the authority's chain holds no certificate with the pinned fingerprint"}
	}
	if id := c.config.ServerID; !id.IsZero() {
		bundle, err := identity.NewBundle(roots, nil)
		if err != nil {
			return err
		}
		got, err := identity.VerifySVID(cs.PeerCertificates, identity.BundleSet{id.TrustDomain(): bundle}, time.Now(), identity.UsageServer)
		if err != nil {
			return err
		}
		if err := identity.OneOf(id)(got); err != nil {
			return &identity.VerifyError{Rule: identity.RulePeerID, Subject: got.String(), Detail: err.Error()}
		}
		return nil
	}
	intermediates := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		DNSName: c.config.ServerName, Roots: pool(roots), Intermediates: intermediates, CurrentTime: time.Now(),
	})
	if err != nil {
		return &identity.VerifyError{Rule: identity.RuleChain, Subject: c.config.ServerName, Detail: err.Error(), Err: err}
	}
	return nil
}

func pool(roots []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, r := range roots {
		p.AddCert(r)
	}
	return p
}

// accept makes material of the authority's answer, after holding it to what
// every peer will hold it to.
func (c *CA) accept(r *certificateResponse, key *ecdsa.PrivateKey) (*Material, error) {
	certs, err := parsePEM([]byte(strings.Join(r.certChain, "\n")))
	if err != nil {
		return nil, err
	}
	return c.check(certs, key)
}

func (c *CA) check(certs []*x509.Certificate, key *ecdsa.PrivateKey) (*Material, error) {
	leaf := certs[0]
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		return nil, errors.New("the certificate is for another key than ours")
	}
	id, err := identity.SVIDID(certs)
	if err != nil {
		return nil, err
	}
	if want := c.expectedID(); !want.IsZero() && id != want {
		return nil, fmt.Errorf("the certificate is for %q, not for %q", id, want)
	}
	// The roots at the end stay with us: a peer has them or must not believe them.
	pair := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	learned := c.learned
	var fresh []*x509.Certificate
	for i, cert := range certs {
		if i > 0 && isRoot(cert) {
			fresh = append(fresh, cert)
			continue
		}
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	if len(fresh) > 0 {
		c.learned = fresh
	}
	bundles, err := c.bundles(id)
	if err != nil {
		c.learned = learned
		return nil, err
	}
	if _, err := identity.VerifySVID(certs, bundles, verifyAt(certs), identity.UsageAny); err != nil {
		c.learned = learned
		return nil, err
	}
	return &Material{Certificate: pair, ID: id, Bundles: bundles, Roots: pool(bundles[id.TrustDomain()].Roots()), NotAfter: leaf.NotAfter}, nil
}

// verifyAt is now, or the moment from which the whole chain is valid where our
// clock may only be behind the authority's.
func verifyAt(chain []*x509.Certificate) time.Time {
	at := time.Now()
	limit := at.Add(maxSkew)
	for _, cert := range chain {
		if cert.NotBefore.After(at) && cert.NotBefore.Before(limit) {
			at = cert.NotBefore
		}
	}
	return at
}

func isRoot(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// bundles is what peers are verified with: the roots that the authority
// announced, and the configured ones, under the trust domain of our own ID.
func (c *CA) bundles(id identity.ID) (identity.BundleSet, error) {
	roots, err := c.trusted()
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, errors.New("the authority sent no root certificate, and none is configured")
	}
	b, err := identity.NewBundle(roots, nil)
	if err != nil {
		return nil, err
	}
	set := identity.BundleSet{id.TrustDomain(): b}
	for _, td := range c.config.TrustDomains {
		set[td] = b
	}
	return set, nil
}
