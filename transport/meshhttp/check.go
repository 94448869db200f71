package meshhttp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Checker asks endpoints whether they are healthy, for outbound.Options.Checker.
// Its connections are made as those of requests are, with the same TLS, and are
// its own: limits on connections and on waiting requests do not apply to them.
type Checker struct{}

var _ outbound.Checker = Checker{}

const (
	// maxCheckAnswer is how much of an answer is read.
	maxCheckAnswer = 64 << 10
	checkAgent     = "Sinew/HC"
)

var defaultExpected = []resilience.StatusRange{{Start: 200, End: 201}}

// Check implements outbound.Checker. The error says why a check has not passed.
func (Checker) Check(ctx context.Context, t *outbound.CheckTarget) (outbound.CheckResult, error) {
	w, ok := t.Wire.(*wire)
	if !ok {
		return outbound.CheckNoAnswer, errors.New("the cluster has no connections")
	}
	w = w.forChecks()
	switch t.Check.Kind {
	case resilience.HealthTCP:
		return w.checkTCP(ctx, t)
	case resilience.HealthGRPC:
		return w.checkGRPC(ctx, t)
	}
	return w.checkHTTP(ctx, t)
}

// forChecks returns connections as the wire's, of their own and without its limits.
func (w *wire) forChecks() *wire {
	if c := w.checks.Load(); c != nil {
		return c
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.checks.Load(); c != nil {
		return c
	}
	config := *w.config
	config.Limits, config.HighLimits = noLimits, noLimits
	config.MaxRequestsPerConnection, config.MaxConcurrentStreams = 0, 0
	c := newWire(&config, w.with)
	if w.retired {
		c.Retire()
	}
	w.checks.Store(c)
	return c
}

var noLimits = resilience.Limits{
	MaxConnections: resilience.NoLimit, MaxPendingRequests: resilience.NoLimit,
	MaxRequests: resilience.NoLimit, MaxRetries: resilience.NoLimit,
}

// checkTCP makes a connection, with its TLS handshake where there is one.
func (w *wire) checkTCP(ctx context.Context, t *outbound.CheckTarget) (outbound.CheckResult, error) {
	dial := w.with.network
	if dial == nil {
		dial = dialer(w.config)
	}
	if t.Security != nil {
		s, src, err := w.securing(t.Security)
		if err != nil {
			return outbound.CheckNoAnswer, err
		}
		dial = dialTLS(dial, s.config(src, hostOf(t.Authority), w.config.HTTP2), w.config.ConnectTimeout, false)
	}
	conn, err := dial(ctx, "tcp", t.Address)
	if err != nil {
		return outbound.CheckNoAnswer, err
	}
	_ = conn.Close()
	return outbound.CheckPassed, nil
}

// securing returns how connections are secured, and the identity for it.
func (w *wire) securing(policy *snapshot.ClientTLS) (*secured, *outbound.Identity, error) {
	s := w.secured[policy]
	if s == nil {
		return nil, nil, errors.New("the cluster's connection settings have changed")
	}
	src, err := s.source()
	if err != nil {
		return nil, nil, fmt.Errorf("identity source: %w", err)
	}
	return s, src, nil
}

// checkRequest sends a request to the endpoint.
func (w *wire) checkRequest(t *outbound.CheckTarget, req *http.Request, http2 bool) (*http.Response, error) {
	req.URL.Scheme, req.URL.Host, req.Host = "http", t.Address, t.Authority
	req.Header.Set("User-Agent", checkAgent)
	if t.Security == nil {
		return w.transport(req.URL, http2).RoundTrip(req)
	}
	s, src, err := w.securing(t.Security)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	req.URL.Scheme = "https"
	return s.transport(src, hostOf(t.Authority), "", http2).RoundTrip(req)
}

// hostOf is an authority without its port.
func hostOf(authority string) string { return (&url.URL{Host: authority}).Hostname() }

func (w *wire) checkHTTP(ctx context.Context, t *outbound.CheckTarget) (outbound.CheckResult, error) {
	method := t.Check.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+t.Address, nil)
	if err != nil {
		return outbound.CheckFailed, err
	}
	path, query, _ := strings.Cut(t.Check.Path, "?")
	setTarget(req.URL, path, query)
	view := routing.Request{Method: method, Scheme: "http", Authority: t.Authority, Path: path, RawQuery: query, Header: req.Header}
	t.Check.Headers.Apply(req.Header, routing.CanonicalHeaders, &routing.Values{Request: &view, Cluster: t.Cluster.Name, Upstream: t.Address})
	resp, err := w.checkRequest(t, req, t.Check.HTTP2)
	if err != nil {
		return outbound.CheckNoAnswer, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxCheckAnswer)
	expected := t.Check.Expected
	if len(expected) == 0 {
		expected = defaultExpected
	}
	switch {
	case resp.Header["X-Envoy-Immediate-Health-Check-Fail"] != nil:
		return outbound.CheckFailed, errors.New("the endpoint says that it takes no requests (x-envoy-immediate-health-check-fail)")
	case inRanges(expected, resp.StatusCode):
		if resp.Header["X-Envoy-Degraded"] != nil {
			return outbound.CheckDegraded, nil
		}
		return outbound.CheckPassed, nil
	case inRanges(t.Check.Retriable, resp.StatusCode):
		return outbound.CheckRetriable, fmt.Errorf("status %d", resp.StatusCode)
	}
	return outbound.CheckFailed, fmt.Errorf("status %d", resp.StatusCode)
}

func inRanges(ranges []resilience.StatusRange, status int) bool {
	for _, r := range ranges {
		if r.Start <= status && status < r.End {
			return true
		}
	}
	return false
}

// checkGRPC calls grpc.health.v1.Health/Check
// (https://github.com/grpc/grpc/blob/master/doc/health-checking.md), framed by
// hand: one message each way.
func (w *wire) checkGRPC(ctx context.Context, t *outbound.CheckTarget) (outbound.CheckResult, error) {
	body := healthRequest(t.Check.Service)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+t.Address+"/grpc.health.v1.Health/Check", bytes.NewReader(body))
	if err != nil {
		return outbound.CheckFailed, err
	}
	view := routing.Request{Method: req.Method, Scheme: "http", Authority: t.Authority, Path: req.URL.Path, Header: req.Header}
	t.Check.Headers.Apply(req.Header, routing.CanonicalHeaders, &routing.Values{Request: &view, Cluster: t.Cluster.Name, Upstream: t.Address})
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, err := w.checkRequest(t, req, true)
	if err != nil {
		return outbound.CheckNoAnswer, err
	}
	defer resp.Body.Close()
	message, err := io.ReadAll(io.LimitReader(resp.Body, maxCheckAnswer))
	switch {
	case err != nil:
		return outbound.CheckNoAnswer, err
	case resp.StatusCode != http.StatusOK:
		return outbound.CheckFailed, fmt.Errorf("status %d", resp.StatusCode)
	}
	code := grpcStatus(resp.Trailer)
	if code < 0 {
		code = grpcStatus(resp.Header)
	}
	switch serving, err := healthAnswer(message); {
	case code != 0:
		return outbound.CheckFailed, fmt.Errorf("grpc-status %s", codeText(code))
	case err != nil:
		return outbound.CheckFailed, err
	case serving != 1:
		return outbound.CheckFailed, fmt.Errorf("health status %d is not SERVING", serving)
	}
	return outbound.CheckPassed, nil
}

func codeText(code int) string {
	if code < 0 {
		return "is missing"
	}
	return strconv.Itoa(code)
}

// healthRequest is a framed grpc.health.v1.HealthCheckRequest.
func healthRequest(service string) []byte {
	frame := make([]byte, 5, 16+len(service))
	if service != "" {
		frame = protowire.AppendTag(frame, 1, protowire.BytesType)
		frame = protowire.AppendString(frame, service)
	}
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-5))
	return frame
}

// healthAnswer returns the status of a framed grpc.health.v1.HealthCheckResponse.
func healthAnswer(frame []byte) (status uint64, err error) {
	if len(frame) < 5 {
		return 0, errors.New("the answer has no message")
	}
	if frame[0] != 0 {
		return 0, errors.New("the answer is compressed, which was not offered")
	}
	message := frame[5:]
	if uint64(binary.BigEndian.Uint32(frame[1:])) != uint64(len(message)) {
		return 0, errors.New("the answer's message has another length than it says")
	}
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return 0, errors.New("the answer's message can not be read")
		}
		message = message[n:]
		if number == 1 && kind == protowire.VarintType {
			if status, n = protowire.ConsumeVarint(message); n < 0 {
				return 0, errors.New("the answer's message can not be read")
			}
		} else if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return 0, errors.New("the answer's message can not be read")
		}
		message = message[n:]
	}
	return status, nil
}
