package outbound

import (
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// Local is the answer that policy itself gives to a request: nothing is sent.
type Local struct {
	// Reason is "redirect", "direct_response", "fault", "cors_preflight" or "no_cluster".
	Reason string
	// Status is the HTTP status. It is 200 where GRPC is not -1.
	Status int
	// GRPC is the grpc-status that answers a gRPC request, with Body as its
	// message; -1 where the request is none. Header does not repeat the two.
	GRPC int
	// Header has canonical keys and belongs to the caller.
	Header map[string][]string
	Body   string
}

// rare is what few calls have.
type rare struct {
	local   *Local
	verdict resilience.FaultVerdict
	faulted bool // holds a place among the host's active faults

	cookie string // to issue with the response

	sent routing.Request // as it went out last; only where responses name it

	cors   *routing.CORS
	shadow *mirror // of which the call is a copy; nil where it is the caller's
	parent *leg    // of the call that it is a copy of

	entered   *Adaptive // holds a place there; nil where it does not
	enteredAt time.Time
}

// more returns the call's rare part, which it makes.
func (c *Call) more() *rare {
	if c.rare == nil {
		c.rare = &rare{verdict: resilience.NoFault}
	}
	return c.rare
}

// Local returns the answer that policy itself gives, or nil. It is asked after
// Decide, and given once Delay has passed.
func (c *Call) Local() *Local {
	if c.rare == nil {
		return nil
	}
	return c.rare.local
}

// filters runs what comes before a cluster is asked for: faults, CORS, redirects
// and direct responses, in the order of Istio's filters. i is the route's
// destination, or -1.
func (c *Call) filters(i int) {
	snap := c.route.snap
	first := c.host.snap.CORSFirst
	if first && c.crossOrigin(i) {
		return
	}
	if f := snap.FaultOf(i); f != nil && c.inject(f) {
		return
	}
	if !first && c.crossOrigin(i) {
		return
	}
	switch {
	case snap.Redirect != nil:
		l := &Local{Reason: "redirect", Status: snap.Redirect.Status, Header: map[string][]string{
			"Location": {snap.Redirect.Location(&snap.Match, &c.Request)},
		}}
		if l.Status == 0 {
			l.Status = http.StatusMovedPermanently
		}
		if d := snap.Redirect; d.HasPrefix || d.Regex != nil {
			// Header values of the response see the path that the redirect leads to.
			m := c.more()
			m.sent = c.Request
			m.sent.Path, m.sent.RawQuery = (&routing.Rewrite{HasPrefix: d.HasPrefix, Prefix: d.Prefix, Regex: d.Regex}).Path(&snap.Match, &c.Request)
			if m.sent.Header == nil {
				m.sent.Header = map[string][]string{}
			}
		}
		c.answer(l)
		c.Incoming(nil, l.Status, l.Header, routing.CanonicalHeaders)
	case snap.Direct != nil:
		l := &Local{Reason: "direct_response", Status: snap.Direct.Status, Body: snap.Direct.Body, Header: map[string][]string{}}
		if l.Status == http.StatusCreated || l.Status/100 == 3 {
			// Envoy names the request itself (RFC 9110, section 10.2.2, asks for a place there).
			l.Header["Location"] = []string{(&routing.Redirect{}).Location(&snap.Match, &c.Request)}
		}
		c.answer(l)
		c.Incoming(nil, l.Status, l.Header, routing.CanonicalHeaders)
	}
}

// crossOrigin asks the route's CORS rules, and reports whether they have answered the request.
func (c *Call) crossOrigin(leg int) bool {
	rules := c.route.snap.CORSOf(leg)
	// The rules are about requests that have an origin.
	if rules == nil || len(c.Request.Header[origin.key(c.Request.Form)]) == 0 || !rules.Applies(c.engine.draw()) {
		return false
	}
	c.more().cors = rules
	header, status, answered := rules.Preflight(&c.Request)
	if !answered {
		return false
	}
	if status == http.StatusOK {
		// Envoy's filter sees its own answer pass, as any response.
		rules.Apply(&c.Request, header, routing.CanonicalHeaders)
	}
	c.answer(&Local{Reason: "cors_preflight", Status: status, Header: header})
	return true
}

// noCluster answers where the cluster that a header names is not there.
func (c *Call) noCluster() {
	status := c.route.snap.ClusterNotFound
	if status == 0 {
		status = http.StatusServiceUnavailable
	}
	l := &Local{Reason: "no_cluster", Status: status, Header: map[string][]string{}}
	c.answer(l)
	c.Incoming(nil, l.Status, l.Header, routing.CanonicalHeaders)
}

// answer makes l the call's answer. For a gRPC request the status becomes the
// grpc-status that stands for it, unless l has one.
func (c *Call) answer(l *Local) {
	if l.Reason != "fault" {
		l.GRPC = -1
	}
	if routing.IsGRPC(&c.Request) {
		if l.GRPC < 0 {
			l.GRPC = resilience.GRPCStatusOf(l.Status)
		}
		l.Status = http.StatusOK
	} else {
		if l.GRPC = -1; l.Status == 0 {
			l.Status = http.StatusOK // as Envoy answers what is not gRPC
		}
	}
	if l.Body != "" && l.GRPC < 0 {
		l.Header["Content-Type"] = []string{"text/plain"}
	}
	c.more().local = l
}

// header is a header's name in both spellings.
type header struct{ lower, canonical string }

func newHeader(name string) header {
	return header{name, textproto.CanonicalMIMEHeaderKey(name)}
}

var (
	attemptCount    = newHeader("x-envoy-attempt-count")
	expectedTimeout = newHeader("x-envoy-expected-rq-timeout-ms")
	upstreamTimeout = newHeader("x-envoy-upstream-rq-timeout-ms")
	perTryTimeout   = newHeader("x-envoy-upstream-rq-per-try-timeout-ms")
	originalPath    = newHeader("x-envoy-original-path")
	originalHost    = newHeader("x-envoy-original-host")
	setCookie       = newHeader("set-cookie")
	grpcTimeout     = newHeader("grpc-timeout")
	origin          = newHeader("origin")

	// consumed are the headers that ask something of the router: servers do not see them.
	consumed = [...]header{
		upstreamTimeout, perTryTimeout, newHeader("x-envoy-retry-on"), newHeader("x-envoy-retry-grpc-on"), newHeader("x-envoy-max-retries"),
		newHeader("x-envoy-retriable-status-codes"), newHeader("x-envoy-retriable-header-names"), newHeader("x-envoy-hedge-on-per-try-timeout"),
	}
	hedgeOnTimeout = consumed[7]
	consumedPrefix = newHeader("x-envoy-")
)

// key returns the name as a header map of that form has it.
func (n *header) key(form routing.HeaderForm) string {
	if form == routing.LowerHeaders {
		return n.lower
	}
	return n.canonical
}

// number reads the header's first value as a whole number.
func (n *header) number(h map[string][]string, form routing.HeaderForm) (uint64, bool) {
	values := h[n.key(form)]
	if len(values) == 0 {
		return 0, false
	}
	v, err := strconv.ParseUint(strings.TrimSpace(values[0]), 10, 64)
	return v, err == nil
}
