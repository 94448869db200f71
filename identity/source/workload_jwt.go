package source

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
)

// JWTSVID is a token that says who a workload is (JWT-SVID specification).
type JWTSVID struct {
	ID identity.ID
	// Token is the serialised token. It is a secret: whoever holds it is
	// believed until Expiry by those for whom it was issued.
	Token  string
	Expiry time.Time
	// Claims are the token's, those of the specification included.
	Claims map[string]any
}

// String and GoString keep the token out of logs that print the value.
func (s *JWTSVID) String() string   { return "JWT-SVID of " + s.ID.String() }
func (s *JWTSVID) GoString() string { return s.String() }

// JWT asks the Workload API for a JWT-SVID that names the audience, of which
// at least one member is needed. Each call is a call to the API, which keeps
// tokens until they are due for renewal.
func (w *WorkloadAPI) JWT(ctx context.Context, audience ...string) (*JWTSVID, error) {
	if len(audience) == 0 || audience[0] == "" {
		return nil, errors.New("JWT-SVID: an audience is needed")
	}
	r, err := w.client.FetchJWTSVID(withSecurityHeader(ctx), &workloadpb.JWTSVIDRequest{SpiffeId: w.config.ID.String(), Audience: audience})
	if err != nil {
		return nil, fmt.Errorf("JWT-SVID: %w", err)
	}
	for _, s := range r.GetSvids() {
		if !w.config.chooses(s.GetSpiffeId(), s.GetHint()) {
			continue
		}
		parsed, err := jwtsvid.ParseInsecure(s.GetSvid(), audience) // its signature is for who receives it
		if err != nil {
			return nil, tokenError(err, s.GetSvid())
		}
		if parsed.ID.String() != s.GetSpiffeId() {
			return nil, fmt.Errorf("JWT-SVID: the token for %q says that it is for %q", s.GetSpiffeId(), parsed.ID)
		}
		return jwtSVID(parsed)
	}
	return nil, fmt.Errorf("JWT-SVID: %w", w.config.noneOf(len(r.GetSvids())))
}

// tokenError keeps the token out of an error about it.
func tokenError(err error, token string) error {
	text := err.Error()
	if token != "" {
		text = strings.ReplaceAll(text, token, "[token]")
	}
	return errors.New("JWT-SVID: " + text)
}

// ValidateJWT verifies a JWT-SVID for the audience with the bundles that the
// Workload API serves, which are watched from the first call on. The first
// call waits for them, as long as ctx allows.
func (w *WorkloadAPI) ValidateJWT(ctx context.Context, token, audience string) (*JWTSVID, error) {
	if len(token) > identity.MaxTokenLength {
		return nil, fmt.Errorf("JWT-SVID: the token has %d bytes, the limit is %d", len(token), identity.MaxTokenLength)
	}
	if audience == "" {
		return nil, errors.New("JWT-SVID: an audience is needed")
	}
	w.jwt.start(func() { w.keep(w.watchJWT, w.endedJWT) })
	set, err := w.jwt.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("JWT-SVID: %w", err)
	}
	s, err := jwtsvid.ParseAndValidate(token, set, []string{audience})
	if err != nil {
		return nil, tokenError(err, token)
	}
	return jwtSVID(s)
}

func jwtSVID(s *jwtsvid.SVID) (*JWTSVID, error) {
	id, err := identity.ParseID(s.ID.String())
	if err != nil {
		return nil, fmt.Errorf("JWT-SVID: %w", err)
	}
	if id.Path() == "" {
		return nil, fmt.Errorf("JWT-SVID: %q is a trust domain, no workload", id)
	}
	return &JWTSVID{ID: id, Token: s.Marshal(), Expiry: s.Expiry, Claims: s.Claims}, nil
}

// jwtBundles are the last that the Workload API sent.
type jwtBundles struct {
	mu      sync.Mutex
	set     *jwtbundle.Set
	err     error         // why there is none
	ready   chan struct{} // closed when there is a set or a denial
	started bool
	stopped bool
	done    sync.WaitGroup
}

func (b *jwtBundles) start(watch func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.started || b.stopped {
		return
	}
	b.started = true
	b.done.Go(watch)
}

func (b *jwtBundles) stop() {
	b.mu.Lock()
	b.stopped = true
	if b.set == nil && !closed(b.ready) {
		b.err = errors.New("the source is closed")
		close(b.ready)
	}
	b.mu.Unlock()
	b.done.Wait()
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (b *jwtBundles) put(set *jwtbundle.Set, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set, b.err = set, err
	if !closed(b.ready) {
		close(b.ready)
	}
}

func (b *jwtBundles) get(ctx context.Context) (*jwtbundle.Set, error) {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("no bundle has come from the workload API: %w", ctx.Err())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set, b.err
}

func (w *WorkloadAPI) watchJWT(ctx context.Context, good func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		good()
		set := jwtbundle.NewSet()
		for name, document := range r.GetBundles() {
			td, err := spiffeid.TrustDomainFromString(name)
			if err == nil {
				var b *jwtbundle.Bundle
				if b, err = jwtbundle.Parse(td, document); err == nil {
					set.Add(b)
				}
			}
			if err != nil {
				w.log.Warn("a JWT bundle is left out", "trust_domain", name, "error", err)
			}
		}
		w.jwt.put(set, nil)
	}
}

// endedJWT keeps the last bundles, unless the API denies them.
func (w *WorkloadAPI) endedJWT(err error, wait time.Duration) {
	if status.Code(err) == codes.PermissionDenied {
		w.jwt.put(nil, fmt.Errorf("the workload API denies the bundles: %w", err))
		return
	}
	w.log.Warn("no new JWT bundles from the workload API, the last ones stay in force", "socket", w.config.Socket, "in", wait, "error", err)
}
