package inbound

import (
	"errors"
	"io"
	"net/http"
	"net/netip"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// custom asks the external authorizer where a CUSTOM rule says so.
func (run *admission) custom() error {
	r, p := run.r, run.chain.policy
	provider, rule, ask := p.Authorizer.Custom(&r.Access)
	if !ask {
		return nil
	}
	if p.External == nil || p.External.Provider != provider {
		d := run.denied(ReasonExternal, http.StatusForbidden, rule, accessDenied)
		d.Err = errNoAuthorizer
		return d
	}
	q := run.question()
	answer := askExternal(run.ctx, p.External, run.chain.authorizer, run.e.options.HTTP, &q)
	if answer.err != nil {
		run.outcome.ExternalFailed = true
	}
	if !answer.allow {
		d := run.denied(ReasonExternal, answer.status, rule, accessDenied)
		d.Header, d.Err = answer.header, answer.err
		if len(answer.body) > 0 || len(answer.header) > 0 {
			d.Body = append([]byte{}, answer.body...) // not nil: it is the answer's body even if it is empty
		}
		return d
	}
	if answer.err != nil {
		run.e.options.Log.Warn("request let through without an answer of the external authorizer, as policy says", "listener", run.l.name, "error", answer.err)
		return nil
	}
	if len(answer.request)+len(answer.remove) > 0 {
		answer.changeHeaders(r.header(), r.Access.Form)
		// These only verified tokens may set, which come next.
		run.outputs()
	}
	if query := answer.changeQuery(r.Access.RawQuery); query != r.Access.RawQuery {
		r.Access.RawQuery, run.a.QueryChanged = query, true
	}
	run.a.Response = append(run.a.Response, lines(answer.response)...)
	return nil
}

var errNoAuthorizer = errors.New("the rule asks for an external authorizer that policy does not describe")

var requestID = routing.NewHeaderName("x-request-id")

// question is the request as an external authorizer is asked about it.
func (run *admission) question() externalQuestion {
	r := run.r
	x := &r.Access
	q := externalQuestion{
		Access:      x,
		Source:      r.Remote,
		Destination: netip.AddrPortFrom(x.DestinationIP, x.DestinationPort),
		Protocol:    r.Protocol,
		Size:        r.Size,
		Time:        run.now,
		Body:        r.Body,
	}
	if r.Conn != nil {
		q.Source = r.Conn.Remote
		if known := r.Conn.checked.Load(); known != nil && x.Principal != "" {
			q.DestinationPrincipal = known.material.ID.String()
		}
	}
	if ids := requestID.In(x.Header, x.Form); len(ids) > 0 {
		q.ID = ids[0]
	}
	return q
}

// authorizer is a connection to an external authorizer that speaks gRPC.
type authorizer struct {
	conn   grpc.ClientConnInterface
	closer io.Closer
}

// authorizer returns the connection that a chain's authorizer is asked through;
// nil where it needs none or none can be had, so that nothing is let in. e.mu is held.
func (e *Engine) authorizer(p *snapshot.FilterChain) grpc.ClientConnInterface {
	if p.External == nil || p.External.HTTP != nil || e.options.DialGRPC == nil {
		return nil
	}
	if known := e.authorizers[p.External.Host]; known != nil {
		return known.conn
	}
	conn, closer, err := e.options.DialGRPC(p.External.Host)
	if err != nil {
		e.options.Log.Warn("the external authorizer can not be reached", "host", p.External.Host, "error", err)
		return nil
	}
	e.authorizers[p.External.Host] = &authorizer{conn, closer}
	return conn
}

// dropAuthorizers forgets and returns connections that no listener uses. e.mu is held.
func (e *Engine) dropAuthorizers(listeners map[netip.AddrPort]*listener) []*authorizer {
	used := make(map[string]bool)
	for _, l := range listeners {
		for _, c := range [...]*chain{l.tls, l.plain} {
			if c != nil && c.policy.External != nil {
				used[c.policy.External.Host] = true
			}
		}
	}
	var unused []*authorizer
	for host, a := range e.authorizers {
		if !used[host] {
			delete(e.authorizers, host)
			unused = append(unused, a)
		}
	}
	return unused
}

func (a *authorizer) close() {
	if a.closer != nil {
		_ = a.closer.Close()
	}
}
