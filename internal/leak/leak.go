// Package leak finds goroutines and file descriptors that a test leaves
// behind. It is used by tests only.
package leak

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Check fails the test if, at its end and after its other cleanups, goroutines
// or file descriptors are left that were not there when Check was called. It
// must be called first, and not in a test that runs in parallel with others.
func Check(t testing.TB) {
	t.Helper()
	before := goroutines()
	files := descriptors()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		var left []string
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			left = left[:0]
			for id, stack := range goroutines() {
				if _, ok := before[id]; !ok {
					left = append(left, stack)
				}
			}
			if len(left) == 0 && descriptors() <= files {
				return
			}
		}
		for _, stack := range left {
			t.Errorf("goroutine left behind:\n%s", stack)
		}
		if n := descriptors(); n > files {
			t.Errorf("%d file descriptors, %d before", n, files)
		}
	})
}

// goroutines returns the stacks of all goroutines but this one, by "goroutine N".
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for i, stack := range strings.Split(string(buf), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		// The first is this goroutine. The runtime's and testing's own come and go.
		if i == 0 || strings.Contains(stack, "testing.(*T).Run") || strings.Contains(stack, "created by runtime") ||
			strings.Contains(stack, "os/signal.loop") || strings.Contains(stack, "testing.runTests") {
			continue
		}
		all[id] = stack
	}
	return all
}

// descriptors counts open file descriptors; 0 where the system does not tell.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
