package meshhttp

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// Handler lets a request through to next where the policy of the listener that
// it came in on says so. The listener is the connection's local address, which
// net/http keeps under http.LocalAddrContextKey; where it is one of NewListener's the
// peer is known by its certificate, else every peer counts as plaintext, TLS
// that somebody else has terminated included. A request that may not pass is
// answered with a JSON body (see Refusal) and never reaches next.
//
// Where policy changes the path, next gets the request with the path that the
// rules were asked about, in URL and RequestURI: a rule on the path can not be
// stepped around by another spelling. What proxies of the mesh tell each other in
// headers is removed where nobody vouches for it: X-Forwarded-Client-Cert always, X-Envoy-
// and X-Istio- headers of a peer without identity, and headers that policy sets
// from tokens. The caller's own header map and URL are never changed.
//
// next finds the peer by identity.PeerFromContext, and the claims of a verified
// token by identity.ClaimsFromContext. Its context ends at the deadline that the
// caller has sent along, in x-envoy-expected-rq-timeout-ms, or in grpc-timeout of
// a gRPC call; that of a request for a tunnel (CONNECT, Upgrade) is for the answer
// alone, and is left out. A request whose deadline has passed is refused.
func Handler(e *inbound.Engine, log *slog.Logger, next http.Handler) http.Handler {
	if log == nil {
		log = slog.Default()
	}
	return &handler{engine: e, log: log, next: next}
}

type handler struct {
	engine *inbound.Engine
	log    *slog.Logger
	next   http.Handler
	clock  clock
}

// entry is what one request needs until it is admitted.
type entry struct {
	request   inbound.Request
	admission inbound.Admission
	body      readAhead
	read      func(int) ([]byte, bool, error) // body.read
}

var entries = sync.Pool{New: func() any {
	x := new(entry)
	x.read = x.body.peek
	return x
}}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if limit, ok := timeLimit(r.Header); ok && !tunnel(r) {
		d := new(admittedContext)
		d.begin(&h.clock, r.Context(), time.Now(), limit)
		defer d.end()
		h.serve(w, r, d)
		return
	}
	h.serve(w, r, nil)
}

// serve serves a request. d is nil where it has no deadline.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, d *admittedContext) {
	x := entries.Get().(*entry)
	admitted, err := h.admit(x, w, r, d)
	principal, hold := x.request.Access.Principal, x.admission.Hold
	x.request, x.admission, x.body = inbound.Request{}, inbound.Admission{}, readAhead{}
	entries.Put(x)
	if err != nil {
		h.refuse(w, r, err, principal)
		return
	}
	returned := false
	defer func() {
		// Who measures the request outside of here learns the route that a mux inside chose.
		r.Pattern = admitted.Pattern
		if hold != nil {
			hold.Release(returned && r.Context().Err() == nil)
		}
	}()
	h.next.ServeHTTP(w, admitted)
	returned = true
}

// admit asks the engine, and returns the request as the handler is given it.
func (h *handler) admit(x *entry, w http.ResponseWriter, r *http.Request, d *admittedContext) (*http.Request, error) {
	rewritten := x.describe(h.engine, r)
	a := &x.admission
	ctx := r.Context()
	if d != nil {
		ctx = &d.served
	}
	err := h.engine.Admit(ctx, &x.request, a)
	if a.CloseConnection {
		w.Header().Set("Connection", "close")
	}
	if err != nil {
		return nil, err
	}
	for _, line := range a.Response {
		w.Header().Add(line.Name, line.Value)
	}
	ctx = r.Context()
	if r.ProtoMajor >= 2 {
		ctx = contextOfHTTP2(ctx)
	}
	ctx = identity.ContextWithPeer(ctx, a.Peer)
	if a.Claims != nil {
		ctx = identity.ContextWithClaims(ctx, a.Claims)
	}
	ctx = a.Hold.Context(ctx)
	if d != nil {
		d.values, ctx = ctx, d
	}
	admitted := r.WithContext(ctx)
	access := &x.request.Access
	if a.HeaderChanged {
		admitted.Header = access.Header
	}
	if !h.engine.Governs() {
		return admitted, nil
	}
	if _, ok := admitted.Header["Host"]; ok {
		// HTTP/2 leaves it here beside :authority. The host that rules have seen is Request.Host.
		if !a.HeaderChanged {
			admitted.Header = admitted.Header.Clone()
		}
		delete(admitted.Header, "Host")
	}
	if a.HostChanged {
		admitted.Host = access.Authority
		if u := admitted.URL; u.Host != "" {
			// A target in absolute form: its host is the same one.
			same := *u
			same.Host = access.Authority
			admitted.URL = &same
			rewritten = rewritten || r.Method != http.MethodConnect
		}
	}
	if rewritten || a.PathChanged || a.QueryChanged {
		rewrite(admitted, access)
	}
	if x.body.data != nil {
		admitted.Body = x.body.whole()
	}
	return admitted, nil
}

// describe fills in what the rules see of a request. It reports whether the
// request's target must be rewritten for the handler to see the same.
func (x *entry) describe(e *inbound.Engine, r *http.Request) (rewritten bool) {
	q := &x.request
	q.Local, _ = r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	q.Conn = e.Conn(q.Local)
	q.Encrypted = r.TLS != nil
	if q.Conn == nil {
		q.Remote, _ = netip.ParseAddrPort(r.RemoteAddr)
	}
	q.Protocol, q.Size = r.Proto, r.ContentLength
	if r.ProtoMajor == 2 {
		q.Protocol = "HTTP/2"
	}
	x.body.original = r.Body
	q.Body = x.read

	access := &q.Access
	access.Method, access.Scheme, access.Authority = r.Method, "http", r.Host
	if r.TLS != nil {
		access.Scheme = "https"
	}
	access.Header = r.Header
	access.Path, access.RawQuery, rewritten = target(r)
	access.DecodedPath = r.URL.Path
	if access.Path == "/" {
		access.DecodedPath = "/"
	}
	return rewritten
}

// target returns the path and query of a request as they came, which is how its
// handler dispatches it: by r.URL, whose path is the decoded form of the path in
// r.RequestURI. Where the two say different things, because a handler further out
// has changed r.URL, it is r.URL that counts, and the second must be rewritten.
func target(r *http.Request) (path, query string, rewrite bool) {
	u := r.URL
	if u.Opaque != "" {
		// "GET mailto:x": a path in no reading, which no rule on paths would match.
		return u.Scheme + ":" + u.Opaque, u.RawQuery, false
	}
	uri := r.RequestURI
	switch {
	case r.Method == http.MethodConnect && !strings.HasPrefix(uri, "/"):
		// CONNECT has an authority for a target, and no path (RFC 9110, 9.3.6).
		return u.EscapedPath(), u.RawQuery, false
	case !strings.HasPrefix(uri, "/") && strings.Contains(uri, "://"):
		// The absolute form, whose authority net/http has made the request's host.
		_, uri, _ = strings.Cut(uri, "://")
		at := strings.IndexAny(uri, "/?")
		if at < 0 {
			at = len(uri)
		}
		uri = uri[at:]
	}
	path, query, _ = strings.Cut(uri, "?")
	if u.Path == "" {
		// "GET http://reviews": an absent path is "/" (RFC 9112, 3.2.1), as a mux sees it too.
		return "/", u.RawQuery, true
	}
	if query == u.RawQuery && (path == u.Path || decodesTo(path, u.Path)) {
		return path, query, false
	}
	return u.EscapedPath(), u.RawQuery, true
}

func decodesTo(path, decoded string) bool {
	if strings.IndexByte(path, '%') < 0 {
		return false
	}
	plain, err := url.PathUnescape(path)
	return err == nil && plain == decoded
}

// rewrite gives a request the path and query that the rules have seen.
func rewrite(r *http.Request, access *identity.AccessRequest) {
	u := *r.URL
	u.RawQuery = access.RawQuery
	if access.RawQuery == "" {
		u.ForceQuery = false
	}
	u.Path, u.RawPath = access.DecodedPath, ""
	if u.EscapedPath() != access.Path {
		u.RawPath = access.Path
	}
	r.URL = &u
	r.RequestURI = access.Path
	if access.RawQuery != "" {
		r.RequestURI += "?" + access.RawQuery
	}
}

// readAhead reads the beginning of a body before the handler does.
type readAhead struct {
	original io.ReadCloser
	data     []byte // what was read; nil if nothing was asked for
	err      error
}

// peek reads up to limit bytes and reports whether that is the whole body.
func (b *readAhead) peek(limit int) ([]byte, bool, error) {
	if b.original == nil || b.original == http.NoBody {
		return nil, true, nil
	}
	if b.data == nil {
		// One byte more tells a body that ends there from one that goes on.
		b.data, b.err = io.ReadAll(io.LimitReader(b.original, int64(limit)+1))
	}
	if b.err != nil {
		return nil, false, b.err
	}
	return b.data[:min(len(b.data), limit)], len(b.data) <= limit, nil
}

// whole is the body with what was read put back.
func (b *readAhead) whole() io.ReadCloser {
	type body struct {
		io.Reader
		io.Closer
	}
	return body{io.MultiReader(bytes.NewReader(b.data), b.original), b.original}
}
