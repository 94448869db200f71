package mesh_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/journal"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// TestChannelsMoveBeforeCertificatesExpire: certificates live for seconds, and the
// streams to the control plane move to connections with the next ones, before the
// control plane ends them. Neither side has anything to complain about.
func TestChannelsMoveBeforeCertificatesExpire(t *testing.T) {
	leak.Check(t)
	var log journal.Journal
	w := meshtest.New(t, meshtest.CertificateLife(8*time.Second), meshtest.Logger(slog.New(slog.NewTextHandler(&log, nil))),
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
	const connected, moves = "xds: connected", 2
	first := strings.Count(log.String(), connected)
	deadline := time.Now().Add(60 * time.Second)
	for strings.Count(log.String(), connected) < first+2*moves {
		if time.Now().After(deadline) {
			t.Fatalf("the streams do not move:\n%s", log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !call() {
		t.Error("a request failed")
	}
	for _, bad := range []string{"xds: stream ended", "expired"} {
		if text := log.String(); strings.Contains(text, bad) {
			t.Errorf("%q is logged:\n%s", bad, text)
		}
	}
}
