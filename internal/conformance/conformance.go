// Package conformance reads recorded behaviour of Envoy, Istio, grpc-go and
// others as JSON cases, and counts what ran. It is used by tests only.
package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"testing"
)

// Dir returns the folder of recorded cases: $SINEW_CONFORMANCE, or
// shared/conformance beside the repository. It skips the test where there is none.
func Dir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("SINEW_CONFORMANCE"); dir != "" {
		return dir
	}
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(file), "..", "..", "..", "shared", "conformance")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no recorded cases: set SINEW_CONFORMANCE to their folder (%s is absent)", dir)
	}
	return dir
}

// Load reads one file of cases into v.
func Load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(Dir(t), name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// Tally counts the cases of one file: passed, failed and set aside by reason.
type Tally struct {
	Passed, Failed int
	Aside          map[string]int

	// Of a tally that Recorded or Deciding made:
	named    map[string]string // the cases that may differ, with the reason
	differed map[string]bool
	deciding bool
	unnamed  int // cases set aside without a name
}

// Pass counts a case that behaves as recorded.
func (c *Tally) Pass() { c.Passed++ }

// Fail counts a case that does not and reports it.
func (c *Tally) Fail(t testing.TB, format string, args ...any) {
	t.Helper()
	c.Failed++
	t.Errorf(format, args...)
}

// SetAside counts a case that is not run, for the reason.
func (c *Tally) SetAside(reason string) {
	c.unnamed++
	c.setAside(reason)
}

func (c *Tally) setAside(reason string) {
	if c.Aside == nil {
		c.Aside = make(map[string]int)
	}
	c.Aside[reason]++
}

// Check prints the counts and fails the test unless exactly passed cases
// passed and aside cases were set aside, so that a case can not slip out of the run.
func (c *Tally) Check(t testing.TB, name string, passed, aside int) {
	t.Helper()
	n := 0
	reasons := make([]string, 0, len(c.Aside))
	for reason, count := range c.Aside {
		n += count
		reasons = append(reasons, reason)
	}
	t.Logf("%s: %d passed, %d failed, %d set aside", name, c.Passed, c.Failed, n)
	sort.Strings(reasons)
	for _, reason := range reasons {
		t.Logf("  set aside %3d: %s", c.Aside[reason], reason)
	}
	for _, stale := range c.stale() {
		t.Errorf("%s: docs/decisions.md or docs/traffic.md names %q, which does not differ", name, stale)
	}
	if c.named != nil && c.unnamed > 0 {
		t.Errorf("%s: %d cases are set aside without a name", name, c.unnamed)
	}
	if c.Passed != passed || n != aside {
		t.Errorf("%s: %d passed and %d set aside, want %d and %d", name, c.Passed, n, passed, aside)
	}
}
