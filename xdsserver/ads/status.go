package ads

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// Status is what the server knows of its clients.
type Status struct {
	Clients []ClientStatus `json:"clients"`
	// Problems are resources that the policy in force can not be made into;
	// clients keep what they had.
	Problems []Problem `json:"problems"`
	// Refused are the last streams that were not served, the newest last.
	Refused []Refusal `json:"refused"`
}

// Problem is a resource that could not be translated.
type Problem struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	Error string `json:"error"`
}

// ClientStatus is one stream. A process may have several: grpc-go opens one for each channel.
type ClientStatus struct {
	Node      string `json:"node"`
	UserAgent string `json:"userAgent"`
	Kind      string `json:"kind"` // sinew, grpc or other
	Namespace string `json:"namespace"`
	// Identity is the SPIFFE ID that the client's certificate proves; empty on a
	// connection without one.
	Identity       string           `json:"identity,omitempty"`
	Address        string           `json:"address"`
	Protocol       string           `json:"protocol"` // delta or sotw
	ConnectedSince time.Time        `json:"connectedSince"`
	Resources      []ResourceStatus `json:"resources"`

	client *translate.Client
}

// State says how far a resource has come with one client.
type State string

const (
	Requested    State = "REQUESTED"      // asked for, not yet answered
	Sent         State = "SENT"           // answered, not yet acknowledged
	Accepted     State = "ACKED"          // in force at the client
	Refused      State = "NACKED"         // the client keeps what it had before
	DoesNotExist State = "DOES_NOT_EXIST" // answered so
)

// ResourceStatus is one resource that a client watches.
type ResourceStatus struct {
	Type    string `json:"type"` // Listener, RouteConfiguration, Cluster, ClusterLoadAssignment
	Name    string `json:"name"`
	State   State  `json:"state"`
	Version string `json:"version,omitempty"` // last sent
	// Accepted is the last version that the client acknowledged.
	Accepted string `json:"accepted,omitempty"`
	// Error is the client's, with NACKED.
	Error string `json:"error,omitempty"`
	// Withheld says why the policy in force can not be made into this resource for
	// this client. Where it says who may call, as an inbound listener does, the
	// resource is then not served; others stay as the client has them.
	Withheld string `json:"withheld,omitempty"`
	// Notes are what this client can not do of the policy behind the resource.
	Notes []translate.Note `json:"notes,omitempty"`

	typeURL string
}

// ledger follows the streams.
type ledger struct {
	now func() time.Time

	mu      sync.Mutex
	streams map[*stream]struct{}
}

// stream is one open stream. It implements go-control-plane's callbacks, which
// its own goroutine calls; the ledger's mutex guards its fields.
type stream struct {
	ledger    *ledger
	delta     bool
	address   string
	identity  string
	since     time.Time
	node      *corev3.Node
	client    *translate.Client
	resources map[string]map[string]*ResourceStatus // by type URL and name
	pending   map[string]sentResponse               // by type URL: the last response
}

type sentResponse struct {
	nonce string
	names []string
}

func newLedger() *ledger {
	return &ledger{now: time.Now, streams: make(map[*stream]struct{})}
}

// newStream makes a stream, which counts from when it opens until it is closed.
func (l *ledger) newStream(delta bool, c *caller) *stream {
	return &stream{
		ledger: l, delta: delta, address: c.address, identity: c.id.String(), since: l.now(),
		resources: make(map[string]map[string]*ResourceStatus), pending: make(map[string]sentResponse),
	}
}

func (s *stream) opened() {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	s.ledger.streams[s] = struct{}{}
}

func (s *stream) closed() {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	delete(s.ledger.streams, s)
}

// identified notes who the client is, once its node has been found to be its own.
func (s *stream) identified(c *translate.Client) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	s.client = c
}

func (s *stream) resource(typeURL, name string) *ResourceStatus {
	byName := s.resources[typeURL]
	if byName == nil {
		byName = make(map[string]*ResourceStatus)
		s.resources[typeURL] = byName
	}
	r := byName[name]
	if r == nil {
		r = &ResourceStatus{Type: short(typeURL), Name: name, State: Requested, typeURL: typeURL}
		byName[name] = r
	}
	return r
}

// sent notes a response: what it holds, and what it says does not exist.
func (s *stream) sent(typeURL, nonce string, versions map[string]string, absent []string) {
	for name, v := range versions {
		r := s.resource(typeURL, name)
		r.State, r.Version, r.Error = Sent, v, ""
	}
	for _, name := range absent {
		r := s.resource(typeURL, name)
		r.State, r.Version, r.Error = DoesNotExist, "", ""
	}
	s.pending[typeURL] = sentResponse{nonce: nonce, names: slices.Collect(maps.Keys(versions))}
}

// answered notes the client's answer to a response. A refusal is of the whole
// response, but its valid part may be in force: where the message names some
// of the resources, the others count as accepted.
func (s *stream) answered(typeURL, nonce, refusal string) {
	p := s.pending[typeURL]
	if nonce == "" || p.nonce != nonce {
		return
	}
	delete(s.pending, typeURL)
	named := false
	for _, name := range p.names {
		named = named || refusal != "" && strings.Contains(refusal, name)
	}
	for _, name := range p.names {
		r := s.resources[typeURL][name]
		if r == nil || r.State != Sent {
			continue
		}
		if refusal != "" && (!named || strings.Contains(refusal, name)) {
			r.State, r.Error = Refused, refusal
			continue
		}
		r.State, r.Accepted = Accepted, r.Version
	}
}

// OnStreamOpen implements sotw.Callbacks, as do the next three.
func (s *stream) OnStreamOpen(context.Context, int64, string) error { s.opened(); return nil }

func (s *stream) OnStreamClosed(int64, *corev3.Node) { s.closed() }

func (s *stream) OnStreamRequest(_ int64, req *discoveryv3.DiscoveryRequest) error {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if req.GetNode() != nil {
		s.node = req.GetNode()
	}
	s.answered(req.GetTypeUrl(), req.GetResponseNonce(), refusal(req.GetErrorDetail().GetMessage(), req.GetErrorDetail() != nil))
	if len(req.GetResourceNames()) > maxNames {
		return nil // the cache refuses it
	}
	wanted := make(map[string]bool, len(req.GetResourceNames()))
	for _, name := range req.GetResourceNames() {
		wanted[name] = true
		s.resource(req.GetTypeUrl(), name)
	}
	maps.DeleteFunc(s.resources[req.GetTypeUrl()], func(name string, _ *ResourceStatus) bool { return !wanted[name] })
	return nil
}

func (s *stream) OnStreamResponse(_ context.Context, _ int64, req *discoveryv3.DiscoveryRequest, resp *discoveryv3.DiscoveryResponse) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	versions := make(map[string]string, len(resp.GetResources()))
	for _, r := range resp.GetResources() {
		versions[nameOf(r.GetValue())] = resp.GetVersionInfo()
	}
	var absent []string
	if fullState(resp.GetTypeUrl()) {
		for _, name := range req.GetResourceNames() {
			if _, ok := versions[name]; !ok {
				absent = append(absent, name)
			}
		}
	}
	s.sent(resp.GetTypeUrl(), resp.GetNonce(), versions, absent)
}

// OnDeltaStreamOpen implements delta.Callbacks, as do the next three.
func (s *stream) OnDeltaStreamOpen(context.Context, int64, string) error { s.opened(); return nil }

func (s *stream) OnDeltaStreamClosed(int64, *corev3.Node) { s.closed() }

func (s *stream) OnStreamDeltaRequest(_ int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if req.GetNode() != nil {
		s.node = req.GetNode()
	}
	s.answered(req.GetTypeUrl(), req.GetResponseNonce(), refusal(req.GetErrorDetail().GetMessage(), req.GetErrorDetail() != nil))
	if len(s.resources[req.GetTypeUrl()])+len(req.GetResourceNamesSubscribe()) <= 2*maxNames {
		for _, name := range req.GetResourceNamesSubscribe() {
			if name == "*" {
				continue
			}
			r := s.resource(req.GetTypeUrl(), name)
			if v, ok := req.GetInitialResourceVersions()[name]; ok {
				// What a client brings from its last stream it has accepted there.
				r.State, r.Version, r.Accepted = Accepted, v, v
			}
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(s.resources[req.GetTypeUrl()], name)
	}
	return nil
}

func (s *stream) OnStreamDeltaResponse(_ int64, _ *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	versions := make(map[string]string, len(resp.GetResources()))
	for _, r := range resp.GetResources() {
		versions[r.GetName()] = r.GetVersion()
	}
	none := slices.Clone(resp.GetRemovedResources())
	for _, e := range resp.GetResourceErrors() {
		none = append(none, e.GetResourceName().GetName())
	}
	s.sent(resp.GetTypeUrl(), resp.GetNonce(), versions, none)
}

// refusal is the text of an error_detail; one without a text is a refusal all the same.
func refusal(message string, present bool) string {
	if present && message == "" {
		return "refused without a reason"
	}
	return message
}

// nameOf reads a resource's name, which is field 1 of all four types.
func nameOf(body []byte) string {
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 {
			return ""
		}
		body = body[n:]
		if num == 1 && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(body)
			if n < 0 {
				return ""
			}
			return string(v)
		}
		n = protowire.ConsumeFieldValue(num, typ, body)
		if n < 0 {
			return ""
		}
		body = body[n:]
	}
	return ""
}

// status copies what is known, in a stable order.
func (l *ledger) status() []ClientStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]ClientStatus, 0, len(l.streams))
	for s := range l.streams {
		c := ClientStatus{Node: s.node.GetId(), UserAgent: s.node.GetUserAgentName(), Identity: s.identity, Address: s.address, ConnectedSince: s.since, Protocol: "sotw"}
		if s.delta {
			c.Protocol = "delta"
		}
		for _, byName := range s.resources {
			for _, r := range byName {
				c.Resources = append(c.Resources, *r)
			}
		}
		slices.SortFunc(c.Resources, func(a, b ResourceStatus) int {
			return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
		})
		if s.client != nil {
			c.Kind, c.Namespace = s.client.Agent.String(), s.client.Namespace
			c.client = s.client
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b ClientStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.UserAgent, b.UserAgent), a.ConnectedSince.Compare(b.ConnectedSince), cmp.Compare(a.Address, b.Address))
	})
	return out
}
