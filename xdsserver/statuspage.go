package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sinew-mesh/sinew/xdsserver/ads"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// page is what /status answers.
type page struct {
	Policy      policyStatus `json:"policy"`
	TrustDomain string       `json:"trustDomain"`
	// Certificate is the server's own; nil where the xDS port has no TLS.
	Certificate *certificateStatus `json:"certificate,omitempty"`
	// CA is nil where certificates come from elsewhere.
	CA *ca.Status `json:"ca,omitempty"`
	ads.Status
}

// certificateStatus is the certificate in force.
type certificateStatus struct {
	Identity  string    `json:"identity,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	Error     string    `json:"error,omitempty"` // why there is none
}

// policyStatus is what was read of the policy folder.
type policyStatus struct {
	Read    time.Time `json:"read"`
	InForce bool      `json:"inForce"`
	// Error says what of it is not in force as it was read.
	Error                  string          `json:"error,omitempty"`
	VirtualServices        int             `json:"virtualServices"`
	DestinationRules       int             `json:"destinationRules"`
	Services               int             `json:"services"`
	Workloads              int             `json:"workloads"`
	PeerAuthentications    int             `json:"peerAuthentications"`
	AuthorizationPolicies  int             `json:"authorizationPolicies"`
	RequestAuthentications int             `json:"requestAuthentications"`
	Problems               []policyProblem `json:"problems"`
}

type policyProblem struct {
	File     string `json:"file"`
	Line     int    `json:"line"`
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Severity string `json:"severity"`
	Message  string `json:"message"`
}

// handler serves /healthz (the process runs), /readyz (the policy that was read last
// is in force, and the server has a certificate if it needs one), and as JSON /status
// and /report. None of them changes anything or shows a secret.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.page()) })
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.ads.Report()) })
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // fails where the reader has gone
}

func (s *server) ready() error {
	s.mu.Lock()
	secured, disagrees := s.secured, s.disagrees
	s.mu.Unlock()
	if disagrees != nil {
		return fmt.Errorf("the policy that was read last is not in force as it is: %w", disagrees)
	}
	if secured != nil {
		if _, err := secured.trust.Current(); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) page() page {
	p := page{Status: s.ads.Status()}
	s.mu.Lock()
	secured := s.secured
	s.mu.Unlock()
	if secured != nil {
		p.Certificate = &certificateStatus{}
		if m, err := secured.trust.Current(); err != nil {
			p.Certificate.Error = err.Error()
		} else if m.Certificate != nil {
			leaf := m.Certificate.Leaf
			p.Certificate.Identity, p.Certificate.NotBefore, p.Certificate.NotAfter = m.ID.String(), leaf.NotBefore, leaf.NotAfter
		}
		if secured.ca != nil {
			st := secured.ca.Status()
			p.CA = &st
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.TrustDomain = s.trustDomain
	p.Policy = policyStatus{Read: s.read, InForce: s.disagrees == nil, Problems: []policyProblem{}}
	if s.disagrees != nil {
		p.Policy.Error = s.disagrees.Error()
	}
	if s.result == nil {
		return p
	}
	if set := s.result.Set; set != nil {
		p.Policy.VirtualServices, p.Policy.DestinationRules = len(set.VirtualServices), len(set.DestinationRules)
		p.Policy.Services, p.Policy.Workloads = len(set.Services), len(set.Workloads)
		p.Policy.PeerAuthentications, p.Policy.AuthorizationPolicies, p.Policy.RequestAuthentications =
			len(set.PeerAuthentications), len(set.AuthorizationPolicies), len(set.RequestAuthentications)
	}
	for _, x := range s.result.Problems {
		p.Policy.Problems = append(p.Policy.Problems, problemJSON(x))
	}
	return p
}

func problemJSON(p policy.Problem) policyProblem {
	return policyProblem{File: p.At.File, Line: p.At.Line, Object: p.Object.String(), Field: p.Field, Severity: p.Severity.String(), Message: p.Message}
}
