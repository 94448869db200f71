// Command overhead shows what the mesh costs beside bare net/http, and beside
// OpenTelemetry's own instrumentation of it, on the machine that it runs on.
//
//	go run ./examples/overhead
//
// Client and server are processes of their own for each of four variants:
//
//	bare       net/http alone
//	mesh       mesh.Client and mesh.Handler, no OpenTelemetry SDK
//	mesh+otel  the same with metrics and a tracer that samples nothing
//	otelhttp   net/http with otelhttp on both sides, under the same SDK
//
// The mesh variants take their policy (a route by header, a weighted route,
// timeout, retries, outlier detection) over xDS from an xdsserver that the
// program builds and starts, as a real service would; with
// --without-control-plane they have a default policy set in code.
//
// The workers of a client send one request after the other (a closed loop).
// Variants take turns within each round, in another order each time, so that
// what else the machine does hits all alike, and each is compared with bare
// net/http in the same round. CPU is user and system time of both processes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// settings are what the flags say.
type settings struct {
	Rounds   int
	Duration time.Duration
	Workers  int
	Size     int

	json      bool
	noControl bool
	xdsserver string
	profiles  string
}

// warmUp is how much of a measurement's length goes before it, uncounted.
const warmUp = 0.25

func main() {
	if os.Getenv(childVariable) != "" {
		os.Exit(childMain())
	}
	s, err := parse(os.Args[1:])
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "overhead:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := compare(ctx, s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "overhead:", err)
		stop()
		os.Exit(1)
	}
	if s.json {
		err = r.writeJSON(os.Stdout)
	} else {
		err = r.writeTable(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "overhead:", err)
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (settings, error) {
	var s settings
	var smoke bool
	f := flag.NewFlagSet("overhead", flag.ContinueOnError)
	f.IntVar(&s.Rounds, "rounds", 8, "`rounds`; each measures every variant once")
	f.DurationVar(&s.Duration, "duration", 2*time.Second, "length of one measurement")
	f.IntVar(&s.Workers, "workers", 8, "`requests` in flight")
	f.IntVar(&s.Size, "size", 1024, "`bytes` of an answer's body")
	f.BoolVar(&s.json, "json", false, "print JSON, with every round")
	f.BoolVar(&s.noControl, "without-control-plane", false, "policy set in code instead of over xDS")
	f.StringVar(&s.xdsserver, "xdsserver", "", "`path` of the xdsserver program; empty builds it with the go command")
	f.StringVar(&s.profiles, "cpuprofile", "", "`folder` for CPU profiles, one for each process; profiling itself costs a few per cent")
	f.BoolVar(&smoke, "smoke", false, "two rounds of 200 ms: shows that it works, and measures nothing")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 {
		return s, fmt.Errorf("%q is not a flag", f.Arg(0))
	}
	if smoke {
		s.Rounds, s.Duration = 2, 200*time.Millisecond
	}
	if s.Rounds < 1 || s.Duration < time.Millisecond || s.Workers < 1 || s.Size < 0 {
		return s, errors.New("rounds, duration and workers must be positive, size not negative")
	}
	return s, nil
}

// compare starts the processes, measures all rounds and stops them.
func compare(ctx context.Context, s settings) (*report, error) {
	p, err := startPairs(ctx, s)
	defer p.stop()
	if err != nil {
		return nil, err
	}
	r := newReport(s)
	for round := range s.Rounds {
		for i := range variants {
			v := variants[(i+round)%len(variants)]
			m, err := p.pairs[v].measure(s.Duration)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", v, round+1, err)
			}
			r.add(v, m)
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// measure runs one variant for a while.
func (p *pair) measure(d time.Duration) (measurement, error) {
	var warm, m measurement
	var before, after usage
	if err := p.client.ask(command{Do: "load", For: time.Duration(float64(d) * warmUp)}, &warm); err != nil {
		return m, err
	}
	if err := p.server.ask(command{Do: "usage"}, &before); err != nil {
		return m, err
	}
	if err := p.client.ask(command{Do: "load", For: d}, &m); err != nil {
		return m, err
	}
	if err := p.server.ask(command{Do: "usage"}, &after); err != nil {
		return m, err
	}
	m.Server = after.since(before)
	if m.Failed > 0 || m.Requests == 0 {
		return m, fmt.Errorf("%d requests succeeded and %d failed: %s", m.Requests, m.Failed, m.Error)
	}
	return m, nil
}
