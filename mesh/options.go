package mesh

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// Option configures New.
type Option func(*config) error

// External says what becomes of requests to hosts that the mesh does not know.
type External int

const (
	// PassExternal sends them where their URL says, under the default policy.
	PassExternal External = iota
	// RefuseExternal fails them with a *NoRouteError.
	RefuseExternal
)

type config struct {
	bootstrap      []byte
	bootstrapFile  string
	standalone     bool
	policy         Policy
	external       External
	policyWait     time.Duration
	drain          time.Duration
	replay         int64
	identity       source.Source
	shedding       *inbound.Shedding
	keyNetworks    []netip.Prefix
	grpcHealth     *string
	log            *slog.Logger
	tracerProvider trace.TracerProvider
	meterProvider  metric.MeterProvider
}

func newConfig(options []Option) (*config, error) {
	c := &config{policy: DefaultPolicy, policyWait: 15 * time.Second, drain: 30 * time.Second, log: slog.Default()}
	for _, option := range options {
		if err := option(c); err != nil {
			return nil, fmt.Errorf("mesh: %w", err)
		}
	}
	if c.standalone && (c.bootstrap != nil || c.bootstrapFile != "") {
		return nil, errors.New("mesh: WithoutControlPlane and a bootstrap exclude each other")
	}
	if c.standalone && c.identity != nil {
		return nil, errors.New("mesh: WithoutControlPlane and WithIdentity exclude each other: without policy nothing asks for a certificate")
	}
	if c.bootstrap != nil && c.bootstrapFile != "" {
		return nil, errors.New("mesh: WithBootstrap and WithBootstrapFile exclude each other")
	}
	return c, nil
}

// WithBootstrap gives the xDS bootstrap document itself (gRPC's schema, as
// `xdsserver bootstrap` prints it). It wins over the environment.
func WithBootstrap(document []byte) Option {
	return func(c *config) error {
		if len(document) == 0 {
			return errors.New("WithBootstrap: the document is empty")
		}
		c.bootstrap = document
		return nil
	}
}

// WithBootstrapFile names the file with the xDS bootstrap document. It wins over the environment.
func WithBootstrapFile(path string) Option {
	return func(c *config) error {
		if path == "" {
			return errors.New("WithBootstrapFile: the path is empty")
		}
		c.bootstrapFile = path
		return nil
	}
}

// WithoutControlPlane runs without an xDS server: every host is external, and
// requests are traced, measured and guarded by the default policy. What comes in
// is let in, in plaintext, as without the mesh. A bootstrap in the environment is
// not read; one among the options is an error. Default: New wants a bootstrap.
func WithoutControlPlane() Option {
	return func(c *config) error {
		c.standalone = true
		return nil
	}
}

// WithDefaultPolicy sets the policy for hosts that the mesh does not know. Default: DefaultPolicy.
func WithDefaultPolicy(p Policy) Option {
	return func(c *config) error {
		if err := errors.Join(p.validate(), p.grpc().Validate()); err != nil {
			return fmt.Errorf("WithDefaultPolicy: %w", err)
		}
		c.policy = p
		return nil
	}
}

// WithExternalHosts says what becomes of requests to hosts that the mesh does
// not know. Default: PassExternal.
func WithExternalHosts(e External) Option {
	return func(c *config) error {
		if e != PassExternal && e != RefuseExternal {
			return fmt.Errorf("WithExternalHosts: %d is neither PassExternal nor RefuseExternal", e)
		}
		c.external = e
		return nil
	}
}

// WithPolicyWait limits how long a request, going out or coming in, waits for
// policy or a first certificate that has not come yet, unless its own deadline is
// earlier. Then it fails with a *NotReadyError, or is answered 503 or UNAVAILABLE.
// Default: 15 s.
func WithPolicyWait(d time.Duration) Option {
	return func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("WithPolicyWait: %s is not positive", d)
		}
		c.policyWait = d
		return nil
	}
}

// WithDrainTimeout limits how long Serve and ServeListener let requests finish
// after their context has ended. Default: 30 s.
func WithDrainTimeout(d time.Duration) Option {
	return func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("WithDrainTimeout: %s is not positive", d)
		}
		c.drain = d
		return nil
	}
}

// WithReplayLimit sets how many bytes of an HTTP request's body are kept for a
// retry, where the request has no GetBody of its own. A larger body is sent once.
// Default: 64 KiB; zero keeps nothing. A gRPC stream keeps 64 KiB of messages,
// whatever is set here.
func WithReplayLimit(bytes int64) Option {
	return func(c *config) error {
		if bytes < 0 {
			return fmt.Errorf("WithReplayLimit: %d is negative", bytes)
		}
		if c.replay = bytes; bytes == 0 {
			c.replay = -1
		}
		return nil
	}
}

// WithKeySetNetworks allows the key sets of token issuers (jwksUri) to be fetched
// from these ranges of addresses, such as those of an issuer inside the cluster.
// Default: public addresses only, since whoever writes a RequestAuthentication
// chooses what the process fetches. The scheme must be https in any case.
func WithKeySetNetworks(ranges ...netip.Prefix) Option {
	return func(c *config) error {
		for _, r := range ranges {
			if !r.IsValid() {
				return errors.New("WithKeySetNetworks: a range is not valid")
			}
		}
		c.keyNetworks = ranges
		return nil
	}
}

// WithGRPCHealth has the connections of "mesh:///" channels watched by gRPC's
// health service (gRPC's health checking protocol), under this name of a
// service; "" is the whole server. An endpoint that says that it is not serving
// gets no calls until it says that it is; one without the health service counts
// as serving. It comes beside health checks of policy, which are the
// cluster's own. Default: connections are not watched.
func WithGRPCHealth(service string) Option {
	return func(c *config) error {
		c.grpcHealth = &service
		return nil
	}
}

// WithLogger sets where the mesh logs. Default: slog.Default().
func WithLogger(log *slog.Logger) Option {
	return func(c *config) error {
		if log == nil {
			return errors.New("WithLogger: the logger is nil")
		}
		c.log = log
		return nil
	}
}

// WithTracerProvider sets where spans go. Default, and for nil: OpenTelemetry's global provider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) error {
		c.tracerProvider = p
		return nil
	}
}

// WithMeterProvider sets where metrics go, gRPC's own among them. Default, and for nil: OpenTelemetry's global provider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) error {
		c.meterProvider = p
		return nil
	}
}
