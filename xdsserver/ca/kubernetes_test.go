package ca

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/sinew-mesh/sinew/internal/leak"
)

// apiServer reviews tokens by a function, and keeps the questions.
type apiServer struct {
	*httptest.Server
	caFile, tokenFile string
	asked             atomic.Int64
}

const ownToken = "token-of-the-management-server"

func newAPIServer(t *testing.T, answer func(w http.ResponseWriter, token string, audiences []string)) *apiServer {
	t.Helper()
	s := &apiServer{}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		var q tokenReview
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || r.Header.Get("Authorization") != "Bearer "+ownToken ||
			json.Unmarshal(body, &q) != nil || q.Kind != "TokenReview" || q.APIVersion != "authentication.k8s.io/v1" {
			http.Error(w, "what is this?", http.StatusTeapot)
			return
		}
		answer(w, q.Spec.Token, q.Spec.Audiences)
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	s.caFile, s.tokenFile = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	s.write(t, s.caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	s.write(t, s.tokenFile, ownToken+"\n")
	return s
}

func (s *apiServer) write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *apiServer) kubernetes(t *testing.T) *Kubernetes {
	t.Helper()
	k, err := NewKubernetes("cluster.local", KubernetesOptions{Audience: "istio-ca", APIServer: s.URL, CAFile: s.caFile, TokenFile: s.tokenFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	k.clock = func() time.Time { return epoch }
	return k
}

// token is a JSON Web Token that nobody has signed.
func token(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

var good = token(fmt.Sprintf(`{"aud":["istio-ca","x"],"exp":%d}`, epoch.Unix()+60))

// bearing is the context of a request over loopback with a bearer token.
func bearing(ctx context.Context, token string) context.Context {
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}})
	return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
}

// reviewed answers with a status.
func reviewed(status string) func(http.ResponseWriter, string, []string) {
	return func(w http.ResponseWriter, _ string, _ []string) {
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{},"status":%s}`, status)
	}
}

const cart = `{"authenticated":true,"audiences":["istio-ca"],"user":{"username":"system:serviceaccount:shop:cart","groups":["system:serviceaccounts","system:authenticated"]}}`

func TestKubernetesCaller(t *testing.T) {
	leak.Check(t)
	plain := func(code int, body string) func(http.ResponseWriter, string, []string) {
		return func(w http.ResponseWriter, _ string, _ []string) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	user := func(name string) func(http.ResponseWriter, string, []string) {
		return reviewed(strings.Replace(cart, "system:serviceaccount:shop:cart", name, 1))
	}
	for _, c := range []struct {
		name, token string
		answer      func(http.ResponseWriter, string, []string)
		id          string
		err         error
		text        string // in the error
		unasked     bool   // the API server is
	}{
		{name: "a service account", token: good, answer: func(w http.ResponseWriter, token string, audiences []string) {
			if token != good || len(audiences) != 1 || audiences[0] != "istio-ca" {
				http.Error(w, "another token", http.StatusTeapot)
				return
			}
			reviewed(cart)(w, token, audiences)
		}, id: "spiffe://cluster.local/ns/shop/sa/cart"},
		{name: "an account with dots", token: good, answer: user("system:serviceaccount:shop:cart.v2"), id: "spiffe://cluster.local/ns/shop/sa/cart.v2"},
		{name: "one audience as a string", token: token(fmt.Sprintf(`{"aud":"istio-ca","exp":%d}`, epoch.Unix()+1)), answer: reviewed(cart), id: "spiffe://cluster.local/ns/shop/sa/cart"},
		{name: "not accepted", token: good, answer: reviewed(`{"error":"it is revoked"}`), err: ErrUnauthenticated, text: "it is revoked"},
		{name: "not accepted, though there is a user", token: good, answer: reviewed(strings.Replace(cart, "true", "false", 1)), err: ErrUnauthenticated},
		{name: "a server that knows no audiences", token: good, answer: reviewed(strings.Replace(cart, `["istio-ca"]`, `[]`, 1)), err: ErrUnauthenticated, text: "audience"},
		{name: "reviewed for another audience", token: good, answer: reviewed(strings.Replace(cart, `["istio-ca"]`, `["x"]`, 1)), err: ErrUnauthenticated, text: "audience"},
		{name: "a person", token: good, answer: user("alice"), err: ErrDenied, text: "alice"},
		{name: "a person with the name of an account", token: good, answer: reviewed(strings.Replace(cart, `"system:serviceaccounts",`, "", 1)), err: ErrDenied},
		{name: "no namespace", token: good, answer: user("system:serviceaccount::cart"), err: ErrDenied},
		{name: "no account", token: good, answer: user("system:serviceaccount:shop"), err: ErrDenied},
		{name: "three parts", token: good, answer: user("system:serviceaccount:shop:cart:admin"), err: ErrDenied},
		{name: "a path", token: good, answer: user("system:serviceaccount:shop:cart/../admin"), err: ErrDenied},
		{name: "dots", token: good, answer: user("system:serviceaccount:shop:.."), err: ErrDenied},
		{name: "for another audience", token: token(`{"aud":["api"],"exp":4000000000}`), err: ErrUnauthenticated, text: "audience", unasked: true},
		{name: "for no audience", token: token(`{"exp":4000000000}`), err: ErrUnauthenticated, text: "audience", unasked: true},
		{name: "expired", token: token(fmt.Sprintf(`{"aud":"istio-ca","exp":%d}`, epoch.Unix())), err: ErrUnauthenticated, text: "expired", unasked: true},
		{name: "without end", token: token(`{"aud":"istio-ca"}`), err: ErrUnauthenticated, text: "expired", unasked: true},
		{name: "no token of this kind", token: "sinew-join.a", err: ErrNoCredential, unasked: true},
		{name: "two dots", token: "a.b.c", err: ErrNoCredential, unasked: true},
		{name: "we may not ask", token: good, answer: plain(403, "{}"), err: ErrUnavailable, text: "system:auth-delegator"},
		{name: "the API server is ill", token: good, answer: plain(500, "{}"), err: ErrUnavailable, text: "500"},
		{name: "no JSON", token: good, answer: plain(201, "<html>"), err: ErrUnavailable, text: "no TokenReview"},
		{name: "another object", token: good, answer: plain(201, `{"kind":"Status","apiVersion":"v1","status":`+cart+`}`), err: ErrUnavailable, text: "no TokenReview"},
		{name: "too long", token: good, answer: plain(201, strings.Repeat(" ", maxReview+1)), err: ErrUnavailable, text: "more than"},
		{name: "redirected", token: good, answer: func(w http.ResponseWriter, _ string, _ []string) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, err: ErrUnavailable, text: "redirects"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newAPIServer(t, c.answer)
			who, err := s.kubernetes(t).Authenticate(bearing(t.Context(), c.token))
			if who.ID != c.id || !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%+v, %v; want %q, %v", who, err, c.id, c.err)
			}
			if err != nil && (strings.Contains(err.Error(), c.token) || strings.Contains(err.Error(), ownToken)) {
				t.Errorf("the error shows a token: %v", err)
			}
			if n := s.asked.Load(); n > 1 || (n == 0) != c.unasked {
				t.Errorf("the API server was asked %d times", n)
			}
		})
	}
}

// TestKubernetesFiles: the roots and the token by which we ask are those of today.
func TestKubernetesFiles(t *testing.T) {
	leak.Check(t)
	s := newAPIServer(t, reviewed(cart))
	k := s.kubernetes(t)
	ask := func() error {
		_, err := k.Authenticate(bearing(t.Context(), good))
		return err
	}
	roots, err := os.ReadFile(s.caFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	other := mustOpen(t, t.TempDir(), short(newClock()))
	s.write(t, s.caFile, string(other.Bundle().PEM()))
	if err := ask(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("roots of somebody else: %v", err)
	}
	s.write(t, s.caFile, "nothing")
	if err := ask(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), s.caFile) {
		t.Errorf("no roots: %v", err)
	}
	s.write(t, s.caFile, string(roots))
	s.write(t, s.tokenFile, "another")
	if err := ask(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("another token of our own: %v", err)
	}
	s.write(t, s.tokenFile, ownToken)
	if err := ask(); err != nil {
		t.Error(err)
	}
	for _, file := range []string{s.caFile, s.tokenFile} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := ask(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), s.tokenFile) && !strings.Contains(err.Error(), s.caFile) {
			t.Errorf("without %s: %v", file, err)
		}
	}
}

// TestKubernetesReviewsAtATime: callers beyond the bound wait for a place, and may give up.
func TestKubernetesReviewsAtATime(t *testing.T) {
	leak.Check(t)
	s := newAPIServer(t, reviewed(cart))
	synctest.Test(t, func(t *testing.T) {
		k := s.kubernetes(t)
		for range maxReviews {
			k.reviews <- struct{}{}
		}
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, 2)
		for _, ctx := range []context.Context{ctx, t.Context()} {
			go func() {
				_, err := k.Authenticate(bearing(ctx, good))
				results <- err
			}()
		}
		synctest.Wait() // whoever asks the API server is waited for
		if n := s.asked.Load(); n != 0 || len(results) != 0 {
			t.Errorf("%d questions beyond the bound, %d answers", n, len(results))
		}
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("one that gives up: %v", err)
		}
		<-k.reviews
		if err := <-results; err != nil || s.asked.Load() != 1 {
			t.Errorf("one that waited: %v, %d questions", err, s.asked.Load())
		}
		if len(k.reviews) != maxReviews-1 {
			t.Errorf("%d places are taken, want %d", len(k.reviews), maxReviews-1)
		}
		k.Close()
	})
}

func TestNewKubernetes(t *testing.T) {
	for _, c := range []struct {
		name, td string
		o        KubernetesOptions
		host     string
		url      string
		err      string
	}{
		{name: "in a cluster", td: "td", o: KubernetesOptions{Audience: "a"}, host: "10.96.0.1", url: "https://10.96.0.1:443/apis/authentication.k8s.io/v1/tokenreviews"},
		{name: "in a cluster of IPv6", td: "td", o: KubernetesOptions{Audience: "a"}, host: "fd00::1", url: "https://[fd00::1]:443/apis/authentication.k8s.io/v1/tokenreviews"},
		{name: "a server below a path", td: "td", o: KubernetesOptions{Audience: "a", APIServer: "https://rancher/k8s/c-1"}, url: "https://rancher/k8s/c-1/apis/authentication.k8s.io/v1/tokenreviews"},
		{name: "nowhere", td: "td", o: KubernetesOptions{Audience: "a"}, err: "does not run in a Kubernetes cluster"},
		{name: "plaintext", td: "td", o: KubernetesOptions{Audience: "a", APIServer: "http://10.96.0.1"}, err: "not the URL"},
		{name: "no host", td: "td", o: KubernetesOptions{Audience: "a", APIServer: "https:///x"}, err: "not the URL"},
		{name: "no audience", td: "td", o: KubernetesOptions{APIServer: "https://a"}, err: "audience"},
		{name: "no trust domain", td: "T D", o: KubernetesOptions{Audience: "a", APIServer: "https://a"}, err: "trust domain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
			t.Setenv("KUBERNETES_SERVICE_PORT", "443")
			k, err := NewKubernetes(c.td, c.o)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || k.url != c.url || k.opts.CAFile != podCAFile || k.opts.TokenFile != podTokenFile {
				t.Errorf("%+v, %v", k, err)
			}
		})
	}
}
