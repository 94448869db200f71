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
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/source"
)

// stopGrace is how long running requests may take to end when the server stops.
const stopGrace = 5 * time.Second

type serveOptions struct {
	config, listen, http string
}

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve --config DIR",
		Short: "Serve the policy in a folder until it is told to stop",
		Long: `Serve the policy in a folder, and every change of it, until SIGINT or SIGTERM.

Once it listens, it prints one line of JSON with the addresses, as in
{"xds":"127.0.0.1:15010","http":"127.0.0.1:15014"}; port 0 lets the kernel choose.
The log goes to the error output.

An object that is not valid is logged with its file, line and field, and its last
good state stays in force. Policy that restricts access (security.istio.io) can not
be enforced, so a folder that holds any is not served.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), o, cmd.OutOrStdout(), slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	cmd.Flags().StringVar(&o.config, "config", "", "folder with policy (*.yaml, *.yml, *.json); required")
	cmd.Flags().StringVar(&o.listen, "listen", "127.0.0.1:15010", "address for xDS; loopback only, because it has no TLS")
	cmd.Flags().StringVar(&o.http, "http", "127.0.0.1:15014", "address for health checks and status; loopback only")
	_ = cmd.MarkFlagRequired("config") // fails only for a flag that does not exist
	return cmd
}

// serve runs until ctx ends or something fails.
func serve(ctx context.Context, o serveOptions, out io.Writer, log *slog.Logger) error {
	xdsListener, err := listenLoopback("--listen", o.listen)
	if err != nil {
		return err
	}
	defer xdsListener.Close()
	httpListener, err := listenLoopback("--http", o.http)
	if err != nil {
		return err
	}
	defer httpListener.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &server{log: log, ads: ads.NewServer(ctx, log), first: make(chan struct{}), fail: cancel}
	g := grpc.NewServer(
		// Streams are long and mostly silent: find dead ones, and let clients do the same.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	s.ads.Register(g)
	h := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}

	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		if err := source.Directory(ctx, o.config, log, s.change); err != nil {
			cancel(fmt.Errorf("policy: %w", err))
		}
	})
	select {
	case <-s.first:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return stopReason(ctx)
	}
	running.Go(func() {
		if err := g.Serve(xdsListener); err != nil {
			cancel(fmt.Errorf("xDS: %w", err))
		}
	})
	running.Go(func() {
		if err := h.Serve(httpListener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("http: %w", err))
		}
	})
	log.Info("listening", "xds", xdsListener.Addr().String(), "http", httpListener.Addr().String(), "config", o.config)
	if err := json.NewEncoder(out).Encode(map[string]string{"xds": xdsListener.Addr().String(), "http": httpListener.Addr().String()}); err != nil {
		cancel(fmt.Errorf("print the addresses: %w", err))
	}

	<-ctx.Done() // which also ends the streams
	log.Info("stopping")
	force := time.AfterFunc(stopGrace, g.Stop)
	defer force.Stop()
	g.GracefulStop()
	grace, done := context.WithTimeout(context.Background(), stopGrace)
	defer done()
	if err := h.Shutdown(grace); err != nil {
		h.Close()
	}
	return stopReason(ctx)
}

// stopReason is nil where the server was told to stop.
func stopReason(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// listenLoopback listens on an address of this machine alone. There is no TLS
// and no authentication, so anyone who reaches the port reads all policy.
func listenLoopback(flag, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, addr, err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.Unmap().IsLoopback() {
		return nil, fmt.Errorf("%s %s: only a loopback address, such as 127.0.0.1:%s, can be served: without TLS anyone who reaches the port could read all policy, and change it on its way", flag, addr, port)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return l, nil
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
	inForce bool  // result is in force
	access  error // why it is not: it restricts access
}

// change takes a policy that was read. One that restricts access is not put in
// force: at the start the server does not serve at all, and later it goes on
// with the policy before and says on /readyz that it is not as it should be.
func (s *server) change(r *policy.Result) {
	s.mu.Lock()
	before := s.result
	s.result, s.read, s.access = r, time.Now(), r.Security()
	s.inForce = s.access == nil
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
	if s.access != nil {
		if before == nil {
			s.fail(fmt.Errorf("not serving: %w", s.access))
			return
		}
		s.log.Error("the change is not put in force, the policy before it stays", "error", s.access)
		return
	}
	began := time.Now()
	s.ads.SetPolicy(r.Set)
	s.log.Info("policy is in force", "virtualServices", len(r.Set.VirtualServices), "destinationRules", len(r.Set.DestinationRules),
		"services", len(r.Set.Services), "workloads", len(r.Set.Workloads), "problems", len(r.Problems), "took", time.Since(began).String())
	if before == nil {
		close(s.first)
	}
}
