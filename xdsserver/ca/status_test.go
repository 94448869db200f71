package ca

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
)

func phases(s Status) string {
	var out []string
	for _, r := range s.Roots {
		out = append(out, r.Phase)
	}
	return strings.Join(out, " ")
}

// TestStatus follows a rotation by what Status and ReadStatus say of it.
func TestStatus(t *testing.T) {
	ck := newClock()
	dir := t.TempDir()
	c := mustOpen(t, dir, short(ck))
	token, err := c.Tokens().Create(reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustIssue(t, c, reviews, 0)
	mustIssue(t, c, reviews, 0)
	if _, err := c.Issue(t.Context(), Caller{ID: "spiffe://other.example/ns/a/sa/b", Method: "test"}, newCSR(t), 0); !errors.Is(err, ErrDenied) {
		t.Fatal(err)
	}
	if _, err := c.Issue(t.Context(), Caller{ID: reviews, Method: "test"}, nil, 0); !errors.Is(err, ErrRequest) {
		t.Fatal(err)
	}
	s := c.Status()
	if s.TrustDomain != "cluster.local" || s.Tokens != 1 || s.Error != "" || phases(s) != "active" || s.Roots[0].SHA256 != Fingerprint(c.Bundle().Roots[0]) {
		t.Errorf("status %+v", s)
	}
	if s.Issuer == nil || !s.Issuer.NotAfter.Equal(epoch.Add(4*time.Hour)) {
		t.Errorf("issuer %+v", s.Issuer)
	}
	if n := s.Counts; n.Issued["test"] != 2 || n.Refused["not allowed"] != 1 || n.Refused["invalid request"] != 1 || !n.Last.Equal(epoch) || !n.Since.Equal(epoch) {
		t.Errorf("counts %+v", n)
	}
	if err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = c.Status()
	if phases(s) != "active prepared" || !s.Roots[1].Until.Equal(epoch.Add(time.Hour)) {
		t.Errorf("a prepared root: %+v", s.Roots)
	}
	if at := ck.advance(time.Hour); c.Tick(t.Context(), at) != nil {
		t.Fatal("tick")
	}
	s = c.Status()
	if phases(s) != "active retiring" || !s.Roots[1].Until.Equal(epoch.Add(2*time.Hour+Backdate)) {
		t.Errorf("a retiring root: %+v", s.Roots)
	}
	rest, err := ReadStatus(dir)
	if err != nil || phases(rest) != "active retiring" || rest.BundleVersion != s.BundleVersion || rest.Counts != nil || *rest.Issuer != *s.Issuer {
		t.Errorf("at rest: %+v, %v", rest, err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{token.Reveal(), "PRIVATE", "pkcs8"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("status shows %q", secret)
		}
	}
	ck.advance(100 * time.Hour)
	if s := c.Status(); s.Error == "" {
		t.Error("an expired issuer is no error")
	}
	if _, err := ReadBundle(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "none, which is not there") {
		t.Errorf("a bundle of a directory that is not there: %v", err)
	}
	if _, err := ReadStatus(t.TempDir()); !errors.Is(err, ErrNone) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Open(t.Context(), dir, short(ck)); !errors.Is(err, ErrLocked) {
		t.Errorf("a folder that is open: %v", err)
	}
}

// TestRequestRotation asks a running authority for a new root.
func TestRequestRotation(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := short(newClock())
		o.Clock = time.Now
		o.ActivateAfter = 2 * time.Hour
		c, err := Open(t.Context(), dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// Nobody answers before it runs, and the request does not stay.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := RequestRotation(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, rotateRequest)); err == nil {
			t.Error("the request stays")
		}
		run, stop := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { c.Run(run) })
		if err := RequestRotation(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if got := phases(c.Status()); got != "active prepared" {
			t.Errorf("after it: %s", got)
		}
		if err := RequestRotation(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "under way") {
			t.Errorf("again: %v", err)
		}
		// A request from elsewhere that can not be met is taken away and changes nothing.
		before := c.Bundle().Version
		if err := os.WriteFile(filepath.Join(dir, rotateRequest), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * requestInterval)
		synctest.Wait()
		if _, err := os.Stat(filepath.Join(dir, rotateRequest)); err == nil || c.Bundle().Version != before {
			t.Error("a request that can not be met stays, or is met")
		}
		stop()
		done.Wait()
	})
	if err := RequestRotation(t.Context(), t.TempDir()); !errors.Is(err, ErrNone) {
		t.Errorf("without an authority: %v", err)
	}
}

// TestCountsOfService: what is refused before anyone is known counts too.
func TestCountsOfService(t *testing.T) {
	leak.Check(t)
	c := mustOpen(t, t.TempDir(), short(newClock()))
	s := NewService(c)
	if _, err := s.CreateCertificate(t.Context(), nil); err == nil {
		t.Fatal("a request without a credential")
	}
	if n := c.Status().Counts.Refused["not authenticated"]; n != 1 {
		t.Errorf("%d refused", n)
	}
}
