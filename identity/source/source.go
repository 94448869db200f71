// Package source obtains certificates and trust bundles and keeps them fresh:
// from files (Files), from a certificate authority by signing request (CA),
// from the SPIFFE Workload API (WorkloadAPI), or from the caller (Static). A
// Source is read at each handshake, so that a rotation needs no restart and
// closes no connection.
//
// A source keeps the last good material whatever happens to the files or to
// the authority, until the certificate expires; from then on Current is an
// error, and whoever needs a certificate is refused. No source ever writes key
// material or a token to a log or into an error.
package source

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sinew-mesh/sinew/identity"
)

// Material is what a process proves its identity with and verifies others
// with. It is immutable once a source yields it.
type Material struct {
	// Certificate is the chain with its private key and a parsed Leaf; nil
	// where the source provides trust only.
	Certificate *tls.Certificate
	// ID is the certificate's SPIFFE ID; zero where it is no X509-SVID.
	ID identity.ID
	// Bundles verify peers that have SPIFFE IDs.
	Bundles identity.BundleSet
	// Roots verify peers that have none, by name as on the web; nil where
	// there are none.
	Roots *x509.CertPool
	// NotAfter is when the certificate expires; zero without a certificate.
	NotAfter time.Time
}

// Source yields the material that is in force. Its methods are safe for
// concurrent use.
type Source interface {
	// Current returns the material in force. The error is a *NotReadyError
	// while there is none yet and once the certificate has expired.
	Current() (*Material, error)
	// Changed returns a channel that is closed when Current changes: on a
	// rotation, on new bundles, and on expiry. Take the channel before reading
	// Current, so that no change is missed.
	Changed() <-chan struct{}
	// Close stops the source's work and waits for its end. Current keeps
	// returning the last material until it expires.
	Close() error
}

// ErrNotReady is what every NotReadyError is (errors.Is).
var ErrNotReady = errors.New("no certificate is in force")

// NotReadyError says why a source has no material.
type NotReadyError struct {
	Source  string    // "files", "CA", "workload API", "static", "system" or "trust"
	Expired time.Time // when the last certificate expired; zero if it did not
	Revoked bool      // the last certificate was withdrawn by who issued it
	Err     error     // the last failure to get one; nil if none is known
}

func (e *NotReadyError) Error() string {
	s := "identity source " + e.Source + ": "
	switch {
	case e.Revoked:
		s += "the certificate has been withdrawn"
	case e.Expired.IsZero():
		s += "no certificate or bundle has come yet"
	default:
		s += "the certificate expired at " + e.Expired.UTC().Format(time.RFC3339)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *NotReadyError) Unwrap() error        { return e.Err }
func (e *NotReadyError) Is(target error) bool { return target == ErrNotReady }

// Status is what an administrator wants to know of a source. It holds nothing secret.
type Status struct {
	Source      string    `json:"source"`
	ID          string    `json:"id,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Rotations   int       `json:"rotations"`
	Failures    int       `json:"failures"` // since the last success
	LastError   string    `json:"last_error,omitempty"`
}

// state is the part that all sources have.
type state struct {
	name string

	mu       sync.Mutex
	current  *Material
	revoked  bool      // current is nil because it was withdrawn
	deadline time.Time // NotAfter by the monotonic clock as it stood when the material came
	changed  chan struct{}
	err      error // the last failure since the last success
	status   Status
}

func newState(name string) state {
	return state{name: name, changed: make(chan struct{}), status: Status{Source: name}}
}

// Current implements Source.
func (s *state) Current() (*Material, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, &NotReadyError{Source: s.name, Revoked: s.revoked, Err: s.err}
	}
	if s.expired(time.Now()) {
		return nil, &NotReadyError{Source: s.name, Expired: s.current.NotAfter, Err: s.err}
	}
	return s.current, nil
}

// expired asks both clocks: the monotonic one, which a wall clock set back
// does not deceive, and the wall clock, which runs on while the machine sleeps.
func (s *state) expired(now time.Time) bool {
	if s.current == nil || s.current.NotAfter.IsZero() {
		return false
	}
	return !now.Before(s.deadline) || now.After(s.current.NotAfter)
}

// Changed implements Source.
func (s *state) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Status returns what is known of the source's health.
func (s *state) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if s.err != nil {
		st.LastError = s.err.Error()
	}
	return st
}

// publish puts the material in force and tells those who wait.
func (s *state) publish(m *Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.current, s.err, s.revoked, s.status.Failures = m, nil, false, 0
	if !m.NotAfter.IsZero() {
		s.deadline = now.Add(m.NotAfter.Sub(now))
	}
	s.status.Rotations++
	s.status.ID, s.status.NotAfter = m.ID.String(), m.NotAfter
	if m.Certificate != nil && m.Certificate.Leaf != nil {
		s.status.Serial, s.status.NotBefore = m.Certificate.Leaf.SerialNumber.Text(16), m.Certificate.Leaf.NotBefore
	}
	s.announce()
}

// announce closes the channel of those who wait. The lock is held.
func (s *state) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// revoke takes the material out of force, and reports whether there was any.
func (s *state) revoke(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.status.Failures++
	if s.current == nil {
		return false
	}
	s.current, s.revoked = nil, true
	s.announce()
	return true
}

// failed records a failure.
func (s *state) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.status.Failures++
}

func (s *state) succeeded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.status.Failures = nil, 0
}

func (s *state) nextAttempt(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.NextAttempt = t
}

// untilExpiry returns how long the current certificate lasts; ok is false
// where nothing will expire any more.
func (s *state) untilExpiry() (d time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.current == nil || s.current.NotAfter.IsZero() || s.expired(now) {
		return 0, false
	}
	return min(s.deadline.Sub(now), s.current.NotAfter.Sub(now)), true
}

func (s *state) announceExpiry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announce()
}

// Static is a source whose material the caller provides.
type Static struct{ state }

// NewStatic returns a source that yields the material, which may be nil until
// Set is called. The certificate's Leaf, ID and NotAfter are filled in where
// they are missing.
func NewStatic(m *Material) (*Static, error) {
	s := &Static{newState("static")}
	if m == nil {
		return s, nil
	}
	return s, s.Set(m)
}

// Set puts other material in force from the next handshake on.
func (s *Static) Set(m *Material) error {
	filled := *m
	if err := filled.complete(); err != nil {
		return fmt.Errorf("identity source static: %w", err)
	}
	s.publish(&filled)
	return nil
}

// Close implements Source.
func (s *Static) Close() error { return nil }

// complete fills in what follows from the certificate.
func (m *Material) complete() error {
	if m.Certificate == nil {
		return nil
	}
	if len(m.Certificate.Certificate) == 0 {
		return errors.New("the certificate chain is empty")
	}
	if m.Certificate.Leaf == nil {
		leaf, err := x509.ParseCertificate(m.Certificate.Certificate[0])
		if err != nil {
			return fmt.Errorf("the leaf certificate: %w", err)
		}
		with := *m.Certificate
		with.Leaf = leaf
		m.Certificate = &with
	}
	if m.ID.IsZero() {
		// A certificate that is no SVID is sound too: it has no ID.
		m.ID, _ = identity.SVIDID([]*x509.Certificate{m.Certificate.Leaf})
	}
	if m.NotAfter.IsZero() {
		m.NotAfter = m.Certificate.Leaf.NotAfter
	}
	return nil
}

// The plugin names under which a bootstrap's certificate_providers name the sources.
const (
	FilesPlugin       = "file_watcher" // gRPC's, gRFC A29
	CAPlugin          = "csr"
	WorkloadAPIPlugin = "spiffe_workload_api"
)

// New returns the source that a bootstrap's certificate_providers entry
// describes: FilesPlugin with a FilesConfig, CAPlugin with a CAConfig or
// WorkloadAPIPlugin with a WorkloadAPIConfig, in JSON, or CallerPlugin with what
// Publish has returned. log may be nil.
// Shared is what programs use that need the same certificate in several places.
func New(plugin string, config json.RawMessage, log *slog.Logger) (Source, error) {
	switch plugin {
	case FilesPlugin:
		return open(ParseFilesConfig, NewFiles, config, log)
	case CAPlugin:
		return open(ParseCAConfig, NewCA, config, log)
	case WorkloadAPIPlugin:
		return open(ParseWorkloadAPIConfig, NewWorkloadAPI, config, log)
	case CallerPlugin:
		return findPublished(config)
	default:
		return nil, unknownPlugin(plugin)
	}
}

// Check reports what New would refuse, without opening anything.
func Check(plugin string, config json.RawMessage) error {
	var err error
	switch plugin {
	case FilesPlugin:
		_, err = ParseFilesConfig(config)
	case CAPlugin:
		_, err = ParseCAConfig(config)
	case WorkloadAPIPlugin:
		_, err = ParseWorkloadAPIConfig(config)
	case CallerPlugin:
		_, err = findPublished(config)
	default:
		err = unknownPlugin(plugin)
	}
	return err
}

func unknownPlugin(plugin string) error {
	return fmt.Errorf("certificate provider plugin %q: not known, the known ones are %q, %q and %q", plugin, FilesPlugin, CAPlugin, WorkloadAPIPlugin)
}

func open[C any, S Source](parse func(json.RawMessage) (C, error), start func(C, *slog.Logger) (S, error), config json.RawMessage, log *slog.Logger) (Source, error) {
	c, err := parse(config)
	if err != nil {
		return nil, err
	}
	s, err := start(c, log)
	if err != nil {
		return nil, err // not s, which would be an interface around nil
	}
	return s, nil
}

func logger(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
