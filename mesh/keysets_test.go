package mesh_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/mesh"
	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// TestKeySetNetworks: a policy can have a process call an address that is not
// public only where the process allows it.
func TestKeySetNetworks(t *testing.T) {
	if _, err := mesh.New(t.Context(), mesh.WithoutControlPlane(), mesh.WithKeySetNetworks(netip.Prefix{})); err == nil {
		t.Error("a range that is none is accepted")
	}
	for _, allowed := range []bool{false, true} {
		t.Run(fmt.Sprint(allowed), func(t *testing.T) {
			leak.Check(t)
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer lis.Close()
			called := make(chan struct{}, 100)
			go func() {
				for {
					conn, err := lis.Accept()
					if err != nil {
						return
					}
					called <- struct{}{}
					conn.Close()
				}
			}()
			options := []meshtest.Option{meshtest.MutualTLS(), meshtest.Policy(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  jwtRules: [{issuer: https://issuer.example, jwksUri: "https://%s/keys"}]
`, lis.Addr())), meshtest.HTTP("payment", "v1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))}
			if allowed {
				options = append([]meshtest.Option{meshtest.MeshOptions(mesh.WithKeySetNetworks(netip.MustParsePrefix("127.0.0.0/8")))}, options...)
			}
			w := meshtest.New(t, options...)
			r, err := http.NewRequest(http.MethodGet, "http://payment/", nil)
			if err != nil {
				t.Fatal(err)
			}
			// {"alg":"RS256"} and {"iss":"https://issuer.example"}, signed by nobody.
			r.Header.Set("Authorization", "Bearer eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0.AAAA")
			resp, err := w.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("status %d, want 401", resp.StatusCode)
			}
			if allowed {
				select {
				case <-called:
				case <-time.After(10 * time.Second):
					t.Error("the keys are not fetched")
				}
			} else if len(called) > 0 {
				t.Error("the address is called")
			}
		})
	}
}
