package translate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTrafficPageHasTheExamples: docs/traffic.md shows the examples that
// TestTrafficExamples runs, all of them and no other.
func TestTrafficPageHasTheExamples(t *testing.T) {
	page, err := os.ReadFile("../../docs/traffic.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for i, part := range strings.Split(string(page), "```yaml\n") {
		if block, _, ok := strings.Cut(part, "```"); ok && i > 0 {
			shown[block] = true
		}
	}
	files, err := filepath.Glob("testdata/traffic/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no examples", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !shown[string(b)] {
			t.Errorf("docs/traffic.md does not show %s as it is", file)
		}
		delete(shown, string(b))
	}
	for block := range shown {
		t.Errorf("docs/traffic.md shows an example that no test runs:\n%s", block)
	}
}
