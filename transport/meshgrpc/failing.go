package meshgrpc

import (
	"encoding/json"
	"errors"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
)

// Where there is no policy for a target, gRPC's xDS resolver gives its channel
// an empty service config, whose pick_first fails calls for want of an address,
// and then the reason, with which they fail from then on. The first calls, and
// so the only one of a short program, may be told nothing but "produced zero
// addresses". Here both steps are one, with a balancer that fails calls with
// the reason.

const failingName = "sinew_failing"

func init() { balancer.Register(failingBuilder{}) }

type failingReason struct{} // the key of the reason in a resolver's state

// fail makes the channel's calls fail with the reason.
func (c *settlingChannel) fail(reason error) {
	s := resolver.State{ServiceConfig: c.ClientConn.ParseServiceConfig(`{"loadBalancingConfig":[{"` + failingName + `":{}}]}`)}
	s.Attributes = s.Attributes.WithValue(failingReason{}, reason)
	_ = c.update(s)
}

type failingBuilder struct{}

func (failingBuilder) Name() string { return failingName }

func (failingBuilder) ParseConfig(json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	return struct {
		serviceconfig.LoadBalancingConfig
	}{}, nil
}

func (failingBuilder) Build(cc balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	return failingBalancer{cc}
}

type failingBalancer struct{ cc balancer.ClientConn }

func (b failingBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	if reason, ok := s.ResolverState.Attributes.Value(failingReason{}).(error); ok {
		b.ResolverError(reason)
	}
	return nil
}

// ResolverError makes calls fail with Unavailable, and those that wait for
// readiness wait. The reason's own status would fail both, so it is left behind.
func (b failingBalancer) ResolverError(reason error) {
	b.cc.UpdateState(balancer.State{
		ConnectivityState: connectivity.TransientFailure,
		Picker:            base.NewErrPicker(errors.New(reason.Error())),
	})
}

// UpdateSubConnState implements balancer.Balancer; there are no connections.
func (failingBalancer) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

// Close implements balancer.Balancer.
func (failingBalancer) Close() {}

// ExitIdle implements balancer.Balancer.
func (failingBalancer) ExitIdle() {}
