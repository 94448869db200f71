package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
)

// WorkloadAPIConfig says where the SPIFFE Workload API is and which of the
// identities that it offers is ours.
type WorkloadAPIConfig struct {
	// Socket is "unix:///path" or "tcp://ip:port" (socket). Default: the
	// environment variable SPIFFE_ENDPOINT_SOCKET.
	Socket string
	// ID chooses the SVID with this SPIFFE ID (spiffe_id).
	ID identity.ID
	// Hint chooses the first SVID with this hint (hint). With ID too, an SVID
	// must have both. Default: the first SVID that is offered.
	Hint string
	// Dial replaces the network; nil dials Socket. It is not part of the JSON form.
	Dial Dialer
}

// ParseWorkloadAPIConfig reads the JSON form. An unknown member is an error:
// the members decide who the process is.
func ParseWorkloadAPIConfig(config json.RawMessage) (WorkloadAPIConfig, error) {
	var j struct {
		Socket string      `json:"socket"`
		ID     identity.ID `json:"spiffe_id"`
		Hint   string      `json:"hint"`
	}
	if len(config) > 0 {
		dec := json.NewDecoder(strings.NewReader(string(config)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&j); err != nil {
			return WorkloadAPIConfig{}, fmt.Errorf("%s: %w", WorkloadAPIPlugin, err)
		}
	}
	c := WorkloadAPIConfig{Socket: j.Socket, ID: j.ID, Hint: j.Hint}
	return c, c.validate()
}

func (c *WorkloadAPIConfig) validate() error {
	if c.Socket == "" {
		if c.Socket = os.Getenv(workloadapi.SocketEnv); c.Socket == "" {
			return fmt.Errorf("%s: socket is missing, and $%s is not set", WorkloadAPIPlugin, workloadapi.SocketEnv)
		}
	}
	if err := workloadapi.ValidateAddress(c.Socket); err != nil {
		return fmt.Errorf("%s: socket %q: %w", WorkloadAPIPlugin, c.Socket, err)
	}
	return nil
}

const (
	workloadFirstRetry = time.Second
	workloadMaxRetry   = 30 * time.Second
)

// WorkloadAPI is a source that takes X509-SVIDs and bundles, federated ones
// included, from the SPIFFE Workload API, as SPIRE's agent serves it.
//
// Each message is the complete state: an identity that the next one lacks, or
// that the API denies (PermissionDenied), is withdrawn at once, and so is the
// bundle of a trust domain that is no longer there. A bundle that can not be
// used is left out, which keeps out the peers of its trust domain only. While the API can not be
// reached, or sends what can not be read, the last good material stays in
// force until its certificate expires; the stream is made again after 1 s, and
// then at growing intervals of up to 30 s, half more or less by chance.
type WorkloadAPI struct {
	state
	config WorkloadAPIConfig
	log    *slog.Logger
	conn   *grpc.ClientConn
	client workloadpb.SpiffeWorkloadAPIClient
	jwt    jwtBundles
	warned string // the failure that was logged last; of the goroutine that watches

	ctx    context.Context // of the streams; it ends with Close
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewWorkloadAPI starts to watch and returns at once: Current is an error
// until the first message has come. log may be nil.
func NewWorkloadAPI(config WorkloadAPIConfig, log *slog.Logger) (*WorkloadAPI, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	target, err := workloadapi.TargetFromAddress(config.Socket)
	if err != nil {
		return nil, fmt.Errorf("%s: socket %q: %w", WorkloadAPIPlugin, config.Socket, err)
	}
	if !strings.HasPrefix(target, "unix:") {
		target = "passthrough:///" + target
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the API knows callers by their socket
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxFileSize)),
		grpc.WithConnectParams(grpc.ConnectParams{
			// The streams have their own pauses; the channel must not add long ones to them.
			Backoff:           grpcbackoff.Config{BaseDelay: workloadFirstRetry / 2, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: attemptTimeout,
		}),
	}
	if config.Dial != nil {
		options = append(options, grpc.WithContextDialer(config.Dial))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", WorkloadAPIPlugin, err)
	}
	w := &WorkloadAPI{
		state: newState("workload API"), config: config, log: logger(log),
		conn: conn, client: workloadpb.NewSpiffeWorkloadAPIClient(conn), jwt: jwtBundles{ready: make(chan struct{})},
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.done.Go(func() {
		w.keep(w.watch, func(err error, wait time.Duration) {
			w.nextAttempt(time.Now().Add(wait))
			w.ended(err)
		})
	})
	w.done.Go(w.expire)
	return w, nil
}

// Close implements Source.
func (w *WorkloadAPI) Close() error {
	w.cancel()
	w.jwt.stop()
	w.done.Wait()
	return w.conn.Close()
}

// keep makes a stream again and again. stream calls good for each message that
// comes, after which the pauses are short again; ended is told why it ended,
// and how long it is until the next.
func (w *WorkloadAPI) keep(stream func(ctx context.Context, good func()) error, ended func(err error, wait time.Duration)) {
	pauses := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(workloadFirstRetry), backoff.WithMultiplier(1.6), backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxInterval(workloadMaxRetry*2/3), // half more by chance is workloadMaxRetry
		backoff.WithMaxElapsedTime(0),
	)
	for {
		err := stream(withSecurityHeader(w.ctx), pauses.Reset)
		if w.ctx.Err() != nil {
			return
		}
		wait := pauses.NextBackOff()
		ended(err, wait)
		if !pause(w.ctx, wait) {
			return
		}
	}
}

// withSecurityHeader adds what keeps a browser or a proxy that was talked into
// it from asking (SPIFFE Workload API, section 4.2).
func withSecurityHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func (w *WorkloadAPI) watch(ctx context.Context, good func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		good()
		w.update(r)
	}
}

// expire announces expiry, which no message does.
func (w *WorkloadAPI) expire() {
	for w.ctx.Err() == nil {
		changed := w.Changed()
		var at <-chan time.Time
		stop := func() bool { return false }
		if left, ok := w.untilExpiry(); ok {
			t := time.NewTimer(left + time.Millisecond) // a moment later, so that it has expired by then
			at, stop = t.C, t.Stop
		}
		select {
		case <-w.ctx.Done():
		case <-changed:
		case <-at:
			w.announceExpiry()
		}
		stop()
	}
}

// ended is told why a stream of X509-SVIDs ended.
func (w *WorkloadAPI) ended(err error) {
	if status.Code(err) == codes.PermissionDenied {
		w.withdraw(fmt.Errorf("no identity is issued: %w", err))
		return
	}
	w.refuse(err)
}

// update puts a message in force.
func (w *WorkloadAPI) update(r *workloadpb.X509SVIDResponse) {
	svid, err := w.choose(r.GetSvids())
	if err != nil {
		w.withdraw(err)
		return
	}
	m, err := w.material(r, svid)
	if err != nil {
		w.refuse(fmt.Errorf("the message is refused: %w", err))
		return
	}
	w.warned = ""
	w.publish(m)
	w.log.Info("identity received", "id", m.ID.String(), "serial", m.Certificate.Leaf.SerialNumber.Text(16), "not_after", m.NotAfter, "trust_domains", len(m.Bundles))
}

func (w *WorkloadAPI) refuse(err error) {
	w.failed(err)
	if text := err.Error(); text != w.warned {
		w.log.Warn("no new identity from the workload API, the last one stays in force", "socket", w.config.Socket, "error", err)
		w.warned = text // once: an agent that is away is asked every few seconds
	}
}

func (w *WorkloadAPI) withdraw(err error) {
	text := err.Error()
	if w.revoke(err) || text != w.warned {
		w.log.Error("the workload API has no identity for this process", "socket", w.config.Socket, "error", err)
	}
	w.warned = text
}

// choose returns the SVID that the configuration names. Of several with one
// hint the first counts, as the API's specification says.
func (w *WorkloadAPI) choose(svids []*workloadpb.X509SVID) (*workloadpb.X509SVID, error) {
	for _, s := range svids {
		if w.config.chooses(s.GetSpiffeId(), s.GetHint()) {
			return s, nil
		}
	}
	return nil, w.config.noneOf(len(svids))
}

func (c *WorkloadAPIConfig) chooses(id, hint string) bool {
	return (c.ID.IsZero() || id == c.ID.String()) && (c.Hint == "" || hint == c.Hint)
}

func (c *WorkloadAPIConfig) noneOf(n int) error {
	switch {
	case c.Hint == "" && c.ID.IsZero():
		return errors.New("no identity is offered")
	case c.Hint == "":
		return fmt.Errorf("none of the %d identities that are offered is %q", n, c.ID)
	case c.ID.IsZero():
		return fmt.Errorf("none of the %d identities that are offered has the hint %q", n, c.Hint)
	default:
		return fmt.Errorf("none of the %d identities that are offered is %q with the hint %q", n, c.ID, c.Hint)
	}
}

// material makes material of a message, after holding its certificate to what
// every peer will hold it to.
func (w *WorkloadAPI) material(r *workloadpb.X509SVIDResponse, chosen *workloadpb.X509SVID) (*Material, error) {
	if len(r.GetCrl()) > 0 {
		// To leave them out would accept certificates that are revoked.
		return nil, errors.New("it has certificate revocation lists, which are not supported")
	}
	svid, err := x509svid.ParseRaw(chosen.GetX509Svid(), chosen.GetX509SvidKey())
	if err != nil {
		return nil, fmt.Errorf("%q: %w", chosen.GetSpiffeId(), err)
	}
	if id := svid.ID.String(); id != chosen.GetSpiffeId() {
		return nil, fmt.Errorf("%q: the certificate is for %q", chosen.GetSpiffeId(), id)
	}
	bundles := w.bundles(r.GetFederatedBundles())
	own, err := identity.ParseTrustDomain(svid.ID.TrustDomain().Name())
	if err != nil {
		return nil, err
	}
	bundle, err := derBundle(chosen.GetBundle())
	if err != nil {
		return nil, fmt.Errorf("the bundle of %s: %w", own, err)
	}
	bundles[own] = bundle
	id, err := identity.VerifySVID(svid.Certificates, bundles, verifyAt(svid.Certificates), identity.UsageAny)
	if err != nil {
		return nil, err
	}
	pair := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return &Material{Certificate: pair, ID: id, Bundles: bundles, Roots: pool(bundle.Roots()), NotAfter: pair.Leaf.NotAfter}, nil
}

// bundles reads federated bundles, by trust domain or its ID.
func (w *WorkloadAPI) bundles(federated map[string][]byte) identity.BundleSet {
	set := make(identity.BundleSet)
	for name, der := range federated {
		td, err := trustDomain(name)
		if err == nil {
			var b *identity.Bundle
			if b, err = derBundle(der); err == nil {
				set[td] = b
			}
		}
		if err != nil {
			w.log.Warn("a federated trust bundle is left out", "trust_domain", name, "error", err)
		}
	}
	return set
}

// trustDomain reads a name as the API writes it, "td" or "spiffe://td".
func trustDomain(name string) (identity.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return identity.TrustDomain{}, err
	}
	return identity.ParseTrustDomain(td.Name())
}

func derBundle(der []byte) (*identity.Bundle, error) {
	roots, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, errors.New("it holds no root")
	}
	return identity.NewBundle(roots, nil)
}
