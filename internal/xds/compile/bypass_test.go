package compile

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/routing"
)

// unreadable are permissions and principals that are not understood, or are not whole.
var unreadable = map[string][]string{
	"permission": {
		`{}`, `{"and_rules": {}}`, `{"or_rules": {"rules": []}}`, `{"not_rule": {}}`, `{"header": {}}`,
		`{"header": {"name": "x", "string_match": {"safe_regex": {"regex": "("}}}}`, `{"url_path": {}}`, `{"url_path": {"path": {"safe_regex": {"regex": "["}}}}`,
		`{"destination_ip": {"address_prefix": "x", "prefix_len": 8}}`, `{"destination_port": 70000}`, `{"destination_port_range": {"start": 9, "end": 9}}`,
		`{"metadata": {"filter": "x", "path": [{"key": "k"}], "value": {"present_match": true}}}`, `{"sourced_metadata": {"metadata_matcher": {"filter": "x", "path": [{"key": "k"}], "value": {"present_match": true}}}}`,
		`{"matcher": {"name": "x", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}}}`, `{"uri_template": {"name": "x", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}}}`,
	},
	"principal": {
		`{}`, `{"and_ids": {}}`, `{"or_ids": {"ids": []}}`, `{"not_id": {}}`, `{"authenticated": {"principal_name": {}}}`, `{"authenticated": {"principal_name": {"exact": ""}}}`,
		`{"authenticated": {"principal_name": {"safe_regex": {"regex": "("}}}}`, `{"source_ip": {"address_prefix": "x"}}`, `{"direct_remote_ip": {}}`, `{"header": {"name": ":status", "present_match": true}}`,
		`{"filter_state": {"key": "k", "string_match": {"exact": "v"}}}`, `{"metadata": {"filter": "x", "path": [{"key": "k"}], "value": {"present_match": true}}}`,
		`{"custom": {"name": "x", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}}}`,
	},
}

// growth puts a leaf somewhere into a random tree of conditions.
type growth struct {
	*rand.Rand
	and, or, not, list string
}

func (g growth) around(leaf string) string {
	other := []string{`{"any": true}`, `{"header": {"name": "x-a", "string_match": {"exact": "1"}}}`, `{"header": {"name": "x-b", "present_match": true}}`}
	for range g.IntN(4) {
		items := []string{leaf}
		for range g.IntN(3) {
			items = append(items, other[g.IntN(len(other))])
		}
		g.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
		switch g.IntN(5) {
		case 0, 1:
			leaf = fmt.Sprintf(`{%q: {%q: [%s]}}`, g.and, g.list, strings.Join(items, ", "))
		case 2, 3:
			leaf = fmt.Sprintf(`{%q: {%q: [%s]}}`, g.or, g.list, strings.Join(items, ", "))
		default:
			leaf = fmt.Sprintf(`{%q: %s}`, g.not, leaf)
		}
	}
	return leaf
}

// without takes the hole, and whatever has nothing left in it, out of a tree.
func without(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if v["hole"] != nil {
			return nil
		}
		for k, inner := range v {
			if inner = without(inner); inner == nil {
				return nil
			}
			v[k] = inner
		}
		return v
	case []any:
		var out []any
		for _, inner := range v {
			if inner = without(inner); inner != nil {
				out = append(out, inner)
			}
		}
		if out == nil {
			return nil
		}
		return out
	}
	return v
}

// TestBypassByDroppedRule: a condition that is not understood, however deep it stands in
// a rule, refuses the listener. Who leaves it out lets requests through that the rule denies.
func TestBypassByDroppedRule(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	request := &identity.AccessRequest{Request: routing.Request{Method: "GET", Path: "/", Header: map[string][]string{"x-a": {"1"}}, Form: routing.LowerHeaders}}
	deny := func(permission, principal string) json.RawMessage {
		return json.RawMessage(`{"action": "DENY", "policies": {"p": {"permissions": [` + permission + `], "principals": [` + principal + `]}}}`)
	}
	attempts, caught := 0, 0
	for attempts < 400 {
		side, g := "permission", growth{rng, "and_rules", "or_rules", "not_rule", "rules"}
		if rng.IntN(2) == 0 {
			side, g = "principal", growth{rng, "and_ids", "or_ids", "not_id", "ids"}
		}
		in := func(tree string) json.RawMessage {
			if side == "principal" {
				return deny(anyone, tree)
			}
			return deny(tree, anyone)
		}
		// The hole stands for the condition; meant is what the rule says with one that holds.
		tree := g.around(`{"hole": true}`)
		bad := unreadable[side][rng.IntN(len(unreadable[side]))]
		attempts++
		rules := in(strings.Replace(tree, `{"hole": true}`, bad, 1))
		if _, err := compiledRules(rules); err == nil {
			t.Errorf("%s is accepted", rules)
			continue
		}
		meant, err := compiledRules(in(strings.Replace(tree, `"hole"`, `"any"`, 1)))
		if err != nil {
			t.Fatalf("%s: %v", tree, err)
		}
		var v any
		if err := json.Unmarshal([]byte(tree), &v); err != nil {
			t.Fatal(err)
		}
		left := `{"action": "DENY", "policies": {}}` // the rule goes with its only condition
		if v = without(v); v != nil {
			b, _ := json.Marshal(v)
			left = string(in(string(b)))
		}
		careless, err := compiledRules(json.RawMessage(left))
		if err != nil {
			t.Fatalf("%s: %v", left, err)
		}
		want, got := meant.Authorizer.Decide(request), careless.Authorizer.Decide(request)
		if got.Allowed && !want.Allowed {
			caught++
		}
	}
	if caught < 50 {
		t.Errorf("leaving the condition out lets only %d of %d requests through", caught, attempts)
	}
	t.Logf("%d rules with a hole; leaving the condition out lets %d requests through", attempts, caught)
}
