package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func Example() {
	os.Unsetenv("GRPC_XDS_BOOTSTRAP")
	os.Unsetenv("GRPC_XDS_BOOTSTRAP_CONFIG")
	if err := run(context.Background(), os.Stdout, "127.0.0.1:0", ""); err != nil {
		fmt.Println(err)
	}
	// Output: hello, mesh
}

func TestRunLeavesNothingBehind(t *testing.T) {
	leak.Check(t)
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "")
	var out bytes.Buffer
	if err := run(t.Context(), &out, "127.0.0.1:0", ""); err != nil || out.String() != "hello, mesh\n" {
		t.Errorf("%q, error %v", &out, err)
	}
}

// A bootstrap that can not be read is an error, not a reason to go on without a control plane.
func TestBrokenBootstrap(t *testing.T) {
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "{")
	if err := run(t.Context(), &bytes.Buffer{}, "127.0.0.1:0", ""); err == nil {
		t.Error("no error")
	}
}

// TestPolicy: the policy beside it is valid as it stands, and its rule decides
// about the same call.
func TestPolicy(t *testing.T) {
	const file = "policy/hello.yaml"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if r := policy.Build([]*policy.File{policy.Parse(file, text)}, nil); len(r.Problems) > 0 {
		t.Fatal(r.Problems)
	}
	_, rule, ok := strings.Cut(string(text), "# Whoever")
	if !ok {
		t.Fatal("there is no rule")
	}
	w := meshtest.New(t, meshtest.HTTP("hello", "v1", hello()), meshtest.Policy("#"+rule))
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", string(w.Bootstrap()))
	var out bytes.Buffer
	if err := run(t.Context(), &out, "127.0.0.1:0", "http://hello/hello/mesh"); err != nil || out.String() != "hello, policy\n" {
		t.Errorf("%q, error %v", &out, err)
	}
}
