package meshgrpc

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// maxShadow bounds a copy to a mirror whose route has no time limit.
const maxShadow = time.Minute

// copies are those of a unary RPC, which wait for it to have an endpoint.
type copies struct {
	calls   []*outbound.Call
	encoded *encoded
}

// mirror prepares the copies of the RPC. The caller may change its request once the RPC is over.
func (u *unaryRPC) mirror(all []*outbound.Call) {
	if len(all) == 0 {
		return
	}
	e := u.options.encode(u.request)
	if e == nil {
		dropShadows(all)
		return
	}
	u.copies.Store(&copies{all, e})
}

// sendCopies sends the copies that wait, in the background: the RPC has an endpoint (Envoy).
func (u *unaryRPC) sendCopies() {
	all := u.copies.Swap(nil)
	if all == nil {
		return // another attempt was first
	}
	invoke, cc := u.invoke, u.cc
	for _, c := range all.calls {
		s := u.shadow(c)
		go s.send(func(ctx context.Context, method string, options []grpc.CallOption) error {
			return invoke(ctx, method, all.encoded.request, new(frame), cc, options...)
		}, all.encoded.options)
	}
}

// dropCopies gives up the copies of an RPC that never had an endpoint.
func (r *rpc) dropCopies() {
	if all := r.copies.Swap(nil); all != nil {
		dropShadows(all.calls)
	}
}

// dropShadows ends copies that are not sent.
func dropShadows(all []*outbound.Call) {
	for _, c := range all {
		c.Finish(&resilience.Outcome{GRPC: -1, Failure: resilience.Cancelled})
	}
}

// shadow makes the state of one copy. It outlives the RPC, and shares nothing with it that changes.
func (r *rpc) shadow(c *outbound.Call) *rpc {
	limit := r.timeout
	if limit <= 0 {
		limit = maxShadow
	}
	s := &rpc{rpcState: rpcState{client: r.client, cc: r.cc, authority: r.authority, method: r.method, metadata: r.metadata, call: c}}
	s.parent, s.cancel = context.WithTimeout(context.WithoutCancel(r.parent), limit)
	s.ctx = s.parent
	return s
}

// send sends the copy once.
func (r *rpc) send(invoke func(context.Context, string, []grpc.CallOption) error, options []grpc.CallOption) {
	a := &r.first
	a.rpc = r
	defer func() {
		a.release()
		r.end(&a.outcome)
	}()
	if err := r.call.Begin(&a.try); err != nil {
		a.outcome = resilience.Outcome{GRPC: -1, Failure: resilience.Overflow, Err: err}
		return
	}
	for n := 0; ; n++ {
		ctx, method, options, err := a.prepare(r.ctx, options)
		if err == nil {
			err = invoke(ctx, method, options)
		}
		if err != errAnew || n == maxAgain {
			a.finish(err)
			return
		}
	}
}

// sendShadows sends copies of a stream whose messages are all known, in the background.
func (s *stream) sendShadows(all []*outbound.Call, messages []any) {
	for _, c := range all {
		r := s.shadow(c)
		go r.send(func(ctx context.Context, method string, options []grpc.CallOption) error {
			// Messages that come back are read and forgotten: as frames they need no type.
			cs, err := s.open(ctx, s.desc, s.cc, method, options...)
			if err != nil {
				return err
			}
			for _, m := range messages {
				if err := cs.SendMsg(m); err != nil {
					break // RecvMsg says why
				}
			}
			if err := cs.CloseSend(); err != nil {
				return err
			}
			for {
				switch err := cs.RecvMsg(new(emptypb.Empty)); err {
				case nil:
					if !s.desc.ServerStreams {
						return nil
					}
				case io.EOF:
					return nil
				default:
					return err
				}
			}
		}, s.options.rest)
	}
}
