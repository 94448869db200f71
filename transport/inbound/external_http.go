package inbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// headersToRemove is how an authorizer of the HTTP protocol has headers removed (Envoy).
const headersToRemove = "X-Envoy-Auth-Headers-To-Remove"

// askHTTP asks in the HTTP protocol: the authorizer is sent the request's method,
// path, host and a few headers, and lets it through with status 200 only. A
// status of 500 or more is no answer, and every other a refusal.
func askHTTP(ctx context.Context, x *snapshot.ExternalAuthorizer, transport http.RoundTripper, q *externalQuestion, body *externalBody) externalAnswer {
	if transport == nil {
		return externalAnswer{err: errNoChannel}
	}
	req, err := externalRequest(ctx, x, q, body)
	if err != nil {
		return externalAnswer{err: err}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return externalAnswer{err: err}
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
		// What is read lets the connection be used again; an endless body is not waited for.
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
		return allowedByHTTP(x.HTTP, resp.Header)
	case resp.StatusCode >= 500:
		return externalAnswer{err: fmt.Errorf("HTTP status %d", resp.StatusCode)}
	}
	a := externalAnswer{status: refusalStatus(resp.StatusCode)}
	header := collect{lenient: true}
	for _, name := range sortedNames(resp.Header) {
		lower := strings.ToLower(name)
		if !takable(lower) || lower == "date" || !clientSees(x.HTTP, lower) {
			continue
		}
		for _, value := range resp.Header[name] {
			_ = header.add(lower, value, headerAdd)
		}
	}
	a.header = lines(header.changes)
	// A body that breaks off is still a refusal.
	a.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxExternalBody))
	return a
}

func externalRequest(ctx context.Context, x *snapshot.ExternalAuthorizer, q *externalQuestion, body *externalBody) (*http.Request, error) {
	a := q.Access
	if !httpguts.ValidHostHeader(a.Authority) {
		return nil, errors.New("the request's host can not be passed on")
	}
	// The path goes as it came or not at all: spelled otherwise it could mean
	// another resource to the authorizer than to the handler.
	target := x.HTTP.PathPrefix + a.Path
	plain, err := url.PathUnescape(target)
	u := url.URL{Scheme: "http", Host: x.Host, Path: plain, RawPath: target, RawQuery: a.RawQuery}
	if err != nil || !strings.HasPrefix(target, "/") || u.EscapedPath() != target || !sendable(a.RawQuery) {
		return nil, errors.New("the request's path can not be passed on")
	}
	req := (&http.Request{
		Method: a.Method, Host: a.Authority, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: &u, Header: make(http.Header),
	}).WithContext(ctx)
	for name, value := range q.headers(x.Headers, false) {
		if takable(name) && name != "authorization" {
			req.Header.Set(name, value)
		}
	}
	for _, value := range authorization.In(a.Header, a.Form) {
		req.Header.Add("Authorization", value)
	}
	for name, value := range x.HTTP.AddHeaders {
		if !takable(strings.ToLower(name)) {
			return nil, fmt.Errorf("header %q can not be added", name)
		}
		req.Header.Set(name, value)
	}
	if body.sent {
		req.Header.Set(partialBody, fmt.Sprint(body.partial))
		if len(body.data) > 0 {
			req.ContentLength = int64(len(body.data))
			req.Body = io.NopCloser(bytes.NewReader(body.data))
			req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body.data)), nil }
		}
	}
	return req, nil
}

// sendable reports whether a query can stand in a request line.
func sendable(query string) bool {
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	return true
}

var authorization = routing.NewHeaderName("authorization")

func allowedByHTTP(c *snapshot.ExternalHTTP, header http.Header) externalAnswer {
	a := externalAnswer{allow: true}
	var request, response collect
	for _, name := range sortedNames(header) {
		lower := strings.ToLower(name)
		if !takable(lower) {
			continue
		}
		set, add := matchesAny(c.UpstreamHeaders, lower), matchesAny(c.UpstreamHeadersToAppend, lower)
		client := matchesAny(c.ClientHeadersOnSuccess, lower)
		for i, value := range header[name] {
			var err error
			switch {
			case set && i == 0:
				err = request.add(lower, value, headerSet)
			case set || add:
				err = request.add(lower, value, headerAdd)
			}
			if client {
				err = errors.Join(err, response.add(lower, value, headerAdd))
			}
			if err != nil {
				return externalAnswer{err: err}
			}
		}
	}
	a.request, a.response = request.changes, response.changes
	for _, list := range header[headersToRemove] {
		for name := range strings.SplitSeq(list, ",") {
			if len(a.remove) >= maxExternalChanges {
				return externalAnswer{err: errExternalSize}
			}
			if lower := strings.ToLower(textproto.TrimString(name)); takable(lower) {
				a.remove = append(a.remove, lower)
			}
		}
	}
	return a
}

// clientSees reports whether a header of a refusal goes to the caller. Where
// there is a list, those without which a refusal makes no sense count as listed (Envoy).
func clientSees(c *snapshot.ExternalHTTP, lower string) bool {
	if len(c.ClientHeaders) == 0 {
		return true
	}
	return lower == "www-authenticate" || lower == "location" || matchesAny(c.ClientHeaders, lower)
}

// sortedNames gives an order that does not change from answer to answer.
func sortedNames(h http.Header) []string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
