package client

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// minReportInterval bounds how often a server may have loads reported.
const minReportInterval = 100 * time.Millisecond

// The metrics of a Load, which are a contract with the server that reads them.
// What was served counts under InboundCluster, once as MetricMTLS or as
// MetricPlaintext; the latter is followed by MetricOf and the caller's IP address
// while there are not too many of them. What was sent counts under the cluster's
// name. The other two count beside these what a rule that is not in force would
// have refused, followed by the caller's address or the rule's name.
const (
	MetricMTLS                     = "sinew.mtls"
	MetricPlaintext                = "sinew.plaintext"
	MetricWouldRefuseStrict        = "sinew.would_refuse.strict"
	MetricWouldRefuseAuthorization = "sinew.would_refuse.authorization"
	MetricOf                       = "|"
)

// InboundCluster is the cluster of what a process has served on a port, as
// Istio names it: "inbound|9080||".
func InboundCluster(port uint16) string { return "inbound|" + strconv.Itoa(int(port)) + "||" }

// Load is what one cluster, or inbound listener, has seen since the last report.
type Load struct {
	Cluster string
	// Counts are requests by what is counted.
	Counts map[string]uint64
}

// reportLoads reports loads to a server (LRS) until ctx ends. A server that does
// not know the service is not asked again on this connection's watch.
func (c *Client) reportLoads(ctx context.Context, cc *grpc.ClientConn) {
	if c.opts.Loads == nil {
		return
	}
	b := newBackoff()
	for {
		reported, err := c.reportStream(ctx, loadstats.NewLoadReportingServiceClient(cc))
		if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		if reported {
			b.Reset()
		}
		if !sleep(ctx.Done(), b.NextBackOff()) {
			return
		}
	}
}

// reportStream reports over one stream until it ends. Loads that were taken for
// a message that did not go out are lost: they are statistics.
func (c *Client) reportStream(ctx context.Context, service loadstats.LoadReportingServiceClient) (reported bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpc, err := service.StreamLoadStats(ctx)
	if err != nil {
		return false, err
	}
	node := proto.Clone(c.node).(*corev3.Node)
	node.ClientFeatures = append(node.ClientFeatures, "envoy.lrs.supports_send_all_clusters")
	if err := rpc.Send(&loadstats.LoadStatsRequest{Node: node}); err != nil {
		_, err = rpc.Recv() // which has the reason
		return false, err
	}
	intervals := make(chan time.Duration)
	ended := make(chan error, 1)
	go func() {
		for {
			r, err := rpc.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case intervals <- max(r.GetLoadReportingInterval().AsDuration(), minReportInterval):
			case <-ctx.Done():
			}
		}
	}()
	// Nothing is sent before the server has said how often it wants it.
	ticker := time.NewTicker(time.Hour)
	defer ticker.Stop()
	ticker.Stop()
	last := time.Now()
	for {
		select {
		case err := <-ended:
			return reported, err
		case d := <-intervals:
			ticker.Reset(d)
			reported = true
		case now := <-ticker.C:
			loads := c.opts.Loads()
			if len(loads) == 0 {
				continue
			}
			if err := rpc.Send(loadReport(loads, now.Sub(last))); err != nil {
				cancel()
				return reported, <-ended
			}
			last = now
		}
	}
}

// loadReport writes loads as LRS has them: as metrics that requests finished with.
func loadReport(loads []Load, since time.Duration) *loadstats.LoadStatsRequest {
	r := &loadstats.LoadStatsRequest{}
	for _, l := range loads {
		stats := &endpointv3.ClusterStats{ClusterName: l.Cluster, LoadReportInterval: durationpb.New(since)}
		locality := &endpointv3.UpstreamLocalityStats{}
		for name, n := range l.Counts {
			locality.LoadMetricStats = append(locality.LoadMetricStats, &endpointv3.EndpointLoadMetricStats{
				MetricName: name, NumRequestsFinishedWithMetric: n, TotalMetricValue: float64(n),
			})
		}
		slices.SortFunc(locality.LoadMetricStats, func(a, b *endpointv3.EndpointLoadMetricStats) int {
			return cmp.Compare(a.MetricName, b.MetricName)
		})
		stats.UpstreamLocalityStats = []*endpointv3.UpstreamLocalityStats{locality}
		r.ClusterStats = append(r.ClusterStats, stats)
	}
	return r
}
