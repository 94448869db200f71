package outbound

import (
	"strconv"
	"strings"

	"github.com/sinew-mesh/sinew/routing"
)

// Outgoing is a request as it is to be sent.
type Outgoing struct {
	Path, RawQuery string
	Authority      string
	// Header is the request's own map where nothing changes, and else a copy of
	// it whose values are shared with the request: they are not to be changed in place.
	Header map[string][]string
	// Own is set where Header is a copy: headers may be set in it.
	Own bool
}

// Outgoing fills in what is to be sent to the lease's endpoint: the request with
// the rewrites and header changes of its route and destination, and what the
// server is told of attempts and time limits.
func (t *Try) Outgoing(l *Lease, o *Outgoing) {
	c := t.call
	t.sent = nil
	r := &c.Request
	*o = Outgoing{Path: r.Path, RawQuery: r.RawQuery, Authority: r.Authority, Header: r.Header}
	tells := c.tells()
	if !c.route.outgoing && !tells && !c.told && (c.rare == nil || c.rare.shadow == nil) {
		return
	}
	snap, form := c.route.snap, r.Form
	h := c.copyHeader()
	o.Header, o.Own = h, true
	if tells {
		if key := expectedTimeout.key(form); !c.host.snap.RespectExpectedTimeout || len(h[key]) == 0 {
			if values := c.expected(t.N()); values != nil {
				h[key] = values
			}
		}
	}
	if snap.AttemptCount {
		h[attemptCount.key(form)] = attemptValue(t.N())
	}
	if !c.route.rewrites && !(c.route.echoes && c.route.outgoing) && (c.rare == nil || c.rare.shadow == nil) {
		return
	}
	out := *r
	out.Header = h
	if c.route.rewrites {
		c.rewrite(t.N(), l, &out)
	}
	if c.rare != nil && c.rare.shadow != nil {
		c.shadowed(t, &out)
	}
	if c.retry != nil && len(c.retry.RequestHeaders) > 0 {
		sent := out
		t.sent = &sent
	}
	o.Path, o.RawQuery, o.Authority = out.Path, out.RawQuery, out.Authority
	if c.route.echoes && c.route.outgoing {
		o.Own = false // tries side by side may read it
		c.mu.Lock()
		c.rare.sent = out
		c.mu.Unlock()
	}
}

// attemptValues are the first values of x-envoy-attempt-count; nobody changes them.
var attemptValues = func() (values [8][]string) {
	for i := range values {
		values[i] = []string{strconv.Itoa(i + 1)}
	}
	return values
}()

func attemptValue(n int) []string {
	if n >= 1 && n <= len(attemptValues) {
		return attemptValues[n-1]
	}
	return []string{strconv.Itoa(n)}
}

// copyHeader returns a copy of the request's header, with room for what the
// route and the mesh add, without what is asked of the router. The values are shared.
func (c *Call) copyHeader() map[string][]string {
	h, form := c.Request.Header, c.Request.Form
	out := make(map[string][]string, len(h)+c.route.adds)
	prefix := consumedPrefix.key(form)
	for name, values := range h {
		if !strings.HasPrefix(name, prefix) || !isConsumed(name, form) {
			out[name] = values
		}
	}
	return out
}

// tellsRouter reports whether a request has headers that are for the router.
func tellsRouter(r *routing.Request) bool {
	prefix := consumedPrefix.key(r.Form)
	for name := range r.Header {
		if strings.HasPrefix(name, prefix) && isConsumed(name, r.Form) {
			return true
		}
	}
	return false
}

func isConsumed(name string, form routing.HeaderForm) bool {
	for i := range consumed {
		if consumed[i].key(form) == name {
			return true
		}
	}
	return false
}

// rewrite makes the changes of the destination and the levels above it. l is nil
// where no endpoint is chosen yet.
func (c *Call) rewrite(n int, l *Lease, out *routing.Request) {
	snap, form, h := c.route.snap, out.Form, out.Header
	from := c.leg
	if c.rare != nil && c.rare.shadow != nil {
		from = c.rare.parent // a copy is of the request as it went out
	}
	v, seen := &noValues, (*routing.Request)(nil)
	if c.route.names {
		// A request of its own, so that out need not be on the heap for every route.
		seen = new(routing.Request)
		*seen, v = *out, new(routing.Values)
		c.values(v, l)
		v.Request, v.Attempt, v.Upstream = seen, n, "" // as in Envoy, a request does not name its endpoint
		if from != nil {
			v.Cluster = from.cluster.name
		}
	}
	keeps := !c.host.snap.SuppressHeaders
	if from != nil && from.snap != nil {
		from.snap.RequestHeaders.Apply(h, form, v)
		if from.snap.Host != "" {
			out.Authority = from.snap.Host
			if seen != nil {
				seen.Authority = out.Authority
			}
		}
	}
	for i := range snap.RequestHeaders {
		snap.RequestHeaders[i].Apply(h, form, v)
	}
	if snap.Rewrite.ChangesAuthority() {
		hostname := ""
		if l != nil {
			hostname = l.endpoint.Hostname()
		}
		if authority := snap.Rewrite.Authority(out, hostname); authority != "" {
			// Also where it is the same as before, as in Envoy.
			if snap.Rewrite.AppendForwardedHost {
				routing.AppendForwardedHost(h, form, out.Authority)
			}
			if keeps {
				h[originalHost.key(form)] = []string{out.Authority}
			}
			out.Authority = authority
		}
	}
	if w := &snap.Rewrite; w.HasPrefix || w.Regex != nil || w.Template != nil || w.PathFormat != nil {
		if w.PathFormat != nil {
			now := *out
			if len(w.PathFormat.Append(nil, &routing.Values{Request: &now})) == 0 {
				return // it says nothing of the path, so there is no original (Envoy)
			}
		}
		path, query := w.Path(&snap.Match, out)
		if keeps {
			original := out.Path
			if out.RawQuery != "" {
				original += "?" + out.RawQuery
			}
			h[originalPath.key(form)] = []string{original}
		}
		out.Path, out.RawQuery = path, query
	}
}

// noValues stands for the values of changes that name none.
var noValues routing.Values

// values fills in what header values of policy may name of the call.
func (c *Call) values(v *routing.Values, l *Lease) {
	*v = routing.Values{
		Request: &c.Request, Route: c.route.snap.Name, VirtualHost: c.host.snap.VirtualHost.Name, Hostname: c.engine.hostname,
		Local: c.engine.options.Source.Local, Remote: c.engine.options.Source.Address, Start: c.began, Attempt: int(c.attempts.Load()),
	}
	if c.leg != nil {
		v.Cluster = c.leg.cluster.name
	}
	if l != nil && l.state != nil {
		v.Protocol = "HTTP/1.1"
		if l.state.config.HTTP2 {
			v.Protocol = "HTTP/2"
		}
		if l.endpoint != nil {
			v.Upstream = l.endpoint.Address
		}
	}
}

// Incoming makes policy's changes to the header of the response that is handed
// to the caller, in place. l may be nil where no endpoint has answered.
func (c *Call) Incoming(l *Lease, status int, header map[string][]string, form routing.HeaderForm) {
	m := c.rare
	if !c.route.incoming && (m == nil || m.cors == nil && m.cookie == "") || m != nil && m.shadow != nil {
		return
	}
	snap := c.route.snap
	if n := c.Attempts(); snap.AttemptCountResponse && n > 0 {
		header[attemptCount.key(form)] = []string{strconv.Itoa(n)}
	}
	if m != nil && m.cookie != "" {
		key := setCookie.key(form)
		header[key] = append(header[key][:len(header[key]):len(header[key])], m.cookie)
	}
	if c.route.incoming {
		var v routing.Values
		if c.route.echoes {
			c.values(&v, l)
			if m != nil {
				c.mu.Lock()
				sent := m.sent
				c.mu.Unlock()
				if sent.Header != nil {
					v.Request = &sent // values name the request as it was sent (Envoy)
				}
			}
		}
		v.Status, v.ResponseHeader, v.ResponseForm = status, header, form
		if c.leg != nil && c.leg.snap != nil {
			c.leg.snap.ResponseHeaders.Apply(header, form, &v)
		}
		for i := range snap.ResponseHeaders {
			snap.ResponseHeaders[i].Apply(header, form, &v)
		}
	}
	if m != nil && m.cors != nil {
		m.cors.Apply(&c.Request, header, form)
	}
}

// shadowHost returns the authority with "-shadow" after its host (Envoy).
func shadowHost(authority string) string {
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		return authority[:i] + "-shadow" + authority[i:]
	}
	return authority + "-shadow"
}
