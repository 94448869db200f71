package meshgrpc

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// A call chooses its route when it begins, by the channel's policy, and then
// waits for a connection. One that began before there was any policy has chosen
// none: when policy comes, gRPC's balancer is asked for the cluster without a
// name and fails it with Unavailable, also where it was told to wait for
// readiness. Nothing was sent, so such a call is made again here, and chooses by
// the policy that has come. The picker of this process tells it by the error's
// type: no server can make a call come twice by sending its text.

// errUnrouted is the error of a call that began before there was policy.
type errUnrouted struct{ error }

func (e errUnrouted) Unwrap() error              { return e.error }
func (e errUnrouted) GRPCStatus() *status.Status { return status.Convert(e.error) }

// unrouted marks the error of a pick, if the call has chosen no cluster.
func unrouted(err error) error {
	if isUnknownCluster(err) && strings.HasSuffix(status.Convert(err).Message(), `: ""`) {
		return errUnrouted{err}
	}
	return err
}

// maxAgain bounds how often one call is made again: it comes to that only where
// policy goes and comes each time between the two steps.
const maxAgain = 100

func again(ctx context.Context, n int, err error) bool {
	var e errUnrouted
	return errors.As(err, &e) && n < maxAgain && ctx.Err() == nil
}

func againUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for n := 0; ; n++ {
		if err := invoker(ctx, method, req, reply, cc, opts...); !again(ctx, n, err) {
			return err
		}
	}
}

// againStream is for streams: gRPC picks before it hands out the stream.
func againStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	for n := 0; ; n++ {
		s, err := streamer(ctx, desc, cc, method, opts...)
		if !again(ctx, n, err) {
			return s, err
		}
	}
}
