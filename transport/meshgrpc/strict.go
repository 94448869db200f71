package meshgrpc

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// strictCredentials are gRPC's xDS credentials with the mesh's verification of
// X509-SVIDs after gRPC's own, which lets some pass that the standard refuses:
// an ID without a path, a certificate authority as a server, a key that may not
// sign, an extended key usage for one side only, a workload that signs for others.
type strictCredentials struct {
	credentials.TransportCredentials // of google.golang.org/grpc/credentials/xds
	// providers are those that policy may name, by the bootstrap.
	providers func() map[string]bootstrap.CertificateProvider
}

// ClientHandshake implements credentials.TransportCredentials.
func (s *strictCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, made := withKind(ctx)
	conn, info, err := s.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil || made.plain {
		return conn, info, err
	}
	secure, ok := info.(credentials.TLSInfo)
	if !ok {
		err = fmt.Errorf("mesh: gRPC's xDS credentials describe a connection by %T", info)
	} else {
		err = s.verify(secure.State.PeerCertificates, time.Now())
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, info, nil
}

// verify holds a server's chain, which gRPC has accepted by the provider that
// policy names, to X509-SVID. The bundles are those of any provider, because
// gRPC does not say which it was. Providers of other packages' plugins can not be
// asked for theirs: then the rules for the leaf alone must do. A server whose
// certificate has no SPIFFE ID is gRPC's to judge: with bundles it accepts none.
func (s *strictCredentials) verify(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 || !hasSPIFFE(chain[0]) {
		return nil
	}
	var refused error
	foreign := false
	for _, p := range s.providers() {
		bundles, err := bundlesOf(p)
		if errors.Is(err, errForeign) {
			foreign = true
			continue
		}
		if err == nil {
			if _, err = identity.VerifySVID(chain, bundles, now, identity.UsageServer); err == nil {
				return nil
			}
		}
		// Of several, the reason of a provider that knows the trust domain says most.
		var verify *identity.VerifyError
		if refused == nil || errors.As(err, &verify) && verify.Rule != identity.RuleTrustDomain {
			refused = err
		}
	}
	if refused == nil || foreign {
		_, err := identity.SVIDID(chain)
		return err
	}
	return refused
}

// hasSPIFFE reports whether the certificate claims a SPIFFE ID, in any spelling.
func hasSPIFFE(c *x509.Certificate) bool {
	for _, u := range c.URIs {
		if strings.EqualFold(u.Scheme, "spiffe") {
			return true
		}
	}
	return false
}

var errForeign = errors.New("a plugin of another package, or one without bundles")

// bundlesOf returns what a provider believes at present. gRPC holds the shared
// source open while the channel uses it, so that this opens nothing.
func bundlesOf(p bootstrap.CertificateProvider) (identity.BundleSet, error) {
	if source.Check(p.Plugin, p.Config) != nil {
		return nil, errForeign
	}
	src, err := source.Shared(p.Plugin, p.Config, nil)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	m, err := src.Current()
	if err != nil {
		return nil, err
	}
	if m.Bundles == nil {
		return nil, errForeign
	}
	return m.Bundles, nil
}

// Clone implements credentials.TransportCredentials.
func (s *strictCredentials) Clone() credentials.TransportCredentials {
	return &strictCredentials{s.TransportCredentials.Clone(), s.providers}
}

// UsesXDS tells gRPC's balancer to give the credentials what policy says.
func (*strictCredentials) UsesXDS() bool { return true }

// bootstrapProviders returns the certificate providers of a channel's bootstrap:
// the document's or, without one, the environment's. They are read when first asked for.
func bootstrapProviders(document []byte) func() map[string]bootstrap.CertificateProvider {
	return sync.OnceValue(func() map[string]bootstrap.CertificateProvider {
		var c *bootstrap.Config
		var err error
		switch {
		case document != nil:
			c, err = bootstrap.Parse(document)
		case environment.file != "":
			c, err = bootstrap.FromFile(environment.file)
		default:
			c, err = bootstrap.Parse([]byte(environment.content))
		}
		if err != nil {
			return nil // gRPC has taken it all the same: the rules for the leaf remain
		}
		return c.CertificateProviders
	})
}
