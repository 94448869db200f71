package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/sinew-mesh/sinew/mesh"
)

// variant is one way to build client and server.
type variant string

const (
	bare     variant = "bare"
	plain    variant = "mesh"
	traced   variant = "mesh+otel"
	otelOnly variant = "otelhttp"
)

var variants = []variant{bare, plain, traced, otelOnly}

func (v variant) meshed() bool { return v == plain || v == traced }

// service is the variant's name in the policy.
func (v variant) service() string {
	if v == traced {
		return "reviews-otel"
	}
	return "reviews"
}

// side is a client or a server of a variant.
type side struct {
	mesh    *mesh.Mesh // nil where the variant has none
	tracers *sdktrace.TracerProvider
	meters  *sdkmetric.MeterProvider
}

func newSide(a *assignment) (*side, error) {
	s := &side{}
	if a.Variant == traced || a.Variant == otelOnly {
		s.tracers = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
		s.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	}
	if !a.Variant.meshed() {
		return s, nil
	}
	options := []mesh.Option{mesh.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))}
	if a.Bootstrap == nil {
		options = append(options, mesh.WithoutControlPlane(), mesh.WithDefaultPolicy(mesh.Policy{Timeout: 5 * time.Second, Retries: 2}))
	} else {
		// Before its policy has come, a service is a host that the mesh does not know.
		options = append(options, mesh.WithBootstrap(a.Bootstrap), mesh.WithExternalHosts(mesh.RefuseExternal))
	}
	if s.tracers != nil {
		options = append(options, mesh.WithTracerProvider(s.tracers), mesh.WithMeterProvider(s.meters))
	}
	var err error
	s.mesh, err = mesh.New(context.Background(), options...)
	return s, err
}

func (s *side) close() {
	if s.mesh != nil {
		s.mesh.Close()
	}
}

func (s *side) otel() []otelhttp.Option {
	return []otelhttp.Option{
		otelhttp.WithTracerProvider(s.tracers), otelhttp.WithMeterProvider(s.meters),
		otelhttp.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
	}
}

func (s *side) client() *http.Client {
	if s.mesh != nil {
		return s.mesh.Client()
	}
	// The default of two idle connections to a host would make the others dial all the time.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 256
	if s.tracers != nil {
		return &http.Client{Transport: otelhttp.NewTransport(transport, s.otel()...)}
	}
	return &http.Client{Transport: transport}
}

func (s *side) listen() (net.Listener, error) {
	if s.mesh != nil {
		return s.mesh.Listen(context.Background(), "tcp", "127.0.0.1:0")
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

func (s *side) handler(next http.Handler) http.Handler {
	switch {
	case s.mesh != nil:
		return s.mesh.Handler(next)
	case s.tracers != nil:
		return otelhttp.NewHandler(next, "reviews", s.otel()...)
	default:
		return next
	}
}
