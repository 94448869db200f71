package meshhttp

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// drainLimit and drainTime bound what is spent on a response that is
	// thrown away, so that its connection can be used again.
	drainLimit = 64 << 10
	drainTime  = 50 * time.Millisecond
)

func closeBody(b io.ReadCloser) {
	if b != nil {
		b.Close()
	}
}

// drain reads what little is left of a discarded response and closes it.
func drain(b io.ReadCloser) {
	timer := time.AfterFunc(drainTime, func() { b.Close() })
	_, _ = io.CopyN(io.Discard, b, drainLimit)
	timer.Stop()
	b.Close()
}

// bodies gives each attempt the request's body from its start. It owns the
// caller's body: whoever reads it, it is closed in the end.
//
// The transport is given the body as it is wherever nothing has to be kept,
// because net/http has fast paths for the body types that it knows.
type bodies struct {
	request *http.Request
	source  io.ReadCloser // the request's body, or what reads it for the mirrors too
	given   atomic.Int32  // bodies handed out
	replay  *replay       // nil where the body is sent as it is
	watched *watched      // nil where nobody would blame an endpoint for the body's failure
}

// begin prepares the bodies of a request's attempts; source is where the body
// is read from the first time.
func (b *bodies) begin(req *http.Request, source io.ReadCloser, retries, watch bool, limit int64) {
	b.request, b.source = req, source
	if !hasBody(req) || req.GetBody != nil {
		// A body that can be had again is of net/http's own kinds, as a rule: they do not fail.
		return
	}
	if retries && limit > 0 && req.ContentLength <= limit {
		b.replay = newReplay(source, limit)
		b.replay.length.want = req.ContentLength
	} else if watch {
		b.watched = &watched{ReadCloser: source, length: length{want: req.ContentLength}}
	}
}

// length checks that a body is as long as its request says. net/http checks it
// too, but closes the connection then, and what is seen first is chance: its
// error, that of the closed connection, or the answer to the bytes sent.
type length struct {
	want int64 // what is not positive is unknown, as in http.Request
	read int64
}

// check is given what a Read of the body returned, and returns what it should have.
func (l *length) check(n int, err error) error {
	l.read += int64(n)
	if l.want > 0 && (l.read > l.want || err == io.EOF && l.read < l.want) {
		return fmt.Errorf("http: ContentLength=%d with Body length %d", l.want, l.read)
	}
	return err
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

// next returns the body for the next attempt. Attempts side by side may ask at
// the same time, which only bodies that can be had by GetBody allow.
func (b *bodies) next() (io.ReadCloser, error) {
	if !hasBody(b.request) {
		return b.source, nil
	}
	given := b.given.Add(1)
	switch {
	case b.replay != nil:
		return b.replay.reader(), nil
	case b.watched != nil:
		return b.watched, nil
	case given == 1:
		return b.source, nil
	}
	body, err := b.request.GetBody()
	if err != nil {
		return nil, &requestError{fmt.Errorf("GetBody: %w", err)}
	}
	return body, nil
}

// failure returns the error of the caller's body, which is no fault of the endpoint's; nil if it did not fail.
func (b *bodies) failure() error {
	switch {
	case b.replay != nil:
		return b.replay.failure()
	case b.watched != nil:
		if err := b.watched.err.Load(); err != nil {
			return *err
		}
	}
	return nil
}

// again reports whether another attempt could have the whole body.
func (b *bodies) again() bool {
	switch {
	case !hasBody(b.request) || b.request.GetBody != nil:
		return true
	case b.replay != nil:
		return b.replay.whole()
	default:
		return false
	}
}

// done is called when no other attempt will be made.
func (b *bodies) done() {
	switch {
	case b.replay != nil:
		b.replay.settle()
	case b.given.Load() == 0:
		closeBody(b.source)
	}
}

// watched is a body that remembers the error of a Read. Errors after Close are
// the transport's doing, not the body's.
type watched struct {
	io.ReadCloser
	length length
	closed atomic.Bool
	err    atomic.Pointer[error]
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	err = w.length.check(n, err)
	if err != nil && err != io.EOF && !w.closed.Load() {
		w.err.Store(&err)
	}
	return n, err
}

// Close implements io.Closer.
func (w *watched) Close() error {
	w.closed.Store(true)
	return w.ReadCloser.Close()
}

// replay keeps what has been read of a body, so that another attempt can read
// it again. Readers of attempts that were given up may still be inside the
// transport; only the newest one is given anything.
type replay struct {
	limit int64

	mu      sync.Mutex
	wake    sync.Cond // reading has become false, or a reader was closed or replaced
	source  io.ReadCloser
	length  length
	kept    []byte
	end     error // what source ended with
	failed  error // end, if it is neither io.EOF nor due to Close
	reading bool  // a reader is inside source.Read, without mu
	over    bool  // more was read than is kept
	settled bool  // no other attempt will be made
	closed  bool  // source is
	newest  *replayReader
}

type replayReader struct {
	r      *replay
	offset int
	closed bool
}

var errReplaced = errors.New("mesh: the attempt was given up")

func newReplay(source io.ReadCloser, limit int64) *replay {
	r := &replay{source: source, limit: limit}
	r.wake.L = &r.mu
	return r
}

func (r *replay) reader() *replayReader {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newest = &replayReader{r: r}
	r.wake.Broadcast()
	return r.newest
}

// whole reports whether a new reader would see the body from its start.
func (r *replay) whole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.over
}

func (r *replay) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *replay) settle() {
	r.mu.Lock()
	r.settled = true
	r.closeIfUnused()
}

// closeIfUnused closes the caller's body when no reader wants it any more. The
// caller holds mu, which is given up: closing may take its time.
func (r *replay) closeIfUnused() {
	unused := r.settled && !r.closed && (r.newest == nil || r.newest.closed)
	r.closed = r.closed || unused
	r.mu.Unlock()
	if unused {
		r.source.Close()
	}
}

// Read implements io.Reader.
func (v *replayReader) Read(p []byte) (int, error) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.reading && r.newest == v && !v.closed {
		r.wake.Wait()
	}
	switch {
	case v.closed || r.newest != v:
		return 0, errReplaced
	case !r.over && v.offset < len(r.kept):
		n := copy(p, r.kept[v.offset:])
		v.offset += n
		return n, nil
	case r.end != nil:
		return 0, r.end
	}
	r.reading = true
	r.mu.Unlock()
	n, err := r.source.Read(p)
	r.mu.Lock()
	err = r.length.check(n, err)
	r.reading, r.end = false, err
	if err != nil && err != io.EOF && !v.closed && !r.closed {
		r.failed = err
	}
	r.wake.Broadcast()
	if r.newest != v {
		// The newer reader has not seen these bytes: they are kept whatever the limit.
		r.kept = append(r.kept, p[:n]...)
		return 0, errReplaced
	}
	switch {
	case r.over:
	case r.settled || int64(len(r.kept)+n) > r.limit:
		r.over, r.kept = true, nil
	default:
		r.kept = append(r.kept, p[:n]...)
		v.offset = len(r.kept)
	}
	return n, err
}

// Close implements io.Closer. It does not wait for a Read under way: closing
// the caller's body is what ends one that hangs.
func (v *replayReader) Close() error {
	v.r.mu.Lock()
	v.closed = true
	v.r.wake.Broadcast()
	v.r.closeIfUnused()
	return nil
}
