package outbound

import (
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// Lease is a hold on an endpoint for one attempt.
type Lease struct {
	endpoint *Endpoint
	state    *clusterState
	security *snapshot.ClientTLS
	began    time.Duration // since the cluster's epoch, where its policy asks for latencies
	channel  channel
}

// Endpoint returns the endpoint that the lease holds; nil where it holds none.
func (l *Lease) Endpoint() *Endpoint { return l.endpoint }

// Wire returns the adapter's state for the endpoint's cluster.
func (l *Lease) Wire() Wire { return l.state.wire }

// Security returns how the connection to the endpoint is secured; nil means
// plaintext. It is a value of the configuration that Wire was made from.
func (l *Lease) Security() *snapshot.ClientTLS { return l.security }

// Report counts the attempt's outcome for the endpoint; its latency is the time
// since Pick. It is called once, while the lease holds the endpoint. It returns
// the time where the cluster's policy asks for latencies, else zero.
func (l *Lease) Report(o *resilience.Outcome) (now time.Time) {
	cluster := l.state.cluster
	cluster.usage.count(l.channel, o)
	var since, took time.Duration
	if l.state.timed {
		now = time.Now()
		since = now.Sub(cluster.epoch)
		took = max(1, since-l.began)
	}
	cluster.report(l.state, l.endpoint, o, since, took)
	return now
}

// WantsLoad reports whether what the endpoint says of its load counts.
func (l *Lease) WantsLoad() bool {
	return l.endpoint != nil && l.state.config.LB.Kind == lb.ClientWeighted
}

// ReportLoad takes what the endpoint said of its load after Report, in a
// trailer; before it, Outcome.Load has it. It is called while the lease holds the endpoint.
func (l *Lease) ReportLoad(r *lb.LoadReport) {
	if r != nil && l.endpoint != nil {
		l.state.cluster.reportLoad(l.endpoint, r)
	}
}

// Release frees the endpoint of this attempt. It may be called again.
func (l *Lease) Release() {
	if l.endpoint != nil {
		l.endpoint.release()
		l.endpoint = nil
	}
}
