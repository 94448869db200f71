package main

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
)

// TestServeKubernetes: pods get their certificates by the tokens of their service
// accounts, and nobody does by another's.
func TestServeKubernetes(t *testing.T) {
	leak.Check(t)
	defer http.DefaultClient.CloseIdleConnections()
	token := func(signature string) string {
		claims := fmt.Sprintf(`{"aud":["istio-ca"],"exp":%d}`, time.Now().Add(time.Hour).Unix())
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + signature
	}
	reviews, stranger := token("cmV2aWV3cw"), token("c3RyYW5nZXI")
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Spec struct{ Token string } }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Header.Get("Authorization") != "Bearer own" {
			http.Error(w, "", http.StatusForbidden)
			return
		}
		status := `{"error":"unknown"}`
		if q.Spec.Token == reviews {
			status = `{"authenticated":true,"audiences":["istio-ca"],"user":{"username":"system:serviceaccount:shop:reviews","groups":["system:serviceaccounts"]}}`
		}
		fmt.Fprintf(w, `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","status":%s}`, status)
	}))
	defer api.Close()
	work := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		name = filepath.Join(work, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	caDir := filepath.Join(work, "ca")
	s := serveFolder(t, folder(t, map[string]string{"all.yaml": twoWorkloads}), "--ca-dir", caDir,
		"--kubernetes-audience", "istio-ca", "--kubernetes-api-server", api.URL, "--kubernetes-token-file", file("own", "own"),
		"--kubernetes-ca-file", file("api.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw}))))

	doc, notes, err := run(t, "bootstrap", "--server", s.xds, "--workload", "reviews-1", "--namespace", "shop", "--service-account", "reviews",
		"--ca-dir", caDir, "--kubernetes-token-file", file("pod", reviews))
	if err != nil || notes != "" {
		t.Fatalf("bootstrap says %q, %v", notes, err)
	}
	_, _, src := join(t, doc)
	m, err := src.Current()
	if err != nil {
		t.Fatal(err)
	}
	if m.ID.String() != "spiffe://cluster.local/ns/shop/sa/reviews" {
		t.Errorf("joined as %s", m.ID)
	}
	refusedJoin(t, source.CAConfig{Address: s.xds, RootsPEM: bundle(t, caDir).PEM(), TokenFile: file("other", stranger)}, "Unauthenticated")
	out, _, err := run(t, "status", "--http", s.http)
	if err != nil || !strings.Contains(out, "1 issued (kubernetes token)") {
		t.Errorf("status %q, %v", out, err)
	}
	for where, text := range map[string]string{"log": s.log.String(), "status": out, "bootstrap": doc} {
		if strings.Contains(text, reviews) || strings.Contains(text, stranger) {
			t.Errorf("the %s shows a token", where)
		}
	}
}
