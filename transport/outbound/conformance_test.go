package outbound

import (
	"net/textproto"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// TestRecordedConsumedHeaders: what a request says to the router does not go to the server.
func TestRecordedConsumedHeaders(t *testing.T) {
	var file struct {
		Names []string `json:"request_headers_removed_before_upstream"`
	}
	conformance.Load(t, "envoy-facts/retry.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/retry.json#removed_headers")
	for _, name := range file.Names {
		key := textproto.CanonicalMIMEHeaderKey(name)
		retry := resilience.DefaultRetryPolicy(resilience.On5xx)
		for _, policy := range []*resilience.RetryPolicy{nil, &retry} {
			e := routed(t, func(_ *snapshot.Host, r *snapshot.Route) { r.Retry = policy })
			call := decided(t, e, func(r *routing.Request) { r.Header[key], r.Header["X-Other"] = []string{"true"}, []string{"1"} })
			var try Try
			if err := call.Begin(&try); err != nil {
				t.Fatal(err)
			}
			var l Lease
			if err := try.Pick(&l, nil); err != nil {
				t.Fatal(err)
			}
			var out Outgoing
			try.Outgoing(&l, &out)
			if out.Header[key] != nil || out.Header["X-Other"] == nil {
				tally.Fail(t, "%s, with a policy %t: %v", name, policy != nil, out.Header)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/retry.json#removed_headers", 6, 0)
}
