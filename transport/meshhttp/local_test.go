package meshhttp

import (
	"io"
	"net/http"
	"reflect"
	"testing"

	"github.com/sinew-mesh/sinew/transport/outbound"
)

func TestLocalResponse(t *testing.T) {
	for _, c := range []struct {
		name, method string
		local        outbound.Local
		status       string
		header       http.Header
		length       int64
		body         string
	}{
		{"redirect", "GET", outbound.Local{Reason: "redirect", Status: 301, GRPC: -1, Header: map[string][]string{"Location": {"https://x/"}}},
			"301 Moved Permanently", http.Header{"Location": {"https://x/"}, "Content-Length": {"0"}}, 0, ""},
		{"direct response", "GET", outbound.Local{Reason: "direct_response", Status: 503, GRPC: -1, Body: "later"},
			"503 Service Unavailable", http.Header{"Content-Type": {"text/plain"}, "Content-Length": {"5"}}, 5, "later"},
		{"its own content type", "GET", outbound.Local{Status: 200, GRPC: -1, Body: "{}", Header: map[string][]string{"Content-Type": {"application/json"}}},
			"200 OK", http.Header{"Content-Type": {"application/json"}, "Content-Length": {"2"}}, 2, "{}"},
		{"HEAD has the length and no body", "HEAD", outbound.Local{Status: 200, GRPC: -1, Body: "body"},
			"200 OK", http.Header{"Content-Type": {"text/plain"}, "Content-Length": {"4"}}, 4, ""},
		{"204", "GET", outbound.Local{Status: 204, GRPC: -1}, "204 No Content", http.Header{}, 0, ""},
		{"gRPC", "POST", outbound.Local{Reason: "fault", Status: 200, GRPC: 14, Body: "fault filter abort 100%"},
			"200 OK", http.Header{"Content-Type": {"application/grpc"}, "Grpc-Status": {"14"}, "Grpc-Message": {"fault filter abort 100%25"}, "Content-Length": {"0"}}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, "http://svc/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp := localResponse(req, &c.local)
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.Body.Close() != nil {
				t.Fatal(err)
			}
			if resp.Status != c.status || resp.ContentLength != c.length || string(body) != c.body || resp.Request != req || !reflect.DeepEqual(resp.Header, c.header) {
				t.Errorf("%q %d %q %v", resp.Status, resp.ContentLength, body, resp.Header)
			}
		})
	}
}
