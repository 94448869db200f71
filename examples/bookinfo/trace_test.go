package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// request is the trace of one request: page calls shelf.
func request() []span {
	at := time.Unix(1000, 0)
	return []span{
		{ID: "1", Kind: "SERVER", Process: "page-v1-1", PID: 1, Start: at, Name: "GET /"},
		{ID: "2", Parent: "1", Kind: "INTERNAL", Process: "page-v1-1", PID: 1, Start: at.Add(1), Name: "GET", To: "shelf"},
		{ID: "3", Parent: "2", Kind: "CLIENT", Process: "page-v1-1", PID: 1, Start: at.Add(2), Name: "GET", To: "shelf"},
		{ID: "4", Parent: "3", Kind: "SERVER", Process: "shelf-v1-1", PID: 2, Start: at.Add(3), Name: "GET /book"},
	}
}

func TestCheckTrace(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func([]span) []span
		want   string // a part of the error
	}{
		{"whole", func(s []span) []span { return s }, ""},
		{"in any order", func(s []span) []span { slices.Reverse(s); return s }, ""},
		{"nothing", func([]span) []span { return nil }, "0 spans are roots"},
		{"root has not come", func(s []span) []span { return s[1:] }, "which did not come"},
		{"context is lost on the way", func(s []span) []span { s[3].Parent = ""; return s }, "the root is SERVER GET /book"},
		{"two requests", func(s []span) []span { return append(s, span{ID: "5", Kind: "SERVER", Process: "page-v1-2"}) }, "2 spans are roots"},
		{"server has not come", func(s []span) []span { return s[:3] }, "0 requests from page to shelf"},
		{"server hangs under the caller's server", func(s []span) []span { s[3].Parent = "1"; return s }, "has the parent SERVER"},
		{"server hangs under itself", func(s []span) []span { s[3].PID = 1; return s }, "has the parent CLIENT"},
		{"client hangs under another process", func(s []span) []span { s[2].PID = 9; return s }, "has a parent in"},
		{"sent twice", func(s []span) []span {
			again := s[3]
			again.ID = "5"
			return append(s, again)
		}, "2 requests from page to shelf"},
	} {
		err := checkTrace(c.change(request()), "page", []hop{{"page", "shelf"}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

func TestTree(t *testing.T) {
	spans := request()
	slices.Reverse(spans)
	spans = append(spans, span{ID: "9", Parent: "8", Kind: "CLIENT", Name: "stray", Start: time.Unix(2000, 0)})
	var got []string
	for line := range strings.Lines(tree(spans)) {
		_, what, _ := strings.Cut(line[5:], " ")
		what, _, _ = strings.Cut(what, " at ")
		got = append(got, strings.TrimSpace(what))
	}
	want := []string{"SERVER GET /", "INTERNAL GET to shelf", "CLIENT GET to shelf", "SERVER GET /book", "CLIENT stray"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestCollectorForgets(t *testing.T) {
	c := &collector{traces: map[string][]span{}}
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for i := range maxTraces + 1 {
		for range 2 {
			if err := encoder.Encode(span{Trace: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.receive(&lines); err != nil {
		t.Fatal(err)
	}
	if len(c.traces) != maxTraces || len(c.spans("0")) != 0 || len(c.spans("1")) != 2 {
		t.Errorf("%d traces, %d spans of the first, %d of the second", len(c.traces), len(c.spans("0")), len(c.spans("1")))
	}
	if err := c.receive(strings.NewReader("{")); err == nil {
		t.Error("no error for half a line")
	}
}
