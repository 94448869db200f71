package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
)

// CallerPlugin is the plugin name of sources that the program itself provides
// (Publish). It means nothing in another process.
const CallerPlugin = "caller"

// published are the program's own sources, by the number in their configuration.
var published struct {
	sync.Mutex
	last    int
	sources map[string]Source
}

// publishedConfig is the JSON form of a CallerPlugin configuration.
type publishedConfig struct {
	Source string `json:"source"`
}

// Publish gives a source of the caller's own a configuration of CallerPlugin, so
// that a bootstrap's certificate_providers can name it in this process: gRPC's
// xDS client makes its providers from nothing else. Whoever opens it can not
// close it. withdraw ends that; who has opened it keeps it.
func Publish(src Source) (config json.RawMessage, withdraw func()) {
	published.Lock()
	defer published.Unlock()
	published.last++
	key := strconv.Itoa(published.last)
	if published.sources == nil {
		published.sources = make(map[string]Source)
	}
	published.sources[key] = src
	config, _ = json.Marshal(publishedConfig{key}) // of one text, which can not fail
	return config, func() {
		published.Lock()
		defer published.Unlock()
		delete(published.sources, key)
	}
}

// borrowed is a source that stays open when its user closes it.
type borrowed struct{ Source }

func (borrowed) Close() error { return nil }

var errNotPublished = errors.New("there is no such source in this process")

func findPublished(config json.RawMessage) (Source, error) {
	var c publishedConfig
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("certificate provider plugin %q: %w", CallerPlugin, err)
	}
	published.Lock()
	defer published.Unlock()
	if src := published.sources[c.Source]; src != nil {
		return borrowed{src}, nil
	}
	return nil, fmt.Errorf("certificate provider plugin %q: source %q: %w", CallerPlugin, c.Source, errNotPublished)
}
