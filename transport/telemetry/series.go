package telemetry

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// Bounds on what metrics keep for ever: OpenTelemetry's SDK never forgets a
// series, and by default folds everything beyond 2,000 of one instrument into
// one. Beyond a bound values become "_OTHER".
const (
	// maxHosts bounds server.address where policy does not: hosts outside the mesh.
	maxHosts = 200
	// maxDestinations bounds the distinct triples of host, route and cluster.
	maxDestinations = 1000
	// maxClientSets and maxServerSets bound the distinct attribute sets;
	// maxOtherSets those that are made of "_OTHER" beyond them.
	maxClientSets = 1500
	maxServerSets = 1000
	maxOtherSets  = 300
	// maxPerDestination bounds the sets of one destination, so that a server
	// with a liking for odd status codes does not use up the others' share.
	maxPerDestination = 64
	// maxClusters bounds mesh.cluster where it stands alone.
	maxClusters = 1000
)

const passthrough = "passthrough"

// passes reports whether a cluster stands for a host outside the mesh. Such
// clusters are as many as there are hosts.
func passes(cluster string) bool {
	return cluster == passthrough || strings.HasPrefix(cluster, passthrough+"|")
}

// Attributes of the mesh's own.
const (
	keyRoute    = attribute.Key("mesh.route")
	keyCluster  = attribute.Key("mesh.cluster")
	keyOutcome  = attribute.Key("mesh.retry.outcome")
	keyReason   = attribute.Key("mesh.ejection.reason")
	keyState    = attribute.Key("mesh.breaker.state")
	keyType     = attribute.Key("mesh.xds.type")
	keyAttempts = attribute.Key("mesh.attempts")
)

// destination is where client requests go, as metrics name it.
type destination struct {
	name destinationName
	// usual is the first of sets: most requests to one destination end alike, and
	// comparing costs less than a map.
	usual atomic.Pointer[usual]
	// sets is replaced by a larger copy when an outcome is seen for the first time.
	sets    atomic.Pointer[map[setKey]*sets]
	retries [len(retryOutcomes)]atomic.Pointer[[]metric.AddOption]
}

type destinationName struct {
	address string
	port    int // 0: left out
	route   string
	cluster string
}

type usual struct {
	key  setKey
	sets *sets
}

// setKey is what makes one attribute set of a destination.
type setKey struct {
	status uint16
	method method
	fault  fault
}

// clientSeries are the attribute sets of client metrics, made once each.
type clientSeries struct {
	mu           sync.Mutex // guards the rest, and the building of sets
	destinations map[destinationName]*destination
	hosts        map[destinationName]struct{}
	clusters     map[string]struct{}
	rest         *destination // of what is beyond the bounds; nil until there is something
	sets         int
	otherSets    int

	// byAuthority finds hosts outside the mesh that have no leg of their own.
	byAuthority atomic.Pointer[map[authorityKey]*destination]
}

type authorityKey struct{ authority, scheme, cluster string }

// rest is the name of all destinations beyond the bounds.
var rest = destinationName{address: other, route: other, cluster: other}

// destination returns the series of a host, route and cluster.
func (s *clientSeries) destination(name destinationName, bounded bool) *destination {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(name, bounded)
}

// find is destination with mu held. bounded says that policy bounds the name.
func (s *clientSeries) find(name destinationName, bounded bool) *destination {
	if d := s.destinations[name]; d != nil {
		return d
	}
	host := destinationName{address: name.address, port: name.port}
	_, known := s.hosts[host]
	switch {
	case !bounded && !known && len(s.hosts) >= maxHosts:
		name = destinationName{address: other, cluster: name.cluster}
	case len(s.destinations) >= maxDestinations:
		if s.rest == nil {
			s.rest = &destination{name: rest}
		}
		return s.rest
	case !bounded && !known:
		if s.hosts == nil {
			s.hosts = make(map[destinationName]struct{})
		}
		s.hosts[host] = struct{}{}
	}
	if d := s.destinations[name]; d != nil {
		return d
	}
	if s.destinations == nil {
		s.destinations = make(map[destinationName]*destination)
	}
	d := &destination{name: name}
	s.destinations[name] = d
	return d
}

// external returns the series of a host that no policy names.
func (s *clientSeries) external(authority, scheme, cluster string) *destination {
	key := authorityKey{authority, scheme, cluster}
	known := s.byAuthority.Load()
	if known != nil {
		if d := (*known)[key]; d != nil {
			return d
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := destinationName{cluster: cluster}
	name.address, name.port = splitAddress(authority)
	if name.port == 0 {
		name.port = defaultPort(scheme)
	}
	d := s.find(name, false)
	if d.name.address == other {
		return d
	}
	next := make(map[authorityKey]*destination)
	if known := s.byAuthority.Load(); known != nil && len(*known) < 2*maxHosts {
		maps.Copy(next, *known)
	}
	next[key] = d
	s.byAuthority.Store(&next)
	return d
}

// cluster returns a cluster's name as metrics have it.
func (s *clientSeries) cluster(name string) string {
	if passes(name) {
		return passthrough
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.clusters[name]; ok {
		return name
	}
	if len(s.clusters) >= maxClusters {
		return other
	}
	if s.clusters == nil {
		s.clusters = make(map[string]struct{})
	}
	s.clusters[name] = struct{}{}
	return name
}

// sets are the attributes of an outcome, ready to record. The SDK walks them
// at every record, so each metric has only those that it is asked by.
type sets struct {
	attempt []metric.RecordOption // of http.client.request.duration: the conventions' own
	call    []metric.RecordOption // of mesh.client.call.duration: service, route, cluster, code
}

func newSets(d destinationName, key setKey) *sets {
	outcome := key.outcome()
	call := destinationName{address: d.address, route: d.route, cluster: d.cluster}
	attempt := destinationName{address: d.address, port: d.port}
	return &sets{
		attempt: recordOption(append(append(attempt.attributes(), key.method.attribute()), outcome...)...),
		call:    recordOption(append(call.attributes(), outcome...)...),
	}
}

// options returns the attributes of an outcome at d.
func (s *clientSeries) options(d *destination, key setKey) *sets {
	if u := d.usual.Load(); u != nil && u.key == key {
		return u.sets
	}
	if known := d.sets.Load(); known != nil {
		if o := (*known)[key]; o != nil {
			return o
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.build(d, key)
}

// build makes attribute sets with mu held.
func (s *clientSeries) build(d *destination, key setKey) *sets {
	next := make(map[setKey]*sets)
	if known := d.sets.Load(); known != nil {
		if o := (*known)[key]; o != nil {
			return o
		}
		maps.Copy(next, *known)
	}
	var o *sets
	switch {
	case d.name != rest && s.sets < maxClientSets && len(next) < maxPerDestination:
		s.sets++
		o = newSets(d.name, key)
	case d.name != rest:
		if s.rest == nil {
			s.rest = &destination{name: rest}
		}
		o = s.build(s.rest, key)
	case s.otherSets < maxOtherSets:
		s.otherSets++
		o = newSets(d.name, key)
	default:
		o = newSets(destinationName{address: other}, setKey{method: otherMethod})
	}
	if len(next) == 0 {
		d.usual.Store(&usual{key, o})
	}
	next[key] = o
	d.sets.Store(&next)
	return o
}

func recordOption(kv ...attribute.KeyValue) []metric.RecordOption {
	return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(kv...))}
}

// outcome are the attributes that say how it ended.
func (k setKey) outcome() []attribute.KeyValue {
	var kv []attribute.KeyValue
	if k.status != 0 {
		kv = append(kv, semconv.HTTPResponseStatusCode(int(k.status)))
	}
	if word := k.fault.word(int(k.status)); word != "" {
		kv = append(kv, semconv.ErrorTypeKey.String(word))
	}
	return kv
}

func (n destinationName) attributes() []attribute.KeyValue {
	kv := make([]attribute.KeyValue, 0, 8)
	if n.address != "" {
		kv = append(kv, semconv.ServerAddress(n.address))
	}
	if n.port != 0 {
		kv = append(kv, semconv.ServerPort(n.port))
	}
	return append(kv, n.mesh()...)
}

// mesh are the attributes that say where policy sent the request.
func (n destinationName) mesh() []attribute.KeyValue {
	var kv []attribute.KeyValue
	if n.route != "" {
		kv = append(kv, keyRoute.String(n.route))
	}
	if n.cluster != "" {
		kv = append(kv, keyCluster.String(n.cluster))
	}
	return kv
}

// retryOutcomes are what became of a wish to retry: the first is "retried",
// the others name what forbade it.
var retryOutcomes = [...]string{"retried", "limit", "budget", "max_retries", other}

// retry returns the attributes of a retry, made or refused.
func (d *destination) retry(refused string) []metric.AddOption {
	i := len(retryOutcomes) - 1
	switch refused {
	case "":
		i = 0
	case "limit":
		i = 1
	case "budget":
		i = 2
	case "max_retries":
		i = 3
	}
	if o := d.retries[i].Load(); o != nil {
		return *o
	}
	o := []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(append(d.name.mesh(), keyOutcome.String(retryOutcomes[i]))...))}
	d.retries[i].Store(&o)
	return o
}

// serverKey is what makes one attribute set of http.server.request.duration.
type serverKey struct {
	route   string
	status  uint16
	method  method
	fault   fault
	tls     bool
	version version
}

// serverSeries are the attribute sets of server metrics, made once each.
type serverSeries struct {
	sets atomic.Pointer[map[serverKey][]metric.RecordOption]
	mu   sync.Mutex // serialises changes of sets
}

// options returns the attributes of a request that was served, ready to record.
func (s *serverSeries) options(key serverKey) []metric.RecordOption {
	if sets := s.sets.Load(); sets != nil {
		if _, o := bounded(*sets, key); o != nil {
			return o
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[serverKey][]metric.RecordOption)
	if sets := s.sets.Load(); sets != nil {
		var o []metric.RecordOption
		if key, o = bounded(*sets, key); o != nil {
			return o
		}
		maps.Copy(next, *sets)
	}
	o := recordOption(key.attributes()...)
	next[key] = o
	s.sets.Store(&next)
	return o
}

// bounded returns the key under which a request is counted, given the sets
// that there are, and its set, if it is there.
func bounded(sets map[serverKey][]metric.RecordOption, key serverKey) (serverKey, []metric.RecordOption) {
	o := sets[key]
	if o == nil && len(sets) >= maxServerSets {
		key.route = other
		o = sets[key]
	}
	if o == nil && len(sets) >= maxServerSets+maxOtherSets {
		key = lastServerKey
		o = sets[key]
	}
	return key, o
}

// lastServerKey stands for all requests beyond the last bound.
var lastServerKey = serverKey{route: other, fault: otherFault}

func (k serverKey) attributes() []attribute.KeyValue {
	kv := make([]attribute.KeyValue, 0, 8)
	kv = append(kv, k.method.attribute(), semconv.URLScheme(scheme(k.tls)))
	if k.route != "" {
		kv = append(kv, semconv.HTTPRoute(k.route))
	}
	if k.status != 0 {
		kv = append(kv, semconv.HTTPResponseStatusCode(int(k.status)))
	}
	if word := k.fault.word(int(k.status)); word != "" {
		kv = append(kv, semconv.ErrorTypeKey.String(word))
	}
	if k.version != noVersion {
		kv = append(kv, semconv.NetworkProtocolVersion(versions[k.version]))
	}
	return kv
}
