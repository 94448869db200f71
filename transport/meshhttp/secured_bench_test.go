package meshhttp

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// BenchmarkMutualTLS compares requests over mutual TLS on loopback with those
// of net/http alone with the same certificates and rules.
func BenchmarkMutualTLS(b *testing.B) {
	ca := newAuthority(b)
	src := static(b, ca.material(b, ca.issue(b, webID)))
	server := mutualServer(b, static(b, ca.material(b, ca.issue(b, reviewsID))), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "ok")
	})
	address := server.Listener.Addr().String()
	for _, http2 := range []bool{false, true} {
		protocol := map[bool]string{false: "HTTP1", true: "HTTP2"}[http2]
		b.Run(protocol+"/bare", func(b *testing.B) {
			t := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: maxIdlePerEndpoint}
			t.Protocols.SetHTTP1(!http2)
			t.Protocols.SetHTTP2(http2)
			t.TLSClientConfig = tlsconfig.Client(src, tlsconfig.ClientOptions{
				ServerName: "reviews", Peer: tlsconfig.Peer{SANs: mutual(reviewsID).SANs},
				Protocols: []string{map[bool]string{false: "http/1.1", true: "h2"}[http2]},
			})
			defer t.CloseIdleConnections()
			oneByOne(b, t, "https://"+address+"/reviews/0")
		})
		b.Run(protocol+"/mesh", func(b *testing.B) {
			e := outbound.New(outbound.Options{Subscribe: func(string) {}, NewWire: NewWire(func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return src, nil })})
			defer e.Close()
			snap := routed(0, address)
			for _, c := range snap.Clusters {
				c.HTTP2, c.TLS = http2, mutual(reviewsID)
			}
			e.Install(snap)
			oneByOne(b, NewRoundTripper(e, ClientOptions{}), "http://reviews:9080/reviews/0")
		})
	}
}

// oneByOne sends requests and reads their answers.
func oneByOne(b *testing.B, rt http.RoundTripper, url string) {
	b.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(body), "ok") {
			b.Fatalf("%q %v", body, err)
		}
		resp.Body.Close()
	}
}
