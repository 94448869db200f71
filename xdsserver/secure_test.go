package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadv3 "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/internal/xds/client"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// twoWorkloads are at one address, told apart by their ports.
const twoWorkloads = `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-1, namespace: shop, labels: {app: reviews}}
spec: {address: 127.0.0.1, serviceAccount: reviews, ports: {http: 9080}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: payment-1, namespace: shop, labels: {app: payment}}
spec: {address: 127.0.0.1, serviceAccount: payment, ports: {http: 7070}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`

// join takes a workload from its bootstrap document to a connection.
func join(t *testing.T, doc string) (*grpc.ClientConn, *bootstrap.Config, source.Source) {
	t.Helper()
	c, err := bootstrap.Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	creds, err := bootstrap.ParseProviderCreds(c.Servers[0].ChannelCreds[0].Config)
	if err != nil {
		t.Fatal(err)
	}
	if p := c.CertificateProviders[provider]; p.Plugin != creds.Plugin || !sameJSON(t, p.Config, creds.Config) {
		t.Errorf("the provider is %s %s, and the channel's %s %s", p.Plugin, p.Config, creds.Plugin, creds.Config)
	}
	src, err := source.New(creds.Plugin, creds.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	await(t, func() bool { _, err := src.Current(); return err == nil }, "certificate")
	conn, err := grpc.NewClient(c.Servers[0].URI, grpc.WithTransportCredentials(tlsconfig.ChannelCredentials(src, creds.ServerID, creds.ServerName)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c.Node.UserAgentName = "sinew"
	return conn, c, src
}

func sameJSON(t *testing.T, a, b json.RawMessage) bool {
	t.Helper()
	var x, y map[string]string
	if err := json.Unmarshal(a, &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	if len(x) != len(y) {
		return false
	}
	for k, v := range x {
		if y[k] != v {
			return false
		}
	}
	return true
}

// await polls what has to come.
func await(t *testing.T, ok func() bool, what string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

// TestSecureServe takes workloads from nothing to mutual TLS with the server: founding,
// joining, what each is served, and the looks of it from outside.
func TestSecureServe(t *testing.T) {
	leak.Check(t)
	defer http.DefaultClient.CloseIdleConnections()
	dir := folder(t, map[string]string{"all.yaml": twoWorkloads})
	caDir := filepath.Join(t.TempDir(), "ca")
	s := serveFolder(t, dir, "--ca-dir", caDir, "--plaintext-listen", "127.0.0.1:0", "--hostname", "xds.example")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	work := t.TempDir()
	secrets := []string{"PRIVATE KEY", "pkcs8"}

	enter := func(name string) (*grpc.ClientConn, *bootstrap.Config, source.Source) {
		t.Helper()
		token := filepath.Join(work, name+".token")
		doc, notes, err := run(t, "bootstrap", "--server", s.xds, "--workload", name+"-1", "--namespace", "shop", "--service-account", name,
			"--ca-dir", caDir, "--token-file", token, "--cert-state-file", filepath.Join(work, name+".state"))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(token)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("token file %v, %v", info, err)
		}
		text, err := os.ReadFile(token)
		if err != nil {
			t.Fatal(err)
		}
		secret := strings.TrimSpace(string(text))
		secrets = append(secrets, secret)
		if strings.Contains(doc+notes, secret) {
			t.Error("the token is printed")
		}
		return join(t, doc)
	}
	reviewsConn, reviews, reviewsSource := enter("reviews")
	m, err := reviewsSource.Current()
	if err != nil {
		t.Fatal(err)
	}
	if m.ID.String() != "spiffe://cluster.local/ns/shop/sa/reviews" {
		t.Errorf("joined as %s", m.ID)
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(reviewsConn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	own, others := translate.InboundPrefix+"127.0.0.1:9080", translate.InboundPrefix+"127.0.0.1:7070"
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: reviews.Node, TypeUrl: translate.ListenerType, ResourceNamesSubscribe: []string{own, others}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Resources) != 1 || r.Resources[0].Name != own || len(r.ResourceErrors) != 1 || r.ResourceErrors[0].GetResourceName().GetName() != others {
		t.Errorf("served %v without %v, want its own listener alone", r.Resources, r.ResourceErrors)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
		t.Fatal(err)
	}

	// It reports a caller that speaks plaintext.
	loads, err := loadv3.NewLoadReportingServiceClient(reviewsConn).StreamLoadStats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := loads.Send(&loadv3.LoadStatsRequest{Node: reviews.Node, ClusterStats: []*endpointv3.ClusterStats{{
		ClusterName: "inbound|9080||", UpstreamLocalityStats: []*endpointv3.UpstreamLocalityStats{{LoadMetricStats: []*endpointv3.EndpointLoadMetricStats{
			{MetricName: "sinew.plaintext|192.0.2.1", NumRequestsFinishedWithMetric: 7}, {MetricName: "sinew.mtls", NumRequestsFinishedWithMetric: 2}}}},
	}}}); err != nil {
		t.Fatal(err)
	}
	var report string
	await(t, func() bool {
		report, _, err = run(t, "report", "--http", s.http)
		return err == nil && strings.Contains(report, "192.0.2.1")
	}, "report")
	for _, want := range []string{"shop/reviews-1 port 9080 (STRICT by PeerAuthentication shop/default): 2 requests over mutual TLS, 7 in plaintext", "192.0.2.1 (not a workload that is known), 7 plaintext requests", "shop/payment-1: nothing is known"} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q:\n%s", want, report)
		}
	}

	// Somebody else's node is refused.
	stolen, err := discoveryv3.NewAggregatedDiscoveryServiceClient(reviewsConn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, payment, _ := enter("payment")
	if err := stolen.Send(&discoveryv3.DeltaDiscoveryRequest{Node: payment.Node, TypeUrl: translate.ListenerType, ResourceNamesSubscribe: []string{others}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stolen.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another's node: %v", err)
	}

	// A token is used once, and never for the server's own identity.
	used := source.CAConfig{Address: s.xds, RootsPEM: bundle(t, caDir).PEM(), JoinTokenFile: filepath.Join(work, "reviews.token")}
	refusedJoin(t, used, "Unauthenticated")
	if _, _, err := run(t, "bootstrap", "--server", s.xds, "--workload", "x", "--namespace", ownNamespace, "--service-account", ownServiceAccount, "--ca-dir", caDir, "--token-file", filepath.Join(work, "x")); err == nil || !strings.Contains(err.Error(), "server's own") {
		t.Errorf("a token for the server's identity: %v", err)
	}
	tokens, err := ca.OpenTokens(caDir, ca.TokenOptions{TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := tokens.Create("spiffe://cluster.local"+ownPath, 0)
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, forged.Reveal())
	forgedFile := filepath.Join(work, "forged")
	if err := os.WriteFile(forgedFile, []byte(forged.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	used.JoinTokenFile = forgedFile
	refusedJoin(t, used, "PermissionDenied")
	list, _, err := run(t, "token", "list", "--ca-dir", caDir)
	if err != nil || !strings.Contains(list, forged.ID) {
		t.Errorf("tokens %q, %v", list, err)
	}
	if _, _, err := run(t, "token", "revoke", "--ca-dir", caDir, forged.ID); err != nil {
		t.Error(err)
	}
	if _, _, err := run(t, "token", "revoke", "--ca-dir", caDir, forged.ID); err == nil {
		t.Error("revoked twice")
	}

	// The port without TLS is still there.
	plain, err := grpc.NewClient(s.plaintext, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	open, err := discoveryv3.NewAggregatedDiscoveryServiceClient(plain).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := open.Send(&discoveryv3.DeltaDiscoveryRequest{Node: payment.Node, TypeUrl: translate.ListenerType, ResourceNamesSubscribe: []string{others}}); err != nil {
		t.Fatal(err)
	}
	if r, err := open.Recv(); err != nil || len(r.Resources) != 1 {
		t.Errorf("without TLS: %v, %v", r, err)
	}

	// A new root while everything runs.
	before := bundle(t, caDir)
	out, _, err := run(t, "ca", "rotate", "--ca-dir", caDir)
	if err != nil || !strings.Contains(out, "prepared") {
		t.Errorf("rotate: %q, %v", out, err)
	}
	if after := bundle(t, caDir); len(after.Roots) != 2 || after.Version <= before.Version {
		t.Errorf("after it %d roots, version %d", len(after.Roots), after.Version)
	}
	if _, _, err := run(t, "ca", "rotate", "--ca-dir", caDir); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("rotate again: %v", err)
	}
	if out, _, err := run(t, "ca", "status", "--ca-dir", caDir); err != nil || !strings.Contains(out, ca.Fingerprint(before.Roots[0])) {
		t.Errorf("ca status: %q, %v", out, err)
	}

	out, _, err = run(t, "status", "--http", s.http)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"trust domain cluster.local, the server is spiffe://cluster.local/ns/sinew-system/sa/xdsserver", "certificate authority of cluster.local", "2 issued (join token)",
		"spiffe://cluster.local/ns/shop/sa/reviews", "not proved", "refused", `runs as service account "payment"`, "1 peer authentications", "prepared"} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	_, page := s.get(t, "/status")
	for _, secret := range secrets {
		for where, text := range map[string]string{"log": s.log.String(), "status": out, "page": page, "report": report} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s shows a secret", where)
			}
		}
	}
	if code, body := s.get(t, "/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d %s", code, body)
	}
	if _, err := os.Stat(filepath.Join(caDir, accessState)); err != nil || !strings.Contains(s.log.String(), filepath.Join(caDir, accessState)) {
		t.Errorf("the access state: %v", err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of a server that stops: %v", err)
	}
	// At rest it rotates no further than it may, and opens again as it was.
	if _, _, err := run(t, "ca", "rotate", "--ca-dir", caDir); err == nil {
		t.Error("rotated at rest during a rotation")
	}
	again := serveFolder(t, dir, "--ca-dir", caDir)
	if got := bundle(t, caDir); len(got.Roots) != 2 || !got.Roots[0].Equal(before.Roots[0]) {
		t.Error("a restart changes the roots")
	}
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
}

func bundle(t *testing.T, dir string) ca.Bundle {
	t.Helper()
	b, err := ca.ReadBundle(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refusedJoin asks for a first certificate and wants the server's refusal.
func refusedJoin(t *testing.T, c source.CAConfig, want string) {
	t.Helper()
	id, err := identity.ParseID("spiffe://cluster.local" + ownPath)
	if err != nil {
		t.Fatal(err)
	}
	c.ServerID = id
	src, err := source.NewCA(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	await(t, func() bool { return src.Status().Failures > 0 }, "refusal")
	if got := src.Status().LastError; !strings.Contains(got, want) {
		t.Errorf("refused with %q, want %s", got, want)
	}
}

// TestServeFiles: the server's and the client's certificates come from elsewhere.
func TestServeFiles(t *testing.T) {
	leak.Check(t)
	authority, err := ca.Open(t.Context(), t.TempDir(), ca.Options{TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	defer authority.Close()
	work := t.TempDir()
	flags := func(name, path string) []string {
		cert, err := authority.ServerCertificate(path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := func(file string) string { return filepath.Join(work, name+file) }
		writePEM(t, cert, at(".pem"), at(".key"))
		if err := os.WriteFile(at("-ca.pem"), authority.Bundle().PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"--cert-file", at(".pem"), "--key-file", at(".key"), "--ca-file", at("-ca.pem")}
	}
	s := serveFolder(t, folder(t, map[string]string{"all.yaml": twoWorkloads}), flags("server", ownPath)...)
	doc, _, err := run(t, append([]string{"bootstrap", "--server", s.xds, "--workload", "reviews-1", "--namespace", "shop", "--service-account", "reviews"}, flags("reviews", "/ns/shop/sa/reviews")...)...)
	if err != nil {
		t.Fatal(err)
	}
	conn, c, _ := join(t, doc)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: c.Node, TypeUrl: translate.ListenerType, ResourceNamesSubscribe: []string{translate.InboundPrefix + "127.0.0.1:9080"}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || len(r.Resources) != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

func writePEM(t *testing.T, cert *tls.Certificate, certFile, keyFile string) {
	t.Helper()
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{certFile: chain, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTrustDomain: MeshConfig names the trust domain of an authority that is founded,
// and can not change it afterwards.
func TestTrustDomain(t *testing.T) {
	leak.Check(t)
	defer http.DefaultClient.CloseIdleConnections()
	dir := folder(t, map[string]string{"mesh.yaml": meshConfig("trustDomain: corp.example"), "all.yaml": twoWorkloads})
	caDir := t.TempDir()
	s := serveFolder(t, dir, "--ca-dir", caDir)
	if got := bundle(t, caDir).TrustDomain; got != "corp.example" {
		t.Errorf("founded for %s", got)
	}
	write(t, dir, "mesh.yaml", meshConfig("trustDomain: new.example"))
	await(t, func() bool {
		code, body := s.get(t, "/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "new.example") && strings.Contains(body, "corp.example")
	}, "complaint")
	if _, page := s.get(t, "/status"); !strings.Contains(page, `"trustDomain": "corp.example"`) {
		t.Errorf("the trust domain has changed: %s", page)
	}
	write(t, dir, "mesh.yaml", meshConfig("trustDomain: corp.example"))
	await(t, func() bool { code, _ := s.get(t, "/readyz"); return code == http.StatusOK }, "end of it")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, "serve", "--config", dir, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ca-dir", caDir, "--trust-domain", "new.example"); err == nil || !strings.Contains(err.Error(), "corp.example") {
		t.Errorf("another flag: %v", err)
	}
	write(t, dir, "mesh.yaml", meshConfig("trustDomain: new.example"))
	if _, _, err := run(t, "serve", "--config", dir, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ca-dir", caDir); err == nil || !strings.Contains(err.Error(), "not serving") {
		t.Errorf("another MeshConfig: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "mesh.yaml")); err != nil {
		t.Fatal(err)
	}
	// Without MeshConfig the authority says it, to policy too.
	s = serveFolder(t, dir, "--ca-dir", caDir)
	if _, page := s.get(t, "/status"); !strings.Contains(page, `"trustDomain": "corp.example"`) {
		t.Errorf("without MeshConfig: %s", page)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestAccessOutlivesRestart: an access policy that is broken when the server starts
// again is in force as it was.
func TestAccessOutlivesRestart(t *testing.T) {
	leak.Check(t)
	defer http.DefaultClient.CloseIdleConnections()
	dir, state := folder(t, map[string]string{"all.yaml": services, "access.yaml": access}), t.TempDir()
	s := serveFolder(t, dir, "--state-dir", state)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "access.yaml", strings.Replace(access, "spec: {}", "spec: {actoin: DENY}", 1))
	for _, test := range []struct {
		flags []string
		want  string
	}{
		{[]string{"--state-dir", state}, `"authorizationPolicies": 1`},
		{nil, `"authorizationPolicies": 0`},
	} {
		s := serveFolder(t, dir, test.flags...)
		if _, page := s.get(t, "/status"); !strings.Contains(page, test.want) || !strings.Contains(page, "actoin") {
			t.Errorf("with %q the page lacks %s:\n%s", test.flags, test.want, page)
		}
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExternalIssuer serves certificates under another authority's.
func TestExternalIssuer(t *testing.T) {
	leak.Check(t)
	work := t.TempDir()
	at := func(name string) string { return filepath.Join(work, name) }
	make := func(parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		if parent == nil {
			parent, by = c, key
		} else {
			c.SerialNumber, c.Subject.CommonName = big.NewInt(2), "issuer"
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	root, rootKey := make(nil, nil)
	issuer, issuerKey := make(root, rootKey)
	writePEM(t, &tls.Certificate{Certificate: [][]byte{issuer.Raw}, PrivateKey: issuerKey}, at("issuer.pem"), at("issuer.key"))
	writePEM(t, &tls.Certificate{Certificate: [][]byte{root.Raw}, PrivateKey: rootKey}, at("root.pem"), at("root.key"))
	s := serveFolder(t, folder(t, map[string]string{"all.yaml": twoWorkloads}), "--ca-dir", at("ca"),
		"--issuer-cert-file", at("issuer.pem"), "--issuer-key-file", at("issuer.key"), "--issuer-ca-file", at("root.pem"))
	doc, _, err := run(t, "bootstrap", "--server", s.xds, "--workload", "reviews-1", "--namespace", "shop", "--service-account", "reviews", "--ca-dir", at("ca"), "--token-file", at("token"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, src := join(t, doc)
	m, err := src.Current()
	if err != nil {
		t.Fatal(err)
	}
	if roots := m.Bundles[m.ID.TrustDomain()].Roots(); len(roots) != 1 || !roots[0].Equal(root) {
		t.Errorf("trusts %d roots", len(roots))
	}
	if _, _, err := run(t, "ca", "rotate", "--ca-dir", at("ca")); err == nil || !strings.Contains(err.Error(), "another authority") {
		t.Errorf("rotate: %v", err)
	}
	if out, _, err := run(t, "ca", "status", "--ca-dir", at("ca")); err != nil || !strings.Contains(out, "external") {
		t.Errorf("status: %q, %v", out, err)
	}
}

// TestOurClient has this project's own client do all of it from the bootstrap document:
// join, and get its own listener and no other.
func TestOurClient(t *testing.T) {
	leak.Check(t)
	defer http.DefaultClient.CloseIdleConnections()
	caDir, token := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "token")
	s := serveFolder(t, folder(t, map[string]string{"all.yaml": twoWorkloads}), "--ca-dir", caDir)
	doc, _, err := run(t, "bootstrap", "--server", s.xds, "--workload", "reviews-1", "--namespace", "shop", "--service-account", "reviews", "--ca-dir", caDir, "--token-file", token)
	if err != nil {
		t.Fatal(err)
	}
	config, err := bootstrap.Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var last *snapshot.Snapshot
	c, err := client.New(client.Options{
		Bootstrap: config,
		OnSnapshot: func(s *snapshot.Snapshot) {
			mu.Lock()
			defer mu.Unlock()
			last = s
		},
		Credentials: func(creds bootstrap.ChannelCreds) (credentials.TransportCredentials, error) {
			p, err := bootstrap.ParseProviderCreds(creds.Config)
			if err != nil {
				return nil, err
			}
			src, err := source.New(p.Plugin, p.Config, nil)
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { src.Close() })
			await(t, func() bool { _, err := src.Current(); return err == nil }, "certificate")
			return tlsconfig.ChannelCredentials(src, p.ServerID, p.ServerName), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SubscribeInbound("127.0.0.1:9080")
	c.SubscribeInbound("127.0.0.1:7070")
	await(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return last != nil && last.Inbound["127.0.0.1:9080"] != nil && last.Inbound["127.0.0.1:7070"] != nil
	}, "answer for both listeners")
	mu.Lock()
	own, others := last.Inbound["127.0.0.1:9080"], last.Inbound["127.0.0.1:7070"]
	mu.Unlock()
	if own.Err != nil || own.Absent {
		t.Errorf("its own listener: %v, absent %v", own.Err, own.Absent)
	}
	if others.Err == nil || others.TLS != nil || others.Plain != nil {
		t.Errorf("another workload's listener: %+v", others)
	}
}
