package source

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/journal"
)

const canary = "canary-token-7f3a"

func tokenFile(t testing.TB, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// inBubble runs f in virtual time with an authority and a source that asks it.
func inBubble(t *testing.T, prepare func(*testAuthority, *CAConfig), f func(t *testing.T, a *testAuthority, c *CA)) {
	log := &journal.Journal{}
	path := tokenFile(t, canary)
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		a.join[canary] = true
		config := CAConfig{Address: "ca.test:15012", RootsPEM: []byte(a.roots[0].pem()), JoinTokenFile: path, Dial: a.dial}
		if prepare != nil {
			prepare(a, &config)
		}
		c, err := NewCA(config, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f(t, a, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		a.server.Stop()
		synctest.Wait()
	})
	if text := log.String(); strings.Contains(text, canary) || strings.Contains(text, "PRIVATE KEY") {
		t.Errorf("the log holds a secret:\n%s", text)
	}
}

func must(t testing.TB, s Source) *Material {
	t.Helper()
	m, err := s.Current()
	if err != nil {
		t.Fatalf("at %s: %v", time.Now().Format(time.TimeOnly), err)
	}
	return m
}

// peerAccepts verifies the source's certificate as a peer with the given material does.
func peerAccepts(t testing.TB, m, by *Material) error {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range m.Certificate.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	_, err := identity.VerifySVID(chain, by.Bundles, time.Now(), identity.UsageAny)
	return err
}

func TestCAIssuesAndRenews(t *testing.T) {
	inBubble(t, func(_ *testAuthority, c *CAConfig) { c.Metadata = map[string]string{"ClusterID": "Kubernetes"} }, func(t *testing.T, a *testAuthority, c *CA) {
		first := must(t, c)
		if first.ID.String() != workloadID || first.Certificate.Leaf == nil || len(first.Certificate.Certificate) != 1 {
			t.Fatalf("%+v", first)
		}
		if err := peerAccepts(t, first, first); err != nil {
			t.Error(err)
		}
		if st := c.Status(); st.ID != workloadID || st.Rotations != 1 || st.LastError != "" || !st.NotAfter.Equal(first.NotAfter) {
			t.Errorf("status %+v", st)
		}
		changed := c.Changed()
		begin := time.Now()
		<-changed
		second := must(t, c)
		// Half of an hour, 5 % to either side.
		if d := time.Since(begin); d < 27*time.Minute || d > 33*time.Minute {
			t.Errorf("renewed after %v", d)
		}
		if second == first || second.Certificate.Leaf.SerialNumber.Cmp(first.Certificate.Leaf.SerialNumber) == 0 {
			t.Error("the certificate is the same")
		}
		synctest.Wait()
		a.set(func() {
			if a.byToken != 1 || a.byCert != 1 {
				t.Errorf("%d by token and %d by certificate, want one of each", a.byToken, a.byCert)
			}
			r := a.requests[0]
			if r.validityDuration != 3600 || r.metadata.GetFields()["ClusterID"].GetStringValue() != "Kubernetes" {
				t.Errorf("request %+v", r)
			}
		})
	})
}

// TestCADay: 24 virtual hours of certificates of one hour, with a reader every
// 30 s and a change of root in the middle: no reader is ever without a
// certificate that a peer with older or newer material accepts.
func TestCADay(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, a *testAuthority, c *CA) {
		oldest := must(t, c)
		reads := 0
		for elapsed := time.Duration(0); elapsed < 24*time.Hour; elapsed += 30 * time.Second {
			switch elapsed {
			case 8 * time.Hour:
				// The new root is announced, the old one signs still.
				a.set(func() {
					fresh := sign(t, rootTemplate("next"), nil, nil)
					a.roots = append(a.roots, fresh)
				})
			case 12 * time.Hour:
				a.set(func() {
					a.roots[0], a.roots[1] = a.roots[1], a.roots[0]
					template := workloadTemplate("spiffe://td.example/ns/mesh/sa/ca", time.Now().Add(-time.Hour), time.Now().Add(365*24*time.Hour))
					template.DNSNames = []string{"ca.test"}
					a.tls = sign(t, template, a.roots[0], nil)
				})
			}
			m := must(t, c)
			if err := peerAccepts(t, m, m); err != nil {
				t.Fatalf("after %v: %v", elapsed, err)
			}
			if elapsed < 8*time.Hour {
				if err := peerAccepts(t, m, oldest); err != nil {
					t.Fatalf("after %v, by a peer of the beginning: %v", elapsed, err)
				}
			}
			reads++
			time.Sleep(30 * time.Second)
		}
		st := c.Status()
		if st.Rotations < 44 || st.Rotations > 54 || st.Failures != 0 {
			t.Errorf("%d rotations in 24 hours, %d failures, want about 48 and none", st.Rotations, st.Failures)
		}
		synctest.Wait()
		a.set(func() {
			if a.byToken != 1 || a.failures != 0 {
				t.Errorf("%d requests by token, %d refused", a.byToken, a.failures)
			}
		})
		if got := len(must(t, c).Bundles[mustID(t, workloadID).TrustDomain()].Roots()); got != 2 {
			t.Errorf("%d roots, want both", got)
		}
		t.Logf("%d reads, %d rotations", reads, st.Rotations)
	})
}

func TestCAOutage(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, a *testAuthority, c *CA) {
		m := must(t, c)
		a.set(func() { a.down = true; a.dialTimes = nil })
		time.Sleep(time.Until(m.NotAfter) - time.Second)
		if must(t, c) != m {
			t.Error("another certificate came from an authority that is down")
		}
		changed := c.Changed()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Error("the expiry was not announced")
		}
		_, err := c.Current()
		var notReady *NotReadyError
		if !errors.Is(err, ErrNotReady) || !errors.As(err, &notReady) || !notReady.Expired.Equal(m.NotAfter) || !strings.Contains(err.Error(), "connection refused") {
			t.Fatalf("after expiry: %v", err)
		}
		a.set(func() {
			// From the renewal on, at most 150 s apart (and what gRPC adds).
			for i := 1; i < len(a.dialTimes); i++ {
				if gap := a.dialTimes[i].Sub(a.dialTimes[i-1]); gap > maxRetry+attemptTimeout {
					t.Errorf("attempt %d came after %v", i, gap)
				}
			}
			if n := len(a.dialTimes); n < 15 || n > 200 {
				t.Errorf("%d attempts in half an hour", n)
			}
			a.down = false
			a.join[canary] = true // an operator gives another token
		})
		time.Sleep(maxRetry + attemptTimeout)
		synctest.Wait()
		if again := must(t, c); again == m {
			t.Error("the expired certificate is back")
		}
		if st := c.Status(); st.Failures != 0 || st.LastError != "" {
			t.Errorf("status after recovery %+v", st)
		}
	})
}

// TestCAOutageBeforeExpiry: an outage that ends before expiry is seen by nobody.
func TestCAOutageBeforeExpiry(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, a *testAuthority, c *CA) {
		a.set(func() { a.down = true })
		time.Sleep(50 * time.Minute)
		must(t, c)
		a.set(func() { a.down = false })
		for range 40 {
			time.Sleep(time.Minute)
			must(t, c)
		}
		synctest.Wait()
		a.set(func() {
			if a.byToken != 1 || a.byCert < 1 {
				t.Errorf("%d by token, %d by certificate", a.byToken, a.byCert)
			}
		})
	})
}

func TestCASkew(t *testing.T) {
	for _, skew := range []time.Duration{-3 * time.Minute, 3 * time.Minute} {
		for _, backdate := range []time.Duration{0, 10 * time.Second, 2 * time.Minute, time.Hour} {
			t.Run(skew.String()+" "+backdate.String(), func(t *testing.T) {
				inBubble(t, func(a *testAuthority, _ *CAConfig) { a.skew, a.backdate = skew, backdate }, func(t *testing.T, a *testAuthority, c *CA) {
					for range 300 {
						must(t, c)
						time.Sleep(time.Minute)
					}
					if st := c.Status(); st.Failures != 0 || st.Rotations < 8 || st.Rotations > 13 {
						t.Errorf("%+v", st)
					}
				})
			})
		}
	}
}

// TestCARefusesAnswers: whatever the authority sends must be what every peer accepts.
func TestCARefusesAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*testAuthority, *CAConfig)
		want    string
	}{
		"no chain": {func(a *testAuthority, _ *CAConfig) { a.tamper = func(r *certificateResponse) { r.certChain = nil } }, "no certificate"},
		"garbage":  {func(a *testAuthority, _ *CAConfig) { a.tamper = func(r *certificateResponse) { r.certChain[0] = "x" } }, "another key"},
		"another key": {func(a *testAuthority, _ *CAConfig) {
			a.tamper = func(r *certificateResponse) { r.certChain[0] = a.tls.pem() }
		}, "another key"},
		"cut off": {func(a *testAuthority, _ *CAConfig) {
			a.tamper = func(r *certificateResponse) { r.certChain[0] = r.certChain[0][:100] }
		}, "cut off"},
		"another identity":    {func(_ *testAuthority, c *CAConfig) { c.ID = mustID(t, workloadID+"x") }, "not for"},
		"no SVID":             {func(a *testAuthority, _ *CAConfig) { a.id = "https://td.example/x" }, "spiffe-id"},
		"expired":             {func(a *testAuthority, _ *CAConfig) { a.skew = -2 * time.Hour }, "expired"},
		"far in the future":   {func(a *testAuthority, _ *CAConfig) { a.skew = time.Hour }, "not-yet-valid"},
		"unknown token":       {func(a *testAuthority, _ *CAConfig) { a.join = nil }, `token "[token]" is not known`},
		"another root":        {func(a *testAuthority, _ *CAConfig) { a.rotate(false) }, "rule chain"},
		"another name":        {func(_ *testAuthority, c *CAConfig) { c.ServerName = "other.test" }, "other.test"},
		"another ID":          {func(_ *testAuthority, c *CAConfig) { c.ServerName, c.ServerID = "", mustID(t, workloadID) }, "peer-id"},
		"another fingerprint": {func(_ *testAuthority, c *CAConfig) { c.RootsPEM, c.RootFingerprint = nil, strings.Repeat("00", 32) }, "pinned fingerprint"},
		"the fingerprint of the leaf": {func(a *testAuthority, c *CAConfig) {
			sum := sha256.Sum256(a.tls.cert.Raw)
			c.RootsPEM, c.RootFingerprint = nil, hex.EncodeToString(sum[:])
		}, "pinned fingerprint"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, c.prepare, func(t *testing.T, a *testAuthority, s *CA) {
				_, err := s.Current()
				if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), canary) {
					t.Errorf("%v, want %q", err, c.want)
				}
				if name == "another root" || name == "another name" || name == "another ID" || name == "another fingerprint" {
					a.set(func() {
						if len(a.requests) != 0 {
							t.Error("an authority that was not recognised got a request, with the token in it")
						}
					})
				}
			})
		})
	}
}

// TestCAKeepsIdentity: a renewal for another identity is refused, the old certificate stays.
func TestCAKeepsIdentity(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, a *testAuthority, c *CA) {
		m := must(t, c)
		a.set(func() { a.tamper = func(r *certificateResponse) { r.certChain[0] = a.tls.pem() } })
		time.Sleep(40 * time.Minute)
		if must(t, c) != m || c.Status().Failures == 0 {
			t.Errorf("%+v", c.Status())
		}
	})
}

func TestCAProofs(t *testing.T) {
	t.Run("fingerprint", func(t *testing.T) {
		inBubble(t, func(a *testAuthority, c *CAConfig) {
			sum := sha256.Sum256(a.roots[0].cert.Raw)
			c.RootsPEM, c.RootFingerprint = nil, strings.ToUpper(hex.EncodeToString(sum[:]))
		}, func(t *testing.T, _ *testAuthority, c *CA) { must(t, c) })
	})
	t.Run("server ID", func(t *testing.T) {
		inBubble(t, func(_ *testAuthority, c *CAConfig) {
			c.ServerID = mustID(t, "spiffe://td.example/ns/mesh/sa/ca")
		}, func(t *testing.T, _ *testAuthority, c *CA) { must(t, c) })
	})
	t.Run("service account token, renewed", func(t *testing.T) {
		path := tokenFile(t, "first")
		if err := os.Chmod(path, 0o644); err != nil { // as the kubelet writes it
			t.Fatal(err)
		}
		inBubble(t, func(a *testAuthority, c *CAConfig) {
			c.JoinTokenFile, c.TokenFile, a.saToken = "", path, "first"
		}, func(t *testing.T, a *testAuthority, c *CA) {
			must(t, c)
			if err := os.WriteFile(path, []byte("second"), 0o644); err != nil {
				t.Fatal(err)
			}
			a.set(func() { a.saToken = "second" })
			<-c.Changed()
			synctest.Wait()
			a.set(func() {
				if a.byToken != 2 || a.failures != 0 {
					t.Errorf("%d by token, %d refused", a.byToken, a.failures)
				}
			})
		})
	})
	t.Run("join token that others may read", func(t *testing.T) {
		path := tokenFile(t, canary)
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		inBubble(t, func(_ *testAuthority, c *CAConfig) { c.JoinTokenFile = path }, func(t *testing.T, a *testAuthority, c *CA) {
			if _, err := c.Current(); err == nil || !strings.Contains(err.Error(), "0600") {
				t.Error(err)
			}
			a.set(func() {
				if len(a.dialTimes) != 0 {
					t.Error("the authority was called")
				}
			})
		})
	})
}

// TestCAState: a process that starts again renews with the certificate of its
// last run, though its join token is used up, and knows the announced roots.
func TestCAState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.pem")
	inBubble(t, func(_ *testAuthority, c *CAConfig) { c.StateFile = path }, func(t *testing.T, a *testAuthority, c *CA) {
		m := must(t, c)
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info.Mode(), err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		again, err := NewCA(c.config, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		synctest.Wait()
		restored := must(t, again)
		if restored.Certificate.Leaf.SerialNumber.Cmp(m.Certificate.Leaf.SerialNumber) != 0 {
			t.Error("another certificate than that of the last run")
		}
		<-again.Changed()
		synctest.Wait()
		if err := peerAccepts(t, must(t, again), restored); err != nil {
			t.Error(err)
		}
		a.set(func() {
			if a.byToken != 1 || a.byCert != 1 {
				t.Errorf("%d by token, %d by certificate", a.byToken, a.byCert)
			}
		})
		for _, mode := range []os.FileMode{0o644, 0o640, 0o620} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			if _, err := again.load(); err == nil || !strings.Contains(err.Error(), "0600") {
				t.Errorf("a state file of mode %04o: %v", mode, err)
			}
		}
		for _, content := range []string{"", "x", m0(m)} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := again.load(); err == nil {
				t.Errorf("a state file of %d bytes is believed", len(content))
			}
		}
	})
}

// m0 is a state file without its key.
func m0(m *Material) string { return (&signed{cert: m.Certificate.Leaf}).pem() }

// TestCARootsFile: a root that an operator adds is in force within a minute or so.
func TestCARootsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roots.pem")
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	inBubble(t, func(a *testAuthority, c *CAConfig) {
		write(a.roots[0].pem())
		c.RootsPEM, c.RootsFile = nil, path
	}, func(t *testing.T, a *testAuthority, c *CA) {
		td := mustID(t, workloadID).TrustDomain()
		first := must(t, c)
		changed := c.Changed()
		extra := sign(t, rootTemplate("extra"), nil, nil)
		write(a.roots[0].pem() + extra.pem()[:80])
		time.Sleep(2 * time.Minute)
		if must(t, c) != first {
			t.Error("a file that is cut off has changed the material")
		}
		write(a.roots[0].pem() + extra.pem())
		<-changed
		m := must(t, c)
		if got := len(m.Bundles[td].Roots()); got != 2 || m.Certificate != first.Certificate {
			t.Errorf("%d roots, certificate the same: %v", got, m.Certificate == first.Certificate)
		}
	})
}

// TestRenewAfter enumerates the draws: always within 5 % of half, never past expiry.
func TestRenewAfter(t *testing.T) {
	now := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		before, after time.Duration
		half          time.Duration
	}{
		{0, time.Hour, 30 * time.Minute},
		{-2 * time.Minute, time.Hour, 30 * time.Minute}, // backdated
		{-30 * time.Minute, 30 * time.Minute, 15 * time.Minute},
		{3 * time.Minute, 63 * time.Minute, 30 * time.Minute}, // the authority's clock is ahead
		{-3 * time.Minute, 57 * time.Minute, 28*time.Minute + 30*time.Second},
		{0, 90 * 24 * time.Hour, 45 * 24 * time.Hour},
	} {
		leaf := &x509.Certificate{NotBefore: now.Add(c.before), NotAfter: now.Add(c.after)}
		for i := range 1000 {
			d := renewAfter(leaf, now, float64(i)/1000)
			if off := math.Abs(float64(d-c.half)) / float64(c.half); off > 0.1001 {
				t.Fatalf("%+v draw %d: %v", c, i, d)
			}
		}
	}
	if d := renewAfter(&x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now}, now, 0.5); d != firstRetry {
		t.Errorf("an expired certificate is renewed after %v", d)
	}
}

func TestCAConfig(t *testing.T) {
	good := `{"address":"ca.test:15012","ca_fingerprint":"` + strings.Repeat("ab", 32) + `","join_token_file":"/t","ttl":"600s","id":"spiffe://td/ns/a/sa/b","trust_domains":["old"]}`
	c, err := ParseCAConfig(json.RawMessage(good))
	if err != nil || c.TTL != 10*time.Minute || c.ServerName != "ca.test" || len(c.TrustDomains) != 1 || c.ID.IsZero() {
		t.Errorf("%+v, %v", c, err)
	}
	for config, want := range map[string]string{
		`{}`:                "address",
		`{"address":"a:1"}`: "recognised",
		`{"address":"a:1","ca_fingerprint":"zz","token_file":"t"}`:                  "ca_fingerprint",
		`{"address":"a:1","ca_certificates":"x","token_file":"t"}`:                  "ca_certificates",
		`{"address":"a:1","ca_certificate_file":"f"}`:                               "proves itself",
		`{"address":"a","ca_certificate_file":"f","token_file":"t"}`:                "server_name",
		`{"address":"a:1","ca_certificate_file":"f","token_file":"t","ttl":5}`:      "ttl",
		`{"address":"a:1","ca_certificate_file":"f","token_file":"t","ttl":"-5s"}`:  "ttl",
		`{"address":"a:1","ca_certificate_file":"f","token_file":"t","id":"x"}`:     "scheme",
		`{"address":"a:1","ca_certificate_file":"f","token_fil":"t"}`:               "token_fil",
		`{"address":"a:1","ca_certificate_file":"f","token_file":"t","insecure":1}`: "insecure",
	} {
		if _, err := New(CAPlugin, json.RawMessage(config), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
	if _, err := New("other", nil, nil); err == nil {
		t.Error("an unknown plugin is accepted")
	}
}

func TestCANeedsNoNetworkToClose(t *testing.T) {
	stuck := func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	synctest.Test(t, func(t *testing.T) {
		root := sign(t, rootTemplate("root"), nil, nil)
		c, err := NewCA(CAConfig{Address: "ca.test:1", RootsPEM: []byte(root.pem()), JoinTokenFile: tokenFile(t, canary), Dial: stuck}, nil)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		begin := time.Now()
		if err := c.Close(); err != nil || time.Since(begin) > time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}
