package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// report is all that was measured.
type report struct {
	Settings settings
	CPUs     int
	Go       string
	Policy   string
	Rounds   map[variant][]measurement
}

func newReport(s settings) *report {
	r := &report{
		Settings: s, CPUs: runtime.GOMAXPROCS(0), Go: fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH),
		Policy: "over xDS", Rounds: make(map[variant][]measurement),
	}
	if s.noControl {
		r.Policy = "set in code"
	}
	return r
}

func (r *report) add(v variant, m measurement) { r.Rounds[v] = append(r.Rounds[v], m) }

// What is compared, for each request or second.
func (m *measurement) throughput() float64 { return float64(m.Requests) / m.Took.Seconds() }
func (m *measurement) cpu() float64 {
	return float64(m.Client.CPU+m.Server.CPU) / float64(m.Requests)
}
func (m *measurement) clientCPU() float64    { return float64(m.Client.CPU) / float64(m.Requests) }
func (m *measurement) serverCPU() float64    { return float64(m.Server.CPU) / float64(m.Requests) }
func (m *measurement) clientAllocs() float64 { return float64(m.Client.Allocs) / float64(m.Requests) }
func (m *measurement) serverAllocs() float64 { return float64(m.Server.Allocs) / float64(m.Requests) }
func (m *measurement) clientBytes() float64  { return float64(m.Client.Bytes) / float64(m.Requests) }
func (m *measurement) serverBytes() float64  { return float64(m.Server.Bytes) / float64(m.Requests) }
func (m *measurement) p50() float64          { return float64(m.P50) }
func (m *measurement) p99() float64          { return float64(m.P99) }

// spread is how a figure varied over the rounds.
type spread struct{ Min, Median, Max float64 }

func spreadOf(values []float64) spread {
	slices.Sort(values)
	n := len(values)
	return spread{Min: values[0], Median: (values[(n-1)/2] + values[n/2]) / 2, Max: values[n-1]}
}

// figure is the spread of a variant's own values.
func (r *report) figure(v variant, of func(*measurement) float64) spread {
	var values []float64
	for i := range r.Rounds[v] {
		values = append(values, of(&r.Rounds[v][i]))
	}
	return spreadOf(values)
}

// ratio is the spread of what a variant has to bare net/http in the same round.
func (r *report) ratio(v variant, of func(*measurement) float64) spread {
	var values []float64
	for i := range r.Rounds[v] {
		values = append(values, of(&r.Rounds[v][i])/of(&r.Rounds[bare][i]))
	}
	return spreadOf(values)
}

// measured reports whether the system tells CPU time.
func (r *report) measured() bool { return r.Rounds[bare][0].Server.CPU > 0 }

const noCPU = "This system does not tell the CPU time of a process: CPU per request is not shown."

func (r *report) writeTable(out io.Writer) error {
	s := r.Settings
	fmt.Fprintf(out, "%d rounds of %s, %d workers, answers of %d bytes, %d CPUs, %s, policy %s\n\n", s.Rounds, s.Duration, s.Workers, s.Size, r.CPUs, r.Go, r.Policy)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "median of the rounds\treq/s\tp50\tp99\tCPU/req\tclient\tserver\tallocs/req: client\tserver\tbytes/req: client\tserver\t")
	for _, v := range variants {
		cpu := func(of func(*measurement) float64) string {
			if !r.measured() {
				return "-"
			}
			return micros(r.figure(v, of).Median)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%s\t%s\t%s\t%s\t%s\t%.1f\t%.1f\t%.0f\t%.0f\t\n", v, r.figure(v, (*measurement).throughput).Median,
			micros(r.figure(v, (*measurement).p50).Median), micros(r.figure(v, (*measurement).p99).Median),
			cpu((*measurement).cpu), cpu((*measurement).clientCPU), cpu((*measurement).serverCPU),
			r.figure(v, (*measurement).clientAllocs).Median, r.figure(v, (*measurement).serverAllocs).Median,
			r.figure(v, (*measurement).clientBytes).Median, r.figure(v, (*measurement).serverBytes).Median)
	}
	fmt.Fprintln(w, "\t\t\t\t\t\t\t\t\t\t\t")
	fmt.Fprintln(w, "times bare, same round\tCPU/req\treq/s\tp50\tp99\t")
	for _, v := range variants[1:] {
		cpu := "-"
		if r.measured() {
			cpu = r.ratio(v, (*measurement).cpu).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", v, cpu, r.ratio(v, (*measurement).throughput),
			r.ratio(v, (*measurement).p50), r.ratio(v, (*measurement).p99))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "\nRatios are min..median..max over the rounds; wide ones tell of a busy machine.")
	if err == nil && !r.measured() {
		_, err = fmt.Fprintln(out, noCPU)
	}
	return err
}

func (s spread) String() string { return fmt.Sprintf("%.2f..%.2f..%.2f", s.Min, s.Median, s.Max) }

func micros(ns float64) string {
	return time.Duration(ns).Round(100 * time.Nanosecond).String()
}

// variantJSON is a variant in the JSON report. Times are nanoseconds.
type variantJSON struct {
	CPU        *spread       `json:"cpuPerRequest,omitempty"`
	Throughput spread        `json:"requestsPerSecond"`
	P50        spread        `json:"p50"`
	P99        spread        `json:"p99"`
	Allocs     spreads       `json:"allocsPerRequest"`
	Ratio      *ratioJSON    `json:"timesBare,omitempty"`
	Rounds     []measurement `json:"rounds"`
}

type spreads struct{ Client, Server spread }

type ratioJSON struct {
	CPU        *spread `json:"cpuPerRequest,omitempty"`
	Throughput spread  `json:"requestsPerSecond"`
	P50        spread  `json:"p50"`
	P99        spread  `json:"p99"`
}

func (r *report) writeJSON(out io.Writer) error {
	byName := make(map[variant]variantJSON)
	for _, v := range variants {
		j := variantJSON{
			Throughput: r.figure(v, (*measurement).throughput), P50: r.figure(v, (*measurement).p50), P99: r.figure(v, (*measurement).p99),
			Allocs: spreads{r.figure(v, (*measurement).clientAllocs), r.figure(v, (*measurement).serverAllocs)},
			Rounds: r.Rounds[v],
		}
		if v != bare {
			j.Ratio = &ratioJSON{
				Throughput: r.ratio(v, (*measurement).throughput), P50: r.ratio(v, (*measurement).p50), P99: r.ratio(v, (*measurement).p99),
			}
		}
		if r.measured() {
			cpu := r.figure(v, (*measurement).cpu)
			j.CPU = &cpu
			if j.Ratio != nil {
				ratio := r.ratio(v, (*measurement).cpu)
				j.Ratio.CPU = &ratio
			}
		}
		byName[v] = j
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{"settings": r.Settings, "cpus": r.CPUs, "go": r.Go, "policy": r.Policy, "variants": byName})
}
