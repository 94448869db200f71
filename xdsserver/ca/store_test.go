package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var errKilled = errors.New("killed")

// killer lets a number of steps pass and then stops everything: after a kill nothing
// more happens on the disk.
type killer struct {
	armed bool
	left  int
	dead  bool
	at    string
}

func (k *killer) step(name string) error {
	if k.dead {
		return errKilled
	}
	if k.armed {
		if k.left == 0 {
			k.dead, k.at = true, name
			return errKilled
		}
		k.left--
	}
	return nil
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func contains(b Bundle, root *x509.Certificate) bool {
	return slices.ContainsFunc(b.Roots, root.Equal)
}

// TestKillWhileFounding: whatever the first start left, the second one comes up with
// one root, and with the one that the first may have told others.
func TestKillWhileFounding(t *testing.T) {
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "ca")
		k := &killer{armed: true, left: n}
		o := short(newClock())
		o.failpoint = k.step
		c, err := Open(t.Context(), dir, o)
		var told []*x509.Certificate
		if err == nil {
			told = c.Bundle().Roots
			c.Close()
		}
		if !k.dead {
			if n < 6 {
				t.Fatalf("only %d steps", n)
			}
			return
		}
		o.failpoint = nil
		again := mustOpen(t, dir, o)
		b := again.Bundle()
		if len(b.Roots) != 1 || told != nil && !told[0].Equal(b.Roots[0]) {
			t.Errorf("killed at step %d (%s): %d roots, or another one", n, k.at, len(b.Roots))
		}
		if s := mustIssue(t, again, reviews, 0); verify(s, b.Pool(), epoch, x509.ExtKeyUsageClientAuth) != nil {
			t.Errorf("killed at step %d (%s): the leaf does not verify", n, k.at)
		}
		again.Close()
	}
}

// changes are the ways in which roots change, each from a state that it is due in.
var changes = []struct {
	name  string
	setup func(t *testing.T, c *CA, ck *clock)
	after time.Duration // then the change is due
	kept  bool          // all roots of before are in the bundle afterwards
}{
	{"prepare", func(*testing.T, *CA, *clock) {}, 6 * time.Hour, true},
	{"renew", func(*testing.T, *CA, *clock) {}, 3 * time.Hour, true},
	{"activate", rotated, time.Hour, true},
	{"remove", func(t *testing.T, c *CA, ck *clock) {
		rotated(t, c, ck)
		if err := c.Tick(t.Context(), ck.advance(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}, time.Hour + Backdate, false},
}

func rotated(t *testing.T, c *CA, _ *clock) {
	if err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestKillWhileChanging(t *testing.T) {
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			ck, origin := newClock(), t.TempDir()
			c := mustOpen(t, origin, short(ck))
			change.setup(t, c, ck)
			c.Close()
			start := ck.now()
			for n := 0; ; n++ {
				dir := copyDir(t, origin)
				ck.t = start
				k := &killer{}
				o := short(ck)
				o.failpoint = k.step
				c := mustOpen(t, dir, o)
				before := c.Bundle()
				leaf := mustIssue(t, c, reviews, time.Hour) // from before the change
				ck.advance(change.after)
				k.armed, k.left = true, n
				err := c.Tick(t.Context(), ck.now())
				if !k.dead {
					if err != nil || n < 6 {
						t.Fatalf("%d steps, %v", n, err)
					}
					return
				}
				told := c.Bundle()
				c.Close()
				images := []string{dir}
				if k.at == "sync directory" {
					// Power may fail as well, and the file's name be lost with it.
					lost := copyDir(t, dir)
					newest := (&store{dir: lost}).path(c.store.last)
					if err := os.Rename(newest, newest+".tmp"); err != nil {
						t.Fatal(err)
					}
					images = append(images, lost)
				}
				for i, dir := range images {
					o.failpoint = nil
					// Opened while nothing is due, to see what the disk has.
					dueAt := ck.t
					ck.t = start
					found := mustOpen(t, dir, o)
					b := found.Bundle()
					if b.Version < told.Version || b.Version > before.Version+1 {
						t.Errorf("killed at %s (%d): version %d, before %d, told %d", k.at, i, b.Version, before.Version, told.Version)
					}
					for _, root := range before.Roots {
						if change.kept && !contains(b, root) {
							t.Errorf("killed at %s (%d): a root is lost", k.at, i)
						}
					}
					ck.t = dueAt
					if err := found.Tick(t.Context(), ck.now()); err != nil {
						t.Fatal(err)
					}
					if change.kept {
						if err := verify(leaf, found.Bundle().Pool(), start.Add(time.Minute), x509.ExtKeyUsageServerAuth); err != nil {
							t.Errorf("killed at %s (%d): a leaf from before: %v", k.at, i, err)
						}
					}
					now := mustIssue(t, found, reviews, 0)
					if err := verify(now, found.Bundle().Pool(), ck.now(), x509.ExtKeyUsageServerAuth); err != nil {
						t.Errorf("killed at %s (%d): a new leaf: %v", k.at, i, err)
					}
					if s := due(found.state, ck.now(), &found.opts); s != nothing {
						t.Errorf("killed at %s (%d): after a Tick %q is still due", k.at, i, s)
					}
					found.Close()
				}
			}
		})
	}
}

// TestFailingDisk: the process lives on. A change that is surely not on the disk has not
// happened; where that is not sure, nothing is issued until it is.
func TestFailingDisk(t *testing.T) {
	for _, name := range []string{"create", "write 1", "write 2", "sync", "rename", "sync directory", "remove old"} {
		ck, broken := newClock(), false
		var log record
		o := short(ck)
		o.Log = log.logger()
		o.failpoint = func(step string) error {
			if broken && step == name {
				return errors.New("disk is bad")
			}
			return nil
		}
		c := mustOpen(t, t.TempDir(), o)
		if err := c.Rotate(t.Context()); err != nil { // so that there is something old to remove
			t.Fatal(err)
		}
		before := c.Bundle()
		broken = true
		err := c.Tick(t.Context(), ck.advance(time.Hour)) // activate
		_, issueErr := c.Issue(t.Context(), Caller{ID: reviews}, newCSR(t), 0)
		switch name {
		case "remove old":
			if err != nil || issueErr != nil || !strings.Contains(log.String(), "old state not removed") {
				t.Errorf("%s: %v, %v", name, err, issueErr)
			}
			continue
		case "sync directory":
			if err == nil || !errors.Is(issueErr, ErrUnavailable) {
				t.Errorf("%s: %v, %v", name, err, issueErr)
			}
			if c.Tick(t.Context(), ck.now()) == nil {
				t.Errorf("%s: a second Tick succeeds", name)
			}
		default:
			if err == nil || issueErr != nil {
				t.Errorf("%s: %v, %v", name, err, issueErr)
			}
		}
		if got := c.Bundle(); got.Version != before.Version || !bytes.Equal(got.PEM(), before.PEM()) {
			t.Errorf("%s: the bundle has changed", name)
		}
		broken = false
		if err := c.Tick(t.Context(), ck.now()); err != nil {
			t.Errorf("%s: not well again: %v", name, err)
		}
		s := mustIssue(t, c, reviews, 0)
		if s.Bundle.Version != before.Version+1 {
			t.Errorf("%s: not activated", name)
		}
		files, _ := filepath.Glob(filepath.Join(c.store.dir, "state-*"))
		if len(files) != 2 {
			t.Errorf("%s: files %v", name, files)
		}
	}
}

// TestUncertainRotate: after a Rotate that may or may not be on the disk nothing is due,
// and a Tick still makes disk and memory agree.
func TestUncertainRotate(t *testing.T) {
	ck, broken := newClock(), false
	o := short(ck)
	o.failpoint = func(step string) error {
		if broken && step == "sync directory" {
			return errors.New("disk is bad")
		}
		return nil
	}
	dir := t.TempDir()
	c := mustOpen(t, dir, o)
	broken = true
	if c.Rotate(t.Context()) == nil {
		t.Error("no error")
	}
	if _, err := c.Issue(t.Context(), Caller{ID: reviews}, newCSR(t), 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("issues while the state is uncertain: %v", err)
	}
	broken = false
	if err := c.Tick(t.Context(), ck.now()); err != nil {
		t.Fatal(err)
	}
	mustIssue(t, c, reviews, 0)
	if b, err := ReadBundle(dir); err != nil || !bytes.Equal(b.PEM(), c.Bundle().PEM()) {
		t.Errorf("disk and memory differ: %v", err)
	}
}

// TestTorn: the newest file is damaged by the disk itself. The one before is in force,
// its roots verify what was issued, and version numbers are not used twice.
func TestTorn(t *testing.T) {
	ck, origin := newClock(), t.TempDir()
	c := mustOpen(t, origin, short(ck))
	first := c.Bundle()
	if err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	newest := c.Bundle()
	leaf := mustIssue(t, c, reviews, 0)
	path := filepath.Base(c.store.path(c.store.inForce))
	c.Close()
	whole, err := os.ReadFile(filepath.Join(origin, path))
	if err != nil {
		t.Fatal(err)
	}
	var images [][]byte
	for n := 0; n < len(whole); n += 1 + len(whole)/23 {
		images = append(images, whole[:n])
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x20
		images = append(images, flipped)
	}
	images = append(images, whole[:len(whole)-1], append(bytes.Clone(whole), 'x'), make([]byte, len(whole)))
	for i, image := range images {
		dir := copyDir(t, origin)
		if err := os.WriteFile(filepath.Join(dir, path), image, 0o600); err != nil {
			t.Fatal(err)
		}
		var log record
		o := short(ck)
		o.Log = log.logger()
		c := mustOpen(t, dir, o)
		b := c.Bundle()
		if !slices.EqualFunc(b.Roots, first.Roots, (*x509.Certificate).Equal) {
			t.Fatalf("image %d: other roots than before", i)
		}
		if b.Version <= newest.Version {
			t.Errorf("image %d: version %d", i, b.Version)
		}
		if err := verify(leaf, b.Pool(), ck.now(), x509.ExtKeyUsageClientAuth); err != nil {
			t.Errorf("image %d: %v", i, err)
		}
		if !strings.Contains(log.String(), "damaged") {
			t.Errorf("image %d: nothing is logged", i)
		}
		c.Close()
	}
	// Nothing intact: no new root, and nothing is touched.
	dir := copyDir(t, origin)
	files, _ := filepath.Glob(filepath.Join(dir, "state-*"))
	for _, f := range files {
		if err := os.Truncate(f, 100); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), dir, short(ck)); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("opened without intact state: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "state-*")); !slices.Equal(left, files) || len(files) != 2 {
		t.Errorf("files %v, before %v", left, files)
	}
}

// TestRealKill kills a process with the operating system's means at each step of
// founding and rotating.
func TestRealKill(t *testing.T) {
	if dir := os.Getenv("SINEW_TEST_CA_DIR"); dir != "" {
		n, _ := strconv.Atoi(os.Getenv("SINEW_TEST_CA_STEP"))
		o := short(newClock())
		o.failpoint = func(string) error {
			if n--; n < 0 {
				self, _ := os.FindProcess(os.Getpid())
				self.Kill()
				select {}
			}
			return nil
		}
		c, err := Open(context.Background(), dir, o)
		if err == nil {
			os.WriteFile(filepath.Join(dir, "told"), c.Bundle().PEM(), 0o600)
			err = c.Rotate(context.Background())
		}
		fmt.Println("done", err)
		return
	}
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "ca")
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRealKill$")
		cmd.Env = append(os.Environ(), "SINEW_TEST_CA_DIR="+dir, "SINEW_TEST_CA_STEP="+strconv.Itoa(n))
		out, err := cmd.CombinedOutput()
		if err == nil {
			if n < 12 || !strings.Contains(string(out), "done <nil>") {
				t.Errorf("%d steps: %s", n, out)
			}
			return
		}
		c := mustOpen(t, dir, short(newClock())) // the lock is free
		if told, err := os.ReadFile(filepath.Join(dir, "told")); err == nil {
			root, _ := parseCert(told)
			if !contains(c.Bundle(), root) {
				t.Errorf("killed at step %d: the root that was told is lost", n)
			}
		} else if len(c.Bundle().Roots) != 1 {
			t.Errorf("killed at step %d: %d roots", n, len(c.Bundle().Roots))
		}
		mustIssue(t, c, reviews, 0)
		c.Close()
	}
}

func TestStateRoundTrip(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	for i := range 30 {
		data, err := encodeState(c.state)
		if err != nil {
			t.Fatal(err)
		}
		s, err := decodeState(data)
		if err != nil {
			t.Fatalf("hour %d: %v", i, err)
		}
		again, err := encodeState(s)
		if err != nil || !bytes.Equal(data, again) {
			t.Fatalf("hour %d: not the same again, %v", i, err)
		}
		if err := c.Tick(t.Context(), ck.advance(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStateRefused: state whose parts do not belong together is not issued from.
func TestStateRefused(t *testing.T) {
	ck := newClock()
	c := mustOpen(t, t.TempDir(), short(ck))
	rotated(t, c, ck)
	other := mustOpen(t, t.TempDir(), short(ck))
	o := other.state.active()
	for name, spoil := range map[string]func(*state){
		"no authority":            func(s *state) { s.authorities = nil },
		"two active":              func(s *state) { s.authorities[1] = *o },
		"the same twice":          func(s *state) { s.authorities[1] = s.authorities[0] },
		"no active":               func(s *state) { s.authorities = s.authorities[1:] },
		"another's root":          func(s *state) { s.authorities[0].root = o.root },
		"another's issuer":        func(s *state) { s.authorities[0].issuer, s.authorities[0].issuerKey = o.issuer, o.issuerKey },
		"another's root key":      func(s *state) { s.authorities[0].rootKey = o.rootKey },
		"another's issuer key":    func(s *state) { s.authorities[0].issuerKey = o.issuerKey },
		"root not self-signed":    func(s *state) { s.authorities[0].root = s.authorities[0].issuer },
		"no key":                  func(s *state) { s.authorities[0].rootKey = keyRecord{} },
		"key is garbage":          func(s *state) { s.authorities[0].rootKey = keyRecord{PKCS8: []byte("x")} },
		"unknown phase":           func(s *state) { s.authorities[1].phase = "odd" },
		"retiring without an end": func(s *state) { s.authorities[1].phase = retiring },
		"no trust domain":         func(s *state) { s.trustDomain = "" },
		"no longest leaf":         func(s *state) { s.longestLeaf = 0 },
		"external with roots":     func(s *state) { s.external = true },
	} {
		s := c.state.clone()
		spoil(s)
		data, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, body := range []string{"", "{}", "null", "[]", `{"trust_domain":"td","longest_leaf":"1h","unknown":1}`} {
		if _, err := decodeStateBody([]byte(body)); err == nil {
			t.Errorf("%q: accepted", body)
		}
	}
}
