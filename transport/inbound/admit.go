package inbound

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// accessDenied is what a caller is told whom a rule of access refuses, as Envoy says it.
const accessDenied = "RBAC: access denied"

// Admit decides whether a request may reach the handler; nil lets it in, and a
// then says what the adapter has to do, see Admission and Request.Access. It
// waits for policy that has not come yet, and with Options.Shedding for its turn.
// The context's deadline is the request's: when it passes before Admit lets the
// request in, it is refused. The error is a *NotReadyError or a *DeniedError.
func (e *Engine) Admit(ctx context.Context, r *Request, a *Admission) error {
	*a = Admission{}
	r.ownHeader = false
	deadline, _ := ctx.Deadline()
	if e.options.Subscribe == nil {
		a.Peer = r.peer()
		if e.shedder == nil && deadline.IsZero() {
			return nil
		}
	}
	run := runs.Get().(*admission)
	*run = admission{e: e, ctx: ctx, r: r, a: a, deadline: deadline}
	err := run.admit()
	if err != nil && a.Hold != nil {
		a.Hold.Release(ctx.Err() == nil)
		a.Hold = nil
	}
	if e.options.Observer != nil && (err != nil || e.options.Subscribe != nil) {
		run.report(err)
	}
	*run = admission{}
	runs.Put(run)
	return err
}

// runs are used again, so that a request allocates none.
var runs = sync.Pool{New: func() any { return new(admission) }}

// peer is who is at the other end as far as the connection tells.
func (r *Request) peer() *identity.Peer {
	switch {
	case r.Conn != nil && r.Conn.TLS:
		return r.Conn.Peer
	case r.Encrypted:
		return encryptedPeer
	default:
		return plaintextPeer
	}
}

// admission is one run of Admit.
type admission struct {
	e   *Engine
	ctx context.Context
	r   *Request
	a   *Admission

	deadline time.Time // of the request; zero where it has none

	l       *listener
	chain   *chain
	now     time.Time
	counts  *peerUsage
	outcome Outcome
}

func (run *admission) admit() error {
	if run.e.options.Subscribe == nil {
		return run.ungoverned()
	}
	err := run.decide()
	if err != nil && !run.deadline.IsZero() {
		err = run.waited(err)
	}
	return err
}

// ungoverned is what holds without a control plane.
func (run *admission) ungoverned() error {
	if run.r.Local != nil {
		run.outcome.Listener = run.r.Local.String()
	}
	if err := run.expired(); err != nil {
		return err
	}
	return run.shed()
}

func (run *admission) decide() error {
	r := run.r
	local, remote := netip.AddrPort{}, r.Remote
	if r.Conn != nil {
		local, remote = r.Conn.Local, r.Conn.Remote
	} else {
		var err error
		if local, err = tcpAddress(r.Local); err != nil {
			run.outcome.Listener = "unknown"
			return err
		}
		remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	}
	l, err := run.e.policy(run.ctx, local)
	if err != nil {
		run.outcome.Listener = run.e.view.Load().listener(local).String()
		return err
	}
	run.l, run.now = l, time.Now()
	run.outcome.Listener = l.name

	x := &r.Access
	x.Principal, x.ServerName, x.Claims = "", "", nil
	x.PeerIP, x.DestinationIP, x.DestinationPort = remote.Addr(), local.Addr(), local.Port()
	x.RemoteIP = x.PeerIP
	run.counts = run.count(remote.Addr())
	if err := run.connection(local); err != nil {
		return err
	}
	if err := run.expired(); err != nil {
		return err
	}
	if err := run.concurrency(false); err != nil {
		return err
	}
	if hops := run.chain.policy.TrustedHops; hops > 0 {
		x.RemoteIP = identity.ClientIP(x.PeerIP, forwardedFor.In(x.Header, x.Form), hops)
	}
	run.boundary()
	run.host(local.Port())
	if err := run.path(); err != nil {
		return err
	}
	p := run.chain.policy
	if p.Authorizer != nil {
		if err := run.custom(); err != nil {
			return err
		}
	}
	if p.Tokens != nil {
		if err := run.tokens(); err != nil {
			return err
		}
	}
	if p.Authorizer != nil {
		if err := run.authorize(); err != nil {
			return err
		}
	}
	if err := run.expired(); err != nil {
		return err
	}
	if err := run.limit(); err != nil {
		return err
	}
	if err := run.concurrency(true); err != nil {
		return err
	}
	if err := run.shed(); err != nil {
		return err
	}
	run.a.HeaderChanged = r.ownHeader
	return nil
}

// denied makes the error of a refusal.
func (run *admission) denied(reason Reason, status int, rule, message string) *DeniedError {
	return &DeniedError{Reason: reason, HTTPStatus: status, Listener: run.outcome.Listener, Rule: rule, Message: message}
}

// count returns where the request's peer is counted.
func (run *admission) count(peer netip.Addr) *peerUsage {
	table := run.l.live.usage.current.Load()
	conn := run.r.Conn
	if conn == nil {
		return table.of(peer)
	}
	if known := conn.counted.Load(); known != nil && known.table == table {
		return known.peer
	}
	known := &counted{table, table.of(peer)}
	conn.counted.Store(known)
	return known.peer
}

// connection chooses the chain by the kind of the connection, and asks whether its peer is still believed.
func (run *admission) connection(local netip.AddrPort) error {
	r, l, a := run.r, run.l, run.a
	conn := r.Conn
	if conn == nil && (run.e.owner(local) != nil || run.ctx.Err() != nil && run.expired() == nil) {
		// Its connection is closed: who sent it can not be known any more.
		run.counts.plaintext.Add(1)
		a.CloseConnection = true
		return run.denied(ReasonPeer, http.StatusForbidden, "", "the connection is closed")
	}
	a.Peer = r.peer()
	if conn == nil || !conn.TLS {
		run.counts.plaintext.Add(1)
		if l.policy.StrictDryRun != "" {
			run.counts.strictDryRun.Add(1)
			run.outcome.StrictDryRun = l.policy.StrictDryRun
		}
		run.chain = l.plain
		if run.chain == nil {
			a.CloseConnection = true
			return run.denied(ReasonPlaintext, http.StatusForbidden, "", "this listener takes mutual TLS only")
		}
		return nil
	}
	if l.tls == nil {
		// Policy has turned TLS off since the connection was made, and with it the
		// rules that its peer was verified by: to policy it is plaintext now.
		run.counts.plaintext.Add(1)
		run.chain, a.Peer, a.CloseConnection = l.plain, encryptedPeer, true
		return nil
	}
	run.chain = l.tls
	closing, err := conn.verified(l, run.now)
	a.CloseConnection = closing
	if err != nil {
		run.counts.plaintext.Add(1)
		var notReady *NotReadyError
		if errors.As(err, &notReady) {
			return err // without an identity of our own nobody's can be verified
		}
		d := run.denied(ReasonPeer, http.StatusForbidden, "", "the connection's certificate is not accepted any more")
		var refused *identity.VerifyError
		if errors.As(err, &refused) {
			d.Rule = string(refused.Rule)
		}
		d.Err = err
		return d
	}
	if conn.principal == "" {
		run.counts.plaintext.Add(1)
	} else {
		run.counts.mutualTLS.Add(1)
	}
	run.outcome.MutualTLS = conn.principal != ""
	r.Access.Principal, r.Access.ServerName = conn.principal, conn.ServerName
	return nil
}

// boundary removes headers that only the mesh itself may set. The chain of
// identities that X-Forwarded-Client-Cert tells is one that nobody here verifies.
func (run *admission) boundary() {
	r := run.r
	for name := range r.Access.Header {
		if !identity.InternalHeader(name) || strings.EqualFold(name, expectedTimeout) || strings.EqualFold(name, attemptCount) {
			continue
		}
		if r.Access.Principal == "" || strings.EqualFold(name, forwardedClientCert) {
			delete(r.header(), name)
		}
	}
	run.outputs()
}

// outputs removes headers that only verified tokens may set.
func (run *admission) outputs() {
	for _, out := range run.chain.outputs {
		run.r.remove(out.canonical, out.lower)
	}
}

const (
	forwardedClientCert = "x-forwarded-client-cert"
	// What follows comes with most requests and grants nothing, so that it is not
	// worth a new header map: the first can only shorten the request that brings
	// it, the second is for people to read.
	expectedTimeout = "x-envoy-expected-rq-timeout-ms"
	attemptCount    = "x-envoy-attempt-count"
)

// remove takes a header out in both spellings.
func (r *Request) remove(canonical, lower string) {
	for _, key := range [...]string{canonical, lower} {
		if _, ok := r.Access.Header[key]; ok {
			delete(r.header(), key)
		}
	}
}

// host brings the authority into one spelling, for the rules and for the handler.
func (run *admission) host(port uint16) {
	x := &run.r.Access
	if host := run.chain.policy.Hosts.Apply(x.Authority, port); host != x.Authority {
		x.Authority, run.a.HostChanged = host, true
	}
}

// path brings the path into one spelling, for the rules and for the handler.
func (run *admission) path() error {
	x := &run.r.Access
	path, outcome := run.chain.policy.Paths.Apply(x.Path)
	switch outcome {
	case identity.PathRefuse:
		return run.denied(ReasonPath, http.StatusBadRequest, "", "the path has no safe reading")
	case identity.PathRedirect:
		d := run.denied(ReasonRedirect, http.StatusTemporaryRedirect, "", "the path has another spelling")
		if x.RawQuery != "" {
			path += "?" + x.RawQuery
		}
		d.Header = []Header{{"Location", path}}
		return d
	}
	if path == x.Path {
		return nil
	}
	run.a.PathChanged = true
	x.Path = path
	if x.DecodedPath != "" {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			return run.denied(ReasonPath, http.StatusBadRequest, "", "the path has no safe reading")
		}
		x.DecodedPath = decoded
	}
	return nil
}

// authorize asks the rules of access.
func (run *admission) authorize() error {
	d := run.chain.policy.Authorizer.Decide(&run.r.Access)
	run.outcome.Audited, run.outcome.Rule = d.Audited, d.Rule
	if d.DryRun.Refused && d.Allowed {
		run.counts.dryRun.Add(1)
		run.l.live.usage.current.Load().refused(d.DryRun.Rule)
		run.outcome.DryRun, run.outcome.DryRunRule = true, d.DryRun.Rule
	}
	if d.Allowed {
		return nil
	}
	return run.denied(ReasonAuthorization, http.StatusForbidden, d.Rule, accessDenied)
}

// limit takes the request's tokens from the buckets that it draws on.
func (run *admission) limit() error {
	p := run.chain.policy
	if len(p.RateLimits) == 0 && len(p.Routes) == 0 {
		return nil
	}
	r := run.r
	view := resilience.LimitRequest{Request: &r.Access.Request, RemoteIP: r.Access.RemoteIP, Principal: r.Access.Principal}
	v := run.l.limits.check(p, &view, run.now, rand.Uint64())
	if v.refused == nil {
		run.a.Response = append(run.a.Response, v.response...)
		for _, h := range v.request {
			r.setHeader(h.Name, h.Value, !h.Replace)
		}
		return nil
	}
	c := v.refused.Config()
	d := run.denied(ReasonRateLimit, c.Status, c.Name, "local_rate_limited")
	d.Header, d.GRPC = v.response, codes.Unavailable
	if c.ResourceExhausted {
		d.GRPC = codes.ResourceExhausted
	}
	return d
}

// setHeader sets a header that the handler is given, or adds a value to it.
func (r *Request) setHeader(name, value string, add bool) {
	header := r.header()
	key := name
	if r.Access.Form == routing.LowerHeaders {
		key = strings.ToLower(name)
	} else {
		key = http.CanonicalHeaderKey(name)
	}
	if old := header[key]; add && len(old) > 0 {
		header[key] = append(old[:len(old):len(old)], value)
		return
	}
	header[key] = []string{value}
}

// report tells the observer.
func (run *admission) report(err error) {
	if err != nil {
		run.outcome.Reason = ReasonNotReady
		var denied *DeniedError // allocated, so only here
		if errors.As(err, &denied) {
			run.outcome.Reason, run.outcome.Rule = denied.Reason, denied.Rule
		}
	}
	run.e.options.Observer.Decided(run.ctx, &run.outcome)
}
