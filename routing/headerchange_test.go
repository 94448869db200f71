package routing

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func mustChange(t testing.TB, name, value string, action HeaderAction, keepEmpty bool) HeaderChange {
	t.Helper()
	c, err := NewHeaderChange(name, value, action, keepEmpty)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHeaderChanges(t *testing.T) {
	set := func(name, value string, action HeaderAction) HeaderChange {
		return mustChange(t, name, value, action, false)
	}
	for _, c := range []struct {
		name   string
		remove []string
		set    []HeaderChange
		before map[string][]string
		after  map[string][]string
	}{
		{"nothing", nil, nil, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"1"}}},
		{"remove all values, whatever the case", []string{"x-A"}, nil, map[string][]string{"X-A": {"1", "2"}, "X-B": {"3"}}, map[string][]string{"X-B": {"3"}}},
		{"remove what is not there", []string{"x-none"}, nil, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"1"}}},
		{"append", nil, []HeaderChange{set("x-a", "2", AppendOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"1", "2"}}},
		{"append adds", nil, []HeaderChange{set("x-a", "2", AppendOrAdd)}, map[string][]string{}, map[string][]string{"X-A": {"2"}}},
		{"append twice", nil, []HeaderChange{set("x-a", "2", AppendOrAdd), set("X-A", "3", AppendOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"1", "2", "3"}}},
		{"add if absent", nil, []HeaderChange{set("x-a", "2", AddIfAbsent)}, map[string][]string{}, map[string][]string{"X-A": {"2"}}},
		{"add if absent, there", nil, []HeaderChange{set("x-a", "2", AddIfAbsent)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"1"}}},
		{"add if absent, there and empty", nil, []HeaderChange{set("x-a", "2", AddIfAbsent)}, map[string][]string{"X-A": {""}}, map[string][]string{"X-A": {""}}},
		{"add if absent looks at what came", nil, []HeaderChange{set("x-a", "2", AddIfAbsent), set("x-a", "3", AddIfAbsent)}, map[string][]string{}, map[string][]string{"X-A": {"2", "3"}}},
		{"add if absent after a removal", []string{"x-a"}, []HeaderChange{set("x-a", "2", AddIfAbsent)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"2"}}},
		{"overwrite all values", nil, []HeaderChange{set("x-a", "2", OverwriteOrAdd)}, map[string][]string{"X-A": {"1", "1"}}, map[string][]string{"X-A": {"2"}}},
		{"overwrite adds", nil, []HeaderChange{set("x-a", "2", OverwriteOrAdd)}, map[string][]string{}, map[string][]string{"X-A": {"2"}}},
		{"overwrite if exists", nil, []HeaderChange{set("x-a", "2", OverwriteIfExists)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"2"}}},
		{"overwrite if exists does not add", nil, []HeaderChange{set("x-a", "2", OverwriteIfExists)}, map[string][]string{}, map[string][]string{}},
		{"the last overwrite counts", nil, []HeaderChange{set("x-a", "2", OverwriteOrAdd), set("x-a", "3", OverwriteOrAdd)}, map[string][]string{}, map[string][]string{"X-A": {"3"}}},
		{"overwriting comes before adding", nil, []HeaderChange{set("x-a", "2", AppendOrAdd), set("x-a", "3", OverwriteOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"3", "2"}}},
		{"removal comes first", []string{"x-a"}, []HeaderChange{set("x-a", "2", AppendOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"2"}}},
		{"removed is not there to overwrite", []string{"x-a"}, []HeaderChange{set("x-a", "2", OverwriteIfExists)}, map[string][]string{"X-A": {"1"}}, map[string][]string{}},
		{"values are made before anything is set", nil, []HeaderChange{set("x-a", "2", OverwriteOrAdd), set("x-b", "%REQ(x-a)%", OverwriteOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"2"}, "X-B": {"1"}}},
		{"but after the removals", []string{"x-a"}, []HeaderChange{set("x-b", "%REQ(x-a)%", OverwriteOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{}},
		{"empty", nil, []HeaderChange{set("x-a", "", OverwriteOrAdd), set("x-b", "%REQ(x-none)%", AppendOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {"1"}}},
		{"space around a value is none of it", nil, []HeaderChange{set("x-a", " a b\t", OverwriteOrAdd), set("x-b", "%REQ(x-a):2%", OverwriteOrAdd)}, map[string][]string{"X-A": {"x y"}}, map[string][]string{"X-A": {"a b"}, "X-B": {"x"}}},
		{"space alone is set, as nothing", nil, []HeaderChange{set("x-a", " ", OverwriteOrAdd)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {""}}},
		{"empty is kept", nil, []HeaderChange{mustChange(t, "x-a", "", OverwriteOrAdd, true), mustChange(t, "x-b", "%REQ(x-none)%", AppendOrAdd, true)}, map[string][]string{"X-A": {"1"}}, map[string][]string{"X-A": {""}, "X-B": {""}}},
	} {
		for form, spell := range map[HeaderForm]func(string) string{CanonicalHeaders: func(s string) string { return s }, LowerHeaders: strings.ToLower} {
			changes := HeaderChanges{Set: c.set}
			for _, name := range c.remove {
				n, err := NewHeaderRemoval(name)
				if err != nil {
					t.Fatal(err)
				}
				changes.Remove = append(changes.Remove, n)
			}
			h, want := map[string][]string{}, map[string][]string{}
			shared := map[string][]string{}
			for k, v := range c.before {
				// With room behind, so that an append in place would be seen.
				s := append(make([]string, 0, 8), v...)
				h[spell(k)], shared[k] = s, s
			}
			for k, v := range c.after {
				want[spell(k)] = v
			}
			changes.Apply(h, form, &Values{Request: &Request{Header: h, Form: form}})
			if !reflect.DeepEqual(h, want) {
				t.Errorf("%s: %v, want %v", c.name, h, want)
			}
			for k, v := range shared {
				if !slices.Equal(v, c.before[k]) || len(v) < cap(v) && v[:len(v)+1][len(v)] != "" {
					t.Errorf("%s: the values of %s were written to: %q", c.name, k, v[:cap(v)])
				}
			}
			if changes.Empty() != (c.name == "nothing") {
				t.Errorf("%s: empty is %v", c.name, changes.Empty())
			}
		}
	}
}

func TestHeaderChangesInOrder(t *testing.T) {
	remove := HeaderChange{Name: NewHeaderName("x-a"), Action: RemoveHeader}
	set := func(name, value string, action HeaderAction) HeaderChange {
		return mustChange(t, name, value, action, false)
	}
	for _, c := range []struct {
		name string
		set  []HeaderChange
		want map[string][]string
	}{
		{"append, then overwrite", []HeaderChange{set("x-a", "2", AppendOrAdd), set("x-a", "3", OverwriteOrAdd)}, map[string][]string{"X-A": {"3"}}},
		{"overwrite, then append", []HeaderChange{set("x-a", "3", OverwriteOrAdd), set("x-a", "2", AppendOrAdd)}, map[string][]string{"X-A": {"3", "2"}}},
		{"copy, then remove", []HeaderChange{set("x-b", "%REQ(x-a)%", OverwriteOrAdd), remove}, map[string][]string{"X-B": {"1"}}},
		{"remove, then copy", []HeaderChange{remove, set("x-b", "%REQ(x-a)%", OverwriteOrAdd)}, map[string][]string{}},
		{"remove, then add", []HeaderChange{remove, set("x-a", "2", AddIfAbsent), set("x-a", "3", AddIfAbsent)}, map[string][]string{"X-A": {"2"}}},
		{"add to what has been added", []HeaderChange{set("x-c", "2", AddIfAbsent), set("x-c", "3", OverwriteIfExists)}, map[string][]string{"X-A": {"1"}, "X-C": {"3"}}},
		{"remove alone", []HeaderChange{remove}, map[string][]string{}},
	} {
		h := map[string][]string{"X-A": {"1"}}
		changes := HeaderChanges{Set: c.set, InOrder: true}
		changes.Apply(h, CanonicalHeaders, &Values{Request: &Request{Header: h}})
		if !reflect.DeepEqual(h, c.want) {
			t.Errorf("%s: %v, want %v", c.name, h, c.want)
		}
	}
}

// dumbChanges makes the changes in the plainest way that there is.
func dumbChanges(c *HeaderChanges, h map[string][]string, v *Values) {
	for _, n := range c.Remove {
		delete(h, n.canonical)
	}
	there := maps.Clone(h)
	type pair struct{ name, value string }
	var overwrite, add []pair
	for _, s := range c.Set {
		value := string(s.Value.Append(nil, v))
		if value == "" && !s.KeepEmpty {
			continue
		}
		_, is := there[s.Name.canonical]
		switch {
		case s.Action == AppendOrAdd, s.Action == AddIfAbsent && !is:
			add = append(add, pair{s.Name.canonical, value})
		case s.Action == OverwriteOrAdd, s.Action == OverwriteIfExists && is:
			overwrite = append(overwrite, pair{s.Name.canonical, value})
		}
	}
	for _, p := range overwrite {
		h[p.name] = []string{p.value}
	}
	for _, p := range add {
		h[p.name] = append(slices.Clone(h[p.name]), p.value)
	}
}

func TestHeaderChangesOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		before := map[string][]string{}
		for i := range 4 {
			for range random.IntN(3) {
				key := fmt.Sprintf("X-%d", i)
				before[key] = append(before[key], fmt.Sprint(random.IntN(3)))
			}
		}
		var c HeaderChanges
		for range random.IntN(3) {
			c.Remove = append(c.Remove, NewHeaderName(fmt.Sprintf("x-%d", random.IntN(5))))
		}
		n := random.IntN(12)
		if random.IntN(50) == 0 {
			n = 70 + random.IntN(10)
		}
		for range n {
			value := []string{"a", "", "%REQ(x-1)%", "%REQ(x-2)%b"}[random.IntN(4)]
			c.Set = append(c.Set, mustChange(t, fmt.Sprintf("x-%d", random.IntN(5)), value, HeaderAction(random.IntN(4)), random.IntN(2) == 0))
		}
		got, want := maps.Clone(before), maps.Clone(before)
		c.Apply(got, CanonicalHeaders, &Values{Request: &Request{Header: got}})
		dumbChanges(&c, want, &Values{Request: &Request{Header: want}})
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v on %v: %v, want %v", c, before, got, want)
		}
	}
}

func TestHeaderChangesRefused(t *testing.T) {
	for name, says := range map[string]string{
		":path": "can not be changed", ":authority": "can not be changed", ":x": "can not be changed",
		"host": "can not be changed", "HOST": "can not be changed",
		"": "not a header's name", "x a": "not a header's name", "x:a": "not a header's name", "x\r\na": "not a header's name",
		"x\x00": "not a header's name", "é": "not a header's name", strings.Repeat("a", MaxHeader+1): "the limit is 16384",
	} {
		if _, err := NewHeaderChange(name, "v", AppendOrAdd, false); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("setting %.20q: the error is %v, want one that says %q", name, err, says)
		}
		if _, err := NewHeaderRemoval(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("removing %.20q: the error is %v, want one that says %q", name, err, says)
		}
	}
	if _, err := NewHeaderChange("x-a", "", RemoveHeader, false); err == nil {
		t.Error("a change that removes sets a header")
	}
	for value, says := range map[string]string{
		"a\r\nb": `control character '\r'`, "a\x00": `control character '\x00'`, "a\x7f": "control character", "a\n": "control character",
		"%NONE%": "NONE is unknown", "100%": "begins no command", strings.Repeat("a", MaxHeader+1): "the limit is 16384",
	} {
		if _, err := NewHeaderChange("x-a", value, AppendOrAdd, false); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), `"x-a"`) {
			t.Errorf("the value %.20q: the error is %v, want one that says %q", value, err, says)
		}
	}
	for _, value := range []string{"", "a\tb", "é", strings.Repeat("a", MaxHeader)} {
		if _, err := NewHeaderChange("x-a", value, AppendOrAdd, false); err != nil {
			t.Errorf("the value %.20q: %v", value, err)
		}
	}
}
