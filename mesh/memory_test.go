package mesh_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// heap returns what live objects occupy.
func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // finalisers and pools need more than one
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// alone runs a test in a process of its own, where the garbage of other tests is
// not mistaken for its memory, and reports whether this is that process.
func alone(t *testing.T) bool {
	t.Helper()
	const variable = "SINEW_TEST_ALONE"
	if os.Getenv(variable) == t.Name() {
		return true
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^"+t.Name()+"$", "-test.v", fmt.Sprintf("-test.short=%t", testing.Short()))
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		t.Skipf("%s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Errorf("it did not run:\n%s", out)
	default:
		t.Logf("%s", out)
	}
	return false
}

// TestMemory: a client that calls 20 services of 50 endpoints each holds less
// than 5 MB for the mesh. Servers close each connection, so what net/http keeps
// for connections is not in it; what the xDS server keeps for the client is.
func TestMemory(t *testing.T) {
	const services, endpoints, limit = 20, 50, 5 << 20
	if !alone(t) {
		return
	}
	leak.Check(t)
	lis, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, "ok")
	})}
	go func() { _ = server.Serve(lis) }()
	defer server.Close()
	port := lis.Addr().(*net.TCPAddr).Port
	probe, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.1.1:%d", port), time.Second)
	if err != nil {
		t.Skipf("only 127.0.0.1 is this machine's: %v", err)
	}
	probe.Close()

	w := meshtest.New(t, meshtest.Policy(manyServices(services, endpoints, port)))
	call := func(c *http.Client) {
		t.Helper()
		for i := range services {
			for range 2 * endpoints {
				resp, err := c.Get(fmt.Sprintf("http://service-%d/", i))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
					t.Fatalf("%d %v", resp.StatusCode, err)
				}
				resp.Body.Close()
			}
		}
	}
	// What is made once for the process, and by the server for all clients, is there after this.
	call(w.Client())

	before := heap()
	m, err := mesh.New(t.Context(), mesh.WithBootstrap(w.Bootstrap()))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	call(m.Client())
	seen := 0
	for _, c := range status(t, m).Outbound.Clusters {
		seen += len(c.Endpoints)
	}
	if seen < services*endpoints {
		t.Fatalf("the client knows %d endpoints, want %d", seen, services*endpoints)
	}
	held := int64(heap() - before)
	t.Logf("%d services of %d endpoints: %.2f MB", services, endpoints, float64(held)/1e6)
	if held > limit || held < 100_000 {
		t.Errorf("the client holds %d bytes, want under %d, and enough to believe the figure", held, limit)
	}
	runtime.KeepAlive(m)
}

// manyServices declares services with a route by header and a weighted one to two subsets.
func manyServices(services, endpoints, port int) string {
	var b strings.Builder
	for i := range services {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: service-%[1]d, namespace: default}
spec:
  selector: {app: service-%[1]d}
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: service-%[1]d, namespace: default}
spec:
  host: service-%[1]d
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 5}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: service-%[1]d, namespace: default}
spec:
  hosts: [service-%[1]d]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: service-%[1]d, subset: v2}}]
  - route:
    - {destination: {host: service-%[1]d, subset: v1}, weight: 50}
    - {destination: {host: service-%[1]d, subset: v2}, weight: 50}
    timeout: 5s
    retries: {attempts: 2, retryOn: "connect-failure,503"}
`, i)
		for j := range endpoints {
			fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: service-%[1]d-%[2]d, namespace: default}
spec:
  address: 127.0.%[3]d.%[4]d
  ports: {http: %[5]d}
  labels: {app: service-%[1]d, version: v%[6]d}
`, i, j, i+1, j+1, port, j%2+1)
		}
	}
	return b.String()
}

// status is what the admin page shows.
func status(t *testing.T, m *mesh.Mesh) mesh.AdminStatus {
	t.Helper()
	w := httptest.NewRecorder()
	m.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	var s mesh.AdminStatus
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}
