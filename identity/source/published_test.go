package source

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestPublish(t *testing.T) {
	own, err := NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	kept := &closeCounter{Source: own}
	config, withdraw := Publish(kept)
	other, withdrawOther := Publish(own)
	defer withdrawOther()
	if string(config) == string(other) {
		t.Error("two sources have one configuration")
	}
	src, err := Shared(CallerPlugin, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := src.Changed()
	if err := own.Set(&Material{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("a change of the source does not arrive")
	}
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	if kept.closed != 0 {
		t.Error("the caller's source is closed by its user")
	}
	if err := Check(CallerPlugin, config); err != nil {
		t.Error(err)
	}
	withdraw()
	for _, c := range []string{string(config), `{"source": "x"}`, `{"source": "1", "more": 1}`, `[]`, ``} {
		if err := Check(CallerPlugin, json.RawMessage(c)); err == nil {
			t.Errorf("%s is accepted", c)
		}
	}
	if _, err := New(CallerPlugin, config, nil); !errors.Is(err, errNotPublished) {
		t.Errorf("after withdraw: %v", err)
	}
}

type closeCounter struct {
	Source
	closed int
}

func (c *closeCounter) Close() error {
	c.closed++
	return c.Source.Close()
}
