package meshgrpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/resolver"

	"github.com/sinew-mesh/sinew/transport/outbound"
)

// meshResolver makes the resolvers of "mesh:///" targets. They resolve nothing:
// endpoints are the engine's, and addresses that gRPC knew by itself could be
// connected to by another balancer, past all policy. They tell the balancer of
// each change of policy.
type meshResolver struct{ client *meshClient }

// Scheme implements resolver.Builder.
func (meshResolver) Scheme() string { return meshScheme }

// channel is what the resolver, the balancer and the connections of one channel share.
type channel struct {
	client    *meshClient
	authority string // "reviews:9080", as dialled
	// own is whether the channel has this package's credentials; with others it
	// has no connection that policy wants secured.
	own bool
	// generation counts changes of policy.
	generation atomic.Uint64
	config     string // gRPC's service config
}

type channelKey struct{} // of *channel in a resolver's state

// policyState is what the resolver says of a channel's host.
type policyState struct {
	ready bool
	err   error
}

type policyKey struct{} // of policyState in a resolver's state

var (
	errServiceConfig = errors.New("mesh: a channel to a mesh:/// target takes its balancer from the service config: WithDisableServiceConfig would go past all policy")
	errNoEndpoint    = errors.New(`mesh: the target names no host: it is "mesh:///host:port"`)
)

// Build implements resolver.Builder.
func (b meshResolver) Build(target resolver.Target, cc resolver.ClientConn, o resolver.BuildOptions) (resolver.Resolver, error) {
	switch {
	case o.DisableServiceConfig:
		return nil, errServiceConfig
	case target.URL.Host != "":
		return nil, fmt.Errorf("mesh: the target names an authority, %q: it is \"mesh:///host:port\"", target.URL.Host)
	case target.Endpoint() == "":
		return nil, errNoEndpoint
	}
	_, own := o.DialCreds.(*meshCredentials)
	ch := &channel{client: b.client, authority: target.Endpoint(), own: own, config: serviceConfigFor(b.client.health)}
	r := &resolving{channel: ch, cc: cc, closed: make(chan struct{}), done: make(chan struct{})}
	key := outbound.HostKey(ch.authority, "http")
	r.stop = b.client.engine.Watch(key)
	changed := b.client.engine.Changed()
	r.update(key)
	go r.run(key, changed)
	return r, nil
}

// serviceConfigFor is the service config of a channel. It takes the place of
// one that the caller gives by WithDefaultServiceConfig, so that gRPC's own
// retries do not multiply those of policy.
func serviceConfigFor(health *string) string {
	config := map[string]any{"loadBalancingConfig": []any{map[string]any{balancerName: map[string]any{}}}}
	if health != nil {
		config["healthCheckConfig"] = map[string]any{"serviceName": *health}
	}
	b, err := json.Marshal(config)
	if err != nil {
		panic(err) // strings only
	}
	return string(b)
}

// resolving is the resolver of one channel.
type resolving struct {
	channel *channel
	cc      resolver.ClientConn
	stop    func() // ends the subscription
	closed  chan struct{}
	done    chan struct{}
}

func (r *resolving) run(key string, changed <-chan struct{}) {
	defer close(r.done)
	for {
		select {
		case <-changed:
		case <-r.closed:
			return
		}
		// The channel first: an install after this line closes it.
		changed = r.channel.client.engine.Changed()
		r.update(key)
	}
}

func (r *resolving) update(key string) {
	r.channel.generation.Add(1)
	ready, err := r.channel.client.engine.HostState(key)
	// Endpoints is empty and not nil, so that nobody fills it in.
	s := resolver.State{Endpoints: []resolver.Endpoint{}, ServiceConfig: r.cc.ParseServiceConfig(r.channel.config)}
	s.Attributes = s.Attributes.WithValue(channelKey{}, r.channel).WithValue(policyKey{}, policyState{ready, err})
	_ = r.cc.UpdateState(s)
}

// ResolveNow implements resolver.Resolver: policy comes by itself.
func (*resolving) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (r *resolving) Close() {
	close(r.closed)
	<-r.done
	r.stop()
}
