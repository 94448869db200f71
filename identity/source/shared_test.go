package source

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/journal"
)

// written makes a set of sound files and their configuration.
func written(t testing.TB, validity time.Duration) (files *fileSet, config json.RawMessage, root *signed) {
	files = newFileSet(t)
	root = sign(t, rootTemplate("root"), nil, nil)
	w := workload(t, root, workloadID, validity)
	files.write(t, files.cert, w.pem())
	files.write(t, files.key, w.keyPEM(t))
	files.write(t, files.ca, root.pem())
	return files, files.json(), root
}

func (f *fileSet) json() json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"certificate_file":%q,"private_key_file":%q,"ca_certificate_file":%q,"refresh_interval":"1s"}`, f.cert, f.key, f.ca))
}

func openShared() int {
	shared.Lock()
	defer shared.Unlock()
	return len(shared.open)
}

func TestSharedIsOne(t *testing.T) {
	files, config, _ := written(t, time.Hour)
	spelled := json.RawMessage(fmt.Sprintf("{ \"refresh_interval\" : \"1s\",\n\t\"ca_certificate_file\": %q, \"private_key_file\": %q, \"certificate_file\": %q}", files.ca, files.key, files.cert))
	before := openShared()
	var log journal.Journal
	a, err := Shared(FilesPlugin, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Shared(FilesPlugin, spelled, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if unwrap(a) != unwrap(b) || must(t, a) != must(t, b) || openShared() != before+1 {
		t.Error("the same configuration gives two sources")
	}
	if st, ok := StatusOf(b); !ok || st.ID != workloadID || st.Rotations != 1 {
		t.Errorf("%+v, %v", st, ok)
	}
	other, err := Shared(FilesPlugin, json.RawMessage(strings.Replace(string(config), "1s", "2s", 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if unwrap(other) == unwrap(a) {
		t.Error("another configuration gives the same source")
	}
	under := unwrap(a).(*Files)
	// A use that is closed twice is given back once.
	for range 2 {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if openShared() != before+2 {
		t.Error("the source is closed while it is used")
	}
	for _, s := range []Source{b, other} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if openShared() != before {
		t.Error("the last use did not close the source")
	}
	under.done.Wait() // its goroutine has ended
	if m := must(t, b); m.ID.String() != workloadID {
		t.Error("the last material is gone with Close")
	}
	again, err := Shared(FilesPlugin, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if unwrap(again) == Source(under) {
		t.Error("a closed source is handed out")
	}
}

// TestSharedLog: a source that somebody without a log opened first logs all the same.
func TestSharedLog(t *testing.T) {
	files := newFileSet(t)
	synctest.Test(t, func(t *testing.T) {
		var one, two journal.Journal
		a, err := Shared(FilesPlugin, files.json(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range []*journal.Journal{&one, &two} {
			s, err := Shared(FilesPlugin, files.json(), slog.New(slog.NewTextHandler(b, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
		defer a.Close()
		root := sign(t, rootTemplate("root"), nil, nil)
		w := workload(t, root, workloadID, time.Hour)
		files.write(t, files.cert, w.pem())
		files.write(t, files.key, w.keyPEM(t))
		files.write(t, files.ca, root.pem())
		time.Sleep(maxReread)
		must(t, a)
		if !strings.Contains(one.String(), workloadID) || two.String() != "" {
			t.Errorf("first log %q, second %q", one.String(), two.String())
		}
	})
}

func TestSharedRefuses(t *testing.T) {
	before := openShared()
	for config, want := range map[string]string{
		`{}`: "at least one file", `{`: "not JSON", `{} {}`: "after its end", `[]`: "file_watcher", ``: "at least one file", `null`: "at least one file",
	} {
		if s, err := Shared(FilesPlugin, json.RawMessage(config), nil); err == nil || !strings.Contains(err.Error(), want) || s != nil {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
	if _, err := Shared("other", nil, nil); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Error(err)
	}
	if openShared() != before {
		t.Error("a refused configuration is kept")
	}
}

func TestSharedConcurrently(t *testing.T) {
	_, config, _ := written(t, time.Hour)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				s, err := Shared(FilesPlugin, config, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Current(); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := openShared(); n != 0 {
		t.Errorf("%d sources are open", n)
	}
}

func TestCombine(t *testing.T) {
	root, other := sign(t, rootTemplate("root"), nil, nil), sign(t, rootTemplate("other"), nil, nil)
	static := func(m *Material) *Static {
		s, err := NewStatic(m)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	whole := func(root *signed) *Material {
		w := workload(t, root, workloadID, time.Hour)
		b, err := identity.NewBundle(roots(root), nil)
		if err != nil {
			t.Fatal(err)
		}
		m, err := keyPair([]byte(w.pem()), []byte(w.keyPEM(t)))
		if err != nil {
			t.Fatal(err)
		}
		return &Material{Certificate: m, Bundles: identity.BundleSet{mustID(t, workloadID).TrustDomain(): b}, Roots: pool(roots(root))}
	}
	a, b := static(whole(root)), static(whole(other))
	c := Combine(a, b)
	m := must(t, c)
	if m.Certificate != must(t, a).Certificate || m.Roots != must(t, b).Roots || m.ID.String() != workloadID || m.NotAfter.IsZero() {
		t.Errorf("%+v", m)
	}
	if must(t, c) != m {
		t.Error("another pointer without a change")
	}
	for _, s := range []*Static{a, b} {
		changed := c.Changed()
		if c.Changed() != changed {
			t.Error("two channels for one change")
		}
		if err := s.Set(whole(root)); err != nil {
			t.Fatal(err)
		}
		<-changed
		next := must(t, c)
		if next == m {
			t.Error("the change does not show")
		}
		m = next
	}
	_ = c.Changed() // somebody waits still
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if closed(c.Changed()) {
		t.Error("a closed source has changed")
	}

	if m := must(t, Combine(nil, b)); m.Certificate != nil || !m.ID.IsZero() || m.Roots == nil {
		t.Errorf("trust only: %+v", m)
	}
	if m := must(t, Combine(a, nil)); m.Certificate == nil || m.Roots != nil || m.Bundles != nil {
		t.Errorf("certificate only: %+v", m)
	}
	if got := must(t, Combine(a, a)); got != must(t, a) {
		t.Error("one source, two materials")
	}
	for _, c := range []Source{Combine(static(nil), b), Combine(a, static(nil)), Combine(a, static(&Material{}))} {
		if _, err := c.Current(); !errors.Is(err, ErrNotReady) {
			t.Error(err)
		}
	}
}

// TestCombineOfShared: both halves of one shared source are that source, and
// both uses are given back.
func TestCombineOfShared(t *testing.T) {
	_, config, _ := written(t, time.Hour)
	var uses [2]Source
	for i := range uses {
		s, err := Shared(FilesPlugin, config, nil)
		if err != nil {
			t.Fatal(err)
		}
		uses[i] = s
	}
	c := Combine(uses[0], uses[1])
	if must(t, c) != must(t, uses[0]) || c.Changed() != uses[0].Changed() {
		t.Error("not the same")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := openShared(); n != 0 {
		t.Errorf("%d sources are open", n)
	}
}

func TestSystem(t *testing.T) {
	m, err := System().Current()
	if err != nil {
		// A machine without roots says so, and nobody is believed.
		if !errors.Is(err, ErrNotReady) {
			t.Fatal(err)
		}
		return
	}
	if m.Roots == nil || m.Certificate != nil || len(m.Bundles) != 0 || must(t, System()) != m {
		t.Errorf("%+v", m)
	}
	if err := System().Close(); err != nil {
		t.Error(err)
	}
}

func FuzzCanonicalJSON(f *testing.F) {
	for _, s := range []string{``, `null`, `{"b":1,"a":{"d":2,"c":1.0e3}}`, `{"a":"\u0041"}`, `[1,2]`, `{"a":1}x`, `{"a":1,"a":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := canonicalJSON(b)
		if err != nil {
			return
		}
		again, err := canonicalJSON(c)
		if err != nil || string(again) != string(c) {
			t.Fatalf("%q becomes %q, %v", c, again, err)
		}
	})
}

// roots is a list of certificates.
func roots(of ...*signed) (list []*x509.Certificate) {
	for _, s := range of {
		list = append(list, s.cert)
	}
	return list
}
