package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// window is how many responses of a stream may wait for their ACK to be
	// sent; then the stream is not read.
	window = 16
	// maxErrorDetail bounds the text of a NACK.
	maxErrorDetail = 8 << 10
	// A response that repeats what was just refused is refused after a pause
	// that doubles between these, so that a server that answers a NACK with
	// the same again does not keep both busy.
	nackPause    = 100 * time.Millisecond
	nackPauseMax = 5 * time.Second
)

// stream is one ADS stream.
type stream struct {
	server *server
	ctx    context.Context // ends when the server is not in use any more
	sotw   bool

	life      context.Context // of the stream itself
	cancel    context.CancelFunc
	opened    chan struct{}        // closed when the stream is open and the loop knows of it
	out       chan []proto.Message // a batch of requests to write; one at a time
	tokens    chan struct{}        // of the window
	responses int                  // received; owned by run

	// What follows belongs to the loop.

	greeted bool // the node was sent
	writing bool // a batch is being written
	subs    [kinds]subscription
	written []*resource // named first in the batch being written
	release int         // tokens that the batch gives back
}

// subscription is what a stream has asked for and not yet answered, for one kind.
type subscription struct {
	started bool
	sent    map[string]*resource // what the server knows that we want
	changes map[string]struct{}  // names that may differ from sent
	nonce   string               // of the last response
	acks    []ack
	nacks   int       // consecutive refusals with the same text
	last    string    // that text
	hold    time.Time // no ACK or NACK before, unless there is something else to say
}

// ack answers one response.
type ack struct {
	nonce, version string
	err            error // nil: accepted
}

func newStream(ctx context.Context, s *server, sotw bool) *stream {
	st := &stream{
		server: s, ctx: ctx, sotw: sotw,
		opened: make(chan struct{}), out: make(chan []proto.Message, 1), tokens: make(chan struct{}, window),
	}
	st.life, st.cancel = context.WithCancel(ctx)
	for k := range st.subs {
		st.subs[k].sent = map[string]*resource{}
		st.subs[k].changes = map[string]struct{}{}
	}
	return st
}

func (st *stream) protocol() string {
	if st.sotw {
		return "sotw"
	}
	return "delta"
}

func (st *stream) timeout() time.Duration {
	if st.server.config.Features.ResourceTimerIsTransientError {
		return transientTimeout
	}
	return resourceTimeout
}

// run makes the stream and reads it until it ends.
func (st *stream) run(c *Client, ads discovery.AggregatedDiscoveryServiceClient) error {
	ctx := st.life
	defer st.cancel()
	var rpc grpc.ClientStream
	var err error
	if st.sotw {
		rpc, err = ads.StreamAggregatedResources(ctx)
	} else {
		rpc, err = ads.DeltaAggregatedResources(ctx)
	}
	if err != nil {
		return err
	}
	c.mail.post(func() { c.connected(st) })
	close(st.opened)
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		st.write(ctx, c, rpc)
	}()
	err = st.read(ctx, c, rpc)
	st.cancel()
	<-writer
	return err
}

// write sends the batches of requests. A failure ends the stream: read learns why.
func (st *stream) write(ctx context.Context, c *Client, rpc grpc.ClientStream) {
	for {
		select {
		case <-ctx.Done():
			return
		case batch := <-st.out:
			for _, m := range batch {
				if err := rpc.SendMsg(m); err != nil {
					return
				}
			}
			c.mail.post(func() { c.wrote(st) })
		}
	}
}

func (st *stream) read(ctx context.Context, c *Client, rpc grpc.ClientStream) error {
	for {
		r := &response{}
		var err error
		if st.sotw {
			m := &discovery.DiscoveryResponse{}
			if err = rpc.RecvMsg(m); err == nil {
				r.fromSotW(m)
			}
		} else {
			m := &discovery.DeltaDiscoveryResponse{}
			if err = rpc.RecvMsg(m); err == nil {
				r.fromDelta(m)
			}
		}
		if err != nil {
			return err
		}
		st.responses++
		select {
		case <-ctx.Done():
			return ctx.Err()
		case st.tokens <- struct{}{}:
		}
		c.mail.post(func() { c.received(st, r) })
	}
}

// response is a response of either protocol.
type response struct {
	typeURL, version, nonce string

	items   []item
	removed []string // delta
	errors  []*discovery.ResourceError
	bad     []error // resources whose name could not be read
}

type item struct {
	name, version string
	resource      *anypb.Any
	heartbeat     bool
}

func (r *response) fromDelta(m *discovery.DeltaDiscoveryResponse) {
	r.typeURL, r.version, r.nonce = m.GetTypeUrl(), m.GetSystemVersionInfo(), m.GetNonce()
	r.removed, r.errors = m.GetRemovedResources(), m.GetResourceErrors()
	for i, res := range m.GetResources() {
		name := res.GetName()
		if name == "" {
			name, _ = nameOf(res.GetResource().GetValue())
		}
		if name == "" {
			r.bad = append(r.bad, fmt.Errorf("resources[%d]: no name", i))
			continue
		}
		r.add(item{name: name, version: res.GetVersion(), resource: res.GetResource()}, res)
	}
}

func (r *response) fromSotW(m *discovery.DiscoveryResponse) {
	r.typeURL, r.version, r.nonce = m.GetTypeUrl(), m.GetVersionInfo(), m.GetNonce()
	r.errors = m.GetResourceErrors()
	for i, a := range m.GetResources() {
		name := ""
		var w discovery.Resource
		if a.GetTypeUrl() == wrapperURL {
			if err := proto.Unmarshal(a.GetValue(), &w); err != nil {
				r.bad = append(r.bad, fmt.Errorf("resources[%d]: %w", i, err))
				continue
			}
			name, a = w.GetName(), w.GetResource()
		}
		if name == "" {
			if name, _ = nameOf(a.GetValue()); name == "" {
				r.bad = append(r.bad, fmt.Errorf("resources[%d]: a %q whose name can not be read", i, a.GetTypeUrl()))
				continue
			}
		}
		r.add(item{name: name, version: m.GetVersionInfo(), resource: a}, &w)
	}
}

// add takes a resource of the response. One with a time to live and nothing
// else only prolongs the last; as nothing expires here, it is only present.
func (r *response) add(it item, wrapper *discovery.Resource) {
	it.heartbeat = it.resource == nil && wrapper.GetTtl() != nil
	r.items = append(r.items, it)
}

// connected notes a new stream and asks for everything that is wanted.
func (c *Client) connected(st *stream) {
	s := st.server
	if st.ctx.Err() != nil {
		return
	}
	s.stream, s.failed = st, false
	for k := range c.resources {
		for name := range c.resources[k] {
			st.subs[k].changes[name] = struct{}{}
		}
	}
	c.log.Info("xds: connected", "server", s.config.URI, "protocol", st.protocol())
	if f := c.opts.Events.Connected; f != nil {
		f(s.config.URI, st.protocol())
	}
}

// received takes one response.
func (c *Client) received(st *stream, r *response) {
	s := st.server
	if s.stream != st {
		return
	}
	c.closeAfter(s)
	s.logged = ""
	k, known := kindOf(r.typeURL)
	if !known {
		// It was not asked for, so there is no subscription to acknowledge in.
		<-st.tokens
		c.log.Warn("xds: response of an unknown type is ignored", "server", s.config.URI, "type", r.typeURL)
		return
	}
	sub := &st.subs[k]
	sub.nonce = r.nonce
	errs := r.bad
	present := make(map[string]struct{}, len(r.items))
	for i := range r.items {
		it := &r.items[i]
		present[it.name] = struct{}{}
		if res := c.resources[k][it.name]; res != nil && !it.heartbeat {
			if err := c.accept(res, s, it.version, it.resource); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, e := range r.errors {
		present[e.GetResourceName().GetName()] = struct{}{}
		if res := c.resources[k][e.GetResourceName().GetName()]; res != nil {
			code := codes.Code(e.GetErrorDetail().GetCode())
			c.reported(res, s, code == codes.NotFound, code == codes.PermissionDenied,
				fmt.Errorf("%v %q: %v: %s", k, res.name, code, e.GetErrorDetail().GetMessage()))
		}
	}
	for _, name := range r.removed {
		if res := c.resources[k][name]; res != nil {
			c.deleted(res, s)
		}
	}
	// A resource whose name could not be read may be any of those that seem to be left out.
	if st.sotw && k.complete() && len(r.bad) == 0 {
		c.leftOut(st, k, present)
	}
	c.answer(st, k, r, errs)
}

// leftOut handles the resources that a state-of-the-world response does not
// hold although it should hold all. One that was never had is absent; where
// the response may be older than the request for it, only if none comes at once.
func (c *Client) leftOut(st *stream, k kind, present map[string]struct{}) {
	for name, res := range c.resources[k] {
		if _, ok := present[name]; ok || st.subs[k].sent[name] != res {
			continue
		}
		switch {
		case !res.pending() || res.opening && res.asked == st:
			c.deleted(res, st.server)
		case !res.short:
			c.startTimer(res, st, crossing)
			res.short = true
		}
	}
}

// answer queues the ACK or NACK of a response.
func (c *Client) answer(st *stream, k kind, r *response, errs []error) {
	s, sub := st.server, &st.subs[k]
	if len(errs) == 0 {
		s.version[k] = r.version
		sub.nacks, sub.last, sub.hold = 0, "", time.Time{}
		sub.acks = append(sub.acks, ack{nonce: r.nonce, version: r.version})
		return
	}
	err := errors.Join(errs...)
	sub.acks = append(sub.acks, ack{nonce: r.nonce, version: s.version[k], err: err})
	if f := c.opts.Events.NACK; f != nil {
		f(s.config.URI, r.typeURL, r.version, err)
	}
	if text := err.Error(); text != sub.last {
		sub.nacks, sub.last, sub.hold = 0, text, time.Time{}
		if len(r.bad) > 0 {
			c.log.Warn("xds: response refused", "server", s.config.URI, "type", k.String(), "error", err)
		}
		return
	}
	pause := min(nackPause<<min(sub.nacks, 10), nackPauseMax)
	sub.nacks++
	sub.hold = time.Now().Add(pause)
	time.AfterFunc(pause, func() { c.mail.post(func() {}) }) // a batch flushes
}

// flush gives each stream whose writer is idle the requests that are due.
func (c *Client) flush() {
	for _, s := range c.servers[:c.open] {
		st := s.stream
		if st == nil || st.writing {
			continue
		}
		var batch []proto.Message
		for k := range kinds {
			if st.sotw {
				batch = c.sotwRequests(batch, st, k)
			} else {
				batch = c.deltaRequests(batch, st, k)
			}
		}
		if len(batch) > 0 {
			st.writing = true
			st.out <- batch
		}
	}
}

// wrote notes that a batch is on its way: the wait for what it asks for begins.
func (c *Client) wrote(st *stream) {
	for range st.release {
		<-st.tokens
	}
	st.release, st.writing = 0, false
	if st.server.stream != st {
		return
	}
	for _, r := range st.written {
		if r.pending() && r.timer == nil { // purge stops it where nobody wants the resource any more
			c.startTimer(r, st, st.timeout())
		}
	}
	st.written = nil
}

// diff lists what is wanted and was not asked for, and the contrary, and notes both as sent.
func (c *Client) diff(st *stream, k kind) (add []*resource, remove []string) {
	sub := &st.subs[k]
	for name := range sub.changes {
		switch r, old := c.wanted(k, name), sub.sent[name]; {
		case r != nil && r != old:
			sub.sent[name] = r
			r.asked, r.opening = st, !sub.started
			add = append(add, r)
		case r == nil && old != nil:
			delete(sub.sent, name)
			remove = append(remove, name)
		}
	}
	clear(sub.changes)
	st.written = append(st.written, add...)
	return add, remove
}

// due takes the ACKs that may be sent now.
func (st *stream) due(k kind, urgent bool) []ack {
	sub := &st.subs[k]
	if !urgent && time.Now().Before(sub.hold) {
		return nil
	}
	acks := sub.acks
	sub.acks = nil
	st.release += len(acks)
	return acks
}

func (c *Client) deltaRequests(batch []proto.Message, st *stream, k kind) []proto.Message {
	sub := &st.subs[k]
	add, remove := c.diff(st, k)
	acks := st.due(k, len(add)+len(remove) > 0)
	if len(add)+len(remove) == 0 && len(acks) == 0 {
		return batch
	}
	first := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[k], ResourceNamesUnsubscribe: remove}
	for _, r := range add {
		first.ResourceNamesSubscribe = append(first.ResourceNamesSubscribe, r.name)
		if !sub.started && r.value != nil && !r.gone && r.server == st.server && r.version != "" {
			if first.InitialResourceVersions == nil {
				first.InitialResourceVersions = map[string]string{}
			}
			first.InitialResourceVersions[r.name] = r.version
		}
	}
	sub.started = true
	if !st.greeted {
		first.Node, st.greeted = c.node, true
	}
	for i, a := range acks {
		m := first
		if i > 0 {
			m = &discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[k]}
			batch = append(batch, m)
		}
		m.ResponseNonce, m.ErrorDetail = a.nonce, detail(a.err)
		if i == 0 {
			batch = append(batch, m)
		}
	}
	if len(acks) == 0 {
		batch = append(batch, first)
	}
	return batch
}

func (c *Client) sotwRequests(batch []proto.Message, st *stream, k kind) []proto.Message {
	sub := &st.subs[k]
	add, remove := c.diff(st, k)
	acks := st.due(k, len(add)+len(remove) > 0)
	if len(acks) == 0 {
		if len(add)+len(remove) == 0 {
			return batch
		}
		acks = []ack{{nonce: sub.nonce, version: c.versionFor(st, k)}}
	}
	names := make([]string, 0, len(sub.sent))
	for name := range sub.sent {
		names = append(names, name)
	}
	sub.started = true
	for _, a := range acks {
		m := &discovery.DiscoveryRequest{
			TypeUrl: typeURLs[k], ResourceNames: names,
			VersionInfo: a.version, ResponseNonce: a.nonce, ErrorDetail: detail(a.err),
		}
		if !st.greeted {
			m.Node, st.greeted = c.node, true
		}
		batch = append(batch, m)
	}
	return batch
}

// versionFor is the version that a request reports. Before the first response
// on a stream it is empty if anything that is wanted did not come from this
// server: one that takes the version to mean "has everything" would not send it.
func (c *Client) versionFor(st *stream, k kind) string {
	if st.subs[k].nonce == "" {
		for _, r := range c.resources[k] {
			if len(r.users) > 0 && (r.value == nil || r.gone || r.server != st.server) {
				return ""
			}
		}
	}
	return st.server.version[k]
}

// detail is the error_detail of a NACK; nil for an ACK.
func detail(err error) *rpcstatus.Status {
	if err == nil {
		return nil
	}
	text := err.Error()
	if len(text) > maxErrorDetail {
		text = text[:maxErrorDetail] + "..."
	}
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: strings.ToValidUTF8(text, "?")}
}
