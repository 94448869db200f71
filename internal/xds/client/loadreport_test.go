package client

import (
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// loadServer wants loads every interval, and breaks its stream once.
type loadServer struct {
	loadstats.UnimplementedLoadReportingServiceServer
	interval time.Duration
	unknown  bool // answers as a server that does not have the service
	brief    bool // ends each stream after one report

	mu      sync.Mutex
	nodes   []string
	reports []*loadstats.LoadStatsRequest
	streams int
}

func (s *loadServer) StreamLoadStats(stream loadstats.LoadReportingService_StreamLoadStatsServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.streams++
	s.nodes = append(s.nodes, first.GetNode().GetId()+" "+first.GetNode().GetUserAgentName())
	n := s.streams
	s.mu.Unlock()
	if s.unknown {
		return status.Error(codes.Unimplemented, "unknown service")
	}
	if err := stream.Send(&loadstats.LoadStatsResponse{SendAllClusters: true, LoadReportingInterval: durationpb.New(s.interval)}); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.reports = append(s.reports, r)
		s.mu.Unlock()
		if n == 1 || s.brief {
			return nil // the client comes again
		}
	}
}

// sum adds up what was reported of a cluster.
func (s *loadServer) sum(cluster string) map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := map[string]uint64{}
	for _, r := range s.reports {
		for _, c := range r.GetClusterStats() {
			if c.GetClusterName() != cluster {
				continue
			}
			for _, l := range c.GetUpstreamLocalityStats() {
				for _, m := range l.GetLoadMetricStats() {
					sum[m.GetMetricName()] += m.GetNumRequestsFinishedWithMetric()
				}
			}
		}
	}
	return sum
}

func TestLoadsAreReported(t *testing.T) {
	in(t, 1, false, func(e *env) {
		server := &loadServer{interval: 10 * time.Second}
		e.loads = server
		e.start()
		var calls atomic.Uint64
		e.open(func(o *Options) {
			o.Loads = func() []Load {
				if calls.Add(1) == 2 {
					return nil
				}
				return []Load{{Cluster: InboundCluster(9080), Counts: map[string]uint64{MetricMTLS: 2, MetricPlaintext + MetricOf + "10.0.0.9": 1}}}
			}
		})
		if calls.Load() != 0 {
			t.Error("loads are taken before the server has asked for them")
		}
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if calls.Load() != 1 {
			t.Errorf("taken %d times after one interval", calls.Load())
		}
		// The server ends the first stream; the second begins after a pause.
		time.Sleep(time.Minute)
		synctest.Wait()
		n := calls.Load() - 1 // one had nothing to report
		want := map[string]uint64{MetricMTLS: 2 * n, MetricPlaintext + MetricOf + "10.0.0.9": n}
		if got := server.sum("inbound|9080||"); n < 3 || !maps.Equal(got, want) {
			t.Errorf("after %d reports the server has %v, want %v", n, got, want)
		}
		for _, n := range server.nodes {
			if n != "sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local "+UserAgent {
				t.Errorf("node %q", n)
			}
		}
		if len(server.nodes) != 2 {
			t.Errorf("%d streams", len(server.nodes))
		}
	})
}

func TestLoadsNobodyWants(t *testing.T) {
	in(t, 1, false, func(e *env) {
		server := &loadServer{unknown: true}
		e.loads = server
		e.start()
		e.open(func(o *Options) {
			o.Loads = func() []Load { t.Error("loads are taken"); return nil }
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.streams != 1 {
			t.Errorf("asked %d times", server.streams)
		}
	})
}

// A server can not have the process do nothing but report.
func TestReportIntervalIsBounded(t *testing.T) {
	in(t, 1, false, func(e *env) {
		e.loads = &loadServer{} // wants them without a pause
		e.start()
		var calls atomic.Uint64
		e.open(func(o *Options) { o.Loads = func() []Load { calls.Add(1); return nil } })
		time.Sleep(10*minReportInterval + minReportInterval/2)
		synctest.Wait()
		if n := calls.Load(); n != 10 {
			t.Errorf("loads were taken %d times, want 10", n)
		}
	})
}

// Streams that brought a report leave no long pauses behind.
func TestReportsGoOn(t *testing.T) {
	in(t, 1, false, func(e *env) {
		server := &loadServer{interval: time.Second, brief: true}
		e.loads = server
		e.start()
		e.open(func(o *Options) {
			o.Loads = func() []Load {
				return []Load{{Cluster: InboundCluster(1), Counts: map[string]uint64{MetricMTLS: 1}}}
			}
		})
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.streams < 100 { // a second for the report, and one for the pause, 20 % more or less
			t.Errorf("%d streams in five minutes", server.streams)
		}
	})
}
