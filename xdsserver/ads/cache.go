package ads

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

const (
	// maxNames bounds how many resources of one type a client may watch.
	maxNames = 10000
	// maxIdle bounds how many resources that nobody watches are kept ready.
	maxIdle = 20000
	// removalGrace is how long a cluster or endpoint set that ceased to exist is
	// still served: a client learns of a new cluster only from the new routes,
	// and goes on with the old one until it has the new one's endpoints.
	removalGrace = 2 * time.Second
)

// store is the cache behind the streams. It holds one entry for each resource
// and variant that anyone watches, not one copy of everything for each client:
// a change is translated once per variant and handed to those who watch it.
//
// One mutex guards it all. Under it there is only arithmetic and translation;
// responses go into channels that have room (see watch.offer).
type store struct {
	log   *slog.Logger
	grace time.Duration // removalGrace
	turn  sync.Mutex    // held while view changes, so that its holder may read view without mu

	mu      sync.Mutex
	set     *policy.Set // of view; nil before the first
	view    *translate.View
	entries map[entryKey]*entry
	idle    int         // entries without a watch
	reaper  *time.Timer // runs while an entry is doomed
}

type entryKey struct{ typeURL, name, variant string }

// entry is one resource as one kind of client gets it.
type entry struct {
	entryKey
	client  *translate.Client // one client of the variant; it stands for all of them
	version string            // "" where the resource does not exist
	wire    *discoveryv3.Resource
	doomed  time.Time // when the resource, which policy has no more, ceases to be served; else zero
	notes   []translate.Note
	stale   bool  // nobody watched it when policy changed: translate it before use
	err     error // why the present policy could not be translated; the resource is then the last good one
	// withheld says that err leaves nothing in force, not even what clients have.
	withheld bool
	watches  map[*watch]struct{}
}

// watch is one open request of a stream for one type. It answers once; the
// client's next request opens the next one.
type watch struct {
	store   *store
	client  *translate.Client
	typeURL string
	entries []*entry          // in order of name
	known   map[string]string // name -> version the client has; "" where it knows that there is none
	send    func(*reply) bool
	done    bool
	// wildcard is set for a stream's first request for everything (Envoy's
	// listeners and clusters). Resources are made for those who name them, so
	// the answer is empty; but there is one, because Envoy waits for it to start.
	wildcard bool
}

// reply is what a watch answers.
type reply struct {
	changed  []*entry // in order of name; of entries that exist
	removed  []string // names that do not exist, in order
	withheld []string // names of which clients may not even keep what they have, in order
	known    map[string]string
	version  string // of everything the client has after it
}

func newStore(log *slog.Logger) *store {
	return &store{log: log, grace: removalGrace, view: translate.NewView(nil), entries: make(map[entryKey]*entry)}
}

// setPolicy puts a policy in force. Only resources that a changed object can
// touch are translated again, and only those whose content then differs go out.
func (s *store) setPolicy(set *policy.Set) {
	s.turn.Lock() // one policy at a time; clients are served while it is compared
	defer s.turn.Unlock()
	view := translate.NewView(set)
	changes := translate.Diff(s.view, view)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set, s.view = set, view
	if changes.Empty() {
		return
	}
	touched := make(map[*watch]struct{})
	for key, e := range s.entries {
		if !changes.Affects(key.typeURL, key.name) {
			continue
		}
		if len(e.watches) == 0 {
			e.stale = true
			continue
		}
		before := e.version
		s.translate(e)
		if e.version != before {
			for w := range e.watches {
				touched[w] = struct{}{}
			}
		}
	}
	s.push(touched)
}

// pushOrder is the order in which one change goes out: what a route may need
// goes before the routes (make before break). Removals of clusters and
// endpoints come later, see removalGrace.
var pushOrder = []string{translate.ClusterType, translate.EndpointType, translate.ListenerType, translate.RouteType}

// push answers the watches that have something to say.
func (s *store) push(touched map[*watch]struct{}) {
	for _, typeURL := range pushOrder {
		for w := range touched {
			if w.typeURL == typeURL {
				w.offer(nil)
			}
		}
	}
}

// reap ends the service of what is doomed and due.
func (s *store) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reaper = nil
	now := time.Now()
	touched := make(map[*watch]struct{})
	for _, e := range s.entries {
		switch {
		case e.doomed.IsZero():
		case e.doomed.After(now):
			s.reapLater(e.doomed.Sub(now))
		default:
			e.doomed, e.version, e.wire, e.notes = time.Time{}, "", nil, nil
			for w := range e.watches {
				touched[w] = struct{}{}
			}
		}
	}
	s.push(touched)
}

func (s *store) reapLater(after time.Duration) {
	if s.reaper == nil {
		s.reaper = time.AfterFunc(after, s.reap)
	}
}

// find returns the resource for the client if there is one at hand.
func (s *store) find(typeURL, name string, c *translate.Client) *entry {
	return s.entries[entryKey{typeURL, name, translate.Variant(typeURL, name, c)}]
}

// entry returns the resource for the client, translated if nobody had it yet.
func (s *store) entry(typeURL, name string, c *translate.Client) *entry {
	if e := s.find(typeURL, name, c); e != nil {
		if e.stale {
			s.translate(e)
		}
		return e
	}
	key := entryKey{typeURL, name, translate.Variant(typeURL, name, c)}
	e := &entry{entryKey: key, client: c, watches: make(map[*watch]struct{})}
	s.translate(e)
	s.entries[key] = e
	s.idle++
	return e
}

// translate fills an entry from the policy in force. Policy that can not be
// translated leaves the resource as it was, unless that may admit whom the policy
// now shuts out: then there is none.
func (s *store) translate(e *entry) {
	e.stale, e.withheld = false, false
	r, err := s.view.Resource(e.typeURL, e.name, e.client)
	if err != nil {
		e.err = err
		s.log.Error("policy can not be served", "resource", e.name, "type", short(e.typeURL), "client", e.client.ID, "error", err)
		if errors.Is(err, translate.ErrWithheld) {
			e.doomed, e.version, e.wire, e.notes, e.withheld = time.Time{}, "", nil, nil, true
		}
		return
	}
	e.err = nil
	if r == nil {
		switch {
		case e.wire != nil && (e.typeURL == translate.ClusterType || e.typeURL == translate.EndpointType):
			if e.doomed.IsZero() {
				e.doomed = time.Now().Add(s.grace)
				s.reapLater(s.grace)
			}
		default:
			e.version, e.wire, e.notes = "", nil, nil
		}
		return
	}
	e.notes, e.doomed = r.Notes, time.Time{}
	if e.version != r.Version {
		e.version = r.Version
		e.wire = &discoveryv3.Resource{Name: e.name, Version: r.Version, Resource: r.Body}
	}
}

// sweep drops what nobody watches once there is much of it: a client may ask
// for any number of names over its life. An entry that holds the last good
// resource in place of one that can not be translated stays.
func (s *store) sweep() {
	if s.idle <= maxIdle {
		return
	}
	for _, e := range s.entries {
		if len(e.watches) == 0 && e.err == nil {
			delete(s.entries, e.entryKey)
			s.idle--
		}
	}
}

// open opens a watch on names. force holds names that are to be answered even if the client has them.
func (s *store) open(w *watch, names map[string]struct{}, force map[string]bool) (cancel func(), err error) {
	if len(names) > maxNames {
		return nil, status.Errorf(codes.ResourceExhausted, "%d resources of type %s are more than a client may watch (%d)", len(names), short(w.typeURL), maxNames)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.entries = make([]*entry, 0, len(names))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		e := s.entry(w.typeURL, name, w.client)
		if len(e.watches) == 0 {
			s.idle--
		}
		e.watches[w] = struct{}{}
		w.entries = append(w.entries, e)
	}
	w.offer(force)
	s.sweep()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.close()
	}, nil
}

// close takes the watch off its entries. The entries stay: the next request of
// the same stream, often an acknowledgement, asks for them again.
func (w *watch) close() {
	if w.done {
		return
	}
	w.done = true
	for _, e := range w.entries {
		delete(e.watches, w)
		if len(e.watches) == 0 {
			w.store.idle++
		}
	}
}

// withheldVersion is what a client knows of a resource that is withheld. Real
// versions are hexadecimal.
const withheldVersion = "withheld"

// offer answers if there is something that the client does not have. A version
// that the client refused is one it has been sent: it is not sent again until
// it changes.
func (w *watch) offer(force map[string]bool) {
	if w.done {
		return
	}
	r := &reply{known: make(map[string]string, len(w.entries))}
	for _, e := range w.entries {
		version := e.version
		// Only the library is known to take an error in place of a resource. Others
		// are told that there is none, and keep or drop what they have by their own rules.
		if e.withheld && w.client.Agent == translate.Sinew {
			version = withheldVersion
		}
		if v, ok := w.known[e.name]; !ok || v != version || force[e.name] {
			switch version {
			case withheldVersion:
				r.withheld = append(r.withheld, e.name)
			case "":
				r.removed = append(r.removed, e.name)
			default:
				r.changed = append(r.changed, e)
			}
		}
		r.known[e.name] = version
	}
	if len(r.changed) == 0 && len(r.removed) == 0 && len(r.withheld) == 0 && !w.wildcard {
		return
	}
	r.version = stateVersion(r.known)
	if w.send(r) {
		w.close()
	}
}

// stateVersion is the version of a whole set of resources: equal sets have equal versions, on every server.
func stateVersion(known map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(known)) {
		fmt.Fprintf(h, "%q=%s\n", name, known[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// refuseType answers at once that no resource of a type that is not served
// exists, so that nobody waits for it.
func (s *store) refuseType(w *watch, names map[string]struct{}, force map[string]bool) (func(), error) {
	r := &reply{known: make(map[string]string, len(names))}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if _, ok := w.known[name]; !ok || force[name] {
			r.removed = append(r.removed, name)
		}
		r.known[name] = ""
	}
	if len(r.removed) > 0 {
		r.version = stateVersion(r.known)
		w.send(r)
	}
	return nil, nil
}

// knownOf is what of the names a client has.
func knownOf(names map[string]struct{}, returned map[string]string) map[string]string {
	known := make(map[string]string, len(names))
	for name := range names {
		if v, ok := returned[name]; ok {
			known[name] = v
		}
	}
	return known
}

// offerTo sends without blocking. The channel has room for every watch that can
// be open (go-control-plane sizes it so); if it ever has none, the watch stays
// open and the next change or request says the same again.
func offerTo[T any](out chan T, v T) bool {
	select {
	case out <- v:
		return true
	default:
		return false
	}
}
