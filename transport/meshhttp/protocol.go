package meshhttp

import (
	"context"

	"google.golang.org/grpc"
)

// servedKey is the key of contexts of requests that came by HTTP/2.
type servedKey struct{}

// contextOfHTTP2 marks the context of a request that is being served and came by HTTP/2.
func contextOfHTTP2(ctx context.Context) context.Context {
	return context.WithValue(ctx, servedKey{}, true)
}

// servesHTTP2 reports whether the context belongs to a request that is being
// served and came by HTTP/2, as a gRPC call always does.
func servesHTTP2(ctx context.Context) bool {
	return ctx.Value(servedKey{}) != nil || grpc.ServerTransportStreamFromContext(ctx) != nil
}
