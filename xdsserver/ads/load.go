package ads

import (
	"math"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	loadv3 "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// The metrics that clients report of their connections, in load_metric_stats of
// a cluster's localities: num_requests_finished_with_metric is how many requests
// since the last report. The cluster is "inbound|PORT||" for requests that the
// client has served on a port, and has its own name for those that it has sent.
//
// A request that was served counts once as MetricMTLS or as MetricPlaintext, in
// the latter case with "|" and the caller's IP address after the name, or without
// where the client keeps no more addresses. One that was sent counts once as
// MetricMTLS or MetricPlaintext.
//
// The other two count beside these, what a rule that is not in force would have
// refused: MetricWouldRefuseStrict, with "|" and the caller's address, and
// MetricWouldRefuseAuthorization, with "|" and the name of the rule.
const (
	MetricMTLS                     = "sinew.mtls"
	MetricPlaintext                = "sinew.plaintext"
	MetricWouldRefuseStrict        = "sinew.would_refuse.strict"
	MetricWouldRefuseAuthorization = "sinew.would_refuse.authorization"
)

const (
	// loadInterval is how often clients are asked to report.
	loadInterval = 10 * time.Second

	// Bounds on what is kept; the identity's bound keeps one workload from pushing
	// out what others have reported.
	maxLoadNodes         = 4096
	maxLoadNodesIdentity = 512
	maxLoadClusters      = 1024 // of a node, each way
	maxLoadDetails       = 64   // callers of a port, and rules
)

// loads is what clients have reported, from the start of the server.
type loads struct {
	now func() time.Time

	mu    sync.Mutex
	nodes map[nodeKey]*nodeLoad
}

type nodeKey struct {
	id   identity.ID
	node string
}

// nodeLoad is what one client has reported.
type nodeLoad struct {
	client      *translate.Client
	since, seen time.Time
	streams     int // open now
	inbound     map[uint32]*portLoad
	outbound    map[string]*clusterLoad
}

// portLoad is what a client has served on one port.
type portLoad struct {
	seen                    time.Time
	mtls, plaintext, strict uint64
	unnamed                 uint64 // plaintext requests of callers that are not in peers
	peers                   map[string]*detailLoad
	rules                   map[string]*detailLoad
}

// clusterLoad is what a client has sent to one cluster.
type clusterLoad struct {
	seen            time.Time
	mtls, plaintext uint64
}

// detailLoad is what came from one caller, or would have been refused by one rule.
type detailLoad struct {
	seen              time.Time
	plaintext, strict uint64
	refused           uint64
}

func newLoads() *loads { return &loads{now: time.Now, nodes: make(map[nodeKey]*nodeLoad)} }

// open makes room for a client that begins to report.
func (l *loads) open(key nodeKey, c *translate.Client) *nodeLoad {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[key]
	if n == nil {
		l.makeRoom(key.id)
		n = &nodeLoad{since: l.now(), inbound: make(map[uint32]*portLoad), outbound: make(map[string]*clusterLoad)}
		l.nodes[key] = n
	}
	n.client, n.seen = c, l.now()
	n.streams++
	return n
}

func (l *loads) close(n *nodeLoad) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.streams--
}

// makeRoom forgets the client that was not seen for the longest, of the identity
// where that has its share, else of all.
func (l *loads) makeRoom(id identity.ID) {
	var own int
	for k := range l.nodes {
		if k.id == id {
			own++
		}
	}
	if len(l.nodes) < maxLoadNodes && own < maxLoadNodesIdentity {
		return
	}
	var oldest nodeKey
	var found *nodeLoad
	for k, n := range l.nodes {
		if own >= maxLoadNodesIdentity && k.id != id {
			continue
		}
		if found == nil || n.seen.Before(found.seen) {
			oldest, found = k, n
		}
	}
	delete(l.nodes, oldest)
}

// add counts a report.
func (l *loads) add(n *nodeLoad, stats []*endpointv3.ClusterStats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.seen = l.now()
	for _, s := range stats {
		port, isInbound := inboundPort(s.GetClusterName())
		for _, loc := range s.GetUpstreamLocalityStats() {
			for _, m := range loc.GetLoadMetricStats() {
				name, detail, _ := strings.Cut(m.GetMetricName(), "|")
				count := m.GetNumRequestsFinishedWithMetric()
				switch {
				case count == 0:
				case isInbound:
					n.served(port, name, detail, count)
				default:
					n.sent(s.GetClusterName(), name, count)
				}
			}
		}
	}
}

// inboundPort reads "inbound|PORT||".
func inboundPort(cluster string) (uint32, bool) {
	rest, ok := strings.CutPrefix(cluster, "inbound|")
	if !ok {
		return 0, false
	}
	digits, ok := strings.CutSuffix(rest, "||")
	if !ok {
		return 0, false
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	return uint32(port), err == nil && port > 0
}

// served counts requests that came in. Metrics that are not known are not ours.
func (n *nodeLoad) served(port uint32, name, detail string, count uint64) {
	switch name {
	case MetricMTLS, MetricPlaintext, MetricWouldRefuseStrict, MetricWouldRefuseAuthorization:
	default:
		return
	}
	p := n.inbound[port]
	if p == nil {
		if len(n.inbound) >= maxLoadClusters {
			return
		}
		p = &portLoad{peers: make(map[string]*detailLoad), rules: make(map[string]*detailLoad)}
		n.inbound[port] = p
	}
	p.seen = n.seen
	switch name {
	case MetricMTLS:
		p.mtls = sum(p.mtls, count)
	case MetricPlaintext:
		p.plaintext = sum(p.plaintext, count)
		if d := keep(p.peers, peerAddress(detail), n.seen); d != nil {
			d.plaintext = sum(d.plaintext, count)
		} else {
			p.unnamed = sum(p.unnamed, count)
		}
	case MetricWouldRefuseStrict:
		p.strict = sum(p.strict, count)
		if d := keep(p.peers, peerAddress(detail), n.seen); d != nil {
			d.strict = sum(d.strict, count)
		}
	case MetricWouldRefuseAuthorization:
		if len(detail) > maxText {
			detail = ""
		}
		if d := keep(p.rules, detail, n.seen); d != nil {
			d.refused = sum(d.refused, count)
		} else if d := keepOther(p.rules, n.seen); d != nil {
			d.refused = sum(d.refused, count)
		}
	}
}

// sent counts requests that went out.
func (n *nodeLoad) sent(cluster, name string, count uint64) {
	if name != MetricMTLS && name != MetricPlaintext || !strings.HasPrefix(cluster, "outbound|") || len(cluster) > 2*maxText {
		return
	}
	c := n.outbound[cluster]
	if c == nil {
		if len(n.outbound) >= maxLoadClusters {
			return
		}
		c = &clusterLoad{}
		n.outbound[cluster] = c
	}
	c.seen = n.seen
	if name == MetricMTLS {
		c.mtls = sum(c.mtls, count)
	} else {
		c.plaintext = sum(c.plaintext, count)
	}
}

// peerAddress gives an address in its one spelling, "" for anything else.
func peerAddress(s string) string {
	if len(s) > maxText {
		return ""
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return ""
	}
	return a.Unmap().String()
}

// keep gives the detail of a name; nil where there is no name, or no room.
func keep(m map[string]*detailLoad, name string, now time.Time) *detailLoad {
	d := m[name]
	if d == nil {
		if name == "" || len(m) >= maxLoadDetails {
			return nil
		}
		d = &detailLoad{}
		m[name] = d
	}
	d.seen = now
	return d
}

// otherRules stands for the rules that there is no room for.
const otherRules = "other"

func keepOther(m map[string]*detailLoad, now time.Time) *detailLoad {
	if m[otherRules] == nil {
		m[otherRules] = &detailLoad{}
	}
	m[otherRules].seen = now
	return m[otherRules]
}

// sum adds without running over.
func sum(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// loadGate is the load reporting service behind a door.
type loadGate struct {
	loadv3.UnimplementedLoadReportingServiceServer
	door
}

// StreamLoadStats takes the reports of one client. As on the other streams, its
// node must be its certificate's.
func (g *loadGate) StreamLoadStats(s loadv3.LoadReportingService_StreamLoadStatsServer) error {
	c, err := g.caller(s.Context())
	if err != nil {
		g.server.refused(&c, nil, err)
		return err
	}
	ctx, cancel := c.until(g.server.ctx)
	defer cancel()
	requests := make(chan *loadv3.LoadStatsRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv() // fails when the stream is over
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	var load *nodeLoad
	var key nodeKey
	for {
		select {
		case <-ctx.Done():
			if g.server.ctx.Err() != nil {
				return status.Error(codes.Unavailable, "the server stops")
			}
			return status.Error(codes.Unavailable, expiredText)
		case r, more := <-requests:
			if !more {
				return nil
			}
			if load == nil || r.GetNode() != nil {
				client, err := clientOf(r.GetNode(), &c)
				if err == nil && load != nil && client.ID != key.node {
					err = status.Error(codes.InvalidArgument, "the node of a stream does not change")
				}
				if err != nil {
					g.server.refused(&c, r.GetNode(), err)
					return err
				}
				if load == nil {
					key = nodeKey{c.id, client.ID}
					load = g.server.loads.open(key, client)
					defer g.server.loads.close(load)
					// To every report the client gets no further answer: one says it all.
					if err := s.Send(&loadv3.LoadStatsResponse{SendAllClusters: true, LoadReportingInterval: durationpb.New(g.server.loadInterval)}); err != nil {
						return err
					}
				}
			}
			g.server.loads.add(load, r.GetClusterStats())
		}
	}
}
