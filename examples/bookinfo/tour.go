package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// step is one thing that the mesh does, shown and checked.
type step struct {
	name     string
	expected string
	// run returns what it has seen: a line for the table, and perhaps more lines to print under it.
	run func(ctx context.Context) (observed string, err error)
}

// tour runs the steps and prints a table of them. The error names those that failed.
func (s *shop) tour(ctx context.Context) error {
	steps := []step{
		{"weights", fmt.Sprintf("reviews v2 gets %s of %d", span4(samples, 0.1), samples), s.weights},
		{"header route", "test-user gets v2, beta-* v3", s.headers},
		{"retries", "no buyer notices a failing payment", s.retries},
		{"ejection", "a killed reviews v1 is out, then back", s.ejection},
		{"SMI TrafficSplit", fmt.Sprintf("details-v2 gets %s of %d", span4(samples, 0.2), samples), s.trafficSplit},
		{"live edit", fmt.Sprintf("traffic moves in < %s", s.moveLimit), s.liveEdit},
		{"gRPC on mesh:///", "ratings v1, and v2 for test-user", s.grpcRoutes},
		{"one trace", "one tree over 4 processes", s.trace},
		{"PERMISSIVE", "one port: plaintext and mutual TLS", s.permissive},
		{"STRICT", "plaintext refused, mutual TLS not", s.strict},
		{"authorization", "payment for checkout and refund only", s.authorization},
	}
	edited := s.policyFile("virtualservice-reviews.yaml")
	before, err := os.ReadFile(edited)
	if err != nil {
		return fmt.Errorf("the tour needs the file: %w", err)
	}
	began := time.Now()
	const row = "%-4s %-17s %-37s %-53s %-4s %7s\n"
	fmt.Fprintf(s.out, row, "step", "what", "expected", "observed", "", "took")
	var failures []string
	held := 0
	for i, step := range steps {
		stepBegan := time.Now()
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		observed, err := step.run(limited)
		cancel()
		select {
		case died := <-s.died:
			err = errors.Join(err, died)
		default:
		}
		if ctx.Err() != nil {
			return errStopped
		}
		result := "ok"
		if err == nil {
			held++
		} else {
			result = "FAIL"
			failures = append(failures, fmt.Sprintf("step %d (%s): %v", i+1, step.name, err))
		}
		took := fmt.Sprintf("%.2f s", time.Since(stepBegan).Seconds())
		observed, more, _ := strings.Cut(observed, "\n")
		fmt.Fprintf(s.out, row, fmt.Sprintf("%d/%d", i+1, len(steps)), step.name, step.expected, observed, result, took)
		fmt.Fprint(s.out, more)
		if err != nil {
			fmt.Fprintf(s.out, "     why: %v\n", err)
		}
	}
	if err := s.withoutAccessPolicy(); err != nil {
		failures = append(failures, err.Error())
	}
	if err := replaceFile(edited, before); err != nil {
		failures = append(failures, err.Error())
	}
	fmt.Fprintf(s.out, "%d of %d steps held, in %.1f s\n", held, len(steps), time.Since(began).Seconds())
	if len(failures) > 0 {
		return errors.New(strings.Join(failures, "\n"))
	}
	return nil
}

// samples is how many requests measure a share of the traffic.
const samples = 1000

// bounds4 are the counts within four standard deviations of n draws with chance p:
// a right split is outside of them once in 16,000 runs.
func bounds4(n int, p float64) (low, high int) {
	mean, sigma := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	return int(math.Ceil(mean - 4*sigma)), int(math.Floor(mean + 4*sigma))
}

func span4(n int, p float64) string {
	low, high := bounds4(n, p)
	return fmt.Sprintf("%d to %d", low, high)
}

func checkShare(count, n int, p float64) error {
	if low, high := bounds4(n, p); count < low || count > high {
		return fmt.Errorf("%d of %d is not within %d to %d", count, n, low, high)
	}
	return nil
}

// Step 1: the rule of virtualservice-reviews.yaml without a match.
func (s *shop) weights(ctx context.Context) (string, error) {
	versions, err := count(ctx, s, samples, "/reviews", visitor{}, func(v bookReviews) string { return v.Version })
	if err != nil {
		return "", err
	}
	observed := fmt.Sprintf("v1 %d, v2 %d", versions["v1"], versions["v2"])
	if versions["v1"]+versions["v2"] != samples {
		return observed, fmt.Errorf("other versions answered: %v", versions)
	}
	return observed, checkShare(versions["v2"], samples, 0.1)
}

// Step 2: its rules with a match.
func (s *shop) headers(ctx context.Context) (string, error) {
	const n = 100
	var observed []string
	for _, c := range []struct{ user, version string }{{"test-user", "v2"}, {"beta-7", "v3"}} {
		versions, err := count(ctx, s, n, "/reviews", visitor{user: c.user}, func(v bookReviews) string { return v.Version })
		if err != nil {
			return "", err
		}
		observed = append(observed, fmt.Sprintf("%s: %s %d/%d", c.user, c.version, versions[c.version], n))
		if versions[c.version] != n {
			return strings.Join(observed, ", "), fmt.Errorf("%s got %v", c.user, versions)
		}
	}
	return strings.Join(observed, ", "), nil
}

// Step 3: payment.yaml, with and without its retries.
func (s *shop) retries(ctx context.Context) (string, error) {
	const n = 100
	if err := s.fail(ctx, "payment-service-v1-1", 30*time.Second); err != nil {
		return "", err
	}
	buy := func(v visitor) (failed int, err error) {
		for range n {
			r, err := s.request(ctx, http.MethodGet, "http://"+s.page()+"/buy", v.header())
			switch {
			case err != nil:
				return failed, err
			case r.status == http.StatusServiceUnavailable:
				failed++
			case r.status != http.StatusOK:
				return failed, fmt.Errorf("status %d: %s", r.status, bytes.TrimSpace(r.body))
			}
		}
		return failed, nil
	}
	with, err := buy(visitor{})
	if err != nil {
		return "", err
	}
	without, err := buy(visitor{retries: "off"})
	if err != nil {
		return "", err
	}
	if err := s.fail(ctx, "payment-service-v1-1", 0); err != nil {
		return "", err
	}
	observed := fmt.Sprintf("%d/%d failed with retries, %d/%d without", with, n, without, n)
	switch {
	case with != 0:
		return observed, errors.New("buyers notice in spite of retries")
	case without < n/4:
		return observed, errors.New("it is not seen that the payment is down: the comparison shows nothing")
	}
	return observed, nil
}

// fail tells an instance to fail, and talks to it directly, not through the mesh.
func (s *shop) fail(ctx context.Context, name string, d time.Duration) error {
	r, err := s.request(ctx, http.MethodPost, fmt.Sprintf("http://%s/fail?for=%s", s.address(name), d), visitor{}.header())
	if err == nil && r.status != http.StatusOK {
		err = fmt.Errorf("%s: status %d", name, r.status)
	}
	return err
}

// Step 4: the outlierDetection of destinationrule-reviews.yaml, as productpage's admin page shows it.
func (s *shop) ejection(ctx context.Context) (string, error) {
	const victim = "reviews-v1-2"
	s.mu.Lock()
	p := s.processes[victim]
	s.mu.Unlock()
	failed := 0
	visit := func() (by string, err error) {
		r, err := s.request(ctx, http.MethodGet, "http://"+s.page()+"/reviews", visitor{}.header())
		if err != nil {
			return "", err
		}
		if r.status != http.StatusOK {
			failed++
			return "", nil
		}
		var v bookReviews
		err = json.Unmarshal(r.body, &v)
		return v.By, err
	}
	began := time.Now()
	if err := p.kill(); err != nil {
		return "", err
	}
	requests := 0
	for ejected := false; !ejected; {
		for range 5 {
			requests++
			if _, err := visit(); err != nil {
				return "", err
			}
		}
		var err error
		if ejected, err = s.isEjected(ctx, p.address); err != nil {
			return "never ejected", err
		}
	}
	observed := fmt.Sprintf("out after %s (%d/%d failed)", time.Since(began).Round(time.Millisecond), failed, requests)
	if err := s.startService(ctx, instance{role: "reviews", version: "v1", n: 2}, p.address); err != nil {
		return observed, err
	}
	restarted := time.Now()
	for by := ""; by != victim; {
		var err error
		if by, err = visit(); err != nil {
			return observed, fmt.Errorf("it does not come back: %w", err)
		}
	}
	observed += fmt.Sprintf(", back %s after restart", time.Since(restarted).Round(10*time.Millisecond))
	if ejected, err := s.isEjected(ctx, p.address); err != nil || ejected {
		return observed, errors.Join(err, errors.New("it answers, but the admin page says that it is ejected"))
	}
	if failed > 0 {
		return observed, errors.New("requests failed in spite of retries")
	}
	return observed, nil
}

// isEjected asks productpage what it thinks of an endpoint of reviews v1.
func (s *shop) isEjected(ctx context.Context, address string) (bool, error) {
	var admin struct {
		Outbound struct {
			Clusters []struct {
				Name      string
				Endpoints []struct {
					Address string
					Ejected bool
				}
			}
		}
	}
	if err := s.getJSON(ctx, "http://"+s.page()+"/debug/mesh/", visitor{}.header(), &admin); err != nil {
		return false, err
	}
	for _, c := range admin.Outbound.Clusters {
		for _, e := range c.Endpoints {
			if strings.Contains(c.Name, "|v1|reviews.") && e.Address == address {
				return e.Ejected, nil
			}
		}
	}
	return false, fmt.Errorf("productpage has no endpoint %s of reviews v1", address)
}

// Step 5: trafficsplit-details.yaml.
func (s *shop) trafficSplit(ctx context.Context) (string, error) {
	by, err := count(ctx, s, samples, "/details", visitor{}, func(d bookDetails) string { return d.By })
	if err != nil {
		return "", err
	}
	v1, v2 := by["details-v1-1"], by["details-v2-1"]
	observed := fmt.Sprintf("details-v1 %d, details-v2 %d", v1, v2)
	if v1+v2 != samples {
		return observed, fmt.Errorf("others answered: %v", by)
	}
	return observed, checkShare(v2, samples, 0.2)
}

// Step 6: an edit of virtualservice-reviews.yaml. The time is from before the
// file is written to the first answer of an unbroken run by the new version.
func (s *shop) liveEdit(ctx context.Context) (string, error) {
	file := s.policyFile("virtualservice-reviews.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	edited, err := setWeights(string(text), map[string]int{"v1": 0, "v2": 100})
	if err != nil {
		return "", err
	}
	began := time.Now()
	if err := replaceFile(file, []byte(edited)); err != nil {
		return "", err
	}
	var moved time.Duration
	for run := 0; run < 30; {
		var v bookReviews
		if err := s.getJSON(ctx, "http://"+s.page()+"/reviews", visitor{}.header(), &v); err != nil {
			return "traffic did not move", err
		}
		if v.Version != "v2" {
			run = 0
			continue
		}
		if run == 0 {
			moved = time.Since(began)
		}
		run++
	}
	observed := fmt.Sprintf("v1 0, v2 100: all at v2 after %s", moved.Round(time.Millisecond))
	if moved >= s.moveLimit {
		return observed, fmt.Errorf("it took %s", moved)
	}
	return observed, nil
}

var weight = regexp.MustCompile(`subset: (\S+)\n(\s+weight:) \d+`)

// setWeights changes the weights of subsets in the text of a VirtualService.
func setWeights(text string, weights map[string]int) (string, error) {
	set := 0
	text = weight.ReplaceAllStringFunc(text, func(found string) string {
		m := weight.FindStringSubmatch(found)
		w, ok := weights[m[1]]
		if !ok {
			return found
		}
		set++
		return fmt.Sprintf("subset: %s\n%s %d", m[1], m[2], w)
	})
	if set != len(weights) {
		return "", fmt.Errorf("the file has %d of the weights to set, not %d", set, len(weights))
	}
	return text, nil
}

// Step 7: ratings.yaml, at the end of productpage > reviews > ratings. All
// visitors get reviews v2 since the step before, which asks ratings.
func (s *shop) grpcRoutes(ctx context.Context) (string, error) {
	const n = 50
	var observed []string
	for _, c := range []struct{ user, rated string }{{"", "ratings-v1-1"}, {"test-user", "ratings-v2-1"}} {
		rated, err := count(ctx, s, n, "/reviews", visitor{user: c.user}, func(v bookReviews) string {
			if v.Error != "" {
				return v.Error
			}
			return v.RatedBy
		})
		if err != nil {
			return "", err
		}
		observed = append(observed, fmt.Sprintf("%s %d/%d", c.rated, rated[c.rated], n))
		if rated[c.rated] != n {
			return strings.Join(observed, ", "), fmt.Errorf("user %q: %v", c.user, rated)
		}
	}
	return strings.Join(observed, ", "), nil
}

// Step 8: the spans of one request, from all processes.
func (s *shop) trace(ctx context.Context) (string, error) {
	r, err := s.request(ctx, http.MethodGet, "http://"+s.page()+"/productpage", visitor{user: "test-user", traced: true}.header())
	if err != nil {
		return "", err
	}
	id := r.header.Get("Trace-Id")
	if id == "" {
		return "", errors.New("the answer has no Trace-Id")
	}
	hops := []hop{{"productpage", "details"}, {"productpage", "reviews"}, {"reviews", "ratings"}}
	// Each process sends its spans a little later.
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		spans := s.collector.spans(id)
		err := checkTrace(spans, "productpage", hops)
		if err != nil && time.Since(began) < 5*time.Second && ctx.Err() == nil {
			continue
		}
		observed := fmt.Sprintf("%d spans of %d processes:\n%s", len(spans), processesOf(spans), tree(spans))
		if err == nil && processesOf(spans) != 4 {
			err = fmt.Errorf("%d processes", processesOf(spans))
		}
		return observed, err
	}
}

// visitor is who calls productpage.
type visitor struct {
	user, retries string
	traced        bool // record spans of the request
}

func (v visitor) header() http.Header {
	h := http.Header{}
	if v.user != "" {
		h.Set("user", v.user)
	}
	if v.retries != "" {
		h.Set("retries", v.retries)
	}
	if !v.traced {
		// A trace context (https://www.w3.org/TR/trace-context/) whose flags say
		// "not sampled": the spans of a thousand requests would tell nothing.
		h.Set("traceparent", fmt.Sprintf("00-%016x%016x-%016x-00", rand.Uint64(), rand.Uint64()|1, rand.Uint64()|1))
	}
	return h
}

// count makes n requests to productpage, several at a time, and counts the answers by a key.
func count[T any](ctx context.Context, s *shop, n int, path string, v visitor, key func(T) string) (map[string]int, error) {
	const atATime = 8
	counts := map[string]int{}
	var first error
	var mu sync.Mutex
	var visitors sync.WaitGroup
	for i := range atATime {
		visitors.Go(func() {
			for j := i; j < n; j += atATime {
				var body T
				err := s.getJSON(ctx, "http://"+s.page()+path, v.header(), &body)
				mu.Lock()
				if err != nil && first == nil {
					first = err
				}
				counts[key(body)]++
				end := first != nil
				mu.Unlock()
				if end {
					return
				}
			}
		})
	}
	visitors.Wait()
	return counts, first
}

// reply is an answer that was read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (s *shop) request(ctx context.Context, method, url string, header http.Header) (*reply, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		r.Header = header
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	return &reply{resp.StatusCode, resp.Header, body}, nil
}

// getJSON reads an answer whose status must be 200.
func (s *shop) getJSON(ctx context.Context, url string, header http.Header, into any) error {
	r, err := s.request(ctx, http.MethodGet, url, header)
	if err != nil {
		return err
	}
	if r.status != http.StatusOK {
		return fmt.Errorf("%s: status %d: %s", url, r.status, bytes.TrimSpace(r.body))
	}
	return json.Unmarshal(r.body, into)
}
