package ca

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTokensAreNotGuessedByTime: a comparison that stops at the first byte that
// differs tells by the time it takes how many bytes of a guess are right. What is
// compared here is a hash, whose bytes a guess does not choose, and in constant
// time at that. Guesses that are right for longer and longer are refused alike,
// use nothing up, and agree with the hash no longer than chance has it; on the
// tokens themselves the same measure finds the leak.
func TestTokensAreNotGuessedByTime(t *testing.T) {
	tokens := newTokens(t, t.TempDir(), newClock(), nil)
	token := mustCreate(t, tokens, 0)
	secret := token.Reveal()
	stored, err := tokens.read(token.ID)
	if err != nil || len(stored.SHA256) != sha256.Size {
		t.Fatalf("%x, %v", stored.SHA256, err)
	}
	alike := func(a, b []byte) (n int) {
		for n < min(len(a), len(b)) && a[n] == b[n] {
			n++
		}
		return n
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	r := rand.New(rand.NewPCG(1, 43))
	begin := strings.LastIndex(secret, ".") + 1
	guesses, told, careless := 0, 0, 0
	refusal := ""
	for right := begin; right < len(secret)-1; right++ {
		for range 10 {
			guess := []byte(secret)
			for i := right; i < len(guess)-1; i++ { // the last has bits that say nothing
				guess[i] = digits[r.IntN(len(digits))]
			}
			if string(guess) == secret {
				continue
			}
			guesses++
			_, err := tokens.Caller(string(guess))
			if !errors.Is(err, ErrUnauthenticated) || refusal != "" && err.Error() != refusal {
				t.Errorf("%d characters are right: %v", right, err)
			}
			refusal = err.Error()
			sum := sha256.Sum256(guess)
			told = max(told, alike(sum[:], stored.SHA256))
			if alike(guess, []byte(secret)) >= right { // each step is found by its time
				careless++
			}
		}
	}
	if guesses < 300 || told > 4 || careless < guesses {
		t.Errorf("%d guesses; %d bytes of a hash agree; comparing the tokens tells %d of them", guesses, told, careless)
	}
	if err := use(t, tokens, secret); err != nil {
		t.Errorf("the token after all guesses: %v", err)
	}
}

// secretNames are what variables and fields with secrets and their hashes are called.
var secretNames = regexp.MustCompile(`(?i)sha256|secret|fingerprint|password|hmac|^tokenHash$`)

// comparedInTime are the places of a file where such a value is compared in another
// way than by crypto/subtle: by an operator, or by a function that stops early.
// Comparisons with a constant, with nil and of lengths tell nothing.
func comparedInTime(t testing.TB, name string, source any) (out []string) {
	t.Helper()
	files := gotoken.NewFileSet()
	f, err := parser.ParseFile(files, name, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	var secret func(e ast.Expr) bool
	secret = func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.Ident:
			return secretNames.MatchString(e.Name)
		case *ast.SelectorExpr:
			return secretNames.MatchString(e.Sel.Name)
		case *ast.SliceExpr:
			return secret(e.X)
		case *ast.IndexExpr:
			return secret(e.X)
		case *ast.StarExpr:
			return secret(e.X)
		case *ast.ParenExpr:
			return secret(e.X)
		case *ast.CallExpr: // conversions, and methods that return it
			if fun, ok := e.Fun.(*ast.Ident); ok && fun.Name == "string" && len(e.Args) == 1 {
				return secret(e.Args[0])
			}
			if fun, ok := e.Fun.(*ast.SelectorExpr); ok {
				return secretNames.MatchString(fun.Sel.Name) && len(e.Args) == 0
			}
		}
		return false
	}
	constant := func(e ast.Expr) bool {
		if id, ok := e.(*ast.Ident); ok {
			return id.Name == "nil"
		}
		_, ok := e.(*ast.BasicLit)
		return ok
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if (n.Op == gotoken.EQL || n.Op == gotoken.NEQ) && (secret(n.X) || secret(n.Y)) && !constant(n.X) && !constant(n.Y) {
				out = append(out, files.Position(n.Pos()).String())
			}
		case *ast.CallExpr:
			fun, ok := n.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch of, _ := fun.X.(*ast.Ident); {
			case of == nil:
			case of.Name+"."+fun.Sel.Name == "bytes.Equal", of.Name+"."+fun.Sel.Name == "bytes.Compare", of.Name+"."+fun.Sel.Name == "slices.Equal",
				of.Name+"."+fun.Sel.Name == "strings.EqualFold", of.Name+"."+fun.Sel.Name == "strings.Compare", of.Name+"."+fun.Sel.Name == "reflect.DeepEqual",
				of.Name+"."+fun.Sel.Name == "bytes.HasPrefix", of.Name+"."+fun.Sel.Name == "cmp.Compare":
				for _, arg := range n.Args {
					if secret(arg) {
						out = append(out, files.Position(n.Pos()).String())
						break
					}
				}
			}
		}
		return true
	})
	return out
}

// TestSecretsAreComparedInConstantTime looks at all code that is shipped; and
// generated code that compares in time is found, in whatever spelling.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	root, looked := filepath.Join("..", ".."), 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata"):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			looked++
			for _, at := range comparedInTime(t, path, nil) {
				t.Errorf("%s compares a secret, or the hash of one, in time that depends on it", at)
			}
		}
		return nil
	})
	if err != nil || looked < 300 {
		t.Errorf("%d files, %v", looked, err)
	}
	r := rand.New(rand.NewPCG(2, 43))
	found := 0
	const generated = 300
	for range generated {
		a := []string{"f.SHA256", "secret", "c.config.fingerprint()", "f.SHA256[:]", "t.secret()", "tokenSecret", "string(wantSHA256)"}[r.IntN(7)]
		b := []string{"sum", "got", "x.sum[:]", "given.Value", "string(other)"}[r.IntN(5)]
		if r.IntN(2) == 0 {
			a, b = b, a
		}
		form := []string{"%s == %s", "%s != %s", "bytes.Equal(%s, %s)", "slices.Equal(%s, %s)", "bytes.Compare(%s, %s) == 0", "!bytes.HasPrefix(%s, %s)", "strings.EqualFold(%s, %s)"}[r.IntN(7)]
		expression := fmt.Sprintf(form, a, b)
		careless := "package p\nfunc f() { if " + expression + " { return } }\n"
		if len(comparedInTime(t, "careless.go", careless)) > 0 {
			found++
		} else {
			t.Errorf("%s is not found", expression)
		}
		constant := "package p\nfunc f() { if subtle.ConstantTimeCompare(" + a + ", " + b + ") == 1 && len(" + a + ") == 32 && " + a + " != nil { return } }\n"
		if at := comparedInTime(t, "careful.go", bytes.NewReader([]byte(constant))); len(at) > 0 {
			t.Errorf("%s: %s", at, constant)
		}
	}
	t.Logf("%d files; %d of %d careless comparisons are found", looked, found, generated)
}
