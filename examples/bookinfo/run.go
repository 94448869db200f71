package main

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// options are the command line's.
type options struct {
	stay      time.Duration
	policy    string
	xdsserver string
	noTour    bool
	out       io.Writer     // nil is standard output
	moveLimit time.Duration // for the live edit of the tour; 0 is 300 ms
}

// errStopped is the end by Ctrl-C before the tour was over.
var errStopped = errors.New("stopped before the end of the tour")

//go:embed policy/*.yaml
var ownPolicy embed.FS

// accessPolicy has the documents that the tour adds, step by step, and takes away again.
//
//go:embed access/*.yaml
var accessPolicy embed.FS

// instances are the services' processes. Where a service has versions, the
// policy tells them apart by the label "version".
var instances = []instance{
	{role: "details", version: "v1", n: 1},
	{role: "details", version: "v2", n: 1},
	{role: "ratings", version: "v1", n: 1},
	{role: "ratings", version: "v2", n: 1},
	{role: "reviews", version: "v1", n: 1},
	{role: "reviews", version: "v1", n: 2},
	{role: "reviews", version: "v2", n: 1},
	{role: "reviews", version: "v3", n: 1},
	{role: "payment-service", version: "v1", n: 1},
	{role: "payment-service", version: "v1", n: 2},
	{role: "checkout-service", version: "v1", n: 1},
	{role: "refund-service", version: "v1", n: 1},
	{role: "productpage", version: "v1", n: 1},
}

type instance struct {
	role, version string
	n             int
}

// name is the workload's name, such as reviews-v1-2.
func (i instance) name() string { return fmt.Sprintf("%s-%s-%d", i.role, i.version, i.n) }

// shop is everything that runs.
type shop struct {
	out  io.Writer
	dir  string // working folder: programs, policy, bootstraps, logs
	self string // this program, which is every service too

	xdsserver string // the program
	xds, http string // its addresses
	collector *collector
	client    *http.Client // a visitor's: it knows nothing of the mesh
	moveLimit time.Duration

	mu        sync.Mutex
	processes map[string]*process // by name; one that was started again has replaced the one before
	died      chan error          // processes that ended by themselves
}

// process is a child that runs.
type process struct {
	name    string
	cmd     *exec.Cmd
	stdin   io.Closer // closing it tells the child to end
	log     string    // file with its error output
	address string    // where it listens
	pid     int       // of the program itself, not of its guard
	exited  chan struct{}

	mu     sync.Mutex
	ending bool // by our wish
}

// bookinfo runs the shop, and the tour through it, until the context or the time ends.
func bookinfo(ctx context.Context, o options) (err error) {
	s := &shop{out: o.out, moveLimit: o.moveLimit, processes: map[string]*process{}, died: make(chan error, len(instances)+1)}
	if s.out == nil {
		s.out = os.Stdout
	}
	if s.moveLimit == 0 {
		s.moveLimit = 300 * time.Millisecond
	}
	s.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	defer s.client.CloseIdleConnections()
	if s.self, err = os.Executable(); err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "bookinfo-"); err != nil {
		return err
	}
	defer func() {
		s.stop()
		err = errors.Join(err, os.RemoveAll(s.dir))
	}()
	if err := s.start(ctx, o); err != nil {
		if ctx.Err() != nil {
			return errStopped
		}
		s.printLogs()
		return err
	}
	began := time.Now()
	if !o.noTour {
		if err = s.tour(ctx); err != nil && !errors.Is(err, errStopped) {
			s.printLogs()
		}
	}
	left := o.stay - time.Since(began)
	if ctx.Err() != nil || o.stay > 0 && (err != nil || left <= 0) {
		return err
	}
	s.printIdeas(left)
	var over <-chan time.Time
	if o.stay > 0 {
		over = time.After(left)
	}
	for {
		select {
		case <-over:
			return err
		case <-ctx.Done():
			fmt.Fprintln(s.out, "\nclosing the shop")
			return err
		case died := <-s.died:
			// Ctrl-C may have ended it, and reach us a moment later.
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
				fmt.Fprintln(s.out, died)
				err = errors.Join(err, died)
			}
		}
	}
}

// start brings everything up, in the order in which one needs the other.
func (s *shop) start(ctx context.Context, o options) error {
	began := time.Now()
	fmt.Fprintf(s.out, "Bookinfo: seven services in %d processes and an xDS server; working folder %s\n", len(instances), s.dir)
	for _, sub := range []string{"bootstrap", "logs", "certificates"} {
		if err := os.Mkdir(filepath.Join(s.dir, sub), 0o700); err != nil {
			return err
		}
	}
	var err error
	if s.xdsserver = o.xdsserver; s.xdsserver == "" {
		if s.xdsserver, err = s.build(ctx); err != nil {
			return err
		}
	}
	if err := s.copyPolicy(ctx, o.policy); err != nil {
		return err
	}
	if s.collector, err = newCollector(); err != nil {
		return err
	}
	if err := s.startServer(ctx); err != nil {
		return err
	}
	for _, i := range instances {
		if err := s.startService(ctx, i, "127.0.0.1:0"); err != nil {
			return err
		}
	}
	if err := s.writeWorkloads(ctx); err != nil {
		return err
	}
	if err := s.ready(ctx); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "open after %s: http://%s/productpage\n\n", time.Since(began).Round(10*time.Millisecond), s.page())
	return nil
}

// build makes the xDS server's program.
func (s *shop) build(ctx context.Context) (string, error) {
	const module = "github.com/sinew-mesh/sinew"
	if found, err := exec.CommandContext(ctx, "go", "list", "-m").Output(); err != nil || !slices.Contains(strings.Fields(string(found)), module) {
		if errors.Is(err, exec.ErrNotFound) {
			return "", errors.New("building the xDS server needs the go command, which is not in PATH; or give a built one with --xdsserver")
		}
		return "", fmt.Errorf("run this in a checkout of %s, so that the xDS server can be built; or give a built one with --xdsserver", module)
	}
	fmt.Fprintln(s.out, "building the xDS server (the first time takes a minute or two)")
	program := filepath.Join(s.dir, "xdsserver")
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, module+"/xdsserver").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the xDS server: %w\n%s", err, out)
	}
	return program, nil
}

// copyPolicy makes the run's own copy of the rules, which the tour may edit.
func (s *shop) copyPolicy(ctx context.Context, from string) error {
	var source fs.FS
	var err error
	if from != "" {
		source = os.DirFS(from)
	} else if source, err = fs.Sub(ownPolicy, "policy"); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(s.dir, "policy"), source); err != nil {
		return fmt.Errorf("copy the policy folder %s: %w", from, err)
	}
	if out, err := exec.CommandContext(ctx, s.xdsserver, "validate", filepath.Join(s.dir, "policy")).CombinedOutput(); err != nil {
		return fmt.Errorf("the policy is not valid: %w\n%s", err, out)
	}
	return nil
}

func (s *shop) policyFile(name string) string { return filepath.Join(s.dir, "policy", name) }

// startServer starts the xDS server, under a guard that ends it with this process.
func (s *shop) startServer(ctx context.Context) error {
	p, line, err := s.startProcess(ctx, "xdsserver", nil, "guard", s.dir, s.xdsserver, "serve",
		"--config", filepath.Join(s.dir, "policy"), "--ca-dir", s.caDir(), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var up struct {
		XDS, HTTP string
		PID       int
	}
	if err := json.Unmarshal(line, &up); err != nil {
		return fmt.Errorf("xdsserver's first line %q: %w", line, err)
	}
	s.xds, s.http, p.address, p.pid = up.XDS, up.HTTP, up.XDS, up.PID
	return nil
}

// caDir is where the xDS server keeps its certificate authority.
func (s *shop) caDir() string { return filepath.Join(s.dir, "ca") }

// startService writes an instance's bootstrap and starts it. With the bootstrap
// comes a token, by which the service gets its first certificate; when it starts
// again it has the certificate in a file.
func (s *shop) startService(ctx context.Context, i instance, listen string) error {
	secret := filepath.Join(s.dir, "certificates", i.name())
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, s.xdsserver, "bootstrap", "--server", s.xds, "--namespace", "default",
		"--workload", i.name(), "--service-account", i.role, "--label", "app="+i.role, "--label", "version="+i.version,
		"--ca-dir", s.caDir(), "--token-file", secret+".token", "--cert-state-file", secret+".state")
	cmd.Stderr = &complaint
	document, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("xdsserver bootstrap: %w\n%s", err, &complaint)
	}
	file := filepath.Join(s.dir, "bootstrap", i.name()+".json")
	if err := os.WriteFile(file, document, 0o644); err != nil {
		return err
	}
	p, line, err := s.startProcess(ctx, i.name(), []string{"GRPC_XDS_BOOTSTRAP=" + file},
		"service", i.role, i.version, i.name(), listen, s.collector.url())
	if err != nil {
		return err
	}
	var ready readyLine
	if err := json.Unmarshal(line, &ready); err != nil {
		return fmt.Errorf("%s's first line %q: %w", i.name(), line, err)
	}
	p.address, p.pid = ready.Listening, p.cmd.Process.Pid
	return nil
}

// startProcess runs this program with the arguments of a child, and returns the
// first line that it prints: it says that the child is up, and where.
func (s *shop) startProcess(ctx context.Context, name string, env []string, args ...string) (*process, []byte, error) {
	p := &process{name: name, log: filepath.Join(s.dir, "logs", name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	p.cmd = exec.Command(s.self, append([]string{childArgument}, args...)...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = log
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	err = p.cmd.Start()
	log.Close() // the child has its own
	if err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.mu.Lock()
	s.processes[name] = p
	s.mu.Unlock()

	first := make(chan []byte, 1)
	go func() {
		lines := bufio.NewReader(stdout)
		line, _ := lines.ReadBytes('\n')
		first <- line
		_, _ = io.Copy(io.Discard, lines)
		err := p.cmd.Wait()
		p.mu.Lock()
		if !p.ending {
			select {
			case s.died <- fmt.Errorf("%s has ended by itself: %v", name, err):
			default:
			}
		}
		p.mu.Unlock()
		close(p.exited)
	}()
	select {
	case line := <-first:
		if len(line) > 0 {
			return p, line, nil
		}
		<-p.exited
		return nil, nil, fmt.Errorf("%s did not start: %v", name, p.cmd.ProcessState)
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-time.After(30 * time.Second):
		return nil, nil, fmt.Errorf("%s does not say where it listens", name)
	}
}

// kill ends a process as a crash would.
func (p *process) kill() error {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// stop ends all children. They end at the end of their input, which comes with
// the end of this process as well, whatever that is.
func (s *shop) stop() {
	all := s.running()
	for _, p := range all {
		p.mu.Lock()
		p.ending = true
		p.mu.Unlock()
		p.stdin.Close()
	}
	patience := time.After(5 * time.Second)
	for _, p := range all {
		select {
		case <-p.exited:
		case <-patience:
			_ = p.cmd.Process.Kill() // it may have ended just now
			<-p.exited
			patience = time.After(time.Second)
		}
	}
	if s.collector != nil {
		s.collector.close()
	}
}

// writeWorkloads tells the xDS server where the services really are.
func (s *shop) writeWorkloads(ctx context.Context) error {
	var b bytes.Buffer
	for _, i := range instances {
		port := s.address(i.name())[len("127.0.0.1:"):]
		name := "http"
		if i.role == "ratings" {
			name = "grpc"
		}
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: %s
spec:
  address: 127.0.0.1
  serviceAccount: %s
  ports:
    %s: %s
  labels:
    app: %s
    version: %s
    security.istio.io/tlsMode: istio # callers use mutual TLS
`, i.name(), i.role, name, port, i.role, i.version)
	}
	if err := replaceFile(s.policyFile("workloads.yaml"), b.Bytes()); err != nil {
		return err
	}
	return s.until(ctx, "the xDS server reads the workloads", func(ctx context.Context) error {
		var status struct{ Policy struct{ Workloads int } }
		if err := s.getJSON(ctx, "http://"+s.http+"/status", nil, &status); err != nil {
			return err
		}
		if status.Policy.Workloads != len(instances) {
			return fmt.Errorf("%d workloads", status.Policy.Workloads)
		}
		return nil
	})
}

// ready waits until every way through the shop is open.
func (s *shop) ready(ctx context.Context) error {
	return s.until(ctx, "the shop opens", func(ctx context.Context) error {
		for _, user := range []string{"", "test-user", "beta-1"} {
			var page productPage
			if err := s.getJSON(ctx, "http://"+s.page()+"/productpage", visitor{user: user}.header(), &page); err != nil {
				return err
			}
			if page.Reviews.Error != "" {
				return errors.New(page.Reviews.Error)
			}
		}
		return nil
	})
}

// until tries until there is no error, for 20 s at most.
func (s *shop) until(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case died := <-s.died:
			return died
		case <-ctx.Done():
			return fmt.Errorf("waited in vain until %s: %w", what, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// running returns the processes, by name.
func (s *shop) running() []*process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.processes), func(a, b *process) int { return strings.Compare(a.name, b.name) })
}

func (s *shop) address(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[name].address
}

func (s *shop) page() string { return s.address("productpage-v1-1") }

// replaceFile puts a file in place as a whole, as good editors do.
func replaceFile(path string, data []byte) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// printLogs shows the end of what each process has logged.
func (s *shop) printLogs() {
	for _, p := range s.running() {
		data, err := os.ReadFile(p.log)
		if err != nil || len(bytes.TrimSpace(data)) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(s.out, "--- log of %s\n%s\n", p.name, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
}

func (s *shop) printIdeas(left time.Duration) {
	how := "until Ctrl-C"
	if left > 0 {
		how = "for another " + left.Round(time.Second).String()
	}
	fmt.Fprintln(s.out)
	for _, p := range s.running() {
		fmt.Fprintf(s.out, "  %-22s %-16s pid %d\n", p.name, p.address, p.pid)
	}
	fmt.Fprintf(s.out, `
The shop stays open %s. Ideas:
  curl http://%s/productpage                        # most visitors: reviews v1
  curl -H 'user: test-user' http://%s/productpage   # reviews v2, ratings v2
  curl http://%s/trace                              # the span tree of the last request
  curl http://%s/debug/mesh/                        # policy, clusters and endpoints as productpage sees them
  curl -X POST 'http://%s/fail?for=30s'             # a payment instance fails for 30 s;
  curl http://%s/buy                                #   buyers do not notice,
  curl -H 'retries: off' http://%s/buy              #   without retries they do
  curl http://%s/checkout                           # a payment by way of checkout-service: who paid?
  %s status --http %s
Edit a rule in %s
and see what the next request does. End a service, or the xDS server, and see what does not.
`, how, s.page(), s.page(), s.collector.address(), s.page(), s.address("payment-service-v1-1"), s.page(), s.page(), s.page(),
		s.xdsserver, s.http, filepath.Join(s.dir, "policy"))
}
