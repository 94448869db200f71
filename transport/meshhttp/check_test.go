package meshhttp

import (
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// healthServer answers grpc.health.v1 by hand, as the library's own messages have it.
func healthServer(status healthgrpc.HealthCheckResponse_ServingStatus, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		frame, _ := io.ReadAll(r.Body)
		var asked healthgrpc.HealthCheckRequest
		if len(frame) < 5 || int(binary.BigEndian.Uint32(frame[1:])) != len(frame)-5 || proto.Unmarshal(frame[5:], &asked) != nil ||
			r.URL.Path != healthgrpc.Health_Check_FullMethodName || r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Te") != "trailers" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		if asked.Service != "" && asked.Service != "shop" {
			code = "5"
		}
		if code == "0" {
			raw, _ := proto.Marshal(&healthgrpc.HealthCheckResponse{Status: status})
			_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))), raw...))
		}
		w.Header().Set("Grpc-Status", code)
	}
}

func TestChecks(t *testing.T) {
	plain := func(h http.HandlerFunc) func(t *testing.T) string {
		return func(t *testing.T) string {
			s := httptest.NewUnstartedServer(h)
			s.Config.Protocols = new(http.Protocols)
			s.Config.Protocols.SetHTTP1(true)
			s.Config.Protocols.SetUnencryptedHTTP2(true)
			s.Start()
			t.Cleanup(s.Close)
			return s.Listener.Addr().String()
		}
	}
	says := func(code int, header ...string) func(t *testing.T) string {
		return plain(func(w http.ResponseWriter, r *http.Request) {
			if r.Host != "checked" || r.Header.Get("User-Agent") != checkAgent || r.RequestURI != "/health?x=1" {
				code = 500
			}
			for _, h := range header {
				w.Header().Set(h, "true")
			}
			w.WriteHeader(code)
		})
	}
	dead := func(*testing.T) string { return deadAddress }
	hang := plain(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	http1 := resilience.HealthCheck{Kind: resilience.HealthHTTP, Path: "/health?x=1"}
	http2 := resilience.HealthCheck{Kind: resilience.HealthHTTP, Path: "/health?x=1", HTTP2: true}
	ranges := resilience.HealthCheck{Kind: resilience.HealthHTTP, Path: "/health?x=1", Expected: []resilience.StatusRange{{Start: 200, End: 300}}, Retriable: []resilience.StatusRange{{Start: 503, End: 504}}}
	tcp := resilience.HealthCheck{Kind: resilience.HealthTCP}
	grpc := resilience.HealthCheck{Kind: resilience.HealthGRPC}
	named := resilience.HealthCheck{Kind: resilience.HealthGRPC, Service: "shop"}
	other := resilience.HealthCheck{Kind: resilience.HealthGRPC, Service: "other"}
	for _, c := range []struct {
		name  string
		check resilience.HealthCheck
		serve func(t *testing.T) string
		want  outbound.CheckResult
	}{
		{"200", http1, says(200), outbound.CheckPassed},
		{"200 by HTTP/2", http2, says(200), outbound.CheckPassed},
		{"204 is not 200", http1, says(204), outbound.CheckFailed},
		{"204 in a range", ranges, says(204), outbound.CheckPassed},
		{"503", http1, says(503), outbound.CheckFailed},
		{"503 that counts towards the threshold", ranges, says(503), outbound.CheckRetriable},
		{"degraded", http1, says(200, "X-Envoy-Degraded"), outbound.CheckDegraded},
		{"fails by itself", http1, says(200, "X-Envoy-Immediate-Health-Check-Fail"), outbound.CheckFailed},
		{"nobody listens", http1, dead, outbound.CheckNoAnswer},
		{"no answer", http1, hang, outbound.CheckNoAnswer},
		{"a redirect is not followed", http1, says(302), outbound.CheckFailed},
		{"TCP", tcp, says(500), outbound.CheckPassed},
		{"TCP, nobody listens", tcp, dead, outbound.CheckNoAnswer},
		{"gRPC serving", grpc, plain(healthServer(healthgrpc.HealthCheckResponse_SERVING, "0")), outbound.CheckPassed},
		{"gRPC serving the service", named, plain(healthServer(healthgrpc.HealthCheckResponse_SERVING, "0")), outbound.CheckPassed},
		{"gRPC, unknown service", other, plain(healthServer(healthgrpc.HealthCheckResponse_SERVING, "0")), outbound.CheckFailed},
		{"gRPC not serving", grpc, plain(healthServer(healthgrpc.HealthCheckResponse_NOT_SERVING, "0")), outbound.CheckFailed},
		{"gRPC unavailable", grpc, plain(healthServer(0, "14")), outbound.CheckFailed},
		{"gRPC of a server that is none", grpc, says(200), outbound.CheckFailed},
		{"gRPC, nobody listens", grpc, dead, outbound.CheckNoAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			// No connection and no waiting request is allowed: checks are not held to that.
			config := &snapshot.Cluster{Name: "c", ConnectTimeout: 20 * time.Second, Limits: resilience.Limits{}}
			w := NewWire(nil)(config)
			defer w.Retire()
			limit := 20 * time.Second
			if c.name == "no answer" {
				limit = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			for range 2 {
				got, err := Checker{}.Check(ctx, &outbound.CheckTarget{Cluster: config, Wire: w, Address: c.serve(t), Authority: "checked", Check: &c.check})
				if got != c.want || (err == nil) != (got == outbound.CheckPassed || got == outbound.CheckDegraded) {
					t.Errorf("%d, %v, want %d", got, err, c.want)
				}
			}
		})
	}
}

// TestChecksOverTLS: a check is secured as requests are, and one that can not be fails.
func TestChecksOverTLS(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	src := static(t, ca.material(t, ca.issue(t, webID)))
	server := mutualServer(t, static(t, ca.material(t, ca.issue(t, reviewsID))), func(w http.ResponseWriter, r *http.Request) {})
	for _, c := range []struct {
		name string
		peer string
		kind resilience.HealthCheckKind
		want outbound.CheckResult
	}{
		{"HTTP", reviewsID, resilience.HealthHTTP, outbound.CheckPassed},
		{"HTTP, another's certificate", webID, resilience.HealthHTTP, outbound.CheckNoAnswer},
		{"TCP", reviewsID, resilience.HealthTCP, outbound.CheckPassed},
		{"TCP, another's certificate", webID, resilience.HealthTCP, outbound.CheckNoAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := &snapshot.Cluster{Name: "c", ConnectTimeout: 20 * time.Second, Limits: unlimited, TLS: mutual(c.peer)}
			w := NewWire(func(snapshot.CertificateSource, snapshot.TrustSource) (source.Source, error) { return src, nil })(config)
			defer w.Retire()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, err := Checker{}.Check(ctx, &outbound.CheckTarget{
				Cluster: config, Wire: w, Security: config.TLS, Address: server.Listener.Addr().String(), Authority: "reviews",
				Check: &resilience.HealthCheck{Kind: c.kind, Path: "/"},
			})
			if got != c.want {
				t.Errorf("%d, %v, want %d", got, err, c.want)
			}
		})
	}
}

// FuzzHealthAnswer: whatever comes is a status or an error, as the library reads it.
func FuzzHealthAnswer(f *testing.F) {
	for _, s := range []string{"", "\x00\x00\x00\x00\x02\x08\x01", "\x01\x00\x00\x00\x02\x08\x01", "\x00\x00\x00\x00\x00", "\x00\x00\x00\x00\x04\x12\x00\x08\x02"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		status, err := healthAnswer(frame)
		if len(frame) < 5 || frame[0] != 0 || int(binary.BigEndian.Uint32(frame[1:])) != len(frame)-5 {
			if err == nil {
				t.Fatalf("%x is no frame, and gives %d", frame, status)
			}
			return
		}
		var want healthgrpc.HealthCheckResponse
		if (proto.UnmarshalOptions{}).Unmarshal(frame[5:], &want) == nil && err == nil && int32(status) != int32(want.Status) {
			t.Fatalf("%x gives %d, want %d", frame, status, want.Status)
		}
	})
}
