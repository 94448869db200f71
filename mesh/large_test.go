package mesh_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// counting is a listener that keeps the addresses that were connected to.
type counting struct {
	net.Listener
	mu    sync.Mutex
	conns map[string]int
}

func (c *counting) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.conns[conn.LocalAddr().String()]++
		c.mu.Unlock()
	}
	return conn, err
}

// counted returns how many connections there were, to how many addresses.
func (c *counting) counted() (conns, addresses int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.conns {
		conns += n
	}
	return conns, len(c.conns)
}

func (c *counting) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.conns)
}

// TestLargeCluster: of a cluster's many endpoints a client uses its own few: it
// opens connections to those alone, has goroutines for those alone, and what it
// holds of the others is little.
func TestLargeCluster(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, c := range []struct{ endpoints, limit int }{{1_000, 1 << 20}, {10_000, 4 << 20}} {
		t.Run(fmt.Sprint(c.endpoints), func(t *testing.T) {
			if testing.Short() && c.endpoints > 1_000 {
				t.Skip("takes seconds")
			}
			leak.Check(t)
			const requests, workers = 10_000, 4
			all, err := net.Listen("tcp", "0.0.0.0:0")
			if err != nil {
				t.Fatal(err)
			}
			lis := &counting{Listener: all, conns: make(map[string]int)}
			answerAll(t, lis)
			port := all.Addr().(*net.TCPAddr).Port
			probe, err := net.DialTimeout("tcp", fmt.Sprintf("127.1.1.1:%d", port), time.Second)
			if err != nil {
				t.Skipf("only 127.0.0.1 is this machine's: %v", err)
			}
			probe.Close()

			w := meshtest.New(t, meshtest.Policy(largeService(c.endpoints, port)))
			get := func(client *http.Client) {
				resp, err := client.Get("http://large/")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			get(w.Client()) // what is made once for the process, and by the server for all clients
			before, routines := heap(), runtime.NumGoroutine()
			m, err := mesh.New(t.Context(), mesh.WithBootstrap(w.Bootstrap()))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			client := m.Client()
			get(client)
			held := int64(heap() - before)
			lis.forget()
			var work sync.WaitGroup
			for range workers {
				work.Go(func() {
					for range requests / workers {
						get(client)
					}
				})
			}
			work.Wait()
			conns, addresses := lis.counted()
			// Each connection has two goroutines of net/http's and one of the server's.
			more := runtime.NumGoroutine() - routines
			t.Logf("%d endpoints: %.2f MB before the requests, %.2f MB after, %d connections to %d addresses, %d goroutines more",
				c.endpoints, float64(held)/1e6, float64(int64(heap()-before))/1e6, conns, addresses, more)
			if addresses > lb.DefaultSubsetSize || addresses < lb.DefaultSubsetSize*9/10 {
				t.Errorf("%d addresses were connected to, want at most %d and nearly as many", addresses, lb.DefaultSubsetSize)
			}
			if conns > workers*lb.DefaultSubsetSize {
				t.Errorf("%d connections for %d requests at a time", conns, workers)
			}
			if limit := 3*(conns+1) + 60; more > limit {
				t.Errorf("%d goroutines more, want at most %d", more, limit)
			}
			if held > int64(c.limit) || held < 50_000 {
				t.Errorf("the client holds %d bytes, want under %d, and enough to believe the figure", held, c.limit)
			}
			runtime.KeepAlive(m)
		})
	}
}

// largeService declares a service of many endpoints.
func largeService(endpoints, port int) string {
	var b strings.Builder
	b.WriteString(`---
apiVersion: v1
kind: Service
metadata: {name: large, namespace: default}
spec:
  selector: {app: large}
  ports: [{name: http, port: 80}]
`)
	for i := range endpoints {
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: large-%d, namespace: default}
spec:
  address: 127.1.%d.%d
  ports: {http: %d}
  labels: {app: large}
`, i, i/250+1, i%250+1, port)
	}
	return b.String()
}
