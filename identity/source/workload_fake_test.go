package source

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/journal"
)

// fakeWorkloadAPI serves whatever it is told to, over pipes or a socket.
type fakeWorkloadAPI struct {
	workloadpb.UnimplementedSpiffeWorkloadAPIServer
	t     testing.TB
	conns chan net.Conn
	done  chan struct{}

	mu      sync.Mutex
	x509    *workloadpb.X509SVIDResponse
	bundles *workloadpb.JWTBundlesResponse
	err     error // ends each stream
	down    bool
	changed chan struct{}
	dials   []time.Time
	key     *ecdsa.PrivateKey // signs tokens
	server  *grpc.Server
}

func newFakeWorkloadAPI(t testing.TB) *fakeWorkloadAPI {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeWorkloadAPI{t: t, conns: make(chan net.Conn), done: make(chan struct{}), changed: make(chan struct{}), key: key, server: grpc.NewServer()}
	workloadpb.RegisterSpiffeWorkloadAPIServer(f.server, f)
	return f
}

func (f *fakeWorkloadAPI) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeWorkloadAPI) state() (*workloadpb.X509SVIDResponse, *workloadpb.JWTBundlesResponse, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.x509, f.bundles, f.changed, f.err
}

func (f *fakeWorkloadAPI) authorise(ctx context.Context) error {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("workload.spiffe.io")) != 1 || md.Get("workload.spiffe.io")[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

func (f *fakeWorkloadAPI) FetchX509SVID(_ *workloadpb.X509SVIDRequest, s workloadpb.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := f.authorise(s.Context()); err != nil {
		f.t.Error(err)
		return err
	}
	var sent *workloadpb.X509SVIDResponse
	for {
		r, _, changed, err := f.state()
		if err != nil {
			return err
		}
		if r != nil && r != sent {
			if err := s.Send(r); err != nil {
				return err
			}
			sent = r
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (f *fakeWorkloadAPI) FetchJWTBundles(_ *workloadpb.JWTBundlesRequest, s workloadpb.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	if err := f.authorise(s.Context()); err != nil {
		return err
	}
	var sent *workloadpb.JWTBundlesResponse
	for {
		_, r, changed, err := f.state()
		if err != nil {
			return err
		}
		if r != nil && r != sent {
			if err := s.Send(r); err != nil {
				return err
			}
			sent = r
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (f *fakeWorkloadAPI) FetchJWTSVID(ctx context.Context, r *workloadpb.JWTSVIDRequest) (*workloadpb.JWTSVIDResponse, error) {
	if err := f.authorise(ctx); err != nil {
		return nil, err
	}
	id := r.GetSpiffeId()
	if id == "" {
		id = workloadID
	}
	return &workloadpb.JWTSVIDResponse{Svids: []*workloadpb.JWTSVID{{SpiffeId: id, Svid: f.token(id, time.Hour, r.GetAudience()...)}}}, nil
}

// token signs a token as the API's server does.
func (f *fakeWorkloadAPI) token(id string, validity time.Duration, audience ...string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: f.key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "k"))
	if err != nil {
		f.t.Error(err)
		return ""
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: id, Audience: audience, Expiry: jwt.NewNumericDate(time.Now().Add(validity)), IssuedAt: jwt.NewNumericDate(time.Now())}).Serialize()
	if err != nil {
		f.t.Error(err)
	}
	return token
}

func (f *fakeWorkloadAPI) keySet() []byte {
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: f.key.Public(), KeyID: "k", Use: "jwt-svid"}}})
	if err != nil {
		f.t.Error(err)
	}
	return b
}

func (f *fakeWorkloadAPI) dial(ctx context.Context, _ string) (net.Conn, error) {
	f.mu.Lock()
	down := f.down
	f.dials = append(f.dials, time.Now())
	f.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	select {
	case f.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fakeWorkloadAPI) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *fakeWorkloadAPI) Close() error {
	select {
	case <-f.done:
	default:
		close(f.done)
	}
	return nil
}

func (f *fakeWorkloadAPI) Addr() net.Addr { return &net.UnixAddr{} }

func (s *signed) keyDER(t testing.TB) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// offer is one identity as a message holds it.
func offer(t testing.TB, root, s *signed, id, hint string) *workloadpb.X509SVID {
	return &workloadpb.X509SVID{SpiffeId: id, X509Svid: s.cert.Raw, X509SvidKey: s.keyDER(t), Bundle: root.cert.Raw, Hint: hint}
}

// withWorkloadAPI runs f in virtual time.
func withWorkloadAPI(t *testing.T, config WorkloadAPIConfig, prepare func(*testing.T, *fakeWorkloadAPI, *signed), f func(*testing.T, *fakeWorkloadAPI, *signed, *WorkloadAPI)) {
	log := &journal.Journal{}
	synctest.Test(t, func(t *testing.T) {
		api := newFakeWorkloadAPI(t)
		go func() { _ = api.server.Serve(api) }()
		root := sign(t, rootTemplate("root"), nil, nil)
		prepare(t, api, root)
		config.Socket, config.Dial = "unix:///run/spire/agent.sock", api.dial
		w, err := NewWorkloadAPI(config, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f(t, api, root, w)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		api.server.Stop()
		synctest.Wait()
	})
	if text := log.String(); strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "eyJ") {
		t.Errorf("the log holds a secret:\n%s", text)
	}
}

func one(validity time.Duration) func(*testing.T, *fakeWorkloadAPI, *signed) {
	return func(t *testing.T, f *fakeWorkloadAPI, root *signed) {
		f.x509 = &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{offer(t, root, workload(t, root, workloadID, validity), workloadID, "")}}
	}
}
