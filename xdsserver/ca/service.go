package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// ErrNoCredential: the request carries no credential of the kind that an Authenticator
// knows; the next one is asked.
var ErrNoCredential = errors.New("no credential of this kind")

// Authenticator establishes who sends a request, from what its context carries: the
// metadata (BearerToken) and the peer.
type Authenticator interface {
	// Authenticate gives the caller. ErrNoCredential passes the request on to the
	// next; ErrUnauthenticated, ErrDenied and ErrUnavailable refuse it, and any other
	// error is taken for ErrUnauthenticated. The text goes to the log and to the
	// caller; a bearer token in it is replaced.
	Authenticate(ctx context.Context) (Caller, error)
}

// Service is istio.v1.auth.IstioCertificateService: Istio's own agents, and workloads of
// this mesh, get their certificates from it. Callers authenticate by a join token or
// another bearer token that an Authenticator knows, or without one by the certificate
// of their TLS connection, which renews it for the same identity.
//
// The answer's chain has the leaf, then its issuers, one certificate each, and last all
// roots of the bundle in one string, the signing one first, as istiod sends them.
type Service struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	ca   *CA
	auth []Authenticator
}

// NewService serves an authority. Join tokens are asked first, then the given
// authenticators, then the connection's certificate.
func NewService(c *CA, more ...Authenticator) *Service {
	auth := append([]Authenticator{joinTokens{c.tokens}}, more...)
	return &Service{ca: c, auth: append(auth, peerCertificate{c})}
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	securityv1alpha1.RegisterIstioCertificateServiceServer(r, s)
}

// CreateCertificate implements the service. A validity_duration (in seconds) of 0 is
// Options.WorkloadTTL, a longer one than Options.MaxTTL is shortened. The codes:
// Unauthenticated, PermissionDenied, ResourceExhausted, InvalidArgument, Unavailable.
func (s *Service) CreateCertificate(ctx context.Context, r *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		err = redact(ctx, err)
		s.ca.counts.refused(err)
		addr := "unknown"
		if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
			addr = p.Addr.String()
		}
		s.ca.opts.Log.Warn("certificate refused", "peer", addr, "reason", err)
		return nil, grpcError(err)
	}
	ttl := s.ca.opts.MaxTTL
	if seconds := r.GetValidityDuration(); seconds < int64(ttl/time.Second) { // so that it can not overflow
		ttl = time.Duration(max(seconds, -1)) * time.Second
	}
	svid, err := s.ca.Issue(ctx, who, []byte(r.GetCsr()), ttl)
	if err != nil {
		return nil, grpcError(err)
	}
	return &securityv1alpha1.IstioCertificateResponse{CertChain: append(svid.Chain, string(svid.Bundle.PEM()))}, nil
}

func (s *Service) authenticate(ctx context.Context) (Caller, error) {
	for _, a := range s.auth {
		who, err := a.Authenticate(ctx)
		switch {
		case err == nil:
			return who, nil
		case errors.Is(err, ErrNoCredential):
			continue
		case errors.Is(err, ErrUnauthenticated), errors.Is(err, ErrDenied), errors.Is(err, ErrUnavailable):
			return Caller{}, err
		case ctx.Err() != nil:
			return Caller{}, ctx.Err()
		}
		return Caller{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	return Caller{}, fmt.Errorf("%w: send a join token, or another bearer token that this server knows, or use mTLS", ErrUnauthenticated)
}

func grpcError(err error) error {
	switch {
	case errors.Is(err, ErrRequest):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, ErrUnauthenticated):
		return status.Error(codes.Unauthenticated, err.Error())
	case errors.Is(err, ErrDenied):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, ErrLimited):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, ErrUnavailable):
		// The cause may name files and keys; it is in the server's log.
		return status.Error(codes.Unavailable, ErrUnavailable.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, "certificate not issued")
}

// redacted is an error whose text has lost the bearer token.
type redacted struct {
	error
	text string
}

func (e redacted) Error() string { return e.text }
func (e redacted) Unwrap() error { return e.error }

func redact(ctx context.Context, err error) error {
	text := err.Error()
	for _, value := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		if _, token, ok := strings.Cut(value, " "); ok && token != "" {
			value = token
		}
		if value != "" {
			text = strings.ReplaceAll(text, value, "[bearer token]")
		}
	}
	if text == err.Error() {
		return err
	}
	return redacted{err, text}
}

// BearerToken gives the token in a request's authorization metadata. The error is
// ErrNoCredential where there is none, and ErrUnauthenticated where there are several or
// where it came neither over TLS nor over loopback: others may have read it.
func BearerToken(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return "", ErrNoCredential
	}
	if len(values) > 1 {
		return "", fmt.Errorf("%w: more than one authorization header", ErrUnauthenticated)
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", fmt.Errorf("%w: the authorization header is not a bearer token", ErrUnauthenticated)
	}
	if !private(ctx) {
		return "", fmt.Errorf("%w: a bearer token is accepted over TLS only", ErrUnauthenticated)
	}
	return token, nil
}

// private: nobody on the network between has read the request.
func private(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	if info, ok := p.AuthInfo.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	}); ok && info.GetCommonAuthInfo().SecurityLevel == credentials.PrivacyAndIntegrity {
		return true
	}
	switch addr := p.Addr.(type) {
	case *net.TCPAddr:
		return addr.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// joinTokens authenticates by a bearer token of this package's form.
type joinTokens struct{ tokens *Tokens }

func (j joinTokens) Authenticate(ctx context.Context) (Caller, error) {
	token, err := BearerToken(ctx)
	if err != nil {
		return Caller{}, err
	}
	if !strings.HasPrefix(token, tokenPrefix) {
		return Caller{}, ErrNoCredential
	}
	return j.tokens.Caller(token)
}

// peerCertificate authenticates by the certificate of the connection, for the identity
// in it. It verifies for itself, so that a server that only asks for certificates, and
// a bundle that has changed since the handshake, open no way in.
type peerCertificate struct{ ca *CA }

func (a peerCertificate) Authenticate(ctx context.Context) (Caller, error) {
	// A bearer token that nobody knows is not overlooked.
	if len(metadata.ValueFromIncomingContext(ctx, "authorization")) > 0 {
		return Caller{}, ErrNoCredential
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, ErrNoCredential
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return Caller{}, ErrNoCredential
	}
	id, err := a.ca.peerID(info.State.PeerCertificates)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: the certificate of the connection: %w", ErrUnauthenticated, err)
	}
	return Caller{ID: id, Method: "mtls"}, nil
}

// peerID verifies an SVID of this trust domain (X509-SVID, section 5).
func (c *CA) peerID(certs []*x509.Certificate) (string, error) {
	leaf, v := certs[0], c.view.Load()
	switch {
	case leaf.IsCA:
		return "", errors.New("is that of an authority")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "", errors.New("is not for digital signatures")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", errors.New("may sign certificates")
	case len(leaf.URIs) != 1:
		return "", fmt.Errorf("has %d URIs, not one", len(leaf.URIs))
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: pool(certs[1:]), CurrentTime: c.opts.Clock(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return "", err
	}
	id, err := workloadID(c.td, leaf.URIs[0].String())
	if err != nil {
		return "", err
	}
	return id.String(), nil
}
