package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Status is what an administrator wants to know of an authority. It holds nothing
// secret.
type Status struct {
	TrustDomain   string `json:"trustDomain"`
	External      bool   `json:"external,omitempty"` // the roots belong to another authority
	BundleVersion uint64 `json:"bundleVersion"`
	// Roots has the root that signs first.
	Roots []RootStatus `json:"roots"`
	// Issuer is the certificate that leaves are signed with; nil where it is not known.
	Issuer *CertificateStatus `json:"issuer,omitempty"`
	// Tokens is how many join tokens are waiting to be used.
	Tokens int `json:"tokens"`
	// Counts are those of a running authority since it was opened; nil of one at rest.
	Counts *Counts `json:"counts,omitempty"`
	// Error says why nothing can be issued now.
	Error string `json:"error,omitempty"`
}

// CertificateStatus is what may be known of a certificate.
type CertificateStatus struct {
	SHA256    string    `json:"sha256"` // as Fingerprint
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// RootStatus is a root and where it stands in its life.
type RootStatus struct {
	CertificateStatus
	// Phase is prepared (published, signs nothing yet), active (signs), retiring
	// (published for what it has signed) or external.
	Phase string `json:"phase"`
	// Since is when it entered the phase.
	Since time.Time `json:"since,omitzero"`
	// Until is when it leaves the phase: a prepared root begins to sign, a retiring one
	// leaves the bundle. Zero for others.
	Until time.Time `json:"until,omitzero"`
}

// Counts are how many certificates were issued, by how the caller was authenticated,
// and refused, by why.
type Counts struct {
	Since   time.Time         `json:"since"`
	Last    time.Time         `json:"last,omitzero"` // when the last one was issued
	Issued  map[string]uint64 `json:"issued"`
	Refused map[string]uint64 `json:"refused"`
}

// counter collects Counts. Its keys are few: methods of authentication, which the
// program chooses, and the errors of this package.
type counter struct {
	mu     sync.Mutex
	counts Counts
}

func newCounter(now time.Time) *counter {
	return &counter{counts: Counts{Since: now, Issued: make(map[string]uint64), Refused: make(map[string]uint64)}}
}

func (c *counter) issued(method string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Issued[method]++
	c.counts.Last = now
}

func (c *counter) refused(err error) {
	why := "other"
	for _, known := range []struct {
		err  error
		text string
	}{
		{ErrRequest, "invalid request"}, {ErrUnauthenticated, "not authenticated"}, {ErrDenied, "not allowed"},
		{ErrLimited, "too many"}, {ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, known.err) {
			why = known.text
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Refused[why]++
}

func (c *counter) read() *Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.counts
	out.Issued, out.Refused = maps.Clone(out.Issued), maps.Clone(out.Refused)
	return &out
}

// Status tells how the authority stands.
func (c *CA) Status() Status {
	v := c.view.Load()
	s := v.state.status(c.opts.ActivateAfter)
	s.Issuer = certificateStatus(v.issuer)
	s.Counts = c.counts.read()
	if tokens, err := c.tokens.List(); err == nil {
		s.Tokens = len(tokens)
	}
	if err := v.ready(c.opts.Clock()); err != nil {
		s.Error = err.Error()
	}
	return s
}

// status tells what the state knows.
func (s *state) status(activateAfter time.Duration) Status {
	out := Status{TrustDomain: s.trustDomain, External: s.external, BundleVersion: s.version}
	for _, r := range s.roots {
		out.Roots = append(out.Roots, RootStatus{CertificateStatus: *certificateStatus(r), Phase: "external"})
	}
	for _, p := range []phase{active, prepared, retiring} {
		for i := range s.authorities {
			a := &s.authorities[i]
			if a.phase != p {
				continue
			}
			r := RootStatus{CertificateStatus: *certificateStatus(a.root), Phase: string(p), Since: a.since}
			switch p {
			case prepared:
				r.Until = a.since.Add(max(activateAfter, s.longestLeaf))
			case retiring:
				r.Until = a.retireAt
			case active:
				out.Issuer = certificateStatus(a.issuer)
			}
			out.Roots = append(out.Roots, r)
		}
	}
	return out
}

func certificateStatus(c *x509.Certificate) *CertificateStatus {
	return &CertificateStatus{SHA256: Fingerprint(c), NotBefore: c.NotBefore, NotAfter: c.NotAfter}
}

// ReadStatus tells how the authority in a directory stands, which may be open in
// another process.
func ReadStatus(dir string) (Status, error) {
	st, err := readNewest(dir)
	if err != nil {
		return Status{}, err
	}
	s := st.status(0)
	tokens, err := OpenTokens(dir, TokenOptions{TrustDomain: st.trustDomain})
	if err != nil {
		return Status{}, err
	}
	waiting, err := tokens.List()
	s.Tokens = len(waiting)
	return s, err
}

// readNewest reads the newest intact state of a directory.
func readNewest(dir string) (*state, error) {
	var err error
	for range 3 { // the file may be pruned between finding and reading it
		s := store{dir: dir}
		var numbers []uint64
		if numbers, err = s.list(); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w in %s, which is not there", ErrNone, dir)
		} else if err != nil {
			return nil, err
		}
		for _, n := range numbers {
			var st *state
			if st, err = readState(s.path(n)); err == nil {
				return st, nil
			}
		}
		if len(numbers) == 0 {
			return nil, fmt.Errorf("%w in %s", ErrNone, dir)
		}
	}
	return nil, err
}

// ErrNone: there is no certificate authority in the directory, or no directory.
var ErrNone = errors.New("no certificate authority")

// ErrLocked: another process has the directory open.
var ErrLocked = errors.New("another process has it open")

const (
	// rotateRequest is the file that asks the process which has the directory open for
	// a new root. Whoever can write into the directory could take the keys as well, so
	// it needs no other proof.
	rotateRequest = "rotate-request"
	// requestInterval is how often it is looked for.
	requestInterval = time.Second
)

// RequestRotation asks the process that has the directory open, in CA.Run, for what
// CA.Rotate does, and returns when it has been done. It is an error where the rotation
// before is under way, where the authority is external, and, when ctx ends, that no
// process has answered; the request is then withdrawn.
func RequestRotation(ctx context.Context, dir string) error {
	before, err := readNewest(dir)
	if err != nil {
		return err
	}
	if err := before.mayRotate(); err != nil {
		return err
	}
	path := filepath.Join(dir, rotateRequest)
	if err := writeFile(path, nil, nil); err != nil {
		return err
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return fmt.Errorf("rotate: no process that runs the authority has answered: %w", ctx.Err())
		case <-ticker.C:
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		after, err := readNewest(dir)
		if err != nil {
			return err
		}
		if after.version == before.version {
			return errors.New("rotate: the process that runs the authority could not do it; its log says why")
		}
		return nil
	}
}

// answerRequest does what a request file asks for.
func (c *CA) answerRequest(ctx context.Context) {
	path := filepath.Join(c.store.dir, rotateRequest)
	if _, err := os.Lstat(path); err != nil {
		return
	}
	// The request goes after the work: a kill between them makes the next answer an error
	// that changes nothing.
	if err := c.Rotate(ctx); err != nil {
		c.opts.Log.Error("certificate authority: the requested rotation failed", "error", err)
	}
	if err := os.Remove(path); err != nil {
		c.opts.Log.Error("certificate authority: the request for a rotation can not be removed", "error", err)
	}
}

// mayRotate is an error where no new root can be prepared.
func (s *state) mayRotate() error {
	switch {
	case s.external:
		return errors.New("rotate: the root belongs to an external authority")
	case s.prepared() != nil || s.find(retiring) != nil:
		return errors.New("rotate: the rotation before is under way")
	}
	return nil
}
