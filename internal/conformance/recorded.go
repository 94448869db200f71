package conformance

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// sectionTitle is the section of docs/decisions.md and docs/traffic.md that
// names each recorded case that differs.
const sectionTitle = "## Recorded cases that differ"

// Difference is a recorded case that differs, as the section names it.
type Difference struct{ Case, Reason string }

// Recorded returns the tally of a test that runs cases of a file, or of the
// file's part after "#". What it does not run or pass must be named in the section, or run elsewhere.
func Recorded(t testing.TB, file string) *Tally {
	t.Helper()
	rows, err := differences()
	if err != nil {
		t.Fatal(err)
	}
	c := &Tally{named: map[string]string{}}
	for _, row := range rows[file] {
		c.named[row.Case] = row.Reason
	}
	return c
}

// Deciding is Recorded for the test with the last word on the file: Check
// fails too for a case that the section names and that did not differ.
func Deciding(t testing.TB, file string) *Tally {
	t.Helper()
	c := Recorded(t, file)
	c.deciding = true
	return c
}

// Differs counts a case that does not behave as recorded. It fails unless the section names it.
func (c *Tally) Differs(t testing.TB, name string) {
	t.Helper()
	reason, ok := c.named[name]
	if !ok {
		c.Fail(t, "%s differs and is named in neither docs/decisions.md nor docs/traffic.md", name)
		return
	}
	if c.differed == nil {
		c.differed = make(map[string]bool)
	}
	c.differed[name] = true
	c.setAside(reason)
}

// RunIn counts a case that a test of another package runs, because its rule is there.
func (c *Tally) RunIn(t testing.TB, pkg, test string) {
	t.Helper()
	if !tested(pkg, test) {
		t.Fatalf("package %s has no test %s", pkg, test)
	}
	c.setAside(fmt.Sprintf("run by %s in %s", test, pkg))
}

// stale returns the cases that the section names and that did not differ.
func (c *Tally) stale() (names []string) {
	for name := range c.named {
		if c.deciding && !c.differed[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// root is the folder of the repository.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// tested reports whether a package's tests have a function of that name.
func tested(pkg, test string) bool {
	files, _ := filepath.Glob(filepath.Join(root(), pkg, "*_test.go"))
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			continue
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == test {
				return true
			}
		}
	}
	return false
}

// differences reads the sections: identity and access in one page, traffic in the other.
func differences() (map[string][]Difference, error) {
	all := make(map[string][]Difference)
	for _, page := range []string{"decisions.md", "traffic.md"} {
		b, err := os.ReadFile(filepath.Join(root(), "docs", page))
		if err != nil {
			return nil, err
		}
		rows, err := parseDifferences(string(b))
		if err != nil {
			return nil, fmt.Errorf("docs/%s: %w", page, err)
		}
		for file, list := range rows {
			all[file] = append(all[file], list...)
		}
	}
	return all, nil
}

// parseDifferences reads the tables of the section: file, cases, reason; names stand in backquotes.
func parseDifferences(doc string) (map[string][]Difference, error) {
	_, section, ok := strings.Cut(doc, sectionTitle+"\n")
	if !ok {
		return nil, fmt.Errorf("there is no section %q", sectionTitle)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	out := make(map[string][]Difference)
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") || strings.HasPrefix(line, "| file |") {
			continue
		}
		// A name may hold a bar: the file is the first name, the reason what follows the last one.
		parts := strings.Split(line, "`")
		reason := strings.Trim(parts[len(parts)-1], " |")
		if len(parts) < 5 || len(parts)%2 == 0 || reason == "" {
			return nil, fmt.Errorf("a row is not `file` | `case`, ... | reason: %s", line)
		}
		file := parts[1]
		for i := 3; i < len(parts); i += 2 {
			if slices.ContainsFunc(out[file], func(d Difference) bool { return d.Case == parts[i] }) {
				return nil, fmt.Errorf("%s: %q is named twice", file, parts[i])
			}
			out[file] = append(out[file], Difference{parts[i], reason})
		}
	}
	return out, nil
}
