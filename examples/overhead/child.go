package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
)

// childVariable makes a process one side of a variant; its value is an assignment.
const childVariable = "SINEW_OVERHEAD_CHILD"

type assignment struct {
	Role      string // "client" or "server"
	Variant   variant
	URL       string // the client's target
	Workers   int
	Size      int
	Bootstrap []byte // nil: no control plane
	Profiles  string
}

// started is a child's first line.
type started struct {
	Address string `json:",omitempty"`
	Port    int    `json:",omitempty"`
}

type command struct {
	Do  string // "reach", "load" or "usage"
	For time.Duration
}

// path is what every request asks for.
const path = "/reviews/0"

// childMain runs a child until its input ends.
func childMain() int {
	// The parent tells its children when to end, and is interrupted itself.
	signal.Ignore(os.Interrupt)
	if err := child(os.Stdin, os.Stdout); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"Failure": err.Error()})
		return 1
	}
	return 0
}

func child(in io.Reader, out io.Writer) error {
	var a assignment
	if err := json.Unmarshal([]byte(os.Getenv(childVariable)), &a); err != nil {
		return err
	}
	if a.Profiles != "" {
		f, err := os.Create(filepath.Join(a.Profiles, fmt.Sprintf("%s-%s.pprof", a.Variant, a.Role)))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	side, err := newSide(&a)
	if err != nil {
		return err
	}
	defer side.close()
	var at started
	var load *load
	if a.Role == "server" {
		lis, err := side.listen()
		if err != nil {
			return err
		}
		server := &http.Server{Handler: side.handler(answer(a.Size)), ReadHeaderTimeout: 10 * time.Second}
		go func() { _ = server.Serve(lis) }()
		defer server.Close()
		at = started{Address: lis.Addr().String(), Port: lis.Addr().(*net.TCPAddr).Port}
	} else {
		load = newLoad(side.client(), a.URL, a.Workers)
	}
	reply := json.NewEncoder(out)
	if err := reply.Encode(at); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		var answer any
		switch c.Do {
		case "usage":
			answer = usageNow()
		case "load":
			answer = load.run(c.For)
		case "reach":
			if err := load.reach(c.For); err != nil {
				return err
			}
			answer = struct{}{}
		default:
			return fmt.Errorf("unknown command %q", c.Do)
		}
		if err := reply.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

// answer is the server's own work.
func answer(size int) http.HandlerFunc {
	body := make([]byte, size)
	for i := range body {
		body[i] = 'x'
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(body)
	}
}

// load sends requests with a number of workers.
type load struct {
	client  *http.Client
	url     string
	workers []worker
}

type worker struct {
	times    histogram
	requests uint64
	failed   uint64
	err      error // the last
	buffer   [4096]byte
}

func newLoad(c *http.Client, url string, workers int) *load {
	return &load{client: c, url: url, workers: make([]worker, workers)}
}

// once sends one request and reads the answer.
func (l *load) once(w *worker) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, l.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("End-User", "alice")
	resp, err := l.client.Do(req)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = resp.Body.Read(w.buffer[:])
	}
	resp.Body.Close()
	if err != io.EOF {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// reach waits until a request succeeds: the policy may still be on its way.
func (l *load) reach(limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := l.once(&l.workers[0])
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not reached within %s: %w", limit, err)
		}
	}
}

// measurement is what a client and its server did within one time.
type measurement struct {
	Requests uint64
	Failed   uint64        `json:",omitempty"`
	Error    string        `json:",omitempty"` // the last
	Took     time.Duration // of the load
	P50, P99 time.Duration
	Client   usage
	Server   usage
}

// run loads the server for a while.
func (l *load) run(d time.Duration) measurement {
	var over atomic.Bool
	var running sync.WaitGroup
	for i := range l.workers {
		w := &l.workers[i]
		w.times, w.requests, w.failed, w.err = histogram{}, 0, 0, nil
	}
	before, began := usageNow(), time.Now()
	for i := range l.workers {
		w := &l.workers[i]
		running.Go(func() {
			for last := time.Now(); !over.Load(); {
				err := l.once(w)
				now := time.Now()
				if err == nil {
					w.requests++
					w.times.add(now.Sub(last))
				} else {
					w.failed, w.err = w.failed+1, err
				}
				last = now
			}
		})
	}
	timer := time.AfterFunc(d, func() { over.Store(true) })
	running.Wait()
	timer.Stop()
	m := measurement{Took: time.Since(began), Client: usageNow().since(before)}
	var times histogram
	for i := range l.workers {
		w := &l.workers[i]
		m.Requests += w.requests
		m.Failed += w.failed
		if w.err != nil {
			m.Error = w.err.Error()
		}
		times.merge(&w.times)
	}
	m.P50, m.P99 = times.quantile(0.50), times.quantile(0.99)
	return m
}

// usage is what a process has used, or used between two moments.
type usage struct {
	CPU    time.Duration // user and system; zero where the system does not tell
	Allocs uint64        // heap objects
	Bytes  uint64        // of heap objects
}

func usageNow() usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{CPU: cpuTime(), Allocs: m.Mallocs, Bytes: m.TotalAlloc}
}

func (u usage) since(before usage) usage {
	return usage{CPU: u.CPU - before.CPU, Allocs: u.Allocs - before.Allocs, Bytes: u.Bytes - before.Bytes}
}
