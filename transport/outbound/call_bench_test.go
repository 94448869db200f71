package outbound

import (
	"context"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

// BenchmarkSteps shows one call from Decide to Finish, with one attempt that succeeds.
func BenchmarkSteps(b *testing.B) {
	retry := resilience.DefaultRetryPolicy(resilience.On5xx)
	retry.AvoidPrevious, retry.SelectAttempts = true, 5
	for _, c := range []struct {
		name   string
		retry  *resilience.RetryPolicy
		change func(*snapshot.Snapshot)
	}{
		{"plain", nil, func(*snapshot.Snapshot) {}},
		{"retries", &retry, func(*snapshot.Snapshot) {}},
		{"timeout", nil, func(s *snapshot.Snapshot) { s.Hosts["reviews:80"].VirtualHost.Routes[0].Timeout = time.Minute }},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := New(Options{Subscribe: func(string) {}})
			defer e.Close()
			s := one(b, cluster("c", "a:1", "b:1", "c:1"), c.retry)
			c.change(s)
			e.Install(s)
			header := map[string][]string{"Accept": {"*/*"}, "User-Agent": {"x"}, "Content-Type": {"application/json"}}
			ctx := context.Background()
			o := resilience.Outcome{Status: 200, GRPC: -1}
			var call Call
			var l Lease
			b.ReportAllocs()
			for b.Loop() {
				call = Call{}
				call.Request.Method, call.Request.Scheme, call.Request.Authority, call.Request.Path = "GET", "http", "reviews", "/"
				call.Request.Header = header
				if err := e.Decide(ctx, &call, "reviews", "http"); err != nil {
					b.Fatal(err)
				}
				benchAttempt(b, &call, &l, &o)
				call.Finish(&o)
			}
		})
	}
}

func benchAttempt(b *testing.B, call *Call, l *Lease, o *resilience.Outcome) {
	var try Try
	if err := call.Begin(&try); err != nil {
		b.Fatal(err)
	}
	if err := try.Pick(l, nil); err != nil {
		b.Fatal(err)
	}
	var out Outgoing
	try.Outgoing(l, &out)
	l.Report(o)
	try.Next(o)
	try.Commit()
	l.Release()
}
