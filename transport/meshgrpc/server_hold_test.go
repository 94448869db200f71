package meshgrpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// TestServerHolds: an RPC takes a place until its handler returns, a stream for as
// long as it is open, and who finds none is refused as policy says.
func TestServerHolds(t *testing.T) {
	bounded := resilience.DefaultAdaptiveConcurrency
	bounded.MinConcurrency, bounded.MaxLimit, bounded.FixedMinRTT = 1, 1, time.Hour
	for _, tt := range []struct {
		name       string
		shedding   *inbound.Shedding
		chain      snapshot.FilterChain
		overloaded string
	}{
		{name: "shedding", shedding: &inbound.Shedding{MaxConcurrent: 1, MaxQueue: -1}, overloaded: "true"},
		{name: "adaptive concurrency", chain: snapshot.FilterChain{Concurrency: &bounded}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			var l journal.Journal
			e := inbound.New(inbound.Options{Subscribe: func(string) {}, Shedding: tt.shedding})
			b, conn := admitted(t, e, &l)
			e.Install(policy(b.address, &snapshot.Inbound{Plain: &tt.chain}))
			client, ctx := pb.NewTestServiceClient(conn), testContext(t)
			free := func(after string) {
				t.Helper()
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
					if _, err := client.UnaryCall(ctx, &pb.SimpleRequest{}); err == nil {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("after %s the place is not free", after)
					}
				}
			}
			for _, k := range kinds {
				if err := k.call(ctx, client); err != nil {
					t.Errorf("%s: %v", k.name, err)
				}
				free(k.name)
			}
			b.answer = func(context.Context, int64) error { return status.Error(codes.Internal, "no") }
			_, err := client.UnaryCall(ctx, &pb.SimpleRequest{})
			wantCode(t, err, codes.Internal)
			b.answer = nil
			free("an error")

			open, cancel := context.WithCancel(ctx)
			stream, err := client.FullDuplexCall(open)
			if err == nil {
				if err = stream.Send(&pb.StreamingOutputCallRequest{}); err == nil {
					_, err = stream.Recv()
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			var header metadata.MD
			_, err = client.UnaryCall(ctx, &pb.SimpleRequest{}, grpc.Header(&header))
			wantCode(t, err, codes.Unavailable)
			if got := strings.Join(header["x-envoy-overloaded"], ","); got != tt.overloaded {
				t.Errorf("x-envoy-overloaded %q, want %q", got, tt.overloaded)
			}
			if strings.Contains(l.String(), "refused") {
				t.Error("each of many refusals is logged")
			}
			cancel()
			free("a stream whose caller has gone")
		})
	}
}

// TestServerDeadline: an RPC whose time is up when it comes to its turn reaches no handler.
func TestServerDeadline(t *testing.T) {
	leak.Check(t)
	var l journal.Journal
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	b, _ := admitted(t, e, &l)
	e.Install(policy(b.address, open()))
	send := rawClient(t, b.address)
	if code := send(call{path: protected, headers: [][2]string{{"grpc-timeout", "0n"}}}); code != codes.DeadlineExceeded || b.calls.Load() != 0 {
		t.Errorf("no time at all: %v, %d calls", code, b.calls.Load())
	}
	if code := send(call{path: protected, headers: [][2]string{{"grpc-timeout", "1H"}}}); code != codes.OK || b.calls.Load() != 1 {
		t.Errorf("an hour: %v, %d calls", code, b.calls.Load())
	}
}

// TestServerRefusalCodes are the codes of what this side refuses by itself.
func TestServerRefusalCodes(t *testing.T) {
	for _, tt := range []struct {
		denied inbound.DeniedError
		want   codes.Code
	}{
		{inbound.DeniedError{Reason: inbound.ReasonDeadline, HTTPStatus: 504, Err: context.DeadlineExceeded}, codes.DeadlineExceeded},
		{inbound.DeniedError{Reason: inbound.ReasonDeadline, HTTPStatus: 504, Err: &inbound.NotReadyError{Err: context.DeadlineExceeded}}, codes.DeadlineExceeded},
		{inbound.DeniedError{Reason: inbound.ReasonOverload, HTTPStatus: 503}, codes.Unavailable},
		{inbound.DeniedError{Reason: inbound.ReasonOverload, HTTPStatus: 429}, codes.Unavailable},
		{inbound.DeniedError{Reason: inbound.ReasonOverload, HTTPStatus: 500}, codes.Unknown},
	} {
		if got, code := Refusal(&tt.denied).Code(), Code(&tt.denied); got != tt.want || code != tt.want {
			t.Errorf("%s %d: %v and %v, want %v", tt.denied.Reason, tt.denied.HTTPStatus, got, code, tt.want)
		}
	}
}

// TestServerClaims: a handler finds the claims of the verified token, in unary RPCs and streams.
func TestServerClaims(t *testing.T) {
	leak.Check(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	document, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	keys, err := identity.ParseKeySet(document)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := identity.NewJWTAuthenticator(identity.JWTConfig{
		Providers: []identity.JWTProvider{{Name: "p", Issuer: "https://issuer.example", Keys: keys}},
		Rules:     []identity.JWTRule{{Requires: anyToken()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(`{"iss": "https://issuer.example", "sub": "alice", "realm": {"roles": ["admin"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	token, _ := signed.CompactSerialize()

	var l journal.Journal
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	b, conn := admitted(t, e, &l)
	var got atomic.Pointer[string]
	b.answer = func(ctx context.Context, _ int64) error {
		claims, ok := identity.ClaimsFromContext(ctx)
		text := fmt.Sprint(ok, claims.Values()["sub"], claims.Values()["realm"])
		got.Store(&text)
		return nil
	}
	e.Install(policy(b.address, &snapshot.Inbound{Plain: &snapshot.FilterChain{Tokens: &snapshot.Tokens{Authenticator: tokens}}}))
	for _, with := range []bool{false, true} {
		want, ctx := fmt.Sprint(false, nil, nil), testContext(t)
		if with {
			want = fmt.Sprint(true, "alice", map[string]any{"roles": []any{"admin"}})
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		for _, k := range kinds {
			if err := k.call(ctx, pb.NewTestServiceClient(conn)); err != nil {
				t.Errorf("%s: %v", k.name, err)
			}
			if text := got.Swap(nil); text == nil || *text != want {
				t.Errorf("%s: %v, want %q", k.name, text, want)
			}
		}
	}
}

func anyToken() *identity.Requirement {
	r := identity.RequireAny(identity.RequireProvider("p"), identity.AllowMissing())
	return &r
}

// TestServerHost: rules and handler see the authority as policy spells it.
func TestServerHost(t *testing.T) {
	leak.Check(t)
	name, err := identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(":authority"), Kind: routing.HeaderString, String: routing.Exact("secret.example", true)})
	in := deny(t, name, err)
	in.Plain.Hosts = identity.HostOptions{Dot: true, Port: identity.StripAnyPort}
	var l journal.Journal
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	b, _ := admitted(t, e, &l)
	var got atomic.Pointer[string]
	b.answer = func(ctx context.Context, _ int64) error {
		md, _ := metadata.FromIncomingContext(ctx)
		text := strings.Join(md[":authority"], ",") + " " + strings.Join(md["x-a-bin"], ",")
		got.Store(&text)
		return nil
	}
	e.Install(policy(b.address, in))
	for _, tt := range []struct {
		authority string
		header    map[string]string
		want      string // "" where it is refused
	}{
		{"secret.example.", nil, ""},
		{"Secret.example.:81", nil, ""},
		{"other.example.:81", nil, "other.example "},
		{"other.example", nil, "other.example "},
		{"other.example.:81", map[string]string{"x-a-bin": "\x00\xff"}, "other.example \x00\xff"},
	} {
		_, conn := dial(t, b.address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(tt.authority))
		ctx := testContext(t)
		for k, v := range tt.header {
			ctx = metadata.AppendToOutgoingContext(ctx, k, v)
		}
		_, err := pb.NewTestServiceClient(conn).UnaryCall(ctx, &pb.SimpleRequest{})
		text := got.Swap(nil)
		switch {
		case tt.want == "" && (status.Code(err) != codes.PermissionDenied || text != nil):
			t.Errorf("%q: %v", tt.authority, err)
		case tt.want != "" && (err != nil || text == nil || *text != tt.want):
			t.Errorf("%q: %v, the handler sees %v, want %q", tt.authority, err, text, tt.want)
		}
	}
}
