package mesh_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

const claimsIssuer = "https://issuer.example"

// claimsPolicy has front verify tokens, and calls to reviews and to ratings
// routed by what these say. %s is the issuer's key set.
const claimsPolicy = `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  selector: {matchLabels: {app: front}}
  jwtRules: [{issuer: ` + claimsIssuer + `, jwks: '%s'}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match:
    - headers: {'@request.auth.claims.realm.roles': {exact: admin}}
    - headers: {'@request.auth.claims[https://claims.example/tier][name]': {prefix: gold}}
    route: [{destination: {host: reviews, subset: v3}}]
  - match: [{headers: {'@request.auth.claims.group': {exact: test}}, withoutHeaders: {'@request.auth.claims.sub': {exact: mallory}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec: {host: ratings, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - match: [{headers: {'@request.auth.claims.group': {exact: test}}}]
    route: [{destination: {host: ratings, subset: v2}}]
  - route: [{destination: {host: ratings, subset: v1}}]
`

// claimsSigner makes tokens and the key set that they are verified by.
func claimsSigner(t *testing.T) (jwks string, sign func(map[string]any) string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	document, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(document), func(claims map[string]any) string {
		all := map[string]any{"iss": claimsIssuer, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
		maps.Copy(all, claims)
		payload, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

// front is a service that calls others with the context of the request that it serves.
type front struct {
	mesh *mesh.Mesh
	conn *grpc.ClientConn // to ratings
}

// ask calls reviews over HTTP and ratings over gRPC and returns who answered.
func (f *front) ask(ctx context.Context) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://reviews/", nil)
	if err != nil {
		return "", err
	}
	resp, err := f.mesh.Client().Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	answer, err := pb.NewTestServiceClient(f.conn).UnaryCall(ctx, &pb.SimpleRequest{})
	if err != nil {
		return "", err
	}
	return string(body) + " " + answer.GetHostname(), nil
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := f.ask(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_, _ = io.WriteString(w, answer)
}

// rating answers with its version.
type rating struct {
	pb.UnimplementedTestServiceServer
	version string
}

func (r *rating) UnaryCall(context.Context, *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	return &pb.SimpleResponse{Hostname: r.version}, nil
}

// TestRoutingByClaims: what the verified token of a request says decides where the
// requests go that its handler makes, and nothing else that the caller sends does.
func TestRoutingByClaims(t *testing.T) {
	leak.Check(t)
	jwks, sign := claimsSigner(t)
	f := &front{}
	options := []meshtest.Option{meshtest.MutualTLS(), meshtest.Policy(fmt.Sprintf(claimsPolicy, jwks)), meshtest.HTTP("front", "v1", f)}
	for _, version := range []string{"v1", "v2", "v3"} {
		options = append(options, meshtest.HTTP("reviews", version, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, version) })))
		if version != "v3" {
			options = append(options, meshtest.GRPC("ratings", version, func(s grpc.ServiceRegistrar) { pb.RegisterTestServiceServer(s, &rating{version: version}) }))
		}
	}
	w := meshtest.New(t, options...)
	f.mesh = w.As("front")
	var err error
	if f.conn, err = grpc.NewClient("mesh:///ratings:80", f.mesh.DialOptions()...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.conn.Close() })

	for _, tt := range []struct {
		name   string
		claims map[string]any // nil: no token
		header map[string]string
		want   string
		status int
	}{
		{name: "no token", want: "v1 v1"},
		{name: "no such claim", claims: map[string]any{}, want: "v1 v1"},
		{name: "the value", claims: map[string]any{"group": "test"}, want: "v2 v2"},
		{name: "another value", claims: map[string]any{"group": "testers"}, want: "v1 v1"},
		{name: "another case", claims: map[string]any{"group": "Test"}, want: "v1 v1"},
		{name: "in a list", claims: map[string]any{"group": []string{"users", "test"}}, want: "v2 v2"},
		{name: "a list without it", claims: map[string]any{"group": []string{"users"}}, want: "v1 v1"},
		{name: "the excepted subject", claims: map[string]any{"group": "test", "sub": "mallory"}, want: "v1 v2"},
		{name: "nested", claims: map[string]any{"realm": map[string]any{"roles": "admin"}}, want: "v3 v1"},
		{name: "nested list", claims: map[string]any{"realm": map[string]any{"roles": []string{"user", "admin"}}, "group": "test"}, want: "v3 v2"},
		{name: "nested, too shallow", claims: map[string]any{"realm": "admin"}, want: "v1 v1"},
		{name: "a name with dots", claims: map[string]any{"https://claims.example/tier": map[string]any{"name": "golden"}}, want: "v3 v1"},
		{name: "a header of that name", header: map[string]string{"group": "test", "x-jwt-payload": "eyJncm91cCI6InRlc3QifQ"}, want: "v1 v1"},
		{name: "a token that is none", header: map[string]string{"Authorization": "Bearer x.y.z"}, status: http.StatusUnauthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequest(http.MethodGet, "http://front/", nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.claims != nil {
				r.Header.Set("Authorization", "Bearer "+sign(tt.claims))
			}
			for k, v := range tt.header {
				r.Header.Set(k, v)
			}
			resp, err := w.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if tt.status == 0 {
				tt.status = http.StatusOK
			}
			if resp.StatusCode != tt.status || tt.want != "" && string(body) != tt.want {
				t.Errorf("%d %q, want %d %q", resp.StatusCode, body, tt.status, tt.want)
			}
		})
	}
}
