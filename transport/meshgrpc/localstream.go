package meshgrpc

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// localStream is a stream that policy itself has answered: it has a status and nothing else.
type localStream struct {
	ctx     context.Context
	desc    *grpc.StreamDesc
	trailer metadata.MD
	err     error // nil for the status OK
}

// answer is the RPC's end where policy itself answers.
func (s *stream) answer(l *outbound.Local) grpc.ClientStream {
	err := localError(l)
	s.end(&resilience.Outcome{Status: 200, GRPC: int(status.Code(err)), Err: err})
	if err == nil && !s.desc.ServerStreams {
		err = status.Error(codes.Internal, "mesh: policy answers with the status OK and no message")
	}
	trailer := lowerMetadata(l.Header)
	s.options.response(nil, trailer, nil)
	s.options.finished(err)
	return &localStream{ctx: s.parent, desc: s.desc, trailer: trailer, err: err}
}

// Header implements grpc.ClientStream.
func (*localStream) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream.
func (s *localStream) Trailer() metadata.MD { return s.trailer }

// CloseSend implements grpc.ClientStream.
func (*localStream) CloseSend() error { return nil }

// Context implements grpc.ClientStream.
func (s *localStream) Context() context.Context { return s.ctx }

// SendMsg implements grpc.ClientStream.
func (s *localStream) SendMsg(any) error {
	if !s.desc.ClientStreams {
		return nil
	}
	return io.EOF
}

// RecvMsg implements grpc.ClientStream.
func (s *localStream) RecvMsg(any) error {
	if s.err == nil {
		return io.EOF
	}
	return s.err
}
