package compile

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// decided is what the policy makes of a request, step by step as the engine
// does it, with the rules alone.
type decided struct {
	host     *snapshot.VirtualHost
	route    *snapshot.Route
	leg      *snapshot.Leg
	cluster  string
	location string
	sent     sent
}

// sent is what goes to the cluster.
type sent struct {
	path, authority string
	header          map[string][]string
}

// decide takes random as the number that Envoy draws: by the rest of a division
// it chooses both whether a fraction matches and a weighted cluster.
func decide(rc *snapshot.RouteConfig, l *snapshot.Listener, r *routing.Request, random uint64) (d decided) {
	if d.host = rc.Lookup(r.Authority); d.host == nil {
		return d
	}
	if l != nil {
		d.host = l.Bind(d.host)
	}
	i := d.host.Match(r, random)
	if i < 0 {
		return d
	}
	d.route = &d.host.Routes[i]
	switch {
	case d.route.Redirect != nil:
		d.location = d.route.Redirect.Location(&d.route.Match, r)
		return d
	case d.route.Direct != nil:
		return d
	}
	d.leg = &snapshot.Leg{Subset: d.route.Subset}
	name := d.route.ClusterHeader
	if len(d.route.Clusters.Clusters) > 0 {
		at := d.route.Clusters.Choose(drawOf(&d.route.Clusters, random))
		d.cluster = d.route.Clusters.Clusters[at].Name
		if d.route.Legs != nil {
			d.leg = &d.route.Legs[at]
			name = d.leg.ClusterHeader
		}
	}
	if name.String() != "" {
		d.cluster = strings.Join(name.In(r.Header, r.Form), "")
	}
	d.sent = d.outgoing(r)
	return d
}

// drawOf is a draw that chooses what the rest of random by the sum of the weights does.
func drawOf(w *routing.Weighted, random uint64) uint64 {
	sum := uint64(0)
	for _, c := range w.Clusters {
		sum += uint64(c.Weight)
	}
	step := ^uint64(0)/sum + 1
	if sum == 1 {
		return 0
	}
	return random % sum * step
}

func (d *decided) outgoing(r *routing.Request) sent {
	out := sent{authority: r.Authority, header: maps.Clone(r.Header)}
	v := routing.Values{Request: r, Cluster: d.cluster, Route: d.route.Name}
	for _, c := range slices.Concat([]routing.HeaderChanges{d.leg.RequestHeaders}, d.route.RequestHeaders) {
		c.Apply(out.header, r.Form, &v)
	}
	path, query := d.route.Rewrite.Path(&d.route.Match, r)
	if out.path = path; query != "" {
		out.path += "?" + query
	}
	if d.leg.Host != "" {
		out.authority = d.leg.Host
	}
	if a := d.route.Rewrite.Authority(r, "endpoint.example"); a != "" {
		out.authority = a
	}
	return out
}

// incoming is what becomes of a response's headers.
func (d *decided) incoming(r *routing.Request, header map[string][]string) map[string][]string {
	v := routing.Values{Request: r, Status: 200, ResponseHeader: header, Cluster: d.cluster, Route: d.route.Name}
	for _, c := range slices.Concat([]routing.HeaderChanges{d.leg.ResponseHeaders}, d.route.ResponseHeaders) {
		c.Apply(header, r.Form, &v)
	}
	return header
}

// requestOf makes a request of headers as Envoy has them.
func requestOf(headers [][2]string) *routing.Request {
	r := &routing.Request{Header: map[string][]string{}}
	for _, h := range headers {
		switch h[0] {
		case ":authority":
			r.Authority = h[1]
		case ":method":
			r.Method = h[1]
		case ":scheme":
			r.Scheme = h[1]
		case ":path":
			r.Path, r.RawQuery, _ = strings.Cut(h[1], "?")
		default:
			name := http.CanonicalHeaderKey(h[0])
			r.Header[name] = append(r.Header[name], h[1])
		}
	}
	return r
}
