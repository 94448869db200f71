package main

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The ratings service speaks gRPC. What protoc would generate from
//
//	service Ratings {
//	  rpc Rate(google.protobuf.StringValue) returns (google.protobuf.Struct);
//	}
//
// is short enough to be written by hand, so that the example needs nothing but Go.

const rateMethod = "/bookinfo.Ratings/Rate"

type ratingsServer interface {
	rate(ctx context.Context, book *wrapperspb.StringValue) (*structpb.Struct, error)
}

var ratingsDesc = grpc.ServiceDesc{
	ServiceName: "bookinfo.Ratings",
	HandlerType: (*ratingsServer)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Rate",
		Handler: func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			call := func(ctx context.Context, in any) (any, error) {
				return srv.(ratingsServer).rate(ctx, in.(*wrapperspb.StringValue))
			}
			if interceptor == nil {
				return call(ctx, in)
			}
			return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: rateMethod}, call)
		},
	}},
}

// serveRatings serves gRPC with an ordinary server and the mesh's options.
func (s *service) serveRatings(ctx context.Context, lis net.Listener) error {
	server := grpc.NewServer(s.mesh.ServerOptions()...)
	server.RegisterService(&ratingsDesc, s)
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(lis)
}

func (s *service) rate(context.Context, *wrapperspb.StringValue) (*structpb.Struct, error) {
	return structpb.NewStruct(map[string]any{"by": s.name, "stars": 5})
}

type ratingsClient struct {
	conn *grpc.ClientConn
}

type rating struct {
	by    string
	stars int
}

// rate asks for a book's rating. The user goes along as metadata, which routes
// match as they match headers.
func (c *ratingsClient) rate(ctx context.Context, book, user string) (rating, error) {
	if user != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "user", user)
	}
	out := new(structpb.Struct)
	if err := c.conn.Invoke(ctx, rateMethod, wrapperspb.String(book), out); err != nil {
		return rating{}, fmt.Errorf("rate book %s: %w", book, err)
	}
	return rating{by: out.Fields["by"].GetStringValue(), stars: int(out.Fields["stars"].GetNumberValue())}, nil
}
