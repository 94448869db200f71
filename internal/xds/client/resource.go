package client

import (
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// kind is one of the resource types that the client asks for, in the order in
// which requests are sent.
type kind uint8

const (
	listeners kind = iota
	routes
	clusters
	endpoints
	kinds
)

const typePrefix = "type.googleapis.com/"

var typeURLs = [kinds]string{
	listeners: typePrefix + "envoy.config.listener.v3.Listener",
	routes:    typePrefix + "envoy.config.route.v3.RouteConfiguration",
	clusters:  typePrefix + "envoy.config.cluster.v3.Cluster",
	endpoints: typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment",
}

// wrapperURL is the type of a resource in its discovery.v3.Resource envelope.
const wrapperURL = typePrefix + "envoy.service.discovery.v3.Resource"

var kindNames = [kinds]string{"Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment"}

func (k kind) String() string { return kindNames[k] }

func kindOf(typeURL string) (kind, bool) {
	for k, u := range typeURLs {
		if u == typeURL {
			return kind(k), true
		}
	}
	return 0, false
}

// complete reports whether a state-of-the-world response holds every resource
// of the type that was asked for, so that one left out does not exist. The
// protocol says so for listeners and clusters only.
func (k kind) complete() bool { return k == listeners || k == clusters }

// decoders turn resources into compiled policy. Each returns the name even
// with an error, if the name could be read.
type decoders struct {
	listener  func(*anypb.Any) (string, *snapshot.Listener, error)
	inbound   func(*anypb.Any) (string, *snapshot.Inbound, error)
	routes    func(*anypb.Any) (string, *snapshot.RouteConfig, error)
	cluster   func(*anypb.Any) (string, *snapshot.Cluster, error)
	endpoints func(*anypb.Any) (string, *lb.Endpoints, error)
}

var compiled = decoders{
	listener:  compile.Listener,
	inbound:   compile.Inbound,
	routes:    compile.RouteConfig,
	cluster:   compile.Cluster,
	endpoints: compile.Endpoints,
}

// of decodes one resource of a kind. A decoder that panics refuses the
// resource: no input from the network may end the process.
func (d *decoders) of(k kind, inbound bool, a *anypb.Any) (name string, value any, err error) {
	defer func() {
		if p := recover(); p != nil {
			value, err = nil, fmt.Errorf("%v: can not be read: %v", k, p)
		}
	}()
	switch {
	case k == listeners && inbound:
		return unpack(d.inbound(a))
	case k == listeners:
		return unpack(d.listener(a))
	case k == routes:
		return unpack(d.routes(a))
	case k == clusters:
		return unpack(d.cluster(a))
	default:
		return unpack(d.endpoints(a))
	}
}

// unpack widens a decoder's result; a nil value without an error would be taken for "no value".
func unpack[T any](name string, v *T, err error) (string, any, error) {
	if err == nil && v == nil {
		err = fmt.Errorf("%q: decoded to nothing", name)
	}
	if err != nil {
		return name, nil, err
	}
	return name, v, nil
}

// nameOf reads a resource's name without decoding the rest: field 1 in each
// of the four types. ok is false where the message is not well formed.
func nameOf(value []byte) (name string, ok bool) {
	for len(value) > 0 {
		num, typ, n := protowire.ConsumeTag(value)
		if n < 0 {
			return "", false
		}
		value = value[n:]
		if num == 1 && typ == protowire.BytesType {
			b, n := protowire.ConsumeBytes(value)
			if n < 0 {
				return "", false
			}
			name, value = string(b), value[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, value); n < 0 {
			return "", false
		}
		value = value[n:]
	}
	return name, name != ""
}

// State is where a resource stands (envoy.admin.v3.ClientResourceStatus).
type State string

// The states of a resource.
const (
	Requested    State = "REQUESTED"
	DoesNotExist State = "DOES_NOT_EXIST"
	Acked        State = "ACKED"
	Nacked       State = "NACKED"
	TimedOut     State = "TIMEOUT"        // gRFC A88
	Failed       State = "RECEIVED_ERROR" // gRFC A88
)

// How long the server may take to send a resource before it does not exist:
// Envoy's and gRPC's initial fetch timeout, and A88's where the timeout is only transient.
const (
	resourceTimeout  = 15 * time.Second
	transientTimeout = 30 * time.Second
)

// crossing is how long a state-of-the-world response without a resource may
// be older than the request for it: the two can cross on the way, and only
// after this is the resource taken as absent.
const crossing = 250 * time.Millisecond

// user is what depends on resources: a host, an inbound listener or a cluster.
type user interface{ touched(*Client) }

// resource is one subscribed resource. It lives while it has users, and a little longer (purge).
type resource struct {
	kind    kind
	name    string
	inbound bool         // a listener for requests that arrive
	users   map[user]int // with the number of holds each has

	state   State
	version string  // of value
	server  *server // that value and version come from
	value   any     // the compiled resource; nil if there is none
	sum     [sha256.Size]byte
	err     error // why the last update was refused, or why there is none
	gone    bool  // the server deleted it; value is kept
	logged  string

	asked   *stream // whose request named it last
	opening bool    // that request was the first for the kind on its stream

	timer *time.Timer
	timed *stream // that timer runs for
	short bool    // timer waits for a crossing response only
}

// pending reports that there is no answer for the resource yet.
func (r *resource) pending() bool { return r.state == Requested }

// absent reports that the resource does not exist, as far as is known.
func (r *resource) absent() bool { return r.value == nil && r.state == DoesNotExist }

// failure is why there is no value.
func (r *resource) failure() error {
	if r.err != nil {
		return r.err
	}
	return fmt.Errorf("%v %q does not exist", r.kind, r.name)
}

// trouble is why there is no value, other than that the resource does not exist.
func (r *resource) trouble() error {
	if r.absent() {
		return nil
	}
	return r.failure()
}

func (r *resource) stopTimer() {
	if r.timer != nil {
		r.timer.Stop()
	}
	r.timer, r.timed, r.short = nil, nil, false
}

// acquire makes u a user of the resource, which is subscribed if it is new.
func (c *Client) acquire(k kind, name string, u user) *resource {
	r := c.resources[k][name]
	if r == nil {
		r = &resource{kind: k, name: name, users: map[user]int{}, state: Requested}
		c.resources[k][name] = r
	}
	if len(r.users) == 0 {
		c.namesChanged(r)
	}
	r.users[u]++
	return r
}

func (c *Client) release(r *resource, u user) {
	if r == nil {
		return
	}
	if r.users[u]--; r.users[u] <= 0 {
		delete(r.users, u)
	}
	if len(r.users) == 0 {
		c.orphans[r] = struct{}{}
		c.namesChanged(r)
	}
}

// wanted returns the resource if it has users, else nil.
func (c *Client) wanted(k kind, name string) *resource {
	if r := c.resources[k][name]; r != nil && len(r.users) > 0 {
		return r
	}
	return nil
}

// purge forgets what nobody uses any more. Until each stream has been given
// the request that says so the resource is kept up to date: if it is wanted
// again before, the server sees no difference and does not send it anew.
func (c *Client) purge() {
	for r := range c.orphans {
		if len(r.users) > 0 {
			delete(c.orphans, r)
			continue
		}
		known := false
		for _, s := range c.servers[:c.open] {
			known = known || s.stream != nil && s.stream.subs[r.kind].sent[r.name] == r
		}
		if !known {
			r.stopTimer()
			delete(c.orphans, r)
			delete(c.resources[r.kind], r.name)
		}
	}
}

// namesChanged notes for each stream that the name is wanted or not wanted any more.
func (c *Client) namesChanged(r *resource) {
	for _, s := range c.servers[:c.open] {
		if s.stream != nil {
			s.stream.subs[r.kind].changes[r.name] = struct{}{}
		}
	}
}

// changed tells a resource's users that its value or its absence changed.
func (c *Client) changed(r *resource) {
	for u := range r.users {
		u.touched(c)
	}
}

// accept takes one resource of a response. Bytes that are the same as before
// keep the compiled value, so that what is built on it stays identical.
// The error is for the NACK.
func (c *Client) accept(r *resource, s *server, version string, a *anypb.Any) error {
	sum := sha256.Sum256(a.GetValue())
	if r.value != nil && sum == r.sum && a.GetTypeUrl() == typeURLs[r.kind] {
		r.version, r.server = version, s
		r.state, r.err, r.gone, r.logged = Acked, nil, false, ""
		return nil
	}
	var value any
	var name string
	var err error
	if a.GetTypeUrl() != typeURLs[r.kind] {
		err = fmt.Errorf("%v %q: holds a %q", r.kind, r.name, a.GetTypeUrl())
	} else if name, value, err = c.decode.of(r.kind, r.inbound, a); err == nil && name != r.name {
		err = fmt.Errorf("%v %q: the resource inside is named %q", r.kind, r.name, name)
	}
	if err != nil {
		c.refuse(r, s, err)
		return err
	}
	r.stopTimer()
	r.value, r.sum, r.version, r.server = value, sum, version, s
	r.state, r.err, r.gone, r.logged = Acked, nil, false, ""
	if f := c.opts.Events.Update; f != nil {
		f(typeURLs[r.kind], r.name, version)
	}
	c.changed(r)
	return nil
}

// refuse notes that the server sent something that can not be used. What was
// there before stays in force, unless the server asks for the contrary.
func (c *Client) refuse(r *resource, s *server, err error) {
	r.stopTimer()
	r.state, r.err = Nacked, err
	c.logOnce(r, s, "xds: resource refused", err)
	c.lose(r, s)
}

// lose drops the value of a resource with a data error where the server has
// fail_on_data_errors (gRFC A88), and tells the users if there is none now.
func (c *Client) lose(r *resource, s *server) {
	if r.value != nil && !s.config.Features.FailOnDataErrors {
		return
	}
	c.drop(r)
}

// drop takes the value from a resource and tells the users.
func (c *Client) drop(r *resource) {
	r.value, r.sum, r.version, r.server, r.gone = nil, [sha256.Size]byte{}, "", nil, false
	c.changed(r)
}

// deleted notes that the server says the resource does not exist. One that
// was never had is absent; one that was had stays in force, unless the server
// has fail_on_data_errors.
func (c *Client) deleted(r *resource, s *server) {
	r.stopTimer()
	err := fmt.Errorf("%v %q: the server has no such resource", r.kind, r.name)
	if r.value != nil && !s.config.Features.FailOnDataErrors {
		r.gone, r.err = true, fmt.Errorf("%v %q: deleted by the server; the last one stays in force", r.kind, r.name)
		c.logOnce(r, s, "xds: resource deleted by the server is kept", r.err)
		return
	}
	if r.value == nil && r.state == DoesNotExist {
		return
	}
	r.state, r.err = DoesNotExist, err
	c.lose(r, s)
	c.missing(r)
}

// reported takes an error that the server reports for a resource in place of it
// (xRFC TP3, gRFC A88). A final one takes from a listener for requests that arrive
// what was in force, with fail_on_data_errors or without: the server does not know
// any more who may call, and what was known before may let in who must not.
func (c *Client) reported(r *resource, s *server, notFound, final bool, err error) {
	if notFound {
		c.deleted(r, s)
		return
	}
	r.stopTimer()
	r.err = err
	c.logOnce(r, s, "xds: the server reports an error", err)
	if r.value != nil && !final {
		return
	}
	r.state = Failed
	if final && r.inbound {
		c.drop(r)
		return
	}
	c.lose(r, s)
}

// expired notes that a resource did not come in time.
func (c *Client) expired(r *resource, timer *time.Timer, s *server) {
	if r.timer != timer || !r.pending() {
		return
	}
	if r.short {
		c.deleted(r, s)
		return
	}
	r.stopTimer()
	if s.config.Features.ResourceTimerIsTransientError {
		r.state = TimedOut
	} else {
		r.state = DoesNotExist
	}
	r.err = fmt.Errorf("%v %q: the server %s did not send it in time", r.kind, r.name, s.config.URI)
	c.logOnce(r, s, "xds: resource did not come in time", r.err)
	c.changed(r)
	c.missing(r)
}

func (c *Client) missing(r *resource) {
	if f := c.opts.Events.Missing; f != nil && len(r.users) > 0 {
		f(typeURLs[r.kind], r.name, r.err)
	}
}

// startTimer limits the wait for a resource that was asked for on a stream.
func (c *Client) startTimer(r *resource, st *stream, d time.Duration) {
	r.stopTimer()
	r.timed = st
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		c.mail.post(func() { c.expired(r, timer, st.server) })
	})
	r.timer = timer
}

// logOnce logs an error unless it is the one that was logged last for the resource.
func (c *Client) logOnce(r *resource, s *server, msg string, err error) {
	if text := err.Error(); text != r.logged {
		r.logged = text
		c.log.Warn(msg, "server", s.config.URI, "type", r.kind.String(), "name", r.name, "error", err)
	}
}
