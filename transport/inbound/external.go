package inbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

const (
	defaultExternalTimeout = 200 * time.Millisecond
	// maxExternalBody is how much of a refusal's body the caller is given; the rest is cut off.
	maxExternalBody = 64 << 10
	// maxExternalAnswer is the largest answer of the gRPC protocol, in bytes.
	maxExternalAnswer = 256 << 10
	// maxExternalChanges and maxExternalHeader bound what an answer may do to a request.
	maxExternalChanges = 100
	maxExternalHeader  = 64 << 10
	// partialBody tells the authorizer whether the body that it sees is cut off (Envoy).
	partialBody = "x-envoy-auth-partial-body"
)

// externalQuestion is the request that an external authorizer decides on.
type externalQuestion struct {
	// Access is the request, with its path as the handler is going to see it.
	Access *identity.AccessRequest
	// Source and Destination are the ends of the connection.
	Source, Destination netip.AddrPort
	// DestinationPrincipal is the identity that the connection was served with; "" on plaintext.
	DestinationPrincipal string
	// ID names the request in the authorizer's logs.
	ID string
	// Protocol is "HTTP/1.1" or "HTTP/2".
	Protocol string
	// Size is the length of the body; -1 where it is not known.
	Size int64
	// Time is when the request came.
	Time time.Time
	// Body is as Request.Body.
	Body func(limit int) (data []byte, whole bool, err error)
}

// externalAnswer is what came of asking.
type externalAnswer struct {
	// allow lets the request through, with the changes below.
	allow bool
	// err says why there is no answer; allow is then what policy says for that case.
	err error
	// status, header and body are what the caller is answered with where allow is false.
	status int
	header []Header
	body   []byte

	// request are changes of the request's headers, in order, and remove what
	// is then taken away. Neither names Host or a pseudo-header.
	request []headerChange
	remove  []string
	// setQuery and removeQuery change the query; see changeQuery.
	setQuery    []queryParameter
	removeQuery []string
	// response are changes of the headers of the handler's answer.
	response []headerChange
}

// headerAction says how a header comes in (envoy.config.core.v3.HeaderValueOption).
type headerAction uint8

const (
	headerSet         headerAction = iota // in place of those of the name
	headerAdd                             // beside those of the name
	headerAddIfAbsent                     // only where there is none of the name
	headerSetIfThere                      // only in place of one of the name
)

type headerChange struct {
	Header
	action headerAction
}

type queryParameter struct{ name, value string }

// askExternal asks the authorizer, through conn for the gRPC protocol and
// through transport for the HTTP protocol, which reach x.Host. Where no answer
// comes in time, or none that can be understood, policy decides: the request is
// refused unless x.FailOpen is set. A refusal stays a refusal even if what goes with it can not be used.
func askExternal(ctx context.Context, x *snapshot.ExternalAuthorizer, conn grpc.ClientConnInterface, transport http.RoundTripper, q *externalQuestion) externalAnswer {
	limit := x.Timeout
	if limit <= 0 {
		limit = defaultExternalTimeout
	}
	var body externalBody
	if x.MaxBody > 0 && q.Body != nil {
		// Not within the time limit, which is the authorizer's and not the client's.
		data, whole, err := q.Body(x.MaxBody)
		switch {
		case err != nil:
			// It is the caller who fails here, whatever policy says of the authorizer.
			return externalAnswer{err: fmt.Errorf("external authorizer %q: the request's body: %w", x.Provider, err), status: http.StatusBadRequest}
		case !whole && !x.PartialBody:
			return externalAnswer{status: http.StatusRequestEntityTooLarge}
		}
		body = externalBody{data: data, sent: true, partial: !whole}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var a externalAnswer
	if x.HTTP != nil {
		a = askHTTP(ctx, x, transport, q, &body)
	} else {
		a = askGRPC(ctx, x, conn, q, &body)
	}
	if a.err == nil {
		return a
	}
	failed := externalAnswer{err: fmt.Errorf("external authorizer %q at %s: %w", x.Provider, x.Host, a.err), allow: x.FailOpen}
	if !failed.allow {
		// An error response of the authorizer's own says what the caller is told.
		failed.status, failed.header, failed.body = a.status, a.header, a.body
		if failed.status == 0 {
			failed.status = x.StatusOnError
		}
		if failed.status == 0 {
			failed.status = http.StatusForbidden
		}
	}
	return failed
}

// externalBody is what goes along of the request's body.
type externalBody struct {
	data          []byte
	sent, partial bool
}

// refusalStatus is the status that a refusal may have; whatever can not be sent is 403.
func refusalStatus(code int) int {
	if code < 200 || code > 599 {
		return http.StatusForbidden
	}
	return code
}

// framing are headers that belong to a connection or to a body that is not
// passed on, so that they are never taken from one message into another (RFC 9110, 7.6.1).
var framing = map[string]bool{
	"connection": true, "content-length": true, "host": true, "keep-alive": true, "proxy-connection": true,
	"te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
}

// takable reports whether a header may be changed in a request or an answer:
// not pseudo-headers, which say where a request goes, and not framing.
func takable(lower string) bool {
	return lower != "" && lower[0] != ':' && !framing[lower]
}

var (
	errExternalHeader = errors.New("the answer has a header that HTTP does not allow")
	errExternalRoute  = errors.New("the answer changes a header that says where the request goes or how long it is")
	errExternalSize   = errors.New("the answer has too many or too large changes")
)

// collect checks headers and keeps them in order. Where lenient is set, those
// that can not be used are left out, else they are an error.
type collect struct {
	changes []headerChange
	size    int
	lenient bool
}

func (c *collect) add(name, value string, action headerAction) error {
	lower := strings.ToLower(name)
	err := error(nil)
	switch {
	case !httpguts.ValidHeaderFieldName(strings.TrimPrefix(lower, ":")) || !httpguts.ValidHeaderFieldValue(value):
		err = errExternalHeader
	case !takable(lower):
		err = errExternalRoute
	case len(c.changes) >= maxExternalChanges || c.size+len(name)+len(value) > maxExternalHeader:
		err = errExternalSize
	}
	if err != nil {
		if c.lenient {
			return nil
		}
		return err
	}
	c.size += len(name) + len(value)
	c.changes = append(c.changes, headerChange{Header{lower, value}, action})
	return nil
}

// lines puts changes of an answer that does not exist yet together.
func lines(changes []headerChange) []Header {
	var out []Header
	for _, c := range changes {
		there := slices.ContainsFunc(out, func(h Header) bool { return h.Name == c.Name })
		switch c.action {
		case headerSet:
			out = slices.DeleteFunc(out, func(h Header) bool { return h.Name == c.Name })
		case headerAddIfAbsent:
			if there {
				continue
			}
		case headerSetIfThere:
			if !there {
				continue
			}
			out = slices.DeleteFunc(out, func(h Header) bool { return h.Name == c.Name })
		}
		out = append(out, c.Header)
	}
	return out
}

// changeHeaders applies an answer's changes to a header map of the given spelling, which it writes to.
func (a *externalAnswer) changeHeaders(header map[string][]string, form routing.HeaderForm) {
	key := func(lower string) string {
		if form == routing.LowerHeaders {
			return lower
		}
		return textproto.CanonicalMIMEHeaderKey(lower)
	}
	for _, c := range a.request {
		name := key(c.Name)
		_, there := header[name]
		switch {
		case c.action == headerAdd && there:
			old := header[name]
			header[name] = append(old[:len(old):len(old)], c.Value)
		case c.action == headerAddIfAbsent && there, c.action == headerSetIfThere && !there:
		default:
			header[name] = []string{c.Value}
		}
	}
	for _, lower := range a.remove {
		delete(header, key(lower))
	}
}

// changeQuery returns the query with the answer's changes: parameters to remove
// go, by their decoded names, and those to set take the place of all of the same name.
func (a *externalAnswer) changeQuery(query string) string {
	if len(a.setQuery)+len(a.removeQuery) == 0 {
		return query
	}
	gone := make(map[string]bool, len(a.setQuery)+len(a.removeQuery))
	for _, name := range a.removeQuery {
		gone[name] = true
	}
	for _, p := range a.setQuery {
		gone[p.name] = true
	}
	var out []string
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		if pair != "" && !gone[name] {
			out = append(out, pair)
		}
	}
	for i, p := range a.setQuery {
		last := !slices.ContainsFunc(a.setQuery[i+1:], func(o queryParameter) bool { return o.name == p.name })
		if last && !slices.Contains(a.removeQuery, p.name) {
			out = append(out, url.QueryEscape(p.name)+"="+url.QueryEscape(p.value))
		}
	}
	return strings.Join(out, "&")
}

// headers returns the request's headers that go to the authorizer, by lower-case
// name, with several values in one as Envoy joins them. all is for no list at all.
func (q *externalQuestion) headers(list []routing.StringMatch, all bool) map[string]string {
	out := make(map[string]string, len(q.Access.Header)+4)
	for name, values := range q.Access.Header {
		lower := strings.ToLower(name)
		if len(values) == 0 || lower == partialBody || !(all || matchesAny(list, lower)) {
			continue
		}
		glue := ","
		if lower == "cookie" {
			glue = "; "
		}
		joined := plainText(strings.Join(values, glue))
		if old, ok := out[lower]; ok { // another spelling of the same name
			joined = old + glue + joined
		}
		out[lower] = joined
	}
	return out
}

func matchesAny(list []routing.StringMatch, s string) bool {
	for i := range list {
		if list[i].Matches(s) {
			return true
		}
	}
	return false
}

// target is the path with its query.
func (q *externalQuestion) target() string {
	if q.Access.RawQuery == "" {
		return q.Access.Path
	}
	return q.Access.Path + "?" + q.Access.RawQuery
}

// plainText is a text with "!" for each byte that is not UTF-8, which a protobuf text must be (Envoy).
func plainText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b.WriteByte('!')
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}
