package meshtest_test

import (
	"net/http"
	"testing"

	"github.com/sinew-mesh/sinew/mesh/meshtest"
)

// A unit test of a policy: two versions of a service as handlers, the document
// that decides between them, and a request.
func Example() {
	test := func(t *testing.T) {
		w := meshtest.New(t,
			meshtest.HTTP("reviews", "v1", http.NotFoundHandler()),
			meshtest.HTTP("reviews", "v2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})),
			meshtest.Policy(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v2}}]}]
`))
		resp, err := w.Client().Get("http://reviews/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("status %d: the request did not go to v2", resp.StatusCode)
		}
	}
	_ = test
}
