package meshhttp

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

const (
	// maxMirrored is how much of a body that can not be had again is kept for mirrors.
	maxMirrored = 64 << 10
	// mirrorTime limits a copy whose route has no time limit.
	mirrorTime = 15 * time.Second
	// maxMirrorAnswer is how much of a mirror's answer is read, so that its connection can be used again.
	maxMirrorAnswer = 1 << 20
)

// copies are the copies of requests that are under way to mirrors.
type copies struct {
	ctx    context.Context // ends with close
	cancel context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// begin runs f in the background; false where the copies are closed.
func (c *copies) begin(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.running.Go(f)
	return true
}

func (c *copies) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
}

// mirror prepares copies of the request, and returns what the request's own body
// is to be read from. A copy without a body goes once the request has an
// endpoint (Envoy), one whose body can be had by GetBody too; otherwise what the
// request itself sends is kept, and the copy follows when that is complete. A
// body that is longer than maxMirrored, or that does not reach its end, takes
// the copy with it: never the request.
func (x *exchange) mirror(calls []*outbound.Call) io.ReadCloser {
	rt, req := x.rt, x.request
	kept := hasBody(req) && req.GetBody == nil
	if req.Method == http.MethodConnect || req.Header["Upgrade"] != nil || kept && req.ContentLength > maxMirrored {
		for _, c := range calls {
			dropped(c)
		}
		return req.Body
	}
	all := make([]*exchange, 0, len(calls))
	for _, c := range calls {
		y := &exchange{rt: rt, call: c, request: rt.copyOf(x.ctx, req, c)}
		y.first.x = y
		all = append(all, y)
	}
	if kept {
		t := &tee{ReadCloser: req.Body, want: req.ContentLength}
		if req.ContentLength == 0 {
			t.want = -1 // unknown, with a body
		}
		t.complete = func(body []byte) {
			for _, x := range all {
				x.request.ContentLength = int64(len(body))
				x.request.Body = io.NopCloser(bytes.NewReader(body))
				x.sendCopy()
			}
		}
		t.drop = func() {
			for _, x := range all {
				dropped(x.call)
			}
		}
		return t
	}
	x.copies.Store(&all)
	return req.Body
}

// sendCopies sends the copies that wait for the request to have an endpoint.
func (x *exchange) sendCopies() {
	if x.copies.Load() == nil {
		return
	}
	all := x.copies.Swap(nil)
	if all == nil {
		return // another attempt was first
	}
	for _, y := range *all {
		if hasBody(x.request) {
			body, err := x.request.GetBody()
			if err != nil {
				dropped(y.call)
				continue
			}
			y.request.Body = body
		}
		y.sendCopy()
	}
}

// dropCopies gives up the copies of a request that never had an endpoint.
func (x *exchange) dropCopies() {
	if all := x.copies.Swap(nil); all != nil {
		for _, y := range *all {
			dropped(y.call)
		}
	}
}

func dropped(c *outbound.Call) {
	c.Finish(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
}

// copyOf returns the request that a mirror gets, without a body. It shares
// nothing that the caller may change once the request is answered, and not the
// caller's context, whose trace hooks are for the request alone.
func (rt *RoundTripper) copyOf(ctx context.Context, req *http.Request, c *outbound.Call) *http.Request {
	u := *req.URL
	header := http.Header(c.Request.Header)
	if rt.options.Inject != nil {
		header = rt.options.Inject(ctx, header, false)
	}
	header = header.Clone()
	delete(header, "Expect")
	c.Request.Header = header
	return &http.Request{
		Method: req.Method, URL: &u, Header: header, Host: req.Host, ContentLength: req.ContentLength,
		Proto: req.Proto, ProtoMajor: req.ProtoMajor, ProtoMinor: req.ProtoMinor,
	}
}

// sendCopy sends the copy in the background and reads its answer.
func (x *exchange) sendCopy() {
	if !x.rt.copies.begin(x.copy) {
		closeBody(x.request.Body)
		dropped(x.call)
	}
}

func (x *exchange) copy() {
	limit := x.call.Timeout()
	if limit <= 0 {
		limit = mirrorTime
	}
	ctx, cancel := context.WithTimeout(x.rt.copies.ctx, limit)
	defer cancel()
	x.request = x.request.WithContext(ctx)
	x.ctx = ctx
	x.bodies.begin(x.request, x.request.Body, false, false, 0)
	defer x.bodies.done()
	resp, err := x.first.once(nil)
	if err != nil {
		x.first.outcome.Err = err
	} else if resp != nil {
		_, _ = io.CopyN(io.Discard, resp.Body, maxMirrorAnswer)
		resp.Body.Close()
	}
	x.first.end()
	x.call.Finish(&x.first.outcome)
}

// tee is a request's body of which a copy is kept.
type tee struct {
	io.ReadCloser
	want     int64 // its length; -1 where that is not known
	complete func([]byte)
	drop     func()

	mu   sync.Mutex
	kept []byte
	over bool // complete or drop was called
}

// Read implements io.Reader.
func (t *tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return n, err
	}
	if len(t.kept)+n > maxMirrored {
		t.settle(false)
		return n, err
	}
	t.kept = append(t.kept, p[:n]...)
	if err != nil {
		t.settle(err == io.EOF)
	}
	return n, err
}

// Close implements io.Closer. A sender that knows the length need not read up to the end.
func (t *tee) Close() error {
	t.mu.Lock()
	if !t.over {
		t.settle(t.want >= 0 && int64(len(t.kept)) == t.want)
	}
	t.mu.Unlock()
	return t.ReadCloser.Close()
}

// settle calls complete or drop. The caller holds mu.
func (t *tee) settle(whole bool) {
	t.over = true
	kept := t.kept
	t.kept = nil
	if whole {
		t.complete(kept)
	} else {
		t.drop()
	}
}
