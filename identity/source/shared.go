package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
)

// shared holds the sources that are open in this process.
var shared struct {
	sync.Mutex
	open map[sharedKey]*sharedEntry
}

type sharedKey struct{ plugin, config string }

type sharedEntry struct {
	Source
	log  *relay
	uses int // guarded by shared
}

// Shared returns the process's one source for the plugin and configuration,
// which it makes by New where nobody uses it yet: HTTP, gRPC and the channel to
// the control plane hold one certificate, and a join token is used once.
// Configurations are the same where their JSON says the same, whatever the
// order of members and the white space.
//
// Close gives back this use; the last one closes the source. A source that
// stays open logs to the first log that is not nil, until its last use ends.
func Shared(plugin string, config json.RawMessage, log *slog.Logger) (Source, error) {
	canonical, err := canonicalJSON(config)
	if err != nil {
		return nil, fmt.Errorf("certificate provider plugin %q: %w", plugin, err)
	}
	key := sharedKey{plugin, string(canonical)}
	shared.Lock()
	defer shared.Unlock()
	e := shared.open[key]
	if e == nil {
		e = &sharedEntry{log: &relay{}}
		e.log.offer(log)
		if e.Source, err = New(plugin, canonical, slog.New(e.log)); err != nil {
			return nil, err
		}
		if shared.open == nil {
			shared.open = make(map[sharedKey]*sharedEntry)
		}
		shared.open[key] = e
	}
	e.log.offer(log)
	e.uses++
	return &use{sharedEntry: e, key: key}, nil
}

// use is one holder's view of a shared source.
type use struct {
	*sharedEntry
	key    sharedKey
	closed atomic.Bool
}

// Close implements Source.
func (u *use) Close() error {
	if u.closed.Swap(true) {
		return nil
	}
	shared.Lock()
	u.uses--
	last := u.uses == 0
	if last {
		delete(shared.open, u.key)
	}
	shared.Unlock()
	if last {
		return u.Source.Close()
	}
	return nil
}

// unwrap returns the source behind a use, and others as they are.
func unwrap(s Source) Source {
	if u, ok := s.(*use); ok {
		return u.Source
	}
	return s
}

// StatusOf returns what is known of a source's health, also where it is
// shared; ok is false for sources that do not say.
func StatusOf(s Source) (status Status, ok bool) {
	if t, is := unwrap(s).(interface{ Status() Status }); is {
		return t.Status(), true
	}
	return Status{}, false
}

// canonicalJSON writes equal configurations in one way. Nothing is an empty object.
func canonicalJSON(config json.RawMessage) (json.RawMessage, error) {
	if len(bytes.TrimSpace(config)) == 0 {
		return json.RawMessage("{}"), nil
	}
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("the configuration is not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the configuration has something after its end")
	}
	if v == nil {
		return json.RawMessage("{}"), nil
	}
	return json.Marshal(v)
}

// relay is a log handler that writes nothing until a log is offered.
type relay struct{ to atomic.Pointer[slog.Logger] }

func (r *relay) offer(log *slog.Logger) {
	if log != nil {
		r.to.CompareAndSwap(nil, log)
	}
}

func (r *relay) handler() slog.Handler {
	if log := r.to.Load(); log != nil {
		return log.Handler()
	}
	return slog.DiscardHandler
}

func (r *relay) Enabled(ctx context.Context, l slog.Level) bool { return r.handler().Enabled(ctx, l) }
func (r *relay) Handle(ctx context.Context, rec slog.Record) error {
	return r.handler().Handle(ctx, rec)
}
func (r *relay) WithAttrs(a []slog.Attr) slog.Handler { return r.handler().WithAttrs(a) }
func (r *relay) WithGroup(name string) slog.Handler   { return r.handler().WithGroup(name) }
