package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/sinew-mesh/sinew/internal/leak"
)

func Example() {
	os.Unsetenv("GRPC_XDS_BOOTSTRAP")
	os.Unsetenv("GRPC_XDS_BOOTSTRAP_CONFIG")
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Println(err)
	}
	// Output: hello, mesh
}

func TestRunLeavesNothingBehind(t *testing.T) {
	leak.Check(t)
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "")
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil || out.String() != "hello, mesh" {
		t.Errorf("%q, error %v", &out, err)
	}
}

// A bootstrap that can not be read is an error, not a reason to go on without a control plane.
func TestBrokenBootstrap(t *testing.T) {
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "{")
	if err := run(t.Context(), &bytes.Buffer{}); err == nil {
		t.Error("no error")
	}
}
