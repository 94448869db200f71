package meshgrpc

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// rpc is one RPC of a caller's, from Decide to Finish.
type rpc struct {
	rpcState
	own   outbound.Call
	first attempt
}

type rpcState struct {
	client    *meshClient
	cc        *grpc.ClientConn
	authority string // of the channel's target
	method    string
	options   callOptions
	metadata  metadata.MD // a copy of the caller's, or nil

	call   *outbound.Call // own, or a mirror's
	copies atomic.Pointer[copies]

	parent  context.Context // the caller's
	ctx     context.Context // the call's: parent and its time limit
	cancel  context.CancelFunc
	timeout time.Duration // zero for none
}

// attempt is one try of an rpc.
type attempt struct {
	mu   sync.Mutex // guards what follows, but for what only its own goroutine uses
	turn uint64     // counts the attempts that have used this memory
	attemptState
}

type attemptState struct {
	rpc    *rpc
	try    outbound.Try
	limits *limits         // nil without any
	above  context.Context // that limits begin from

	// The picker may run beside the interceptor.
	next       *choice // picked, and not yet taken by gRPC
	taken      *choice // what gRPC sends on
	first      choice
	picks      int
	closed     bool   // the attempt has been given back
	generation uint64 // of policy, when the picker first saw the attempt
	out        outbound.Outgoing
	outcome    resilience.Outcome
	header     metadata.MD
	peer       *peer.Peer // where the caller asks for it

	over bool  // gRPC has ended the stream; guarded by the stream's mu
	last error // that it ended with
}

// attemptContext is what an attempt is sent with: by it gRPC's picker finds the
// attempt, also behind interceptors of the caller's.
type attemptContext struct {
	context.Context
	client  *meshClient
	attempt *attempt
	turn    uint64 // of the attempt's, or it has ended and is another's
}

// choice is one pick of an endpoint: gRPC may need several for an attempt.
type choice struct {
	attempt *attempt
	lease   outbound.Lease
	conn    *connection
	info    balancer.DoneInfo
	ended   bool
	told    bool // the endpoint's outcome was reported
	alone   bool // nobody but done releases it
}

type attemptKey struct{} // of *attemptContext

// Value implements context.Context.
func (c *attemptContext) Value(key any) any {
	if key == (attemptKey{}) {
		return c
	}
	return c.Context.Value(key)
}

var (
	bareContentType = []string{"application/grpc"}
	// bareHeader is the header of RPCs without metadata; nobody writes to it.
	bareHeader = map[string][]string{"content-type": bareContentType}
)

func bareRequest(r *routing.Request, authority, path string) {
	*r = routing.Request{Method: "POST", Scheme: "http", Authority: authority, Path: path, Header: bareHeader, Form: routing.LowerHeaders}
}

// begin fills in what the rules see of the RPC.
func (r *rpc) begin() {
	r.call = &r.own
	authority := r.options.authority
	if authority == "" {
		authority = r.authority
	}
	bareRequest(&r.call.Request, authority, r.method)
	content := r.options.contentType()
	if len(r.metadata) == 0 {
		if &content[0] != &bareContentType[0] {
			r.call.Request.Header = map[string][]string{"content-type": content}
		}
		return
	}
	header := onTheWire(r.metadata)
	header["content-type"] = content
	r.call.Request.Header = header
}

// decide takes the call to where its first attempt can begin. local is the
// answer that policy itself gives.
func (r *rpc) decide() (local *outbound.Local, err error) {
	if err := r.client.engine.Decide(r.parent, r.call, r.authority, "http"); err != nil {
		return nil, err
	}
	if d := r.call.Delay(); d > 0 {
		err := pause(r.parent, r.cc, d)
		r.call.EndDelay()
		if err != nil {
			return nil, err
		}
	}
	if local := r.call.Local(); local != nil {
		return local, nil
	}
	r.ctx = r.parent
	if r.timeout = r.call.Timeout(); r.timeout > 0 {
		r.ctx, r.cancel = context.WithDeadlineCause(r.parent, r.call.Ready().Add(r.timeout), errRouteTimeout)
	}
	return nil, nil
}

// end gives back what the call holds.
func (r *rpc) end(o *resilience.Outcome) {
	r.call.Finish(o)
	if r.copies.Load() != nil {
		r.dropCopies()
	}
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
	}
}

var (
	errRouteTimeout = errors.New("mesh: timeout")
	errPerTry       = errors.New("mesh: per-try timeout")
	errTryIdle      = errors.New("mesh: per-try idle timeout")
	errIdle         = errors.New("mesh: idle timeout")
	errAbandoned    = errors.New("mesh: another attempt has answered")
)

// pause waits, or returns why it need not go on: as over the wire, an RPC ends
// with its context and with its channel.
func pause(ctx context.Context, cc *grpc.ClientConn, d time.Duration) error {
	if d <= 0 {
		return contextError(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	watched, stop := context.WithCancel(ctx)
	defer stop()
	closed := make(chan struct{})
	go func() {
		for {
			state := cc.GetState()
			if state == connectivity.Shutdown {
				close(closed)
				return
			}
			if !cc.WaitForStateChange(watched, state) {
				return
			}
		}
	}()
	select {
	case <-timer.C:
		return nil
	case <-closed:
		return status.Error(codes.Canceled, "mesh: the channel is closing")
	case <-ctx.Done():
		return contextError(ctx)
	}
}

// contextError is the error of an RPC whose context has ended; nil where it has not.
func contextError(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return nil
}

// prepare picks an endpoint, if none is picked, and returns what is to be sent
// to it: the attempt as a context, the method, and options.
func (a *attempt) prepare(above context.Context, options []grpc.CallOption) (context.Context, string, []grpc.CallOption, error) {
	r := a.rpc
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next == nil {
		p := a.newChoice()
		if err := a.try.Pick(&p.lease, nil); err != nil {
			return nil, "", nil, err
		}
		a.next = p
	}
	q := &r.call.Request
	a.try.Outgoing(&a.next.lease, &a.out)
	method, path := r.method, a.out.Path
	if a.out.RawQuery != "" {
		path += "?" + a.out.RawQuery
	}
	if path != q.Path {
		method = path
	}
	if a.out.Authority != q.Authority {
		options = append(options, grpc.CallAuthority(a.out.Authority))
	}
	if !sameMap(a.out.Header, q.Header) {
		above = metadata.NewOutgoingContext(above, sendable(offTheWire(a.out.Header, q.Header, r.metadata)))
	}
	if n := a.try.N(); n > 1 {
		above = metadata.AppendToOutgoingContext(above, "grpc-previous-rpc-attempts", strconv.Itoa(n-1))
	}
	return &attemptContext{above, r.client, a, a.turn}, method, options, nil
}

// newChoice returns the attempt's own pick, or another where that is used. The caller holds mu.
func (a *attempt) newChoice() *choice {
	if a.first.attempt == nil {
		a.first.attempt = a
		return &a.first
	}
	return &choice{attempt: a}
}

func sameMap(a, b map[string][]string) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// sendable leaves out of metadata what HTTP/2 has no place for or gRPC sets by itself.
func sendable(md metadata.MD) metadata.MD {
	for name := range md {
		switch name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length",
			"content-type", "te", "user-agent", "grpc-timeout":
			delete(md, name)
		default:
			if strings.HasPrefix(name, ":") {
				delete(md, name)
			}
		}
	}
	return md
}

// sendAgain is the picker's word to the interceptor. It is a status error, so
// that gRPC hands it on at once; no caller sees it.
type sendAgain struct{ decide bool }

func (sendAgain) Error() string { return "mesh: the RPC is sent anew" }
func (sendAgain) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, "mesh: the RPC is sent anew")
}

func isSendAgain(err error) bool {
	var again sendAgain
	return errors.As(err, &again)
}

var (
	// errAnew says that another endpoint was picked and that what is sent depends on it.
	errAnew error = sendAgain{}
	// errDecide says that policy has changed while the RPC waited without a connection.
	errDecide error = sendAgain{decide: true}
)

// pick is balancer.Picker.Pick for the attempt.
func (a *attempt) pick(b *meshBalancer, turn uint64) (balancer.PickResult, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.turn != turn || a.closed {
		return balancer.PickResult{}, errEnded
	}
	a.picks++
	if t := a.taken; t != nil {
		// gRPC sends again what the server has not processed; or an interceptor
		// of the caller's sends the RPC once more.
		a.taken = nil
		if t.ended {
			t.settle(resilience.RefusedStream)
		} else {
			t.alone = true
		}
	}
	generation := b.channel.generation.Load()
	if a.generation == 0 {
		a.generation = generation
	}
	left := a.next != nil && a.next.lease.Endpoint().Gone()
	if left {
		a.next.lease.Release()
		a.next = nil
	}
	for range maxSwaps {
		if a.next == nil {
			p := &choice{attempt: a}
			if err := a.try.Pick(&p.lease, b.skip); err != nil {
				return balancer.PickResult{}, a.stuck(generation, &policyError{err})
			}
			if left && a.rpc.options.waits && p.lease.Endpoint().Gone() {
				// The whole cluster has left: what was decided does not hold any more.
				p.lease.Release()
				return balancer.PickResult{}, errDecide
			}
			if a.next = p; !a.sendsSame() {
				return balancer.PickResult{}, errAnew
			}
		}
		p := a.next
		c, err := b.connection(&p.lease, a.rpc.call)
		if err == nil {
			c.connect()
			switch c.current() {
			case connectivity.Ready:
				if !c.take() {
					continue
				}
				a.next, a.taken = nil, p
				p.conn, p.ended, p.alone = c, false, false
				return balancer.PickResult{SubConn: c.sub, Done: p.done}, nil
			case connectivity.TransientFailure:
				err = c.err()
			default:
				return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
			}
		}
		if err == balancer.ErrNoSubConnAvailable {
			return balancer.PickResult{}, err
		}
		// Another endpoint, if there is one that works.
		other := &choice{attempt: a}
		if a.try.Pick(&other.lease, b.skip) != nil || other.lease.Endpoint() == p.lease.Endpoint() {
			other.lease.Release()
			return balancer.PickResult{}, a.stuck(generation, err)
		}
		p.lease.Report(&resilience.Outcome{GRPC: -1, Failure: resilience.ConnectFailure, Err: err})
		p.lease.Release()
		if a.next = other; !a.sendsSame() {
			return balancer.PickResult{}, errAnew
		}
	}
	return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
}

// maxSwaps bounds how many endpoints one pick goes through; gRPC picks again with the next state.
const maxSwaps = 8

// stuck is the result of a pick for which there is no connection.
func (a *attempt) stuck(generation uint64, err error) error {
	switch {
	case !a.rpc.options.waits:
		return err
	case generation != a.generation:
		return errDecide
	default:
		return balancer.ErrNoSubConnAvailable
	}
}

// sendsSame reports whether what was prepared for another endpoint is right for the one picked.
func (a *attempt) sendsSame() bool {
	var out outbound.Outgoing
	a.try.Outgoing(&a.next.lease, &out)
	if out.Path != a.out.Path || out.RawQuery != a.out.RawQuery || out.Authority != a.out.Authority {
		return false
	}
	if sameMap(out.Header, a.out.Header) {
		return true
	}
	for name, values := range out.Header {
		// The time that is left is another one each time, whatever the endpoint.
		if name != expectedTimeout && !slices.Equal(values, a.out.Header[name]) {
			return false
		}
	}
	for name := range a.out.Header {
		if _, ok := out.Header[name]; !ok {
			return false
		}
	}
	return true
}

const expectedTimeout = "x-envoy-expected-rq-timeout-ms"

// done is what gRPC calls at the end of the RPC on the wire.
func (p *choice) done(info balancer.DoneInfo) {
	a := p.attempt
	a.mu.Lock()
	defer a.mu.Unlock()
	if !info.BytesSent && info.Err == nil {
		// The connection went between pick and use; gRPC picks again.
		p.conn.untake()
		if a.taken == p {
			a.taken, a.next = nil, p
		} else {
			p.lease.Release()
		}
		return
	}
	p.ended, p.info = true, info
	p.conn.leave()
	if p.alone {
		failure := resilience.NoFailure
		if info.Err != nil && !info.BytesReceived {
			failure = resilience.Reset
		}
		p.settle(failure)
	}
}

// settle reports and releases an endpoint on which the attempt does not go on. The caller holds mu.
func (p *choice) settle(f resilience.Failure) {
	if !p.told {
		p.told = true
		o := resilience.Outcome{GRPC: -1, Failure: f, Err: p.info.Err}
		if f == resilience.NoFailure {
			answered(&o, &p.info)
		}
		p.lease.Report(&o)
	}
	p.lease.Release()
}

// finish ends the attempt on the wire: it fills in outcome and reports it for the endpoint.
func (a *attempt) finish(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.taken
	if p == nil {
		p = a.next
	}
	a.classify(err, p)
	if p != nil && p.told && p.ended {
		// A stream's endpoint was told of when its header came; what it says of its load comes last.
		p.lease.ReportLoad(a.outcome.Load)
	}
	if p != nil && !p.told && p.lease.Endpoint() != nil && (a.taken != nil || a.outcome.Failure == resilience.ConnectFailure) {
		p.told = true
		p.lease.Report(&a.outcome)
	}
}

// lease returns the lease of the endpoint that the attempt went to; nil where there is none.
func (a *attempt) lease() *outbound.Lease {
	for _, p := range [...]*choice{a.taken, a.next} {
		if p != nil && p.lease.Endpoint() != nil {
			return &p.lease
		}
	}
	return nil
}

// release frees the endpoint and the attempt's context.
func (a *attempt) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range [...]*choice{a.taken, a.next} {
		if p == nil {
			continue
		}
		if p == a.taken && !p.ended {
			p.alone = true // gRPC still has it
			continue
		}
		p.lease.Release()
	}
	a.taken, a.next, a.closed = nil, nil, true
	a.limits.end()
}

// newAttempt returns the attempt that continues with try, or the first of all.
func newAttempt(r *rpc, try outbound.Try) *attempt {
	a := &attempt{}
	a.rpc, a.try = r, try
	return a
}

// recycle empties an attempt that has ended, for another RPC. It reports
// whether it could: nothing else may have it, such as an interceptor of the
// caller's that has sent the RPC twice.
func (a *attempt) recycle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.picks != 1 || !a.first.ended {
		return false
	}
	a.turn++
	a.attemptState = attemptState{}
	return true
}
