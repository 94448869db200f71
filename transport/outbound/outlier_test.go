package outbound

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing/lb"
)

func addresses(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("e", i)
	}
	return out
}

// compared is a rule that looks at rates only.
func compared(o resilience.Outlier) *snapshot.Cluster {
	if o.Interval == 0 {
		o.Interval = 10 * time.Second
	}
	o.BaseEjectionTime, o.MaxEjectionTime = 30*time.Second, 300*time.Second
	c := cluster("c", addresses(5)...)
	c.Outlier = &o
	return c
}

func outcomes(c *Cluster, address string, ok, bad int, failure resilience.Failure) {
	for i := range ok + bad {
		o := resilience.Outcome{Status: 200, GRPC: -1}
		if i >= ok {
			o = resilience.Outcome{Status: 500, GRPC: -1}
			if failure != resilience.NoFailure {
				o = resilience.Outcome{GRPC: -1, Failure: failure}
			}
		}
		c.report(c.current.Load(), c.known[address], &o, 0, 0)
	}
}

func TestRatesEject(t *testing.T) {
	for _, row := range []struct {
		name    string
		rule    resilience.Outlier
		ok, bad int // at e4; the others have 200 and 0
		failure resilience.Failure
		why     string // "" where it is not ejected
	}{
		{"success rate", resilience.Outlier{EnforcingSuccessRate: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, 0, "success_rate"},
		{"not enforced", resilience.Outlier{EnforcingFailurePercentage: 1, FailurePercentageThreshold: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, 0, ""},
		{"too few requests", resilience.Outlier{EnforcingSuccessRate: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 201, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, 0, ""},
		{"too few endpoints", resilience.Outlier{EnforcingSuccessRate: 100, SuccessRateMinimumHosts: 6, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, 0, ""},
		{"too many ejected", resilience.Outlier{EnforcingSuccessRate: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 19}, 100, 100, 0, ""},
		{"failure percentage", resilience.Outlier{EnforcingFailurePercentage: 100, FailurePercentageThreshold: 50, FailurePercentageMinimumHosts: 5, FailurePercentageRequestVolume: 50, MaxEjectionPercent: 20}, 100, 100, 0, "failure_percentage"},
		{"below it", resilience.Outlier{EnforcingFailurePercentage: 100, FailurePercentageThreshold: 51, FailurePercentageMinimumHosts: 5, FailurePercentageRequestVolume: 50, MaxEjectionPercent: 20}, 100, 100, 0, ""},
		{"found on this side", resilience.Outlier{EnforcingSuccessRate: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, resilience.ConnectFailure, "success_rate"},
		{"apart", resilience.Outlier{SplitLocalOrigin: true, EnforcingLocalOriginSuccessRate: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, resilience.ConnectFailure, "success_rate_local_origin"},
		{"apart, a response is no local failure", resilience.Outlier{SplitLocalOrigin: true, EnforcingLocalOriginSuccessRate: 100, SuccessRateMinimumHosts: 5, SuccessRateRequestVolume: 100, SuccessRateStdevFactor: 1900, MaxEjectionPercent: 20}, 100, 100, 0, ""},
		{"apart, by percentage", resilience.Outlier{SplitLocalOrigin: true, EnforcingFailurePercentageLocalOrigin: 100, FailurePercentageThreshold: 50, FailurePercentageMinimumHosts: 5, FailurePercentageRequestVolume: 50, MaxEjectionPercent: 20}, 100, 100, resilience.Reset, "failure_percentage_local_origin"},
	} {
		synctest.Test(t, func(t *testing.T) {
			obs := &outOfUse{out: map[string]bool{}}
			// The draw that only a share of 100 % enforces.
			e, c := live(t, Options{Observer: obs, Draw: func() uint64 { return math.MaxUint64 }}, compared(row.rule))
			defer e.Close()
			round := func() {
				for i := range 4 {
					outcomes(c, fmt.Sprint("e", i), 200, 0, 0)
				}
				outcomes(c, "e4", row.ok, row.bad, row.failure)
			}
			round()
			time.Sleep(9 * time.Second)
			if obs.is("e4") {
				t.Errorf("%s: ejected before the interval was over", row.name)
			}
			time.Sleep(2 * time.Second)
			if obs.is("e4") != (row.why != "") || row.why != "" && !slices.Equal(obs.why, []string{row.why}) {
				t.Errorf("%s: ejected %v for %v, want %q", row.name, obs.out, obs.why, row.why)
			}
			for i := range 4 {
				if obs.is(fmt.Sprint("e", i)) {
					t.Errorf("%s: e%d is ejected", row.name, i)
				}
			}
			// Each interval is looked at by itself, and the ejection ends.
			time.Sleep(45 * time.Second)
			if obs.is("e4") {
				t.Errorf("%s: still ejected", row.name)
			}
			outcomes(c, "e4", 0, 30, row.failure)
			time.Sleep(11 * time.Second)
			if obs.is("e4") {
				t.Errorf("%s: the requests of an earlier interval were counted again", row.name)
			}
		})
	}
}

// TestRecordedRounds: gRPC's ejections, at the live cluster.
func TestRecordedRounds(t *testing.T) {
	var recorded struct {
		Rounds []struct {
			Name   string
			Config struct {
				Max  uint32                                                                         `json:"MaxEjectionPercent"`
				Fail struct{ EnforcementPercentage, MinimumHosts, RequestVolume, Threshold uint32 } `json:"FailurePercentageEjection"`
			}
			Hosts   int
			Failing int `json:"failing_hosts"`
			Calls   int `json:"calls_per_host"`
			Ejected int
		} `json:"ejection_rounds"`
	}
	conformance.Load(t, "grpc-facts/outlier_detection.json", &recorded)
	tally := conformance.Deciding(t, "grpc-facts/outlier_detection.json#ejection_rounds")
	for _, r := range recorded.Rounds {
		synctest.Test(t, func(t *testing.T) {
			config := cluster("c", addresses(r.Hosts)...)
			config.Outlier = &resilience.Outlier{
				EnforcingFailurePercentage: r.Config.Fail.EnforcementPercentage, FailurePercentageThreshold: r.Config.Fail.Threshold,
				FailurePercentageMinimumHosts: r.Config.Fail.MinimumHosts, FailurePercentageRequestVolume: r.Config.Fail.RequestVolume,
				MaxEjectionPercent: r.Config.Max, Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second, MaxEjectionTime: 300 * time.Second,
			}
			e, c := live(t, Options{}, config)
			defer e.Close()
			for i := range r.Hosts {
				bad := 0
				if i >= r.Hosts-r.Failing {
					bad = r.Calls
				}
				outcomes(c, fmt.Sprint("e", i), r.Calls-bad, bad, 0)
			}
			time.Sleep(11 * time.Second)
			if c.ejected != r.Ejected {
				tally.Differs(t, r.Name)
				return
			}
			tally.Pass()
		})
	}
	tally.Check(t, "grpc-facts/outlier_detection.json#ejection_rounds", 3, 1)
}

// oracle is what a cluster has to have after a series of sets, computed anew each time.
type oracle struct {
	all     []lb.Endpoint
	ejected map[string]bool
}

func (o *oracle) usable() []string {
	seen, out := map[string]bool{}, []string{}
	for _, e := range o.all {
		if !seen[e.Address] && e.Health == lb.Healthy && !o.ejected[e.Address] && e.Priority == 0 {
			out = append(out, e.Address)
		}
		seen[e.Address] = true
	}
	slices.Sort(out)
	return out
}

// updates plays a script of sets and ejections.
func updates(t *testing.T, script []byte) {
	config := cluster("c")
	config.Outlier = outlierRule()
	config.Outlier.MaxEjectionPercent = 100
	config.Outlier.Consecutive5xx = 1
	e := New(Options{})
	defer e.Close()
	want := oracle{ejected: map[string]bool{}}
	install := func() {
		e.Install(&snapshot.Snapshot{Clusters: map[string]*snapshot.Cluster{"c": with(config, slices.Clone(want.all))}})
		there := map[string]bool{}
		for _, end := range want.all {
			there[end.Address] = true
		}
		for address := range want.ejected {
			if !there[address] {
				delete(want.ejected, address)
			}
		}
	}
	install()
	c := e.view.Load().clusters["c"]
	for len(script) >= 3 {
		op, x, y := script[0], script[1], script[2]
		script = script[3:]
		address := fmt.Sprint("e", x%32)
		switch op % 5 {
		case 0, 1:
			end := lb.Endpoint{Address: address, Weight: uint32(y%4) + 1, Health: lb.Health(y >> 2 & 3), Priority: uint32(y >> 7)}
			if at := int(y); at <= len(want.all) {
				want.all = slices.Insert(want.all, at, end)
			} else {
				want.all = append(want.all, end)
			}
		case 2:
			want.all = slices.DeleteFunc(want.all, func(end lb.Endpoint) bool { return end.Address == address })
		case 3:
			if end := c.known[address]; end != nil {
				eject(c, address, 1)
				want.ejected[address] = true
			}
			continue
		default:
			if n := len(want.all); n > 1 {
				i, j := int(x)%n, int(y)%n
				want.all[i], want.all[j] = want.all[j], want.all[i]
			}
		}
		install()
	}
	s, got := c.current.Load(), []string{}
	distinct := map[string]bool{}
	for _, end := range want.all {
		distinct[end.Address] = true
	}
	if len(c.known) != len(distinct) || s.picker.Len() != len(distinct) {
		t.Fatalf("%d endpoints are known and %d in the picker, want %d", len(c.known), s.picker.Len(), len(distinct))
	}
	if health := s.picker.Health(); len(health) > 0 && int(health[0].Healthy) != len(want.usable()) {
		t.Fatalf("%d are healthy, want %v", health[0].Healthy, want.usable())
	}
	s.slots.all(func(end *Endpoint) {
		if s.slots.at(end.slot) != end || c.known[end.Address] != end {
			t.Fatalf("slot %d has another endpoint than %s", end.slot, end.Address)
		}
		if end.ejected.Load() != want.ejected[end.Address] {
			t.Fatalf("%s: ejected %v", end.Address, end.ejected.Load())
		}
	})
	if usable := want.usable(); len(usable) > 0 {
		random := rand.New(rand.NewPCG(1, 1))
		seen := map[string]bool{}
		for range 200 * len(usable) {
			q := pickQuery{Draw: random.Uint64(), Excluded: 1 << 1}
			if end, s, err := c.pick(&q); err == nil {
				if q.Priority == 0 && end.spec.Load().Health == lb.Healthy {
					seen[end.Address] = true
				}
				_ = s
				end.release()
			}
		}
		for address := range seen {
			got = append(got, address)
		}
		slices.Sort(got)
		if !slices.Equal(got, usable) {
			t.Fatalf("picks %v, want %v", got, usable)
		}
	}
}

func TestUpdatesAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(8, 8))
	for range 100 {
		script := make([]byte, 3*random.IntN(80))
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		updates(t, script)
	}
}

func FuzzUpdates(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 2, 0, 3, 1, 0, 2, 2, 0, 4, 0, 1})
	f.Add([]byte{0, 1, 0, 3, 1, 0, 2, 1, 0, 0, 1, 0, 0, 1, 128})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) <= 300 {
			updates(t, script)
		}
	})
}
