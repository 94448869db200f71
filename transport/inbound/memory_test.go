package inbound

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

var blank = bytes.Repeat([]byte(" "), 1<<20)

// swelling is an answer's body of so many bytes, in pieces, as a small one is that
// was compressed. It counts how many of them are asked for.
type swelling struct {
	begin       string
	left, taken int
	piece       func() int
	closed      bool
}

func (s *swelling) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), s.left, max(1, s.piece()))
	for filled := 0; filled < n; {
		filled += copy(b[filled:n], blank)
	}
	if s.taken < len(s.begin) {
		copy(b[:n], s.begin[s.taken:])
	}
	s.taken, s.left = s.taken+n, s.left-n
	return n, nil
}

func (s *swelling) Close() error { s.closed = true; return nil }

// TestAnswersAreBounded: of the answers of token issuers and of external
// authorizers no more is read than has a use, however long they are, whatever
// they say of their length and in whatever pieces they come.
func TestAnswersAreBounded(t *testing.T) {
	const answers = 300
	r := rand.New(rand.NewPCG(1, 45))
	generate := func(limit int) *swelling {
		s := &swelling{left: []int{0, 1, limit - 1, limit, limit + 1, 2 * limit, 1 << 40, r.IntN(3 * limit)}[r.IntN(8)], begin: []string{"", `{"keys": [`, `{"keys": []}`}[r.IntN(3)]}
		s.piece = []func() int{func() int { return 1 << 30 }, func() int { return limit/64 + r.IntN(limit/8) }, func() int { return limit / 100 }}[r.IntN(3)]
		if r.IntN(50) == 0 {
			s.piece = func() int { return 1 }
		}
		return s
	}
	respond := func(s *swelling, code int) answerFunc {
		return func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: code, Header: http.Header{}, ContentLength: []int64{-1, 0, 12, 1 << 50}[r.IntN(4)], Body: s}, nil
		}
	}
	most, careless, long := map[string]int{}, 0, 0
	hold := func(what string, s *swelling, limit int) {
		if most[what] = max(most[what], s.taken); s.taken > limit || !s.closed {
			t.Errorf("%s: %d bytes are read, closed %v; the limit is %d", what, s.taken, s.closed, limit)
		}
		// The mistake: all is read that comes. What would never end is left out.
		if all := s.taken + s.left; all > limit {
			if long++; all < 1<<30 {
				_, _ = io.Copy(io.Discard, s)
			} else {
				s.taken += s.left
			}
			if s.taken > limit {
				careless++
			}
		}
	}
	for range answers {
		s := generate(maxKeysBytes)
		k := ringOf(respond(s, http.StatusOK))
		if _, err := k.fetch(t.Context(), keysURI, time.Minute); s.left > 0 && err == nil {
			t.Errorf("keys are taken from an answer that was not read to its end")
		}
		k.close()
		hold("keys", s, maxKeysBytes+1)

		for code, limit := range map[int]int{200: 4 << 10, 403: maxExternalBody, 503: 0} {
			s := generate(max(limit, 4<<10))
			x := &snapshot.ExternalAuthorizer{Host: "authorizer.test", HTTP: &snapshot.ExternalHTTP{}}
			a := askHTTP(t.Context(), x, respond(s, code), question(), &externalBody{})
			if a.allow != (code == 200) || len(a.body) > maxExternalBody {
				t.Errorf("status %d: allowed %v, a body of %d bytes", code, a.allow, len(a.body))
			}
			hold(fmt.Sprint("authorizer, ", code), s, limit)
		}
	}
	if careless < 100 || careless != long {
		t.Errorf("a reader without limits is caught %d times of %d: too few", careless, long)
	}
	t.Logf("%d answers each, at most %v bytes read; a reader without limits is caught %d times", answers, most, careless)
}

// TestCompressedKeys: the limit is one of what an answer swells to, not of what comes.
func TestCompressedKeys(t *testing.T) {
	leak.Check(t)
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range 16 {
		_, _ = w.Write(blank)
	}
	_ = w.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
		}
		_, _ = w.Write(bomb.Bytes())
	}))
	defer server.Close()
	if bomb.Len() > maxKeysBytes/16 {
		t.Fatalf("%d bytes", bomb.Len())
	}
	k := newKeyRing(fetchRules{Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, nil)
	defer k.close()
	k.client.Transport.(*http.Transport).TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig
	want := fmt.Sprintf("the answer has more than %d bytes", maxKeysBytes)
	if _, err := k.fetch(context.Background(), server.URL, 20*time.Second); err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}
