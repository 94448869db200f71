package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test's own program be the children that compare starts.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(childMain())
	}
	os.Exit(m.Run())
}

// TestComparison runs everything once, processes and control plane included.
func TestComparison(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"over xDS", []string{"--smoke"}},
		{"policy in code", []string{"--smoke", "--without-control-plane", "--workers", "2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := parse(c.args)
			if err != nil {
				t.Fatal(err)
			}
			s.profiles = t.TempDir()
			r, err := compare(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			var table, document bytes.Buffer
			if err := r.writeTable(&table); err != nil {
				t.Fatal(err)
			}
			t.Logf("\n%s", &table)
			if err := r.writeJSON(&document); err != nil {
				t.Fatal(err)
			}
			var back struct {
				Variants map[variant]struct {
					CPUPerRequest, RequestsPerSecond struct{ Median float64 }
					TimesBare                        *struct{ CPUPerRequest spread }
					Rounds                           []measurement
				}
			}
			if err := json.Unmarshal(document.Bytes(), &back); err != nil {
				t.Fatal(err)
			}
			for _, v := range variants {
				j := back.Variants[v]
				if len(j.Rounds) != 2 || j.RequestsPerSecond.Median <= 0 || j.Rounds[1].P50 <= 0 || j.Rounds[1].P99 < j.Rounds[1].P50 ||
					j.Rounds[0].Client.Allocs == 0 || j.Rounds[0].Server.Allocs == 0 {
					t.Errorf("%s: %+v", v, j)
				}
				if (j.TimesBare == nil) != (v == bare) {
					t.Errorf("%s: compared with bare: %v", v, j.TimesBare)
				}
				if cpuTime() > 0 && (j.CPUPerRequest.Median <= 0 || v != bare && j.TimesBare.CPUPerRequest.Median <= 0) {
					t.Errorf("%s: no CPU time", v)
				}
				for _, role := range []string{"client", "server"} {
					name := s.profiles + "/" + string(v) + "-" + role + ".pprof"
					if info, err := os.Stat(name); err != nil || info.Size() == 0 {
						t.Errorf("profile %s: %v", name, err)
					}
				}
			}
		})
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args []string
		err  string
	}{
		{[]string{"--rounds", "0"}, "must be positive"},
		{[]string{"--duration", "0s"}, "must be positive"},
		{[]string{"more"}, "not a flag"},
		{nil, ""},
	} {
		_, err := parse(c.args)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v: error %v, want %q", c.args, err, c.err)
		}
	}
}

// TestQuantiles holds the buckets against a sorted list.
func TestQuantiles(t *testing.T) {
	draw := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var a, b histogram
		var all []time.Duration
		for range 1 + draw.IntN(2000) {
			d := time.Duration(draw.ExpFloat64() * float64(time.Millisecond))
			if draw.IntN(10) == 0 {
				d = time.Duration(draw.IntN(100))
			}
			all = append(all, d)
			if h := []*histogram{&a, &b}[draw.IntN(2)]; true {
				h.add(d)
			}
		}
		a.merge(&b)
		slices.Sort(all)
		for _, q := range []float64{0, 0.5, 0.99, 1} {
			// The bucket of the last duration that the quantile may be.
			exact := all[max(int(q*float64(len(all)))-1, 0)]
			got := a.quantile(q)
			if got <= exact || float64(got) > float64(exact)*1.017+1 {
				t.Fatalf("quantile %v of %d is %s, want a little over %s", q, len(all), got, exact)
			}
		}
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{9, 1}, spread{1, 5, 9}},
		{[]float64{9, 1, 2}, spread{1, 2, 9}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
	r := newReport(settings{})
	for i := range uint64(3) {
		r.add(bare, measurement{Requests: 10, Took: time.Second, Client: usage{CPU: 100}, Server: usage{CPU: 100}})
		r.add(plain, measurement{Requests: 10, Took: time.Second, Client: usage{CPU: 100 * time.Duration(i)}, Server: usage{CPU: 200}})
	}
	if got := r.ratio(plain, (*measurement).cpu); got != (spread{1, 1.5, 2}) {
		t.Errorf("ratio %v, want each round against bare in the same round", got)
	}
	if got := r.ratio(plain, (*measurement).throughput); got != (spread{1, 1, 1}) {
		t.Errorf("throughput %v", got)
	}
}
