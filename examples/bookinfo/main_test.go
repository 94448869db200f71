package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
)

// asMain is the argument that makes the test's program the example's.
const asMain = "bookinfo-main"

func TestMain(m *testing.M) {
	if child, status := runChild(os.Args[1:]); child {
		os.Exit(status)
	}
	if len(os.Args) == 3 && os.Args[1] == asMain {
		if err := bookinfo(context.Background(), options{noTour: true, xdsserver: os.Args[2]}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// TestShop runs the whole example: processes of their own, real sockets.
func TestShop(t *testing.T) {
	if testing.Short() {
		t.Skip("starts fourteen processes")
	}
	builder := &shop{out: t.Output(), dir: t.TempDir()}
	xdsserver, err := builder.build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("tour", func(t *testing.T) { testTour(t, xdsserver) })
	t.Run("other policy", func(t *testing.T) { testOtherPolicy(t, xdsserver) })
	t.Run("invalid policy", func(t *testing.T) { testInvalidPolicy(t, xdsserver) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, xdsserver) })
	t.Run("killed", func(t *testing.T) { testKilled(t, xdsserver) })
}

// run runs the example in this process and returns what it printed. Whatever
// becomes of it, nothing may be left behind.
func run(ctx context.Context, t *testing.T, o options) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var printed bytes.Buffer
	o.out = &printed
	o.stay = time.Nanosecond      // end after the tour
	o.moveLimit = 5 * time.Second // the machine may be busy with other tests
	err := bookinfo(ctx, o)
	t.Logf("%s\nerror: %v", &printed, err)
	if dir := folderIn(printed.String()); dir == "" {
		t.Error("the working folder is not printed")
	} else if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the working folder is left: %v", err)
	}
	return printed.String(), err
}

func folderIn(printed string) string {
	_, dir, _ := strings.Cut(printed, "working folder ")
	dir, _, _ = strings.Cut(dir, "\n")
	return dir
}

func testTour(t *testing.T, xdsserver string) {
	leak.Check(t)
	printed, err := run(t.Context(), t, options{xdsserver: xdsserver})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(printed, "11 of 11 steps held") {
		t.Error("not all steps are said to have held")
	}
}

// testOtherPolicy gives the tour rules that are not those that it expects, so that
// the steps show that they look, and that the rules come from the folder.
func testOtherPolicy(t *testing.T, xdsserver string) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("policy")); err != nil {
		t.Fatal(err)
	}
	for _, edit := range []struct{ file, old, new string }{
		{"virtualservice-reviews.yaml", "weight: 90", "weight: 60"},
		{"virtualservice-reviews.yaml", "weight: 10", "weight: 40"},
		{"virtualservice-reviews.yaml", `prefix: "beta-"`, `prefix: "gamma-"`},
		{"payment.yaml", "retryOn: 5xx,reset,", "retryOn: "},
		{"trafficsplit-details.yaml", "200m", "800m"},
		{"ratings.yaml", `"test-user"`, `"nobody"`},
	} {
		path := filepath.Join(dir, edit.file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), edit.old) {
			t.Fatalf("%s has no %s", edit.file, edit.old)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), edit.old, edit.new)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	printed, err := run(t.Context(), t, options{xdsserver: xdsserver, policy: dir})
	if err == nil {
		t.Fatal("the tour holds under a policy that it is not for")
	}
	for _, step := range []string{"step 1 ", "step 2 ", "step 3 ", "step 5 ", "step 7 "} {
		if !strings.Contains(err.Error(), step) {
			t.Errorf("%shas not failed", step)
		}
	}
	if !strings.Contains(printed, "6 of 11 steps held") {
		t.Error("steps have failed that the change does not touch")
	}
	text, err := os.ReadFile(filepath.Join(dir, "virtualservice-reviews.yaml"))
	if err != nil || !strings.Contains(string(text), "weight: 60") {
		t.Errorf("the live edit has reached the folder that was given (%v)", err)
	}
}

func testInvalidPolicy(t *testing.T, xdsserver string) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "service.yaml"), []byte("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {prts: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := run(t.Context(), t, options{xdsserver: xdsserver, policy: dir})
	if err == nil || !strings.Contains(err.Error(), "service.yaml:4") {
		t.Errorf("error %v, want one that names the line", err)
	}
}

// testInterrupted ends the example, as Ctrl-C does, before the tour is over.
func testInterrupted(t *testing.T, xdsserver string) {
	leak.Check(t)
	ctx, interrupt := context.WithCancel(t.Context())
	var opened notify
	opened.text, opened.call = "open after", interrupt
	err := bookinfo(ctx, options{xdsserver: xdsserver, out: &opened})
	if !errors.Is(err, errStopped) {
		t.Errorf("error %v, want errStopped", err)
	}
	if dir := folderIn(opened.String()); dir == "" {
		t.Error("no working folder")
	} else if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the working folder is left: %v", err)
	}
}

// notify calls once a text has been written.
type notify struct {
	bytes.Buffer
	text string
	call func()
}

func (n *notify) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(n.text)) {
		n.call()
	}
	return n.Buffer.Write(p)
}

// testKilled kills the example, so that it can tell its children nothing.
func testKilled(t *testing.T, xdsserver string) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, asMain, xdsserver)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, page string
	for lines := bufio.NewScanner(stdout); page == "" && lines.Scan(); {
		if d := folderIn(lines.Text() + "\n"); d != "" {
			dir = d
		}
		if _, after, found := strings.Cut(lines.Text(), "http://"); found && strings.HasPrefix(lines.Text(), "open after") {
			page, _, _ = strings.Cut(after, "/")
		}
	}
	if page == "" {
		t.Fatalf("it did not open: %v", cmd.Wait())
	}
	text, err := os.ReadFile(filepath.Join(dir, "policy", "workloads.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	addresses := []string{page}
	for line := range strings.Lines(string(text)) {
		for _, name := range []string{"http: ", "grpc: "} {
			if _, port, found := strings.Cut(line, name); found {
				addresses = append(addresses, "127.0.0.1:"+strings.TrimSpace(port))
			}
		}
	}
	if len(addresses) != len(instances)+1 {
		t.Fatalf("addresses %v", addresses)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	for {
		addresses = slices.DeleteFunc(addresses, func(a string) bool {
			conn, err := net.Dial("tcp", a)
			if err != nil {
				return true
			}
			conn.Close()
			return false
		})
		_, err := os.Stat(dir)
		if len(addresses) == 0 && errors.Is(err, fs.ErrNotExist) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("left behind: listeners %v, folder %s (%v)", addresses, dir, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestSetWeights(t *testing.T) {
	text, err := os.ReadFile("policy/virtualservice-reviews.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := setWeights(string(text), map[string]int{"v1": 0, "v2": 100})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("weight: 90", "weight: 0", "weight: 10", "weight: 100").Replace(string(text))
	if got != want {
		t.Errorf("got\n%s", got)
	}
	if _, err := setWeights(string(text), map[string]int{"v9": 1}); err == nil {
		t.Error("no error for a subset without a weight")
	}
}

func TestBounds(t *testing.T) {
	// 100 and four times the root of 90; 200 and four times the root of 160.
	for _, c := range []struct {
		p         float64
		low, high int
	}{{0.1, 63, 137}, {0.2, 150, 250}} {
		if low, high := bounds4(1000, c.p); low != c.low || high != c.high {
			t.Errorf("%v: %d to %d, want %d to %d", c.p, low, high, c.low, c.high)
		}
		for count, good := range map[int]bool{c.low: true, c.high: true, c.low - 1: false, c.high + 1: false} {
			if err := checkShare(count, 1000, c.p); (err == nil) != good {
				t.Errorf("%v: %d of 1000: error %v", c.p, count, err)
			}
		}
	}
}
