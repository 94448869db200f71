package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

func TestErrors(t *testing.T) {
	place := outbound.Place{Host: host, Route: "r", Cluster: "c"}
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{&outbound.NotReadyError{Place: place, Err: context.DeadlineExceeded}, codes.Unavailable},
		{&outbound.NoRouteError{Place: place, Reason: "none matches"}, codes.Unavailable},
		{&outbound.NoHealthyEndpointError{Place: place}, codes.Unavailable},
		{&outbound.BreakerOpenError{Place: place}, codes.Unavailable},
		{&outbound.LimitError{Place: place, Limit: "max_requests", Max: 1}, codes.Unavailable},
		{&outbound.TimeoutError{Place: place, Limit: "timeout"}, codes.DeadlineExceeded},
		{&inbound.NotReadyError{Address: "10.0.0.1:80", Err: context.Canceled}, codes.Unavailable},
		{status.Error(codes.NotFound, "x"), codes.NotFound},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errors.New("x"), codes.Unknown},
	} {
		for _, err := range []error{tt.err, fmt.Errorf("wrapped: %w", tt.err)} {
			if got := Code(err); got != tt.want {
				t.Errorf("Code(%v) = %v, want %v", err, got, tt.want)
			}
			call := CallError(err)
			if got := status.Convert(call); got.Code() != tt.want || got.Message() != err.Error() {
				t.Errorf("CallError(%v) has the status %v", err, got)
			}
			if !errors.Is(call, tt.err) {
				t.Errorf("CallError(%v) hides the error", err)
			}
			refusal := Refusal(err)
			if refusal.Code() != tt.want || !strings.HasPrefix(refusal.Message(), "mesh: ") || strings.Contains(refusal.Message(), "context") {
				t.Errorf("Refusal(%v) = %v", err, refusal)
			}
		}
	}
	if Code(nil) != codes.OK || CallError(nil) != nil {
		t.Error("nil is no error")
	}
	if got := Refusal(status.Error(codes.OK, "")).Code(); got == codes.OK {
		t.Error("a refusal with the code OK")
	}
	var typed *outbound.NoRouteError
	if !errors.As(CallError(&outbound.NoRouteError{Place: place}), &typed) || typed.Route != "r" {
		t.Error("the typed error is lost")
	}
}
