package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// page is what /status answers.
type page struct {
	Policy policyStatus `json:"policy"`
	ads.Status
}

// policyStatus is what was read of the policy folder.
type policyStatus struct {
	Read    time.Time `json:"read"`
	InForce bool      `json:"inForce"`
	// Error says why what was read last is not in force.
	Error            string          `json:"error,omitempty"`
	VirtualServices  int             `json:"virtualServices"`
	DestinationRules int             `json:"destinationRules"`
	Services         int             `json:"services"`
	Workloads        int             `json:"workloads"`
	Problems         []policyProblem `json:"problems"`
}

type policyProblem struct {
	File     string `json:"file"`
	Line     int    `json:"line"`
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Severity string `json:"severity"`
	Message  string `json:"message"`
}

// handler serves /healthz (the process runs), /readyz (the policy that was
// read last is in force) and /status (a page, as JSON).
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.inForce {
			http.Error(w, fmt.Sprintf("the policy that was read last is not in force: %v", s.access), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(s.page()) // fails where the reader has gone
	})
	return mux
}

func (s *server) page() page {
	p := page{Status: s.ads.Status()}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Policy = policyStatus{Read: s.read, InForce: s.inForce, Problems: []policyProblem{}}
	if s.access != nil {
		p.Policy.Error = s.access.Error()
	}
	if s.result == nil {
		return p
	}
	if set := s.result.Set; set != nil {
		p.Policy.VirtualServices, p.Policy.DestinationRules = len(set.VirtualServices), len(set.DestinationRules)
		p.Policy.Services, p.Policy.Workloads = len(set.Services), len(set.Workloads)
	}
	for _, x := range s.result.Problems {
		p.Policy.Problems = append(p.Policy.Problems, problemJSON(x))
	}
	return p
}

func problemJSON(p policy.Problem) policyProblem {
	return policyProblem{File: p.At.File, Line: p.At.Line, Object: p.Object.String(), Field: p.Field, Severity: p.Severity.String(), Message: p.Message}
}
