package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"
)

// process is a child. Commands go to its standard input and answers come from
// its standard output, a line of JSON each; it ends when its input does.
type process struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
}

// start runs the child; its errors and log go to stderr.
func (p *process) start(stderr io.Writer) error {
	p.cmd.Stderr = stderr
	// What a second interrupt of the terminal would kill anyway is asked first.
	p.cmd.Cancel, p.cmd.WaitDelay = func() error { return p.cmd.Process.Signal(os.Interrupt) }, 10*time.Second
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

func (p *process) read(answer any) error {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s has ended: %w", p.name, err)
	}
	var failure struct{ Failure string }
	if err := json.Unmarshal(line, &failure); err != nil {
		return fmt.Errorf("%s says %q: %w", p.name, line, err)
	}
	if failure.Failure != "" {
		return fmt.Errorf("%s: %s", p.name, failure.Failure)
	}
	return json.Unmarshal(line, answer)
}

func (p *process) ask(c command, answer any) error {
	if err := json.NewEncoder(p.in).Encode(c); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return p.read(answer)
}

// stop lets the child end by itself: it may have a profile to write.
func (p *process) stop() {
	if p == nil || p.cmd.Process == nil {
		return
	}
	p.in.Close()
	_, _ = io.Copy(io.Discard, p.out)
	_ = p.cmd.Wait()
}

// pair is a variant's client and server.
type pair struct{ client, server *process }

// pairs are all processes of a comparison.
type pairs struct {
	pairs   map[variant]*pair
	control *process
	folder  string
}

func (p *pairs) stop() {
	for _, one := range p.pairs {
		one.client.stop()
		one.server.stop()
	}
	if p.control != nil && p.control.cmd.Process != nil {
		_ = p.control.cmd.Process.Signal(os.Interrupt)
		p.control.stop()
	}
	if p.folder != "" {
		os.RemoveAll(p.folder)
	}
}

// startPairs starts everything; what it returns is stopped by the caller even after an error.
func startPairs(ctx context.Context, s settings) (*pairs, error) {
	p := &pairs{pairs: make(map[variant]*pair)}
	var err error
	if p.folder, err = os.MkdirTemp("", "overhead"); err != nil {
		return p, err
	}
	if s.profiles != "" {
		if err := os.MkdirAll(s.profiles, 0o755); err != nil {
			return p, err
		}
	}
	bootstrap := func(string) ([]byte, error) { return nil, nil }
	config := filepath.Join(p.folder, "policy")
	if err := os.Mkdir(config, 0o755); err != nil {
		return p, err
	}
	if !s.noControl {
		if bootstrap, err = p.startControlPlane(ctx, s.xdsserver, config); err != nil {
			return p, err
		}
	}
	var services []service
	for _, v := range variants {
		one := new(pair)
		p.pairs[v] = one
		a := assignment{Variant: v, Workers: s.Workers, Size: s.Size, Profiles: s.profiles}
		a.Role = "server"
		if a.Bootstrap, err = bootstrap("server"); err != nil {
			return p, err
		}
		var at started
		if one.server, err = startChild(ctx, a, &at); err != nil {
			return p, err
		}
		a.Role, a.URL = "client", "http://"+at.Address+path
		if v.meshed() && !s.noControl {
			sv := service{Name: v.service(), Port: at.Port}
			services = append(services, sv)
			a.URL = "http://" + sv.Name + ":9080" + path
		}
		if a.Bootstrap, err = bootstrap("client"); err != nil {
			return p, err
		}
		if one.client, err = startChild(ctx, a, &at); err != nil {
			return p, err
		}
	}
	if !s.noControl {
		var b bytes.Buffer
		if err := policy.Execute(&b, services); err != nil {
			return p, err
		}
		if err := os.WriteFile(filepath.Join(config, "policy.yaml"), b.Bytes(), 0o644); err != nil {
			return p, err
		}
	}
	for _, v := range variants {
		var done struct{}
		if err := p.pairs[v].client.ask(command{Do: "reach", For: 30 * time.Second}, &done); err != nil {
			return p, err
		}
	}
	return p, nil
}

// startChild starts this program again for one side of a variant.
func startChild(ctx context.Context, a assignment, at *started) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	p := &process{name: fmt.Sprintf("%s's %s", a.Variant, a.Role), cmd: exec.CommandContext(ctx, self)}
	p.cmd.Env = append(os.Environ(), childVariable+"="+string(b))
	if err := p.start(os.Stderr); err != nil {
		return nil, err
	}
	return p, p.read(at)
}

// startControlPlane runs xdsserver on the folder, and returns what makes
// bootstrap documents for its workloads.
func (p *pairs) startControlPlane(ctx context.Context, program, folder string) (func(workload string) ([]byte, error), error) {
	if program == "" {
		program = filepath.Join(p.folder, "xdsserver")
		build := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/sinew-mesh/sinew/xdsserver")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building xdsserver (--xdsserver names one that is built): %w\n%s", err, out)
		}
	}
	p.control = &process{name: "xdsserver", cmd: exec.CommandContext(ctx, program, "serve", "--config", folder, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")}
	log, err := os.Create(filepath.Join(p.folder, "xdsserver.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := p.control.start(log); err != nil {
		return nil, err
	}
	var at struct{ XDS string }
	if err := p.control.read(&at); err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return func(workload string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, program, "bootstrap", "--server", at.XDS, "--workload", workload)
		b, err := cmd.Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return b, err
	}, nil
}

// service is a mesh variant's server in the policy.
type service struct {
	Name string
	Port int
}

// policy is what a small production service might have.
var policy = template.Must(template.New("policy").Parse(`{{range .}}---
apiVersion: v1
kind: Service
metadata: {name: {{.Name}}, namespace: default}
spec:
  selector: {app: {{.Name}}}
  ports: [{name: http, port: 9080}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: {{.Name}}-v1, namespace: default}
spec:
  address: 127.0.0.1
  ports: {http: {{.Port}}}
  labels: {app: {{.Name}}, version: v1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: {{.Name}}-v2, namespace: default}
spec:
  address: 127.0.0.1
  ports: {http: {{.Port}}}
  labels: {app: {{.Name}}, version: v2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: {{.Name}}, namespace: default}
spec:
  host: {{.Name}}
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: {{.Name}}, namespace: default}
spec:
  hosts: [{{.Name}}]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: {{.Name}}, subset: v2}}]
    timeout: 5s
  - route:
    - {destination: {host: {{.Name}}, subset: v1}, weight: 90}
    - {destination: {host: {{.Name}}, subset: v2}, weight: 10}
    timeout: 5s
    retries: {attempts: 2, retryOn: "connect-failure,refused-stream,503"}
{{end}}`))
