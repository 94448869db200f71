// Package envoy runs a real Envoy beside tests, so that what the mesh decides
// can be held against what Envoy decides on the same configuration.
package envoy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sinew-mesh/sinew/internal/journal"
)

// Binary returns the path of Envoy: $ENVOY_BIN, or "envoy" on the PATH. It skips
// the test where there is none.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("ENVOY_BIN"); path != "" {
		return path
	}
	path, err := exec.LookPath("envoy")
	if err != nil {
		t.Skip("no Envoy: set ENVOY_BIN to its binary, or have it on the PATH")
	}
	return path
}

// Process is a running Envoy.
type Process struct {
	admin string
	ports map[string]int
}

// Start runs Envoy with the bootstrap until the test ends, and returns when its
// listeners are open. The bootstrap's admin address is Start's to set.
// Listeners should have the port 0: Port tells which they got.
func Start(t testing.TB, bootstrap *bootstrapv3.Bootstrap) *Process {
	t.Helper()
	binary := Binary(t)
	dir := t.TempDir()
	adminFile := filepath.Join(dir, "admin")
	b, err := protojson.Marshal(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	// The admin page is ours, in JSON beside whatever the bootstrap has.
	var whole map[string]any
	if err := json.Unmarshal(b, &whole); err != nil {
		t.Fatal(err)
	}
	whole["admin"] = map[string]any{"address": map[string]any{"socketAddress": map[string]any{"address": "127.0.0.1", "portValue": 0}}}
	if b, err = json.Marshal(whole); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-c", config, "--concurrency", "1", "--disable-hot-restart",
		"--admin-address-path", adminFile, "-l", "error")
	output := new(journal.Journal)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	p := &Process{}
	deadline := time.Now().Add(60 * time.Second)
	for {
		select {
		case <-exited:
			t.Fatalf("Envoy ended:\n%s", output.String())
		default:
		}
		if err = p.look(adminFile); err == nil {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("Envoy is not ready: %v\n%s", err, output.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Port returns the port that a listener was given.
func (p *Process) Port(t testing.TB, listener string) int {
	t.Helper()
	port, ok := p.ports[listener]
	if !ok {
		t.Fatalf("Envoy has no listener %q", listener)
	}
	return port
}

// look asks whether Envoy is ready, and for the listeners' ports.
func (p *Process) look(adminFile string) error {
	b, err := os.ReadFile(adminFile)
	if err != nil {
		return err
	}
	p.admin = strings.TrimSpace(string(b))
	if _, err := p.get("/ready"); err != nil {
		return err
	}
	body, err := p.get("/listeners?format=json")
	if err != nil {
		return err
	}
	var listeners struct {
		Statuses []struct {
			Name    string `json:"name"`
			Address struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(body, &listeners); err != nil {
		return err
	}
	p.ports = make(map[string]int)
	for _, l := range listeners.Statuses {
		p.ports[l.Name] = l.Address.Socket.Port
	}
	return nil
}

func (p *Process) get(path string) ([]byte, error) {
	resp, err := http.Get("http://" + p.admin + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return b, err
}
