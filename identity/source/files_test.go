package source

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/journal"
)

// fileSet is a directory as cert-manager's or an Istio agent's.
type fileSet struct{ dir, cert, key, ca, bundles string }

func newFileSet(t testing.TB) *fileSet {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	return &fileSet{dir, at("cert-chain.pem"), at("key.pem"), at("root-cert.pem"), at("bundles.json")}
}

func (f *fileSet) write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *fileSet) config() FilesConfig {
	return FilesConfig{CertificateFile: f.cert, PrivateKeyFile: f.key, CACertificateFile: f.ca, RefreshInterval: time.Minute}
}

func workload(t testing.TB, root *signed, id string, validity time.Duration) *signed {
	return sign(t, workloadTemplate(id, time.Now().Add(-time.Minute), time.Now().Add(validity)), root, nil)
}

func TestFilesRotateAndSurviveTearing(t *testing.T) {
	files := newFileSet(t)
	log := &journal.Journal{}
	var secrets []string
	synctest.Test(t, func(t *testing.T) {
		root := sign(t, rootTemplate("root"), nil, nil)
		one, two := workload(t, root, workloadID, time.Hour), workload(t, root, workloadID, 2*time.Hour)
		secrets = append(secrets, one.keyPEM(t), two.keyPEM(t))
		files.write(t, files.cert, one.pem())
		files.write(t, files.key, one.keyPEM(t))
		files.write(t, files.ca, root.pem())
		s, err := NewFiles(files.config(), slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		m := must(t, s)
		if m.ID.String() != workloadID || m.Roots == nil || !m.NotAfter.Equal(one.cert.NotAfter) {
			t.Fatalf("%+v", m)
		}
		if err := peerAccepts(t, m, m); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Minute)
		if must(t, s) != m {
			t.Error("unchanged files have changed the material")
		}
		broken := []struct {
			name, path, content, reason string
		}{
			{"certificate of another key", files.cert, two.pem(), "does not belong"},
			{"certificate cut off", files.cert, one.pem()[:200], "cut off"},
			{"chain cut off", files.cert, one.pem() + root.pem()[:100], "cut off"},
			{"certificate empty", files.cert, "", "no certificate"},
			{"key cut off", files.key, one.keyPEM(t)[:100], "no complete PEM block"},
			{"key empty", files.key, "", "no complete PEM block"},
			{"key of another certificate", files.key, two.keyPEM(t), "does not belong"},
			{"key that is no key", files.key, strings.Replace(one.keyPEM(t), "M", "A", 3), "private key"},
			{"roots cut off", files.ca, root.pem() + root.pem()[:50], "cut off"},
			{"roots that are none", files.ca, one.pem(), "no CA certificate"},
			{"roots gone", files.ca, "\x00remove", "no such file"},
		}
		good := map[string]string{files.cert: one.pem(), files.key: one.keyPEM(t), files.ca: root.pem()}
		for _, b := range broken {
			if b.content == "\x00remove" {
				if err := os.Remove(b.path); err != nil {
					t.Fatal(err)
				}
			} else {
				files.write(t, b.path, b.content)
			}
			time.Sleep(time.Minute + time.Second)
			synctest.Wait()
			if must(t, s) != m {
				t.Errorf("%s: other material is in force", b.name)
			}
			st := s.Status()
			if st.Failures == 0 || !strings.Contains(st.LastError, b.reason) || !strings.Contains(st.LastError, filepath.Base(b.path)) {
				t.Errorf("%s: %q, want %q and the file's name", b.name, st.LastError, b.reason)
			}
			files.write(t, b.path, good[b.path])
			time.Sleep(time.Minute + time.Second)
			synctest.Wait()
			if st := s.Status(); st.LastError != "" || must(t, s) != m {
				t.Errorf("%s, then sound again: %+v", b.name, st)
			}
		}
		// A pair that arrives file by file is taken when it is complete, and soon.
		changed := s.Changed()
		files.write(t, files.cert, two.pem())
		time.Sleep(time.Minute)
		synctest.Wait()
		files.write(t, files.key, two.keyPEM(t))
		begin := time.Now()
		<-changed
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("the complete pair was taken after %v", d)
		}
		if !must(t, s).NotAfter.Equal(two.cert.NotAfter) {
			t.Error("the old certificate is in force")
		}
		// It expires: that is announced, and nothing is in force.
		changed = s.Changed()
		<-changed
		if _, err := s.Current(); !errors.Is(err, ErrNotReady) {
			t.Errorf("after expiry: %v", err)
		}
		if time.Since(two.cert.NotAfter).Abs() > 2*time.Second {
			t.Errorf("announced at %v, expired at %v", time.Now(), two.cert.NotAfter)
		}
	})
	for _, secret := range secrets {
		for _, line := range strings.Split(secret, "\n") {
			if len(line) > 20 && !strings.HasPrefix(line, "-----") && strings.Contains(log.String(), line) {
				t.Errorf("the log holds key material: %s", line)
			}
		}
	}
	if strings.Contains(log.String(), "PRIVATE KEY") || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("the log:\n%s", log.String())
	}
}

// TestFilesDay: 24 virtual hours in which the certificate is replaced every hour.
func TestFilesDay(t *testing.T) {
	files := newFileSet(t)
	synctest.Test(t, func(t *testing.T) {
		root := sign(t, rootTemplate("root"), nil, nil)
		put := func() {
			w := workload(t, root, workloadID, 90*time.Minute)
			files.write(t, files.cert, w.pem())
			files.write(t, files.key, w.keyPEM(t))
		}
		put()
		files.write(t, files.ca, root.pem())
		s, err := NewFiles(files.config(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for minute := range 24 * 60 {
			if minute%60 == 30 {
				put()
			}
			m := must(t, s)
			if err := peerAccepts(t, m, m); err != nil {
				t.Fatalf("minute %d: %v", minute, err)
			}
			time.Sleep(time.Minute)
		}
		if st := s.Status(); st.Rotations != 25 {
			t.Errorf("%d sets of files, want 25", st.Rotations)
		}
	})
}

func TestFilesTrust(t *testing.T) {
	files := newFileSet(t)
	root, other := sign(t, rootTemplate("root"), nil, nil), sign(t, rootTemplate("other"), nil, nil)
	w := workload(t, root, workloadID, time.Hour)
	files.write(t, files.cert, w.pem())
	files.write(t, files.key, w.keyPEM(t))
	files.write(t, files.ca, root.pem())
	td, old := mustID(t, workloadID).TrustDomain(), mustID(t, "spiffe://old.example").TrustDomain()
	open := func(c FilesConfig) *Material {
		s, err := NewFiles(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return must(t, s)
	}
	c := files.config()
	if m := open(c); len(m.Bundles) != 1 || m.Bundles[td] == nil {
		t.Errorf("the roots vouch for %v", m.Bundles)
	}
	c.TrustDomains = []identity.TrustDomain{old}
	if m := open(c); len(m.Bundles) != 2 || m.Bundles[old] == nil {
		t.Errorf("with a former name the roots vouch for %v", m.Bundles)
	}
	files.write(t, files.bundles, fmt.Sprintf(`{"trust_domains":{"far.example":{"keys":[{"use":"x509-svid","x5c":[%q]}]}}}`,
		base64.StdEncoding.EncodeToString(other.cert.Raw)))
	c.SPIFFETrustBundleMapFile = files.bundles
	if m := open(c); len(m.Bundles) != 1 || m.Bundles[td] != nil {
		t.Errorf("the map must outrank the roots: %v", m.Bundles)
	}
	// Trust without a certificate, as a client that only verifies has it.
	if m := open(FilesConfig{CACertificateFile: files.ca}); m.Certificate != nil || m.Roots == nil || len(m.Bundles) != 0 {
		t.Errorf("%+v", m)
	}
}

func TestFilesThatComeLater(t *testing.T) {
	files := newFileSet(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := NewFiles(files.config(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Current(); !errors.Is(err, ErrNotReady) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v", err)
		}
		root := sign(t, rootTemplate("root"), nil, nil)
		w := workload(t, root, workloadID, time.Hour)
		changed := s.Changed()
		files.write(t, files.cert, w.pem())
		files.write(t, files.key, w.keyPEM(t))
		files.write(t, files.ca, root.pem())
		<-changed
		must(t, s)
	})
}

func TestFilesConfig(t *testing.T) {
	c, err := ParseFilesConfig(json.RawMessage(`{"certificate_file":"c","private_key_file":"k","ca_certificate_file":"r","refresh_interval":"900s","trust_domains":["a.test"],"else":1}`))
	if err != nil || c.RefreshInterval != 15*time.Minute || c.CACertificateFile != "r" || len(c.TrustDomains) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	for config, want := range map[string]string{
		`{}`:                       "at least one file",
		`{"certificate_file":"c"}`: "private_key_file",
		`{"private_key_file":"c"}`: "certificate_file",
		`{"ca_certificate_file":"c","refresh_interval":"x"}`:   "refresh_interval",
		`{"ca_certificate_file":"c","refresh_interval":"-1s"}`: "refresh_interval",
		`{"ca_certificate_file":"c","trust_domains":["BAD"]}`:  "upper case",
		`[]`: "file_watcher",
	} {
		if _, err := New(FilesPlugin, json.RawMessage(config), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}

func TestStatic(t *testing.T) {
	root := sign(t, rootTemplate("root"), nil, nil)
	w := workload(t, root, workloadID, time.Hour)
	pair := &tls.Certificate{Certificate: [][]byte{w.cert.Raw}, PrivateKey: w.key}
	s, err := NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Current(); !errors.Is(err, ErrNotReady) {
		t.Error(err)
	}
	changed := s.Changed()
	if err := s.Set(&Material{Certificate: pair}); err != nil {
		t.Fatal(err)
	}
	<-changed
	if m := must(t, s); m.ID.String() != workloadID || m.Certificate.Leaf == nil || pair.Leaf != nil {
		t.Errorf("%+v", m)
	}
	for _, bad := range []*tls.Certificate{{}, {Certificate: [][]byte{{1}}}} {
		if err := s.Set(&Material{Certificate: bad}); err == nil {
			t.Error("a broken certificate is accepted")
		}
	}
	must(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestClockSetBack: a wall clock that is set back does not make an expired
// certificate valid again.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := sign(t, rootTemplate("root"), nil, nil)
		w := workload(t, root, workloadID, time.Hour)
		s, err := NewStatic(&Material{Certificate: &tls.Certificate{Certificate: [][]byte{w.cert.Raw}, PrivateKey: w.key}})
		if err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(2 * time.Hour)
		if !s.expired(later) || s.expired(later.Add(-90*time.Minute)) {
			t.Error("by one clock already it is wrong")
		}
		// What the monotonic clock says stands beside what the wall clock says.
		s.deadline = s.deadline.Add(-2 * time.Hour)
		if _, err := s.Current(); !errors.Is(err, ErrNotReady) {
			t.Errorf("the wall clock alone decided: %v", err)
		}
	})
}

func FuzzParsePEM(f *testing.F) {
	root := sign(f, rootTemplate("root"), nil, nil)
	f.Add([]byte(root.pem()))
	f.Add([]byte(root.pem() + root.pem()[:70]))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := parsePEM(b)
		if err == nil && len(certs) == 0 {
			t.Fatal("no certificate and no error")
		}
		if err == nil && bytes.Count(b, []byte("-----BEGIN CERTIFICATE-----")) < len(certs) {
			t.Fatalf("%d certificates out of nowhere", len(certs))
		}
		_, _ = keyPair(b, b)
	})
}
