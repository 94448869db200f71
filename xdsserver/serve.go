package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/source"
)

// stopGrace is how long running requests may take to end when the server stops.
const stopGrace = 5 * time.Second

// accessState is the file in the state directory that keeps the last good access policy.
const accessState = "access-state"

type serveOptions struct {
	config, listen, plaintext, http string
	trustDomain, stateDir           string
	caDir                           string
	issuer                          ca.External
	files                           tlsFiles
	hostnames                       []string
	kubernetes                      ca.KubernetesOptions
}

// secure reports whether the xDS port has TLS.
func (o *serveOptions) secure() bool { return o.caDir != "" || o.files.set() }

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve --config DIR",
		Short: "Serve the policy in a folder until it is told to stop",
		Long: `Serve the policy in a folder, and every change of it, until SIGINT or SIGTERM.

Once it listens, it prints one line of JSON with the addresses, as in
{"http":"127.0.0.1:15014","xds":"127.0.0.1:15010"}; port 0 lets the kernel choose.
The log goes to the error output.

An object that is not valid is logged with its file, line and field, and its last
good state stays in force. One that restricts access and has no good state withholds
the inbound listeners of all workloads that it may select, so the last good access
policy is kept in a file over restarts: access-state in --state-dir, which is
--ca-dir by default. Without either of them a restart forgets it.

Without TLS only processes of this machine can connect, and each is taken at its
word. They are sent security policy all the same, and need certificates from
elsewhere to keep it: TLS contexts name the provider "default" of the client's own
bootstrap, and a client that has none refuses connections under STRICT.

With --ca-dir the server is a certificate authority too, whose state is in that
folder (founded the first time; keep it, it holds the keys). The xDS port then has
mutual TLS: a workload gets a certificate there with a join token ("bootstrap
--ca-dir" makes one), renews it with the certificate itself, and is served what is
meant for its namespace and service account. With --kubernetes-audience a pod gets its
certificate there with the token of its service account instead. With --cert-file,
--key-file and --ca-file the server and its clients have certificates from elsewhere.
--plaintext-listen keeps a port without TLS beside it for processes of this machine
that are not there yet.`,
		Args: noArguments("the folder with policy goes into --config"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), o, cmd.OutOrStdout(), slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "folder with policy (*.yaml, *.yml, *.json); required")
	f.StringVar(&o.listen, "listen", "127.0.0.1:15010", "address for xDS; loopback only where it has no TLS")
	f.StringVar(&o.plaintext, "plaintext-listen", "", "a second address for xDS, without TLS, beside one with it; loopback only")
	f.StringVar(&o.http, "http", "127.0.0.1:15014", "address for health checks and status; loopback only")
	f.StringVar(&o.trustDomain, "trust-domain", "", "trust domain of the mesh; MeshConfig must not name another (default that of MeshConfig or of --ca-dir, else cluster.local)")
	f.StringVar(&o.stateDir, "state-dir", "", "folder that keeps the last good access policy over restarts (default that of --ca-dir)")
	f.StringVar(&o.caDir, "ca-dir", "", "folder of the certificate authority; it serves mutual TLS and gives out certificates")
	f.StringVar(&o.issuer.ChainFile, "issuer-cert-file", "", "issue under this certificate of another authority (PEM, with what stands between it and the root) instead of a root of our own")
	f.StringVar(&o.issuer.KeyFile, "issuer-key-file", "", "its private key")
	f.StringVar(&o.issuer.RootsFile, "issuer-ca-file", "", "the roots above it")
	o.files.flags(f, "the server's certificate, for TLS without a certificate authority here")
	f.StringSliceVar(&o.hostnames, "hostname", nil, "DNS name or IP address, beside that of --listen, that the server's certificate is for under --ca-dir; may be repeated")
	f.StringVar(&o.kubernetes.Audience, "kubernetes-audience", "", "give certificates for tokens of Kubernetes service accounts that are for this audience, such as istio-ca; needs --ca-dir (default none)")
	f.StringVar(&o.kubernetes.APIServer, "kubernetes-api-server", "", "URL of the API server that reviews the tokens (default that of the cluster this process runs in)")
	f.StringVar(&o.kubernetes.CAFile, "kubernetes-ca-file", "", "the roots that the API server's certificate leads to (default the pod's)")
	f.StringVar(&o.kubernetes.TokenFile, "kubernetes-token-file", "", "token by which the API server is asked; its account needs the ClusterRole system:auth-delegator (default the pod's)")
	_ = cmd.MarkFlagRequired("config") // fails only for a flag that does not exist
	return cmd
}

// check finds flags that do not go together.
func (o *serveOptions) check() error {
	external := o.issuer != ca.External{}
	switch {
	case external && o.caDir == "":
		return errors.New("--issuer-cert-file needs --ca-dir")
	case external && (o.issuer.ChainFile == "" || o.issuer.KeyFile == "" || o.issuer.RootsFile == ""):
		return errors.New("--issuer-cert-file, --issuer-key-file and --issuer-ca-file go together")
	case o.plaintext != "" && !o.secure():
		return errors.New("--plaintext-listen is for use beside a port with TLS: give --ca-dir or --cert-file too, or use --listen alone")
	case len(o.hostnames) > 0 && o.caDir == "":
		return errors.New("--hostname needs --ca-dir")
	case o.kubernetes.Audience != "" && o.caDir == "":
		return errors.New("--kubernetes-audience needs --ca-dir")
	case o.kubernetes.Audience == "" && o.kubernetes != ca.KubernetesOptions{}:
		return errors.New("--kubernetes-api-server, --kubernetes-ca-file and --kubernetes-token-file need --kubernetes-audience")
	}
	return o.files.check(o.caDir)
}

// ports are the server's listeners by what they are for: "xds", "http" and, beside one
// with TLS, "plaintext".
type ports map[string]net.Listener

func (p ports) open(o *serveOptions) error {
	for _, port := range []struct {
		name, flag, addr string
		anywhere         bool
	}{
		{"xds", "--listen", o.listen, o.secure()},
		{"http", "--http", o.http, false},
		{"plaintext", "--plaintext-listen", o.plaintext, false},
	} {
		if port.name == "plaintext" && port.addr == "" {
			continue
		}
		l, err := listenAt(port.flag, port.addr, port.anywhere)
		if err != nil {
			return err
		}
		p[port.name] = l
	}
	return nil
}

func (p ports) close() {
	for _, l := range p {
		l.Close()
	}
}

func (p ports) addresses() map[string]string {
	out := make(map[string]string, len(p))
	for name, l := range p {
		out[name] = l.Addr().String()
	}
	return out
}

// serve runs until ctx ends or something fails.
func serve(ctx context.Context, o serveOptions, out io.Writer, log *slog.Logger) error {
	if err := o.check(); err != nil {
		return err
	}
	at := make(ports)
	defer at.close()
	if err := at.open(&o); err != nil {
		return err
	}
	trustDomain, err := o.knownTrustDomain()
	if err != nil {
		return err
	}
	state, err := o.accessStateFile(log)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &server{log: log, ads: ads.NewServer(ctx, log), first: make(chan struct{}), fail: cancel, trustDomain: trustDomain, fixed: trustDomain != "" || o.secure()}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		if err := source.Directory(ctx, o.config, source.Options{StateFile: state, Log: log}, s.change); err != nil {
			cancel(fmt.Errorf("--config: %w", err))
		}
	})
	select {
	case <-s.first:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return stopReason(ctx)
	}

	servers := make(map[string]*grpc.Server) // by the name of their port
	if o.secure() {
		secured, err := s.secure(ctx, &o, at["xds"].Addr(), &running)
		if err != nil {
			cancel(err)
			return err
		}
		defer secured.close()
		g := newGRPC(grpc.Creds(s.ads.Credentials(secured.trust)))
		s.ads.RegisterVerified(g, secured.trust)
		if secured.ca != nil {
			var more []ca.Authenticator
			if secured.kubernetes != nil {
				more = append(more, secured.kubernetes)
			}
			ca.NewService(secured.ca, more...).Register(g)
		}
		servers["xds"] = g
	}
	// The others have no TLS; listenAt lets only this machine reach them.
	for _, name := range []string{"xds", "plaintext"} {
		if at[name] != nil && servers[name] == nil {
			servers[name] = newGRPC()
			s.ads.Register(servers[name])
		}
	}
	for name, g := range servers {
		running.Go(func() {
			if err := g.Serve(at[name]); err != nil {
				cancel(fmt.Errorf("xDS: %w", err))
			}
		})
	}
	h := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	running.Go(func() {
		if err := h.Serve(at["http"]); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("http: %w", err))
		}
	})
	addresses := at.addresses()
	log.Info("listening", "xds", addresses["xds"], "plaintext", addresses["plaintext"], "http", addresses["http"], "config", o.config, "tls", o.secure(), "ca", o.caDir)
	if err := json.NewEncoder(out).Encode(addresses); err != nil {
		cancel(fmt.Errorf("print the addresses: %w", err))
	}

	<-ctx.Done() // which also ends the streams
	log.Info("stopping")
	force := time.AfterFunc(stopGrace, func() {
		for _, g := range servers {
			g.Stop()
		}
	})
	defer force.Stop()
	for _, g := range servers {
		g.GracefulStop()
	}
	grace, done := context.WithTimeout(context.Background(), stopGrace)
	defer done()
	if err := h.Shutdown(grace); err != nil {
		h.Close()
	}
	return stopReason(ctx)
}

func newGRPC(options ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(options,
		// Streams are long and mostly silent: find dead ones, and let clients do the same.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		// Who has not said who it is yet may not tie anything up.
		grpc.ConnectionTimeout(20*time.Second),
		grpc.MaxConcurrentStreams(1000),
	)...)
}

// stopReason is nil where the server was told to stop.
func stopReason(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// listenAt listens on an address, which must be one of this machine alone unless it
// may be any: where there is no TLS and no authentication, anyone who reaches the port
// reads all policy.
func listenAt(flag, addr string, anywhere bool) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, addr, err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if !anywhere {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Unmap().IsLoopback() {
			return nil, fmt.Errorf("%s %s: only a loopback address, such as 127.0.0.1:%s, can be served: without TLS anyone who reaches the port could read all policy, and change it on its way", flag, addr, port)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return l, nil
}

// accessStateFile is where the last good access policy is kept, "" for nowhere.
func (o *serveOptions) accessStateFile(log *slog.Logger) (string, error) {
	dir := o.stateDir
	if dir == "" {
		dir = o.caDir
	}
	if dir == "" {
		log.Warn("access policy is not kept over restarts: give --state-dir")
		return "", nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	path := filepath.Join(dir, accessState)
	log.Info("access policy is kept over restarts", "file", path)
	return path, nil
}

// server is what serve runs and what the status page shows.
type server struct {
	log   *slog.Logger
	ads   *ads.Server
	first chan struct{} // closed when the first policy is in force
	fail  context.CancelCauseFunc

	mu      sync.Mutex
	result  *policy.Result // the last that was read
	read    time.Time
	secured *secured // nil without TLS, or before the first policy
	// trustDomain is the mesh's; fixed where a flag has chosen it or certificates are of
	// it, so that policy can not change it.
	trustDomain string
	fixed       bool
	aliases     []string
	disagrees   error // what of the policy in force is not as it was read
}

// change takes a policy that was read and puts it in force.
func (s *server) change(r *policy.Result) {
	s.mu.Lock()
	before := s.result
	disagrees := s.settleTrustDomain(r.Set, before == nil)
	s.result, s.read, s.disagrees = r, time.Now(), disagrees
	s.mu.Unlock()
	for _, p := range r.Problems {
		if before != nil && slices.Contains(before.Problems, p) {
			continue // said when it came up
		}
		level := slog.LevelInfo
		switch p.Severity {
		case policy.Error:
			level = slog.LevelError
		case policy.Warning:
			level = slog.LevelWarn
		}
		s.log.Log(context.Background(), level, p.Message, "at", p.At.String(), "object", p.Object.String(), "field", p.Field)
	}
	if disagrees != nil {
		if before == nil {
			s.fail(fmt.Errorf("not serving: %w", disagrees))
			return
		}
		s.log.Error("the trust domain stays as it was", "error", disagrees)
	}
	began := time.Now()
	s.ads.SetPolicy(r.Set)
	s.log.Info("policy is in force", "virtualServices", len(r.Set.VirtualServices), "destinationRules", len(r.Set.DestinationRules),
		"services", len(r.Set.Services), "workloads", len(r.Set.Workloads), "peerAuthentications", len(r.Set.PeerAuthentications),
		"authorizationPolicies", len(r.Set.AuthorizationPolicies), "requestAuthentications", len(r.Set.RequestAuthentications),
		"problems", len(r.Problems), "took", time.Since(began).String())
	if before == nil {
		close(s.first)
	}
}
