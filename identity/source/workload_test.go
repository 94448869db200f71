package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
)

func TestWorkloadAPICompleteState(t *testing.T) {
	far := mustID(t, "spiffe://far.example/x").TrustDomain()
	withWorkloadAPI(t, WorkloadAPIConfig{}, one(time.Hour), func(t *testing.T, f *fakeWorkloadAPI, root *signed, w *WorkloadAPI) {
		first := must(t, w)
		if first.ID.String() != workloadID || first.Certificate.Leaf == nil || len(first.Bundles) != 1 || first.Roots == nil || first.NotAfter.IsZero() {
			t.Fatalf("%+v", first)
		}
		if err := peerAccepts(t, first, first); err != nil {
			t.Error(err)
		}
		// A federated bundle comes, beside one that can not be read and one without a root.
		other := sign(t, rootTemplate("far"), nil, nil)
		svid := offer(t, root, workload(t, root, workloadID, time.Hour), workloadID, "")
		changed := w.Changed()
		f.set(func() {
			f.x509 = &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{svid}, FederatedBundles: map[string][]byte{
				"spiffe://far.example": other.cert.Raw, "spiffe://broken.example": {1, 2}, "spiffe://empty.example": nil, "BAD NAME": other.cert.Raw,
				"leaf.example": workload(t, root, workloadID, time.Hour).cert.Raw,
			}}
		})
		<-changed
		m := must(t, w)
		if len(m.Bundles) != 2 || m.Bundles[far] == nil || !m.Bundles[far].Roots()[0].Equal(other.cert) {
			t.Errorf("bundles %v", m.Bundles)
		}
		// The next message lacks it: it is gone at once.
		f.set(func() { f.x509 = &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{svid}} })
		synctest.Wait()
		if m := must(t, w); len(m.Bundles) != 1 || m.Bundles[far] != nil {
			t.Errorf("a bundle that was withdrawn is in force: %v", m.Bundles)
		}
		// A root rolls.
		next := sign(t, rootTemplate("next"), nil, nil)
		both := offer(t, root, workload(t, next, workloadID, time.Hour), workloadID, "")
		both.Bundle = append(append([]byte{}, root.cert.Raw...), next.cert.Raw...)
		f.set(func() { f.x509 = &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{both}} })
		synctest.Wait()
		rolled := must(t, w)
		if err := peerAccepts(t, first, rolled); err != nil {
			t.Errorf("old certificate with both roots: %v", err)
		}
		if err := peerAccepts(t, rolled, rolled); err != nil {
			t.Errorf("new certificate with both roots: %v", err)
		}
		if st := w.Status(); st.Rotations != 4 || st.Failures != 0 || st.ID != workloadID {
			t.Errorf("%+v", st)
		}
	})
}

// TestWorkloadAPIWithdrawal: what the API no longer grants is not used any more.
func TestWorkloadAPIWithdrawal(t *testing.T) {
	for name, withdraw := range map[string]func(*fakeWorkloadAPI){
		"another identity only": func(f *fakeWorkloadAPI) {
			f.x509 = &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{{SpiffeId: workloadID + "2"}}}
		},
		"an empty message":  func(f *fakeWorkloadAPI) { f.x509 = &workloadpb.X509SVIDResponse{} },
		"permission denied": func(f *fakeWorkloadAPI) { f.err = status.Error(codes.PermissionDenied, "no identity issued") },
	} {
		t.Run(name, func(t *testing.T) {
			withWorkloadAPI(t, WorkloadAPIConfig{ID: mustID(t, workloadID)}, one(time.Hour), func(t *testing.T, f *fakeWorkloadAPI, _ *signed, w *WorkloadAPI) {
				m := must(t, w)
				changed := w.Changed()
				f.mu.Lock()
				before := f.x509
				f.mu.Unlock()
				f.set(func() { withdraw(f) })
				<-changed
				_, err := w.Current()
				var notReady *NotReadyError
				if !errors.As(err, &notReady) || !notReady.Revoked || !strings.Contains(err.Error(), "withdrawn") {
					t.Fatalf("%v", err)
				}
				f.set(func() { f.x509, f.err = before, nil })
				time.Sleep(time.Minute)
				if again := must(t, w); again.Certificate.Leaf.SerialNumber.Cmp(m.Certificate.Leaf.SerialNumber) != 0 {
					t.Error("another certificate")
				}
			})
		})
	}
}

// TestWorkloadAPIKeepsLastGood: what can not be read and an API that is away
// change nothing until the certificate expires.
func TestWorkloadAPIKeepsLastGood(t *testing.T) {
	bad := func(change func(t *testing.T, root *signed, s *workloadpb.X509SVID, r *workloadpb.X509SVIDResponse)) func(*testing.T, *fakeWorkloadAPI, *signed) {
		return func(t *testing.T, f *fakeWorkloadAPI, root *signed) {
			s := offer(t, root, workload(t, root, workloadID, 10*time.Hour), workloadID, "")
			r := &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{s}}
			change(t, root, s, r)
			f.x509 = r
		}
	}
	type svid = workloadpb.X509SVID
	type message = workloadpb.X509SVIDResponse
	for name, c := range map[string]struct {
		change func(*testing.T, *fakeWorkloadAPI, *signed)
		reason string
	}{
		"unavailable": {func(_ *testing.T, f *fakeWorkloadAPI, _ *signed) {
			f.err = status.Error(codes.Unavailable, "restarting")
		}, "restarting"},
		"cancelled":        {func(_ *testing.T, f *fakeWorkloadAPI, _ *signed) { f.err = status.Error(codes.Canceled, "bye") }, "bye"},
		"invalid argument": {func(_ *testing.T, f *fakeWorkloadAPI, _ *signed) { f.err = status.Error(codes.InvalidArgument, "what") }, "what"},
		"no certificate":   {bad(func(_ *testing.T, _ *signed, s *svid, _ *message) { s.X509Svid = nil }), "certificate"},
		"no key":           {bad(func(_ *testing.T, _ *signed, s *svid, _ *message) { s.X509SvidKey = nil }), "private key"},
		"another key": {bad(func(t *testing.T, root *signed, s *svid, _ *message) {
			s.X509SvidKey = workload(t, root, workloadID, time.Hour).keyDER(t)
		}), "does not match"},
		"no bundle":     {bad(func(_ *testing.T, _ *signed, s *svid, _ *message) { s.Bundle = nil }), "no root"},
		"broken bundle": {bad(func(_ *testing.T, _ *signed, s *svid, _ *message) { s.Bundle = []byte{1} }), "bundle of td.example"},
		"another root": {bad(func(t *testing.T, _ *signed, s *svid, _ *message) {
			s.Bundle = sign(t, rootTemplate("root"), nil, nil).cert.Raw
		}), "rule chain"},
		"another name":   {bad(func(t *testing.T, root *signed, s *svid, _ *message) { s.X509Svid, s.X509SvidKey = renamed(t, root) }), "is for"},
		"revocation":     {bad(func(_ *testing.T, _ *signed, _ *svid, r *message) { r.Crl = [][]byte{{1}} }), "revocation"},
		"expired":        {bad(func(t *testing.T, root *signed, s *svid, _ *message) { s.X509Svid, s.X509SvidKey = expired(t, root) }), "expired"},
		"not an SVID ID": {bad(func(t *testing.T, root *signed, s *svid, _ *message) { s.X509Svid = root.cert.Raw }), "SPIFFE ID"},
	} {
		t.Run(name, func(t *testing.T) {
			withWorkloadAPI(t, WorkloadAPIConfig{}, one(time.Hour), func(t *testing.T, f *fakeWorkloadAPI, root *signed, w *WorkloadAPI) {
				m := must(t, w)
				f.set(func() { c.change(t, f, root) })
				for range 55 {
					time.Sleep(time.Minute)
					if must(t, w) != m {
						t.Fatal("the material changed")
					}
				}
				if st := w.Status(); st.Failures == 0 || !strings.Contains(st.LastError, c.reason) {
					t.Errorf("%+v, want %q", st, c.reason)
				}
				changed := w.Changed()
				<-changed // expiry
				if _, err := w.Current(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "expired") {
					t.Errorf("after expiry: %v", err)
				}
			})
		})
	}
}

func renamed(t testing.TB, root *signed) (cert, key []byte) {
	s := workload(t, root, workloadID+"2", time.Hour)
	return s.cert.Raw, s.keyDER(t)
}

func expired(t testing.TB, root *signed) (cert, key []byte) {
	s := workload(t, root, workloadID, -time.Second)
	return s.cert.Raw, s.keyDER(t)
}

// TestWorkloadAPIReconnects: the pauses grow to 30 s and differ, and are short
// again after a message.
func TestWorkloadAPIReconnects(t *testing.T) {
	withWorkloadAPI(t, WorkloadAPIConfig{}, func(*testing.T, *fakeWorkloadAPI, *signed) {}, func(t *testing.T, f *fakeWorkloadAPI, root *signed, w *WorkloadAPI) {
		if _, err := w.Current(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "has come yet") {
			t.Errorf("%v", err)
		}
		begin := time.Now()
		f.set(func() { f.err = status.Error(codes.Unavailable, "not yet") })
		var ends []time.Duration
		for time.Since(begin) < 20*time.Minute {
			n := w.Status().Failures
			time.Sleep(100 * time.Millisecond)
			if w.Status().Failures != n {
				ends = append(ends, time.Since(begin))
			}
		}
		longest, distinct := time.Duration(0), map[time.Duration]bool{}
		for i := range ends[1:] {
			d := ends[i+1] - ends[i]
			longest = max(longest, d)
			distinct[d] = true
		}
		if len(ends) < 40 || len(ends) > 200 || longest > workloadMaxRetry+time.Second || len(distinct) < 10 {
			t.Errorf("%d attempts in 20 min, %v at most between two, %d different pauses", len(ends), longest, len(distinct))
		}
		f.set(func() { f.err = nil; one(time.Hour)(t, f, root) })
		time.Sleep(workloadMaxRetry)
		must(t, w)
		at := time.Now()
		f.set(func() { f.err = status.Error(codes.Unavailable, "again") })
		synctest.Wait()
		f.set(func() { f.err = nil; one(2*time.Hour)(t, f, root) })
		<-w.Changed()
		if d := time.Since(at); d > 2*time.Second {
			t.Errorf("the first pause after a good stream is %v", d)
		}
	})
}

// TestWorkloadAPIAway: an API that can not be dialled, later than the process.
func TestWorkloadAPIAway(t *testing.T) {
	withWorkloadAPI(t, WorkloadAPIConfig{}, func(_ *testing.T, f *fakeWorkloadAPI, _ *signed) { f.down = true }, func(t *testing.T, f *fakeWorkloadAPI, root *signed, w *WorkloadAPI) {
		time.Sleep(10 * time.Minute)
		if _, err := w.Current(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%v", err)
		}
		f.mu.Lock()
		if n := len(f.dials); n < 10 || n > 250 {
			t.Errorf("%d connections in 10 min", n)
		}
		f.mu.Unlock()
		f.set(func() { f.down = false; one(time.Hour)(t, f, root) })
		time.Sleep(workloadMaxRetry + 6*time.Second)
		must(t, w)
	})
}

func TestWorkloadAPIChoice(t *testing.T) {
	prepare := func(t *testing.T, f *fakeWorkloadAPI, root *signed) {
		f.x509 = &workloadpb.X509SVIDResponse{}
		for _, o := range []struct{ id, hint string }{{"a", ""}, {"b", "internal"}, {"c", "internal"}, {"d", "external"}, {"d", "both"}} {
			id := "spiffe://td.example/" + o.id
			f.x509.Svids = append(f.x509.Svids, offer(t, root, workload(t, root, id, time.Hour), id, o.hint))
		}
	}
	for _, c := range []struct{ id, hint, want, refused string }{
		{want: "a"},
		{hint: "internal", want: "b"},
		{id: "c", want: "c"},
		{id: "d", want: "d"},
		{id: "d", hint: "both", want: "d"},
		{id: "x", refused: `none of the 5 identities that are offered is "spiffe://td.example/x"`},
		{hint: "x", refused: `has the hint "x"`},
		{id: "a", hint: "internal", refused: `with the hint "internal"`},
	} {
		t.Run(c.id+" "+c.hint, func(t *testing.T) {
			config := WorkloadAPIConfig{Hint: c.hint}
			if c.id != "" {
				config.ID = mustID(t, "spiffe://td.example/"+c.id)
			}
			withWorkloadAPI(t, config, prepare, func(t *testing.T, _ *fakeWorkloadAPI, _ *signed, w *WorkloadAPI) {
				m, err := w.Current()
				switch {
				case c.refused != "":
					if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), c.refused) {
						t.Errorf("%v, want %q", err, c.refused)
					}
				case err != nil:
					t.Error(err)
				case m.ID.String() != "spiffe://td.example/"+c.want:
					t.Errorf("%s is chosen", m.ID)
				}
			})
		})
	}
}

func TestWorkloadAPITokens(t *testing.T) {
	withWorkloadAPI(t, WorkloadAPIConfig{ID: mustID(t, workloadID)}, one(time.Hour), func(t *testing.T, f *fakeWorkloadAPI, _ *signed, w *WorkloadAPI) {
		ctx := t.Context()
		s, err := w.JWT(ctx, "reviews", "ratings")
		if err != nil || s.ID.String() != workloadID || time.Until(s.Expiry) <= 0 {
			t.Fatalf("%v, %v", s, err)
		}
		if text := fmt.Sprintf("%v %+v %#v", s, s, s); strings.Contains(text, s.Token) {
			t.Error("the token is printed")
		}
		if _, err := w.JWT(ctx); err == nil {
			t.Error("a token without an audience")
		}
		// The first validation waits for the bundles.
		short, cancel := context.WithTimeout(ctx, time.Second)
		if _, err := w.ValidateJWT(short, s.Token, "ratings"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without bundles: %v", err)
		}
		cancel()
		f.set(func() {
			f.bundles = &workloadpb.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://td.example": f.keySet(), "spiffe://far.example": []byte("{")}}
		})
		got, err := w.ValidateJWT(ctx, s.Token, "ratings")
		if err != nil || got.ID.String() != workloadID || got.Token != s.Token || got.Claims["sub"] != workloadID {
			t.Fatalf("%v, %v", got, err)
		}
		other := newFakeWorkloadAPI(t)
		for name, c := range map[string]struct{ token, audience, want string }{
			"another audience":     {s.Token, "details", "audience"},
			"no audience":          {s.Token, "", "audience"},
			"garbage":              {"x.y.z", "ratings", "parse"},
			"too long":             {strings.Repeat("x", identity.MaxTokenLength+1), "ratings", "limit"},
			"another key":          {other.token(workloadID, time.Hour, "ratings"), "ratings", "claims"},
			"expired":              {f.token(workloadID, -time.Hour, "ratings"), "ratings", "expired"},
			"another trust domain": {f.token("spiffe://far.example/x", time.Hour, "ratings"), "ratings", "far.example"},
			"no workload":          {f.token("spiffe://td.example", time.Hour, "ratings"), "ratings", "no workload"},
			"no SPIFFE ID":         {f.token("admin", time.Hour, "ratings"), "ratings", "subject"},
		} {
			if s, err := w.ValidateJWT(ctx, c.token, c.audience); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), c.token) {
				t.Errorf("%s: %v, %v, want %q", name, s, err, c.want)
			}
		}
		// An outage keeps the bundles, a denial does not, and absence does not.
		f.set(func() { f.err = status.Error(codes.Unavailable, "away") })
		synctest.Wait()
		if _, err := w.ValidateJWT(ctx, s.Token, "ratings"); err != nil {
			t.Error(err)
		}
		f.set(func() { f.err = nil; f.bundles = &workloadpb.JWTBundlesResponse{} })
		time.Sleep(time.Minute)
		if _, err := w.ValidateJWT(ctx, s.Token, "ratings"); err == nil {
			t.Error("a bundle that was withdrawn verifies")
		}
		f.set(func() { f.err = status.Error(codes.PermissionDenied, "no") })
		synctest.Wait()
		if _, err := w.ValidateJWT(ctx, s.Token, "ratings"); err == nil || !strings.Contains(err.Error(), "denies") {
			t.Error(err)
		}
	})
}

// TestWorkloadAPISocket: over a Unix socket, found by the environment.
func TestWorkloadAPISocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := newFakeWorkloadAPI(t)
	root := sign(t, rootTemplate("root"), nil, nil)
	one(time.Hour)(t, f, root)
	served := make(chan error)
	go func() { served <- f.server.Serve(l) }()
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+socket)
	s, err := New(WorkloadAPIPlugin, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for {
		changed := s.Changed()
		if _, err := s.Current(); err == nil {
			break
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("no identity came")
		}
	}
	if m := must(t, s); m.ID.String() != workloadID {
		t.Error(m.ID)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	f.server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestWorkloadAPIConfig(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	c, err := ParseWorkloadAPIConfig(json.RawMessage(`{"socket":"unix:///a","spiffe_id":"spiffe://td.example/x","hint":"h"}`))
	if err != nil || c.Socket != "unix:///a" || c.ID.String() != "spiffe://td.example/x" || c.Hint != "h" {
		t.Errorf("%+v, %v", c, err)
	}
	for config, want := range map[string]string{
		``:                               "SPIFFE_ENDPOINT_SOCKET",
		`{}`:                             "SPIFFE_ENDPOINT_SOCKET",
		`{"socket":"/run/agent.sock"}`:   "scheme",
		`{"socket":"tcp://localhost:1"}`: "IP:port",
		`{"socket":"unix:///a","id":"spiffe://td.example/x"}`: "id",
		`{"socket":"unix:///a","spiffe_id":"x"}`:              "scheme",
		`[]`:                                                  "spiffe_workload_api",
	} {
		if _, err := New(WorkloadAPIPlugin, json.RawMessage(config), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}
