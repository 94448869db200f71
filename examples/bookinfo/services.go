package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/mesh"
)

// The answers of the services.
type (
	productPage struct {
		By      string      `json:"by"`
		Details bookDetails `json:"details"`
		Reviews bookReviews `json:"reviews"`
	}
	bookDetails struct {
		By     string `json:"by"`
		Title  string `json:"title"`
		Author string `json:"author"`
	}
	bookReviews struct {
		By      string `json:"by"`
		Version string `json:"version"`
		Text    string `json:"text"`
		Stars   int    `json:"stars,omitempty"`
		RatedBy string `json:"ratedBy,omitempty"`
		Error   string `json:"error,omitempty"` // why there are no stars
	}
	receipt struct {
		By     string `json:"by"`
		Caller string `json:"caller"` // who asked for the payment, as its certificate proves; "" over plaintext
	}
)

// service is one process of the shop.
type service struct {
	name, version string
	mesh          *mesh.Mesh
	client        *http.Client
	failUntil     atomic.Int64 // Unix time in ns
}

// productpage is what visitors call. It calls details, reviews and payment.
func (s *service) productpage() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /productpage", func(w http.ResponseWriter, r *http.Request) {
		page := productPage{By: s.name}
		if !s.fetch(w, r, "http://details:9080/details/0", &page.Details) ||
			!s.fetch(w, r, "http://reviews:9080/reviews/0", &page.Reviews) {
			return
		}
		answer(w, page)
	})
	mux.HandleFunc("GET /details", func(w http.ResponseWriter, r *http.Request) {
		var d bookDetails
		if s.fetch(w, r, "http://details:9080/details/0", &d) {
			answer(w, d)
		}
	})
	mux.HandleFunc("GET /reviews", func(w http.ResponseWriter, r *http.Request) {
		var v bookReviews
		if s.fetch(w, r, "http://reviews:9080/reviews/0", &v) {
			answer(w, v)
		}
	})
	for path, url := range map[string]string{
		"GET /buy":      "http://payment-service:9080/pay",
		"GET /checkout": "http://checkout-service:9080/buy",
		"GET /refund":   "http://refund-service:9080/buy",
	} {
		mux.HandleFunc(path, s.buy(url))
	}
	mux.Handle("/debug/mesh/", s.mesh.Admin())
	return mux, nil
}

func (s *service) buy(url string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var paid receipt
		if s.fetch(w, r, url, &paid) {
			answer(w, paid)
		}
	}
}

// buyer is the checkout, and the refund: they ask for payments in their own name.
func (s *service) buyer() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /buy", s.buy("http://payment-service:9080/pay"))
	return mux, nil
}

// fetch calls another service, and answers in its place where that fails.
func (s *service) fetch(w http.ResponseWriter, r *http.Request, url string, into any) bool {
	// The request's context carries the trace, and ends when the visitor goes away.
	out, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return false
	}
	// What routes go by has to be passed on by each service on the way.
	for _, name := range []string{"user", "retries"} {
		if v := r.Header.Get(name); v != "" {
			out.Header.Set(name, v)
		}
	}
	resp, err := s.client.Do(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return false
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		http.Error(w, url+" answers "+resp.Status, resp.StatusCode)
		return false
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		http.Error(w, fmt.Sprintf("%s: %v", url, err), http.StatusBadGateway)
		return false
	}
	return true
}

func (s *service) details() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /details/{book}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, bookDetails{By: s.name, Title: "The Comedy of Errors", Author: "William Shakespeare"})
	})
	return mux, nil
}

// reviews v1 shows no stars; v2 and v3 ask ratings for them, over gRPC.
func (s *service) reviews() (http.Handler, error) {
	var ratings *ratingsClient
	if s.version != "v1" {
		conn, err := grpc.NewClient("mesh:///ratings:9080", s.mesh.DialOptions()...)
		if err != nil {
			return nil, err
		}
		ratings = &ratingsClient{conn}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /reviews/{book}", func(w http.ResponseWriter, r *http.Request) {
		v := bookReviews{By: s.name, Version: s.version, Text: "An extremely entertaining play."}
		if ratings != nil {
			// Reviews without stars are better than none.
			if rating, err := ratings.rate(r.Context(), r.PathValue("book"), r.Header.Get("user")); err != nil {
				v.Error = "ratings: " + err.Error()
			} else {
				v.Stars, v.RatedBy = rating.stars, rating.by
			}
		}
		answer(w, v)
	})
	return mux, nil
}

// payment can be told to fail for a while.
func (s *service) payment() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pay", func(w http.ResponseWriter, r *http.Request) {
		if time.Now().UnixNano() < s.failUntil.Load() {
			http.Error(w, s.name+" is out of order", http.StatusServiceUnavailable)
			return
		}
		paid := receipt{By: s.name}
		if peer, ok := identity.PeerFromContext(r.Context()); ok && peer.Authenticated() {
			paid.Caller = peer.ID.String()
		}
		answer(w, paid)
	})
	mux.HandleFunc("POST /fail", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.failUntil.Store(time.Now().Add(d).UnixNano())
		fmt.Fprintf(w, "%s fails for %s\n", s.name, d)
	})
	return mux, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails where the caller has gone
}

// childArgument is the first argument of a process that the shop starts.
const childArgument = "child-of-bookinfo"

// readyLine is what a service prints once it listens.
type readyLine struct {
	Listening string `json:"listening"`
}

// runChild runs this process as a child, if it is one.
func runChild(args []string) (child bool, status int) {
	if len(args) < 2 || args[0] != childArgument {
		return false, 0
	}
	// Ctrl-C reaches every process of the terminal; the parent says when to end,
	// by the end of our input, which comes however the parent ends.
	signal.Ignore(os.Interrupt)
	ctx, end := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		end()
	}()
	var err error
	switch args[1] {
	case "service":
		err = runService(ctx, args[2], args[3], args[4], args[5], args[6])
	case "guard":
		err = runGuard(ctx, args[2], args[3:])
	default:
		err = fmt.Errorf("no role %q", args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return true, 1
	}
	return true, 0
}

// runService is a service's main function: what an ordinary service does, plus a mesh.
func runService(ctx context.Context, role, version, name, listen, collector string) error {
	spans := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&exporter{process: name, url: collector},
		sdktrace.WithBatchTimeout(50*time.Millisecond)))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = spans.Shutdown(ctx) // fails where the collector has gone
	}()
	// The bootstrap is in $GRPC_XDS_BOOTSTRAP.
	m, err := mesh.New(ctx, mesh.WithTracerProvider(spans))
	if err != nil {
		return err
	}
	defer m.Close()
	lis, err := listenAgain(ctx, m, listen)
	if err != nil {
		return err
	}
	up := func() { _ = json.NewEncoder(os.Stdout).Encode(readyLine{lis.Addr().String()}) }
	s := &service{name: name, version: version, mesh: m, client: m.Client()}
	var handler http.Handler
	switch role {
	case "productpage":
		handler, err = s.productpage()
	case "details":
		handler, err = s.details()
	case "reviews":
		handler, err = s.reviews()
	case "payment-service":
		handler, err = s.payment()
	case "checkout-service", "refund-service":
		handler, err = s.buyer()
	case "ratings":
		up()
		return s.serveRatings(ctx, lis)
	default:
		err = fmt.Errorf("no service %q", role)
	}
	if err != nil {
		return err
	}
	up()
	return serveHTTP(ctx, lis, m.Handler(withTraceID(handler)))
}

// listenAgain listens, and waits a little where the address is taken: after a
// restart its port may be some connection's for a moment.
func listenAgain(ctx context.Context, m *mesh.Mesh, address string) (net.Listener, error) {
	for began := time.Now(); ; {
		lis, err := m.Listen(ctx, "tcp", address)
		if err == nil || time.Since(began) > 10*time.Second || ctx.Err() != nil {
			return lis, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func serveHTTP(ctx context.Context, lis net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)            // over mutual TLS
	server.Protocols.SetUnencryptedHTTP2(true) // for h2UpgradePolicy
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// withTraceID tells callers which trace their request is in.
func withTraceID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sc := trace.SpanContextFromContext(r.Context()); sc.IsSampled() {
			w.Header().Set("Trace-Id", sc.TraceID().String())
		}
		next.ServeHTTP(w, r)
	})
}

// runGuard runs a program that does not watch its input, until our input ends.
// The program's first line is JSON, and is passed on with the program's pid.
// If the parent was killed, nobody else removes the working folder.
func runGuard(ctx context.Context, dir string, command []string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() {
		line := map[string]any{}
		if json.NewDecoder(stdout).Decode(&line) == nil {
			line["pid"] = cmd.Process.Pid
			_ = json.NewEncoder(os.Stdout).Encode(line) // fails where the parent has gone
		}
		_, _ = io.Copy(io.Discard, stdout)
		exited <- cmd.Wait()
	}()
	select {
	case err := <-exited:
		return fmt.Errorf("%s has ended: %v", command[0], err)
	case <-ctx.Done():
	}
	if cmd.Process.Signal(os.Interrupt) != nil { // Windows has no such signal
		_ = cmd.Process.Kill()
	}
	select {
	case <-exited:
	case <-time.After(2 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
	}
	return os.RemoveAll(dir)
}
