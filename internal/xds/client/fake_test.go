package client

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// fake is a control plane that holds resources and follows the protocol, and
// can be told to depart from it.
type fake struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	mu        sync.Mutex
	sotwOnly  bool
	deaf      bool            // answers nothing
	fail      error           // ends each stream as soon as it is made
	silent    map[string]bool // names that are never answered, whatever is known of them
	resources [kinds]map[string]*anypb.Any
	versions  [kinds]map[string]int
	world     int // version of the whole
	streams   map[*fakeStream]struct{}
	requests  []any // *discovery.DeltaDiscoveryRequest and *discovery.DiscoveryRequest, in order
	replied   [kinds][]reply
	opened    int
	openedAt  []time.Time

	loads    *loadServer // nil: no load reporting service
	listener *bufconn.Listener
	conns    []*freezable
	grpc     *grpc.Server
}

type fakeStream struct {
	f     *fake
	send  func(*discovery.DiscoveryResponse, *discovery.DeltaDiscoveryResponse) error
	delta bool
	end   chan error
	nonce int
	done  map[string]bool // nonces that were replied to
	want  [kinds]map[string]bool
	sent  [kinds]map[string]int // versions; -1 is "told that it does not exist"
}

func newFake() *fake {
	f := &fake{silent: map[string]bool{}, streams: map[*fakeStream]struct{}{}, world: 1}
	for k := range f.resources {
		f.resources[k] = map[string]*anypb.Any{}
		f.versions[k] = map[string]int{}
	}
	return f
}

func (f *fake) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listener = bufconn.Listen(1 << 20)
	f.grpc = grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}))
	discovery.RegisterAggregatedDiscoveryServiceServer(f.grpc, f)
	if f.loads != nil {
		loadstats.RegisterLoadReportingServiceServer(f.grpc, f.loads)
	}
	go f.grpc.Serve(f.listener)
}

// stop breaks all connections; new ones are refused until start.
func (f *fake) stop() {
	f.mu.Lock()
	g := f.grpc
	f.grpc, f.listener = nil, nil
	f.mu.Unlock()
	if g != nil {
		g.Stop()
	}
}

func (f *fake) dial(ctx context.Context) (net.Conn, error) {
	f.mu.Lock()
	l := f.listener
	f.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	c := &freezable{Conn: conn, frozen: make(chan struct{}), closed: make(chan struct{})}
	f.mu.Lock()
	f.conns = append(f.conns, c)
	f.mu.Unlock()
	return c, nil
}

// freezable is a connection that can be made half-open: it stays, and nothing arrives.
type freezable struct {
	net.Conn
	frozen, closed chan struct{}
	once           sync.Once
}

func (c *freezable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.frozen:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *freezable) Write(p []byte) (int, error) {
	select {
	case <-c.frozen:
		return len(p), nil
	default:
		return c.Conn.Write(p)
	}
}

func (c *freezable) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// freeze makes the connections that are open now half-open.
func (f *fake) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		close(c.frozen)
	}
	f.conns = nil
}

// put stores resources without telling anybody.
func (f *fake) put(ms ...proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.world++
	for _, m := range ms {
		a := pack(m)
		k, ok := kindOf(a.TypeUrl)
		if !ok {
			panic(a.TypeUrl)
		}
		name, _ := nameOf(a.Value)
		f.resources[k][name] = a
		f.versions[k][name] = f.world
	}
}

// set stores resources and sends them to those who asked.
func (f *fake) set(ms ...proto.Message) {
	f.put(ms...)
	f.push()
}

func (f *fake) remove(k kind, names ...string) {
	f.mu.Lock()
	f.world++
	for _, n := range names {
		delete(f.resources[k], n)
	}
	f.mu.Unlock()
	f.push()
}

func (f *fake) push() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		for k := range kinds {
			s.answer(k, false)
		}
	}
}

// raw sends a response as it is on every stream.
func (f *fake) raw(r *discovery.DiscoveryResponse, d *discovery.DeltaDiscoveryResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		s.nonce++
		r.Nonce, d.Nonce = "n"+strconv.Itoa(s.nonce), "n"+strconv.Itoa(s.nonce)
		s.send(r, d)
	}
}

// breakStreams ends the streams and leaves the connections.
func (f *fake) breakStreams(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		s.end <- err
		delete(f.streams, s)
	}
}

func (f *fake) DeltaAggregatedResources(str discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if f.sotwOnly {
		return status.Error(codes.Unimplemented, "no delta here")
	}
	return f.serve(true, func(_ *discovery.DiscoveryResponse, d *discovery.DeltaDiscoveryResponse) error { return str.Send(d) },
		func() (any, error) { return str.Recv() })
}

func (f *fake) StreamAggregatedResources(str discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return f.serve(false, func(r *discovery.DiscoveryResponse, _ *discovery.DeltaDiscoveryResponse) error { return str.Send(r) },
		func() (any, error) { return str.Recv() })
}

func (f *fake) serve(delta bool, send func(*discovery.DiscoveryResponse, *discovery.DeltaDiscoveryResponse) error, recv func() (any, error)) error {
	s := &fakeStream{f: f, delta: delta, send: send, end: make(chan error, 1), done: map[string]bool{}}
	for k := range s.want {
		s.want[k], s.sent[k] = map[string]bool{}, map[string]int{}
	}
	f.mu.Lock()
	f.opened++
	f.openedAt = append(f.openedAt, time.Now())
	if f.fail != nil {
		f.mu.Unlock()
		return f.fail
	}
	f.streams[s] = struct{}{}
	f.mu.Unlock()
	go func() {
		for {
			r, err := recv()
			if err != nil {
				f.mu.Lock()
				delete(f.streams, s)
				f.mu.Unlock()
				select {
				case s.end <- nil:
				default:
				}
				return
			}
			f.mu.Lock()
			f.requests = append(f.requests, r)
			s.take(r)
			f.mu.Unlock()
		}
	}()
	return <-s.end
}

func (s *fakeStream) reply(k kind, r reply) {
	if r.nonce != "" && !s.done[r.nonce] {
		s.done[r.nonce] = true
		s.f.replied[k] = append(s.f.replied[k], r)
	}
}

func (s *fakeStream) take(r any) {
	switch r := r.(type) {
	case *discovery.DeltaDiscoveryRequest:
		k, _ := kindOf(r.TypeUrl)
		s.reply(k, reply{r.ResponseNonce, "", r.ErrorDetail})
		for _, n := range r.ResourceNamesUnsubscribe {
			delete(s.want[k], n)
			delete(s.sent[k], n)
		}
		for _, n := range r.ResourceNamesSubscribe {
			s.want[k][n] = true
			delete(s.sent[k], n)
			if v, ok := r.InitialResourceVersions[n]; ok {
				s.sent[k][n], _ = strconv.Atoi(v)
			}
		}
		s.answer(k, false)
	case *discovery.DiscoveryRequest:
		k, _ := kindOf(r.TypeUrl)
		s.reply(k, reply{r.ResponseNonce, r.VersionInfo, r.ErrorDetail})
		fresh := false
		want := map[string]bool{}
		for _, n := range r.ResourceNames {
			want[n] = true
			fresh = fresh || !s.want[k][n]
		}
		for n := range s.sent[k] {
			if !want[n] {
				delete(s.sent[k], n)
			}
		}
		s.want[k] = want
		if fresh && r.ResponseNonce == "" && r.VersionInfo == strconv.Itoa(s.f.world) {
			for n := range want { // it has all of this version
				s.sent[k][n] = s.f.versions[k][n]
			}
			return
		}
		s.answer(k, fresh)
	}
}

// answer sends what the stream wants and was not sent; with unknown, the
// absence of a name is news also in state of the world.
func (s *fakeStream) answer(k kind, fresh bool) {
	f := s.f
	if f.deaf {
		return
	}
	d := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURLs[k], SystemVersionInfo: strconv.Itoa(f.world)}
	r := &discovery.DiscoveryResponse{TypeUrl: typeURLs[k], VersionInfo: strconv.Itoa(f.world)}
	news := false
	names := make([]string, 0, len(s.want[k]))
	for n := range s.want[k] {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		a := f.resources[k][n]
		v, told := s.sent[k][n]
		switch {
		case f.silent[n]:
		case a == nil && (!told || v != -1):
			s.sent[k][n] = -1
			d.RemovedResources = append(d.RemovedResources, n)
			news = news || k.complete()
		case a != nil:
			if changed := !told || v != f.versions[k][n]; changed {
				s.sent[k][n] = f.versions[k][n]
				d.Resources = append(d.Resources, &discovery.Resource{Name: n, Version: strconv.Itoa(f.versions[k][n]), Resource: a})
				news = true
			} else if !k.complete() {
				continue
			}
			r.Resources = append(r.Resources, a)
		}
	}
	if s.delta && len(d.Resources)+len(d.RemovedResources) > 0 || !s.delta && news {
		s.nonce++
		d.Nonce = "n" + strconv.Itoa(s.nonce)
		r.Nonce = d.Nonce
		s.send(r, d)
	}
}

// reply is what a client said to one response.
type reply struct {
	nonce, version string
	detail         *rpcstatus.Status
}

// replies lists the ACKs and NACKs for a kind since the last call of forget.
// A later request with the same nonce only changes the names.
func (f *fake) replies(k kind) []reply {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.replied[k])
}

func (f *fake) forget() {
	f.mu.Lock()
	f.requests, f.replied = nil, [kinds][]reply{}
	f.mu.Unlock()
}

// wants is what the streams ask for.
func (f *fake) wants(k kind) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := []string{}
	for s := range f.streams {
		for n := range s.want[k] {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}
