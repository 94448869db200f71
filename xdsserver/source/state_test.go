package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// access is an AuthorizationPolicy for the workloads of the namespace shop.
func access(name, from string) string {
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: shop}\nspec: {rules: [{from: [{source: {namespaces: [%s]}}]}]}\n", name, from)
}

// broken is that policy with a field that nobody knows.
func broken(name string) string {
	return strings.Replace(access(name, "a"), "namespaces", "namespazes", 1)
}

// decides says what is in force for the workloads of the namespace shop.
func decides(r *policy.Result) string {
	if _, withheld := r.Set.Withheld(nil, "shop"); withheld {
		return "withheld"
	}
	var out []string
	for _, p := range r.Set.AuthorizationPolicies {
		out = append(out, p.Name+" "+p.Spec.GetRules()[0].GetFrom()[0].GetSource().GetNamespaces()[0])
	}
	if out == nil {
		return "open"
	}
	return strings.Join(out, ",")
}

// start runs Directory up to its first result.
func start(t *testing.T, dir string, o Options) (*policy.Result, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var first *policy.Result
	err := Directory(ctx, dir, o, func(r *policy.Result) {
		if first == nil {
			first = r
		}
		cancel()
	})
	return first, err
}

func started(t *testing.T, dir string, o Options) string {
	t.Helper()
	r, err := start(t, dir, o)
	must(t, err)
	return decides(r)
}

func TestStateOutlivesRestart(t *testing.T) {
	dir, o := t.TempDir(), Options{StateFile: filepath.Join(t.TempDir(), "access.state")}
	file := filepath.Join(dir, "a.yaml")
	for i, tt := range []struct{ text, want string }{
		{broken("p"), "withheld"}, // broken from the start
		{broken("p"), "withheld"}, // and after a restart
		{access("p", "a"), "p a"},
		{broken("p"), "p a"}, // broken later
		{broken("p"), "p a"}, // and after another restart
		{"", "p a"},          // half-written
		{access("p", "b"), "p b"},
		{"# gone\n", "open"},            // removed, which is not broken
		{broken("p"), "withheld"},       // a new one
		{"apiVersion: [\n", "withheld"}, // which may still be there
		{access("p", "a") + "---\n{[", "p a"},
	} {
		write(t, file, tt.text)
		if got := started(t, dir, o); got != tt.want {
			t.Errorf("step %d: %s, want %s", i, got, tt.want)
		}
		info, err := os.Stat(o.StateFile)
		must(t, err)
		if info.Mode() != 0o600 {
			t.Errorf("step %d: the state has mode %v", i, info.Mode())
		}
	}
}

// TestStateBeforeHandedOn: whoever sees a result finds it stored, however soon it is killed.
func TestStateBeforeHandedOn(t *testing.T) {
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "access.state")
	file := filepath.Join(dir, "a.yaml")
	write(t, file, access("p", "a"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	err := Directory(ctx, dir, Options{StateFile: state}, func(r *policy.Result) {
		n++
		data, err := os.ReadFile(state)
		must(t, err)
		stored, _, err := restore(data)
		must(t, err)
		got, err := stored.AccessState()
		must(t, err)
		want, err := r.AccessState()
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("result %d: stored %s, handed on %s", n, got, want)
		}
		switch decides(r) {
		case "p a":
			write(t, file, access("p", "b"))
		case "p b":
			cancel()
		}
	})
	must(t, err)
	if n < 2 {
		t.Errorf("%d results", n)
	}
}

// TestStateDamaged cuts and changes the state at every place: it is never taken for
// another, and what it would have decided is withheld, not opened.
func TestStateDamaged(t *testing.T) {
	dir, o := t.TempDir(), Options{StateFile: filepath.Join(t.TempDir(), "access.state")}
	file := filepath.Join(dir, "a.yaml")
	write(t, file, access("p", "a"))
	if got := started(t, dir, o); got != "p a" {
		t.Fatal(got)
	}
	good, err := os.ReadFile(o.StateFile)
	must(t, err)
	for n := range good {
		if r, _, err := restore(good[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are taken as a state: %s", n, len(good), decides(r))
		}
		changed := bytes.Clone(good)
		changed[n] ^= 1
		if r, _, err := restore(changed); err == nil {
			t.Errorf("byte %d is changed, and it is taken as a state: %s", n, decides(r))
		}
	}
	for _, tt := range []struct{ name, state, text, want string }{
		{"cut off, and broken", string(good[:len(good)/2]), broken("p"), "withheld"},
		{"cut off, and half-written", string(good[:len(good)/2]), "", "withheld"},
		{"cut off, and not to be read", string(good[:len(good)/2]), "{[", "withheld"},
		{"cut off, and good", string(good[:len(good)/2]), access("p", "b"), "p b"},
		{"empty, and broken", "", broken("p"), "withheld"},
		{"whole, and broken", string(good), broken("p"), "p a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, os.WriteFile(o.StateFile, []byte(tt.state), 0o600))
			write(t, file, tt.text)
			var log bytes.Buffer
			o := o
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
			if got := started(t, dir, o); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if said := strings.Contains(log.String(), "level=ERROR") && strings.Contains(log.String(), o.StateFile); said != (tt.state != string(good)) {
				t.Errorf("log: %s", log.String())
			}
			// It stays so after the next restart, whose state is whole again.
			if got := started(t, dir, o); got != tt.want {
				t.Errorf("after a restart %s, want %s", got, tt.want)
			}
		})
	}
	// It ends when the file is good.
	must(t, os.WriteFile(o.StateFile, good[:9], 0o600))
	write(t, file, "")
	if got := started(t, dir, o); got != "withheld" {
		t.Error(got)
	}
	write(t, file, access("p", "c"))
	if got := started(t, dir, o); got != "p c" {
		t.Error(got)
	}
	write(t, file, "")
	if got := started(t, dir, o); got != "p c" {
		t.Error(got)
	}
}

// TestStateOfAnotherFolder: files by other names may be those that were read before.
func TestStateOfAnotherFolder(t *testing.T) {
	parent, state := t.TempDir(), filepath.Join(t.TempDir(), "access.state")
	dir, link := filepath.Join(parent, "dir"), filepath.Join(parent, "link")
	file := filepath.Join(dir, "a.yaml")
	for _, tt := range []struct{ text, want string }{
		{broken("p"), "p a"}, // named, so it is known
		{"", "withheld"},     // may be what it was
		{"# nothing\n", "open"},
		{access("p", "b"), "p b"},
	} {
		write(t, file, access("p", "a"))
		must(t, os.RemoveAll(link))
		must(t, os.Symlink(dir, link))
		must(t, os.RemoveAll(state))
		if got := started(t, dir, Options{StateFile: state}); got != "p a" {
			t.Fatal(got)
		}
		write(t, file, tt.text)
		for range 2 { // and after one more restart
			if got := started(t, link, Options{StateFile: state}); got != tt.want {
				t.Errorf("%q: %s, want %s", tt.text, got, tt.want)
			}
		}
	}
}

// TestStateLeftOver: a crash before the rename leaves a part of the new state beside the old.
func TestStateLeftOver(t *testing.T) {
	dir, o := t.TempDir(), Options{StateFile: filepath.Join(t.TempDir(), "access.state")}
	file, left := filepath.Join(dir, "a.yaml"), filepath.Join(filepath.Dir(o.StateFile), ".access.state.new")
	write(t, file, access("p", "a"))
	if got := started(t, dir, o); got != "p a" {
		t.Fatal(got)
	}
	for _, text := range []string{"", "sha256:", string(seal(dir, []byte(`{"version":1,"objects":[]}`)))} {
		must(t, os.WriteFile(left, []byte(text), 0o644))
		write(t, file, broken("p"))
		if got := started(t, dir, o); got != "p a" {
			t.Errorf("%q is left over: %s", text, got)
		}
		must(t, os.WriteFile(left, []byte(text), 0o644))
		write(t, file, access("p", "b"))
		if got := started(t, dir, o); got != "p b" {
			t.Errorf("%q is left over: %s", text, got)
		}
		if _, err := os.Stat(left); text != "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is still there: %v", err)
		}
		if info, err := os.Stat(o.StateFile); err != nil || info.Mode() != 0o600 {
			t.Errorf("state %v, %v", info, err)
		}
		write(t, file, access("p", "a"))
		started(t, dir, o)
	}
}

func TestStateErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), access("p", "a"))
	for _, path := range []string{filepath.Join(dir, "state.json"), filepath.Join(dir, "x/y.yaml"), filepath.Join(t.TempDir(), "missing/state"), dir} {
		if r, err := start(t, dir, Options{StateFile: path}); err == nil || r != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// Beside the policy it is fine, if it does not look like policy.
	if got := started(t, dir, Options{StateFile: filepath.Join(dir, "access.state")}); got != "p a" {
		t.Error(got)
	}
}

// TestStateLater: what can not be stored later is in force all the same, and stored when it can be.
func TestStateLater(t *testing.T) {
	dir, place := t.TempDir(), filepath.Join(t.TempDir(), "s")
	must(t, os.Mkdir(place, 0o700))
	file, state := filepath.Join(dir, "a.yaml"), filepath.Join(place, "access.state")
	write(t, file, access("p", "a"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log bytes.Buffer
	err := Directory(ctx, dir, Options{StateFile: state, Log: slog.New(slog.NewTextHandler(&log, nil))}, func(r *policy.Result) {
		switch decides(r) {
		case "p a":
			must(t, os.RemoveAll(place))
			write(t, file, access("p", "b"))
		case "p b":
			if !strings.Contains(log.String(), "can not be stored") {
				t.Errorf("log: %s", log.String())
			}
			must(t, os.Mkdir(place, 0o700))
			write(t, file, access("p", "c"))
		case "p c":
			cancel()
		}
	})
	must(t, err)
	write(t, file, broken("p"))
	if got := started(t, dir, Options{StateFile: state}); got != "p c" {
		t.Error(got)
	}
}

func FuzzRestore(f *testing.F) {
	f.Add("dir", []byte(`{"version":1,"objects":[]}`))
	f.Add("a\nb\xff", []byte(`{"version":1,"objects":[],"blind":["\"d\""]}`))
	f.Fuzz(func(t *testing.T, dir string, text []byte) {
		_, _, _ = restore(text) // must not panic
		want, wantErr := policy.RestoreAccess(text)
		r, got, err := restore(seal(dir, text))
		if (err == nil) != (wantErr == nil) || err == nil && (got != dir || len(r.Set.AuthorizationPolicies) != len(want.Set.AuthorizationPolicies)) {
			t.Errorf("folder %q, want %q; %v, want %v", got, dir, err, wantErr)
		}
	})
}
