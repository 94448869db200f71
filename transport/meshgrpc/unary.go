package meshgrpc

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// unaryRPC is one unary RPC.
type unaryRPC struct {
	rpc
	request any
	reply   any
	invoke  grpc.UnaryInvoker
	alone   bool // nothing but the first attempt has been made of it
}

// unaryRPCs are for RPCs whose only attempt has succeeded, which is most of
// them: they are large, and all that an RPC allocates counts.
var unaryRPCs = sync.Pool{New: func() any { return new(unaryRPC) }}

// recycle keeps the memory for another RPC, if nothing else has it.
func (u *unaryRPC) recycle() {
	if !u.alone || !u.first.recycle() {
		return
	}
	u.rpcState, u.own = rpcState{}, outbound.Call{}
	u.request, u.reply, u.invoke, u.alone = nil, nil, nil, false
	unaryRPCs.Put(u)
}

// unaryInterceptor takes unary RPCs of "mesh:///" channels through the engine, and those of others through againUnary.
func (m *meshClient) unaryInterceptor(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	authority := m.authority(cc)
	if authority == "" {
		return againUnary(ctx, method, request, reply, cc, invoke, options...)
	}
	read := readOptions(options)
	for n := 0; ; n++ {
		u := unaryRPCs.Get().(*unaryRPC)
		u.request, u.reply, u.invoke = request, reply, invoke
		u.client, u.cc, u.authority, u.method, u.parent, u.options = m, cc, authority, method, ctx, read
		u.metadata, _ = metadata.FromOutgoingContext(ctx)
		u.begin()
		changed := m.engine.Changed()
		err := u.run()
		if read.waits && u.unsent(err) && m.waitForChange(ctx, cc, changed, n) {
			continue
		}
		if err == nil {
			u.recycle()
		}
		read.finished(err)
		return err
	}
}

// unsent reports whether an RPC that waits for readiness has met with nothing but that there is none.
func (r *rpc) unsent(err error) bool {
	var again sendAgain
	var notReady *outbound.NotReadyError
	var none *outbound.NoHealthyEndpointError
	return errors.As(err, &again) || errors.As(err, &notReady) || errors.As(err, &none)
}

// maxWait bounds how long an RPC that waits for readiness does not look again:
// what is usable changes also without policy.
const maxWait = time.Second

// waitForChange waits for policy, or a while; it reports whether the RPC is to be tried again.
func (m *meshClient) waitForChange(ctx context.Context, cc *grpc.ClientConn, changed <-chan struct{}, n int) bool {
	wait := min(10*time.Millisecond<<min(n, 10), maxWait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return cc.GetState() != connectivity.Shutdown
}

func (u *unaryRPC) run() error {
	local, err := u.decide()
	if err != nil {
		o := resilience.Outcome{GRPC: -1, Err: err}
		if u.parent.Err() != nil {
			o.Failure = resilience.Cancelled
		}
		u.end(&o)
		return CallError(err)
	}
	if local != nil {
		return u.answer(local)
	}
	shadows := u.call.Shadows()
	u.mirror(shadows)
	initial, onTimeout := u.call.Hedges()
	if initial > 1 || onTimeout {
		return u.hedged(initial, onTimeout)
	}
	u.alone = len(shadows) == 0
	return u.attempts()
}

// answer is the RPC's end where policy itself answers.
func (u *unaryRPC) answer(l *outbound.Local) error {
	err := localError(l)
	u.end(&resilience.Outcome{Status: http.StatusOK, GRPC: int(status.Code(err)), Err: err})
	if err == nil {
		err = status.Error(codes.Internal, "mesh: policy answers with the status OK and no message")
	}
	u.options.response(nil, lowerMetadata(l.Header), nil)
	return err
}

func lowerMetadata(h map[string][]string) metadata.MD {
	md := make(metadata.MD, len(h))
	for name, values := range h {
		md[strings.ToLower(name)] = values
	}
	return md
}

// attempts sends the RPC until a response or error is the caller's.
func (u *unaryRPC) attempts() error {
	a := &u.first
	a.rpc = &u.rpc
	policy := u.call.Retry()
	for {
		if err := u.call.Begin(&a.try); err != nil {
			u.end(&resilience.Outcome{GRPC: -1, Failure: resilience.Overflow, Err: err})
			return CallError(err)
		}
		err := u.send(a, policy)
		if err != nil && isSendAgain(err) {
			a.release()
			u.end(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
			return err
		}
		if wait, again := a.repeat(policy); again {
			a.release()
			u.alone = false
			resetReply(u.reply)
			// Another one, because gRPC may not have let go of this one's context.
			a = newAttempt(&u.rpc, a.try)
			if err := pause(u.ctx, u.cc, wait); err != nil {
				return u.interrupted(a, err)
			}
			continue
		}
		return u.finish(a)
	}
}

// repeat asks whether there is another attempt, and after what pause.
func (a *attempt) repeat(policy *resilience.RetryPolicy) (time.Duration, bool) {
	if policy == nil {
		return 0, false
	}
	return a.try.Next(&a.outcome)
}

// interrupted is the RPC's end between two attempts.
func (u *unaryRPC) interrupted(a *attempt, err error) error {
	a.mu.Lock()
	a.classify(err, nil)
	a.mu.Unlock()
	return u.finish(a)
}

// send sends the RPC once, and fills in the attempt's outcome.
func (u *unaryRPC) send(a *attempt, policy *resilience.RetryPolicy) error {
	return u.sendAs(a, policy, u.ctx, a.try.Timeout(), u.request, u.reply, u.options.rest)
}

func (u *unaryRPC) sendAs(a *attempt, policy *resilience.RetryPolicy, above context.Context, limit time.Duration, request, reply any, options []grpc.CallOption) error {
	a.above = above
	above = a.limit(above, limit, a.try.IdleTimeout())
	tell := u.options.tell
	if tell != nil && len(tell.headers) > 0 || policy != nil && policy.On&readsHeaders != 0 {
		options = append(options, grpc.Header(&a.header))
	}
	if tell != nil && len(tell.peers) > 0 {
		a.peer = new(peer.Peer)
		options = append(options, grpc.Peer(a.peer))
	}
	for n := 0; ; n++ {
		ctx, method, options, err := a.prepare(above, options)
		if err == nil {
			if u.copies.Load() != nil {
				u.sendCopies()
			}
			err = u.invoke(ctx, method, request, reply, u.cc, options...)
		}
		if err == errAnew && n < maxAgain {
			continue
		}
		if err != errDecide {
			a.finish(err)
			if a.header != nil && a.outcome.Header == nil {
				a.outcome.Header = a.header
			}
		}
		return err
	}
}

// readsHeaders are the conditions that look at the response's headers.
const readsHeaders = resilience.OnRetriableHeaders | resilience.OnEnvoyRateLimited | resilience.OnRetriableStatusCodes

// finish makes the attempt's response the caller's.
func (u *unaryRPC) finish(a *attempt) error {
	if u.options.tell != nil {
		a.tell(&u.options)
	}
	a.release()
	err := a.outcome.Err
	u.end(&a.outcome)
	return err
}

// tell gives the caller what it wants to know of the response, as policy changes it.
func (a *attempt) tell(o *callOptions) {
	l := a.lease()
	if l == nil || a.taken == nil || !a.taken.ended {
		return
	}
	header, trailer := a.header, a.taken.info.Trailer
	changed := header
	if _, only := trailer["content-type"]; only {
		changed = trailer
	}
	if changed == nil {
		changed = metadata.MD{}
	}
	a.rpc.call.Incoming(l, a.outcome.Status, changed, routing.LowerHeaders)
	o.response(header, trailer, a.peer)
}

// resetReply empties a reply that an attempt may have filled in: codecs such as
// JSON's would merge the next one into it.
func resetReply(reply any) {
	if m, ok := reply.(proto.Message); ok {
		proto.Reset(m)
		return
	}
	if v := reflect.ValueOf(reply); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}
