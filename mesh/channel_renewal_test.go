package mesh_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// journal keeps what is logged.
type journal struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines.Write(p)
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines.String()
}

// TestChannelsMoveBeforeCertificatesExpire: certificates live for seconds, and the
// streams to the control plane move to connections with the next ones, before the
// control plane ends them. Neither side has anything to complain about.
func TestChannelsMoveBeforeCertificatesExpire(t *testing.T) {
	leak.Check(t)
	var log journal
	w := meshtest.New(t, meshtest.CertificateLife(3*time.Second), meshtest.Logger(slog.New(slog.NewTextHandler(&log, nil))),
		meshtest.HTTP("one", "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })))
	call := func() bool {
		resp, err := w.Client().Get("http://one/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	w.Eventually("the first request", call)
	// Two members of the mesh, whose certificates are renewed at half of their life.
	const connected, moves = "xds: connected", 3
	first := strings.Count(log.text(), connected)
	deadline := time.Now().Add(30 * time.Second)
	for strings.Count(log.text(), connected) < first+2*moves {
		if time.Now().After(deadline) {
			t.Fatalf("the streams do not move:\n%s", log.text())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !call() {
		t.Error("a request failed")
	}
	for _, bad := range []string{"xds: stream ended", "expired"} {
		if text := log.text(); strings.Contains(text, bad) {
			t.Errorf("%q is logged:\n%s", bad, text)
		}
	}
}
