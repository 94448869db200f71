// Package floors holds the test that keeps the house in order: which package
// may import which, and what the rules at the bottom must not do.
package floors

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sinew-mesh/sinew/"

// house lists the library's packages from the ground up. A package imports
// only packages that stand before it.
var house = []string{
	// Floor 0: rules.
	"routing", "routing/lb", "resilience", "identity",
	// Floor 1: policy.
	"internal/snapshot", "internal/xds/bootstrap", "internal/xds/compile", "internal/xds/client", "identity/source", "identity/tlsconfig",
	// Floor 2: engine.
	"transport/outbound", "transport/inbound",
	// Floor 3: adapters.
	"transport/meshhttp", "transport/meshgrpc", "transport/telemetry",
	// Floor 4: the face.
	"mesh", "mesh/meshtest",
}

// wing lists the server's packages in the same manner. Of the house they may
// use floors 0 and 1.
var wing = []string{
	"xdsserver/policy", "xdsserver/source", "xdsserver/translate", "xdsserver/ads", "xdsserver/ca", "xdsserver/console", "xdsserver",
}

// rules are the packages that take time and chance as arguments.
var rules = []string{"routing", "routing/lb", "resilience", "identity"}

// excused are imports that a rule's package has for another reason than I/O or state.
var excused = map[[2]string]string{
	{"identity", "context"}: "a peer travels in a request's context",
}

// testOnly are packages that only tests import.
var testOnly = map[string]bool{"internal/conformance": true, "internal/leak": true, "internal/hostile": true, "internal/journal": true, "internal/envoy": true, "internal/floors": true}

func index(list []string, pkg string) int {
	for i, p := range list {
		if p == pkg {
			return i
		}
	}
	return -1
}

// allowed says why a package may not import another of the module; "" if it may.
func allowed(from, to string) string {
	if testOnly[to] {
		return "only tests import it"
	}
	if strings.HasPrefix(from, "examples/") {
		if strings.HasPrefix(to, "internal/") || strings.HasPrefix(to, "xdsserver") || strings.HasPrefix(to, "transport/") {
			return "an example uses what users use"
		}
		return ""
	}
	f, t := index(house, from), index(house, to)
	fw, tw := index(wing, from), index(wing, to)
	switch {
	case f >= 0 && t >= 0 && t < f, fw >= 0 && tw >= 0 && tw < fw:
		return ""
	case f >= 0 && t >= 0, fw >= 0 && tw >= 0:
		return "it stands on a higher floor, or later on the same one"
	case from == "mesh/meshtest" && tw >= 0:
		return "" // a hermetic mesh has the server in it
	case f >= 0 && tw >= 0:
		return "the library does not know the server"
	case fw >= 0 && t >= 0:
		if t < index(house, "transport/outbound") {
			return ""
		}
		return "the server uses floors 0 and 1 only"
	default:
		return "one of them is not in the house: add it to the list at its place"
	}
}

func TestImportsGoDown(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := 0
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		from := path.Dir(filepath.ToSlash(rel))
		if testOnly[from] {
			return nil
		}
		seen++
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			to, ours := strings.CutPrefix(to, module)
			if !ours {
				continue
			}
			if why := allowed(from, to); why != "" {
				t.Errorf("%s imports %s: %s", rel, to, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Errorf("only %d files were read: is the root right?", seen)
	}
}

// TestRulesArePure: floor 0 does no I/O, starts no goroutine, reads no clock
// and no global randomness.
func TestRulesArePure(t *testing.T) {
	forbidden := map[string]bool{
		"os": true, "net": true, "net/http": true, "io/fs": true, "math/rand": true, "math/rand/v2": true, "crypto/rand": true,
		"context": true, "log": true, "log/slog": true, "sync": true, "sync/atomic": true,
	}
	for _, pkg := range rules {
		dir := filepath.Join("..", "..", filepath.FromSlash(pkg))
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() || !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(dir, e.Name()), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				if name, _ := strconv.Unquote(spec.Path.Value); forbidden[name] && excused[[2]string{pkg, name}] == "" {
					t.Errorf("%s imports %s", fset.Position(spec.Pos()), name)
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s starts a goroutine", fset.Position(n.Pos()))
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Since" || n.Sel.Name == "Sleep" || n.Sel.Name == "After") {
						t.Errorf("%s reads the clock", fset.Position(n.Pos()))
					}
				}
				return true
			})
		}
	}
}

// TestAllowedCanRefuse keeps the table above from letting everything through.
func TestAllowedCanRefuse(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"transport/outbound", "routing", true},
		{"routing", "resilience", false},
		{"resilience", "routing", true},
		{"routing", "transport/outbound", false},
		{"mesh", "xdsserver/policy", false},
		{"mesh/meshtest", "xdsserver/ads", true},
		{"xdsserver/translate", "internal/xds/compile", true},
		{"xdsserver/translate", "transport/outbound", false},
		{"xdsserver/policy", "xdsserver/ads", false},
		{"examples/bookinfo", "mesh", true},
		{"examples/bookinfo", "transport/meshhttp", false},
		{"mesh", "internal/leak", false},
		{"mesh", "somewhere/new", false},
	} {
		if got := allowed(c.from, c.to) == ""; got != c.ok {
			t.Errorf("%s importing %s: allowed %v, want %v", c.from, c.to, got, c.ok)
		}
	}
}
