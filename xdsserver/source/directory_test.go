package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// deadline bounds every wait of these tests; none of them waits for it to pass.
const deadline = 20 * time.Second

func entry(name, address string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s}\nspec: {address: %s}\n", name, address)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inForce lists the workloads of a result as "name address".
func inForce(r *policy.Result) []string {
	var out []string
	for _, w := range r.Set.Workloads {
		out = append(out, w.Name+" "+w.Address)
	}
	slices.Sort(out)
	return out
}

type watched struct {
	t       *testing.T
	results chan *policy.Result
}

// watch runs Directory until the test ends and checks that it returns then.
func watch(t *testing.T, dir string) *watched {
	t.Helper()
	w := &watched{t, make(chan *policy.Result, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Directory(ctx, dir, Options{}, func(r *policy.Result) { w.results <- r })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(deadline):
			t.Error("Directory does not return when its context ends")
		}
	})
	return w
}

// want waits for a result with these workloads and one that matches cond.
func (w *watched) wantThat(cond func(*policy.Result) bool, workloads ...string) *policy.Result {
	w.t.Helper()
	var got []string
	timeout := time.After(deadline)
	for {
		select {
		case r := <-w.results:
			if got = inForce(r); slices.Equal(got, workloads) && cond(r) {
				return r
			}
		case <-timeout:
			w.t.Fatalf("in force %q, want %q", got, workloads)
		}
	}
}

func (w *watched) want(workloads ...string) *policy.Result {
	w.t.Helper()
	return w.wantThat(func(*policy.Result) bool { return true }, workloads...)
}

func TestDirectoryFollowsChanges(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), entry("a", "10.0.0.1"))
	w := watch(t, dir)
	w.want("a 10.0.0.1")

	write(t, filepath.Join(dir, "b.yml"), entry("b", "10.0.0.2"))
	w.want("a 10.0.0.1", "b 10.0.0.2")

	// An editor writes beside the file and renames.
	write(t, filepath.Join(dir, ".a.yaml.swp"), entry("a", "10.0.0.9"))
	must(t, os.Rename(filepath.Join(dir, ".a.yaml.swp"), filepath.Join(dir, "a.yaml")))
	w.want("a 10.0.0.9", "b 10.0.0.2")

	// New folders, several deep, and a file in them.
	write(t, filepath.Join(dir, "x/y/z/c.json"), `{"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "c"}, "spec": {"address": "10.0.0.3"}}`)
	w.want("a 10.0.0.9", "b 10.0.0.2", "c 10.0.0.3")
	write(t, filepath.Join(dir, "x/y/z/d.yaml"), entry("d", "10.0.0.4"))
	w.want("a 10.0.0.9", "b 10.0.0.2", "c 10.0.0.3", "d 10.0.0.4")

	// What is deleted is gone; what is broken is not.
	must(t, os.Remove(filepath.Join(dir, "b.yml")))
	w.want("a 10.0.0.9", "c 10.0.0.3", "d 10.0.0.4")
	write(t, filepath.Join(dir, "a.yaml"), "kind: [")
	w.wantThat((*policy.Result).Failed, "a 10.0.0.9", "c 10.0.0.3", "d 10.0.0.4")
	must(t, os.RemoveAll(filepath.Join(dir, "x")))
	w.want("a 10.0.0.9")
	write(t, filepath.Join(dir, "a.yaml"), entry("a", "10.0.0.10"))
	if r := w.want("a 10.0.0.10"); r.Failed() {
		t.Errorf("problems stay: %v", r.Problems)
	}
}

func TestDirectoryIgnores(t *testing.T) {
	// The path of a socket is bounded, and t.TempDir's has the test's name in it.
	dir, err := os.MkdirTemp("", "p")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"notes.txt", ".hidden.yaml", ".git/x.yaml", "a.yaml~", "a.yaml.bak"} {
		write(t, filepath.Join(dir, name), "not: [policy")
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "s.yaml"))
	must(t, err)
	defer socket.Close()
	write(t, filepath.Join(dir, "A.YAML"), entry("a", "10.0.0.1"))
	r, err := Validate(dir)
	must(t, err)
	if got := inForce(r.Result); r.Failed() || !slices.Equal(got, []string{"a 10.0.0.1"}) {
		t.Errorf("in force %q, problems %v", got, r.Problems)
	}
	problems := slices.DeleteFunc(r.Problems, func(p policy.Problem) bool { return p.Object.Name == "a" }) // nobody selects it
	if len(problems) != 1 || !strings.Contains(problems[0].String(), "s.yaml: warning: is not a regular file") {
		t.Errorf("problems %v, want one for the socket", problems)
	}
}

func TestDirectoryLinks(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), entry("a", "10.0.0.1"))
	write(t, filepath.Join(dir, "sub/b.yaml"), entry("b", "10.0.0.2"))
	write(t, filepath.Join(elsewhere, "folder/c.yaml"), entry("c", "10.0.0.3"))
	write(t, filepath.Join(elsewhere, "d.yaml"), entry("d", "10.0.0.4"))
	must(t, os.Symlink(dir, filepath.Join(dir, "sub/loop")))
	must(t, os.Symlink("b.yaml", filepath.Join(dir, "sub/again.yaml")))
	must(t, os.Symlink(filepath.Join(elsewhere, "folder"), filepath.Join(dir, "folder")))
	must(t, os.Symlink(filepath.Join(elsewhere, "folder"), filepath.Join(dir, "twice")))
	must(t, os.Symlink(filepath.Join(elsewhere, "d.yaml"), filepath.Join(dir, "d.yaml")))
	w := watch(t, dir)
	r := w.want("a 10.0.0.1", "b 10.0.0.2", "c 10.0.0.3", "d 10.0.0.4")
	var got []string
	for _, p := range r.Problems {
		got = append(got, strings.TrimPrefix(p.String(), dir+"/"))
	}
	for _, want := range []string{
		"sub/loop: warning: the link leads back to the folder ",
		"sub/again.yaml: notice: is the same file as ",
		"twice: notice: is the same folder as ",
	} {
		if !slices.ContainsFunc(got, func(p string) bool { return strings.HasPrefix(p, want) }) {
			t.Errorf("no problem %q in %q", want, got)
		}
	}
	// What lies behind a link is followed too.
	write(t, filepath.Join(elsewhere, "folder/c.yaml"), entry("c", "10.0.1.3"))
	w.want("a 10.0.0.1", "b 10.0.0.2", "c 10.0.1.3", "d 10.0.0.4")
	write(t, filepath.Join(elsewhere, "d.yaml"), entry("d", "10.0.1.4"))
	w.want("a 10.0.0.1", "b 10.0.0.2", "c 10.0.1.3", "d 10.0.1.4")
	// A link that leads nowhere for a moment takes nothing away.
	must(t, os.Rename(filepath.Join(elsewhere, "d.yaml"), filepath.Join(elsewhere, "e.yaml")))
	w.wantThat((*policy.Result).Failed, "a 10.0.0.1", "b 10.0.0.2", "c 10.0.1.3", "d 10.0.1.4")
}

// TestDirectoryConfigMap replaces the files as Kubernetes does for a mounted
// ConfigMap: the files are links through ..data, which is replaced by a rename.
func TestDirectoryConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(n int, text string) {
		real := fmt.Sprintf("..2026_%d", n)
		write(t, filepath.Join(dir, real, "a.yaml"), text)
		must(t, os.Symlink(real, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version(1, entry("a", "10.0.0.1"))
	must(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
	w := watch(t, dir)
	w.want("a 10.0.0.1")
	version(2, entry("a", "10.0.0.2"))
	must(t, os.RemoveAll(filepath.Join(dir, "..2026_1")))
	w.want("a 10.0.0.2")
	version(3, entry("a", "10.0.0.3"))
	w.want("a 10.0.0.3")
}

func TestDirectoryVanishes(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "policy")
	write(t, filepath.Join(dir, "a.yaml"), entry("a", "10.0.0.1"))
	w := watch(t, dir)
	w.want("a 10.0.0.1")
	must(t, os.Rename(dir, filepath.Join(parent, "away")))
	r := w.wantThat((*policy.Result).Failed, "a 10.0.0.1")
	if len(r.Problems) == 0 || r.Problems[0].At.File != dir {
		t.Errorf("problems %v, want one of the folder", r.Problems)
	}
	must(t, os.Rename(filepath.Join(parent, "away"), dir))
	w.wantThat(func(r *policy.Result) bool { return !r.Failed() }, "a 10.0.0.1")
	write(t, filepath.Join(dir, "b.yaml"), entry("b", "10.0.0.2"))
	w.want("a 10.0.0.1", "b 10.0.0.2")
}

func TestDirectoryRootIsALink(t *testing.T) {
	parent := t.TempDir()
	write(t, filepath.Join(parent, "v1/a.yaml"), entry("a", "10.0.0.1"))
	write(t, filepath.Join(parent, "v2/a.yaml"), entry("a", "10.0.0.2"))
	root := filepath.Join(parent, "current")
	must(t, os.Symlink("v1", root))
	w := watch(t, root)
	w.want("a 10.0.0.1")
	must(t, os.Symlink("v2", root+".new"))
	must(t, os.Rename(root+".new", root))
	w.want("a 10.0.0.2")
	write(t, filepath.Join(parent, "v2/a.yaml"), entry("a", "10.0.0.3"))
	w.want("a 10.0.0.3")
}

func TestDirectoryErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	never := func(*policy.Result) { t.Error("a result without a folder") }
	if err := Directory(t.Context(), missing, Options{}, never); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want that the folder does not exist", err)
	}
	if _, err := Validate(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want that the folder does not exist", err)
	}
	file := filepath.Join(t.TempDir(), "a.yaml")
	write(t, file, entry("a", "10.0.0.1"))
	if err := Directory(t.Context(), file, Options{}, never); err == nil {
		t.Error("a file is watched as a folder")
	}
	if c, err := Validate(file); err != nil || !slices.Equal(inForce(c.Result), []string{"a 10.0.0.1"}) || c.Files != 1 || c.Objects != 1 {
		t.Errorf("Validate of one file: %+v, %v", c, err)
	}
}

// TestValidateCounts: what was read is counted, good or bad, once, and nothing else is.
func TestValidateCounts(t *testing.T) {
	dir := t.TempDir()
	counts := func(want [2]int) {
		t.Helper()
		c, err := Validate(dir)
		must(t, err)
		if got := [2]int{c.Files, c.Objects}; got != want {
			t.Errorf("files and objects %v, want %v", got, want)
		}
	}
	counts([2]int{0, 0})
	write(t, filepath.Join(dir, "readme.txt"), "no policy")
	write(t, filepath.Join(dir, ".hidden.yaml"), entry("a", "10.0.0.1"))
	counts([2]int{0, 0})
	write(t, filepath.Join(dir, "comment.yaml"), "# nothing yet\n")
	counts([2]int{1, 0})
	write(t, filepath.Join(dir, "two.yaml"), entry("a", "10.0.0.1")+"---\n"+entry("b", "not an address"))
	write(t, filepath.Join(dir, "pod.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n")
	write(t, filepath.Join(dir, "access.json"), `{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "x"}}`)
	must(t, os.Symlink("two.yaml", filepath.Join(dir, "link.yaml")))
	counts([2]int{4, 3})
}

// TestScanRereads checks the rule by which files are not read again: an old one of
// the same size and time is not, a young one is.
func TestScanRereads(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	old := time.Now().Add(-time.Hour)
	set := func(address string, at time.Time) {
		// In place, so that it stays the same file.
		write(t, path, entry("a", address))
		must(t, os.Chtimes(path, at, at))
	}
	scanned := func(tr *tree) string {
		t.Helper()
		must(t, tr.scan())
		return strings.Join(inForce(policy.Build(tr.parsed(), nil)), ",")
	}
	tr := &tree{root: dir}
	set("10.0.0.1", old)
	if got := scanned(tr); got != "a 10.0.0.1" {
		t.Fatal(got)
	}
	parsed := tr.files[path].parsed
	set("10.0.0.2", old) // the same size and time: nothing tells them apart
	if got := scanned(tr); got != "a 10.0.0.1" || tr.files[path].parsed != parsed {
		t.Errorf("a file with an old time is read again: %s", got)
	}
	young := time.Now()
	set("10.0.0.3", young)
	if got := scanned(tr); got != "a 10.0.0.3" {
		t.Error(got)
	}
	set("10.0.0.4", young)
	if got := scanned(tr); got != "a 10.0.0.4" {
		t.Errorf("a change within the file system's resolution of time is missed: %s", got)
	}
	parsed = tr.files[path].parsed
	must(t, tr.scan())
	if tr.files[path].parsed != parsed {
		t.Error("a file with the same text is parsed again")
	}
}
