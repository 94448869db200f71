package meshgrpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// stream is one streaming RPC. While it may be sent again, which is until the
// response's header has come, what was sent is held (replay). Then it is
// committed, and each call goes straight to gRPC's stream.
type stream struct {
	rpc
	desc    *grpc.StreamDesc
	open    grpc.Streamer
	policy  *resilience.RetryPolicy
	shadows []*outbound.Call
	idle    *time.Timer // nil without an idle timeout
	idleFor time.Duration
	stop    func() bool // unhooks from the context; nil where nothing is hooked

	mu        sync.Mutex // guards what follows; it is not held while gRPC is called
	current   grpc.ClientStream
	attempt   *attempt
	committed bool
	settling  bool          // a goroutine waits for what becomes of current
	moved     chan struct{} // closed when current, committed or settling changes
	replay    replay
	finished  bool // the end has been noticed
	result    error

	over   chan struct{} // closed when the call has ended, and result is known
	header metadata.MD

	told    sync.Mutex // held by Header; before mu
	changed bool       // header is as policy changes it; guarded by told
}

// streamInterceptor takes streams of "mesh:///" channels through the engine, and those of others through againStream.
func (m *meshClient) streamInterceptor(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	authority := m.authority(cc)
	if authority == "" {
		return againStream(ctx, desc, cc, method, open, options...)
	}
	read := readOptions(options)
	for n := 0; ; n++ {
		s := &stream{desc: desc, open: open, moved: make(chan struct{}), over: make(chan struct{})}
		s.client, s.cc, s.authority, s.method, s.parent, s.options = m, cc, authority, method, ctx, read
		s.metadata, _ = metadata.FromOutgoingContext(ctx)
		s.begin()
		changed := m.engine.Changed()
		cs, err := s.run()
		if err == nil {
			return cs, nil
		}
		if read.waits && s.unsent(err) && m.waitForChange(ctx, cc, changed, n) {
			continue
		}
		read.finished(err)
		return nil, err
	}
}

func (s *stream) run() (grpc.ClientStream, error) {
	local, err := s.decide()
	if err != nil {
		o := resilience.Outcome{GRPC: -1, Err: err}
		if s.parent.Err() != nil {
			o.Failure = resilience.Cancelled
		}
		s.end(&o)
		return nil, CallError(err)
	}
	if local != nil {
		return s.answer(local), nil
	}
	s.limitIdle()
	s.policy = s.call.Retry()
	s.shadows = s.call.Shadows()
	s.replay.begin(s.policy != nil, len(s.shadows) > 0)
	a := &s.first
	a.rpc = &s.rpc
	if err := s.call.Begin(&a.try); err != nil {
		dropShadows(s.shadows)
		s.end(&resilience.Outcome{GRPC: -1, Failure: resilience.Overflow, Err: err})
		return nil, CallError(err)
	}
	if a, err = s.start(a); err != nil {
		dropShadows(s.shadows)
		s.stopIdle()
		return nil, err
	}
	s.mu.Lock()
	s.committed = s.policy == nil
	over := a.over && s.committed
	s.mu.Unlock()
	if over {
		s.finish(a, a.last)
	} else if s.policy != nil {
		// Between two attempts there is no stream of gRPC's that ends with the context.
		s.stop = context.AfterFunc(s.ctx, s.abandoned)
	}
	return s, nil
}

// start opens the stream, with as many attempts as policy allows. An error is
// the caller's, and the call has ended.
func (s *stream) start(a *attempt) (*attempt, error) {
	for {
		cs, err := s.send(a)
		if err == nil {
			s.mu.Lock()
			s.current, s.attempt = cs, a
			s.mu.Unlock()
			return a, nil
		}
		var again sendAgain
		if errors.As(err, &again) {
			a.release()
			s.end(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
			return nil, err
		}
		if a, err = s.repeat(a); err != nil {
			return nil, err
		}
	}
}

// repeat begins the attempt after one that has failed and whose outcome is
// known. An error is the caller's, and the call has ended.
func (s *stream) repeat(a *attempt) (*attempt, error) {
	wait, again := a.repeat(s.policy)
	if again {
		next := newAttempt(&s.rpc, a.try)
		a.release()
		err := pause(s.ctx, s.cc, wait)
		if err == nil {
			return next, s.call.Begin(&next.try)
		}
		next.mu.Lock()
		next.classify(err, nil)
		next.mu.Unlock()
		a = next
	}
	err := a.outcome.Err
	a.release()
	s.conclude(a, err)
	return nil, err
}

// send opens one stream of gRPC's.
func (s *stream) send(a *attempt) (grpc.ClientStream, error) {
	a.above = s.ctx
	above := s.ctx
	if s.policy != nil {
		above = a.limitStream(above, a.try.IdleTimeout())
	}
	options := s.options.rest
	if tell := s.options.tell; tell != nil && len(tell.peers) > 0 {
		a.peer = new(peer.Peer)
		options = append(options, grpc.Peer(a.peer))
	}
	options = append(options, grpc.OnFinish(func(err error) { s.ends(a, err) }))
	for n := 0; ; n++ {
		ctx, method, options, err := a.prepare(above, options)
		var cs grpc.ClientStream
		if err == nil {
			cs, err = s.open(ctx, s.desc, s.cc, method, options...)
		}
		if err == nil {
			return cs, nil
		}
		if err == errAnew && n < maxAgain {
			continue
		}
		if err != errDecide {
			a.finish(err)
		}
		return nil, err
	}
}

// ends is told by gRPC that a stream has ended.
func (s *stream) ends(a *attempt, err error) {
	s.mu.Lock()
	a.over, a.last = true, err
	if s.attempt != a {
		s.mu.Unlock()
		return // it has not begun, or is not the present one any more
	}
	over := s.ended() && (s.committed || !s.settling)
	s.mu.Unlock()
	if over {
		s.finish(a, err)
	}
}

// abandoned ends a stream whose context has ended while gRPC had none of it.
func (s *stream) abandoned() {
	s.mu.Lock()
	a, over := s.attempt, s.attempt.over && !s.settling && !s.committed
	s.mu.Unlock()
	if over {
		s.finish(a, status.FromContextError(s.ctx.Err()).Err())
	}
}

// finish ends the call with what its last attempt came to.
func (s *stream) finish(a *attempt, err error) {
	s.mu.Lock()
	if s.finished {
		s.mu.Unlock()
		return
	}
	s.finished = true
	s.mu.Unlock()
	if err == io.EOF {
		err = nil
	}
	a.finish(err)
	if err != nil {
		err = a.outcome.Err
	}
	if s.options.tell != nil {
		s.mu.Lock()
		header := s.header
		s.mu.Unlock()
		s.options.response(header, a.trailer(), a.peer)
	}
	a.release()
	s.concludeFinished(a, err)
}

// trailer is what gRPC has of the response's trailer.
func (a *attempt) trailer() metadata.MD {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken == nil {
		return nil
	}
	return a.taken.info.Trailer
}

// conclude ends the call; what the attempt held is given back already.
func (s *stream) conclude(a *attempt, err error) {
	s.mu.Lock()
	if s.finished {
		s.mu.Unlock()
		return
	}
	s.finished = true
	s.mu.Unlock()
	s.concludeFinished(a, err)
}

func (s *stream) concludeFinished(a *attempt, err error) {
	s.mu.Lock()
	s.committed, s.result = true, err
	begun := s.current != nil
	shadows := s.shadows
	s.shadows = nil
	s.replay.drop()
	s.move()
	s.mu.Unlock()
	dropShadows(shadows)
	s.stopIdle()
	if s.stop != nil {
		s.stop()
	}
	s.rpc.end(&a.outcome)
	close(s.over)
	if begun {
		s.options.finished(err)
	}
}

// move wakes those who wait for a change. The caller holds mu.
func (s *stream) move() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// settle waits until the stream is committed, and returns gRPC's stream.
func (s *stream) settle() grpc.ClientStream {
	for {
		s.mu.Lock()
		switch {
		case s.committed:
			cs := s.current
			s.mu.Unlock()
			return cs
		case s.settling:
			moved := s.moved
			s.mu.Unlock()
			<-moved
		default:
			s.settling = true
			cs, a := s.current, s.attempt
			s.mu.Unlock()
			s.step(cs, a)
		}
	}
}

// recover waits until something has become of a stream that does not take messages any more.
func (s *stream) recover(dead grpc.ClientStream) {
	for {
		s.mu.Lock()
		switch {
		case s.committed || s.current != dead:
			s.mu.Unlock()
			return
		case s.settling:
			moved := s.moved
			s.mu.Unlock()
			<-moved
		default:
			s.settling = true
			a := s.attempt
			s.mu.Unlock()
			s.step(dead, a)
		}
	}
}

// step waits for the header of a stream, which commits it, or for its end
// without one, after which there may be another attempt. The caller has set settling.
func (s *stream) step(cs grpc.ClientStream, a *attempt) {
	defer s.settled()
	header, _ := cs.Header()
	if header != nil {
		s.commit(a, header)
		return
	}
	// Without a header there is no message, so this reads the status.
	err := cs.RecvMsg(&frame{})
	if err == nil || err == io.EOF {
		s.finish(a, nil)
		return
	}
	s.mu.Lock()
	committed := s.committed
	s.mu.Unlock()
	if committed {
		s.finish(a, err)
		return
	}
	a.finish(err)
	for {
		next, err := s.repeat(a)
		if err != nil {
			return
		}
		if cs, err = s.send(next); err == nil {
			s.resume(cs, next)
			return
		}
		var again sendAgain
		if errors.As(err, &again) {
			// Nothing was sent, and what was decided does not hold any more.
			next.finish(status.Error(codes.Unavailable, "mesh: policy has changed while the RPC was to be sent again"))
		}
		a = next
	}
}

// settled ends step. What gRPC said meanwhile of the stream's end was left to
// it, and nobody else may ever ask.
func (s *stream) settled() {
	s.mu.Lock()
	s.settling = false
	s.move()
	a := s.attempt
	over, err := a.over && s.ended(), a.last
	s.mu.Unlock()
	if over {
		s.finish(a, err)
	}
}

// ended reports whether a stream of gRPC's that is over is the last one. The caller holds mu.
func (s *stream) ended() bool {
	return s.committed || s.ctx.Err() != nil || s.cc.GetState() == connectivity.Shutdown
}

// resume sends on a new stream what was sent before.
func (s *stream) resume(cs grpc.ClientStream, a *attempt) {
	for i := 0; ; i++ {
		s.mu.Lock()
		m, closed, more := s.replay.at(i)
		if !more {
			s.current, s.attempt = cs, a
			s.move()
			s.mu.Unlock()
			if closed {
				_ = cs.CloseSend()
				a.limits.complete(a.try.Timeout())
			}
			return
		}
		s.mu.Unlock()
		if err := cs.SendMsg(m); err != nil {
			// It has ended already: whoever comes next sees how.
			s.mu.Lock()
			s.current, s.attempt = cs, a
			s.mu.Unlock()
			return
		}
	}
}

// commit makes the stream the call's: its header has come.
func (s *stream) commit(a *attempt, header metadata.MD) {
	s.answered(a)
	a.limits.answered()
	a.try.Commit()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.header == nil {
		s.header = header
	}
	s.committed = true
	s.replay.commit()
	s.move()
}

// answered reports for the endpoint that a header has come.
func (s *stream) answered(a *attempt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.taken; p != nil && !p.told && p.lease.Endpoint() != nil {
		p.told = true
		p.lease.Report(&resilience.Outcome{Status: http.StatusOK, GRPC: -1, Form: routing.LowerHeaders})
	}
}

// present returns gRPC's stream once nothing can take its place any more.
func (s *stream) present() (grpc.ClientStream, *attempt) {
	cs := s.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	return cs, s.attempt
}

// limitIdle ends the RPC when nothing has moved on it for as long as policy allows.
func (s *stream) limitIdle() {
	if s.idleFor = s.call.IdleTimeout(); s.idleFor <= 0 {
		return
	}
	above, stop := s.ctx, s.cancel
	ctx, cancel := context.WithCancelCause(above)
	s.ctx = ctx
	s.cancel = func() {
		cancel(nil)
		if stop != nil {
			stop()
		}
	}
	s.idle = time.AfterFunc(s.idleFor, func() { cancel(errIdle) })
}

// touch notes that something has moved.
func (s *stream) touch() {
	if s.policy != nil && s.policy.PerTryIdleTimeout > 0 {
		s.mu.Lock()
		a := s.attempt
		s.mu.Unlock()
		a.limits.touch()
	}
	if s.idle != nil {
		s.idle.Reset(s.idleFor)
	}
}

func (s *stream) stopIdle() {
	if s.idle != nil {
		s.idle.Stop()
	}
}
