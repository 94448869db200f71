package routing_test

//lint:file-ignore SA1019 recorded cases use Envoy's deprecated fields.

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

func TestRecordedPathTemplates(t *testing.T) {
	var file struct {
		Valid   []string `json:"valid_patterns"`
		Invalid []string `json:"invalid_patterns"`
		Match   []struct {
			Path, Pattern string
			Match         bool
			Captures      map[string]string
		} `json:"match_cases"`
		Rewrite []struct{ Pattern, Rewrite, Path, Rewritten string } `json:"rewrite_cases"`
		Refused []string                                             `json:"rewrite_invalid"`
		Shared  [][3]any                                             `json:"shared_variable_set"`
	}
	conformance.Load(t, "envoy-facts/path_template.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/path_template.json")
	check := func(ok bool, format string, args ...any) {
		t.Helper()
		if !ok {
			tally.Fail(t, format, args...)
			return
		}
		tally.Pass()
	}
	for _, p := range file.Valid {
		_, err := routing.ParseTemplate(p)
		check(err == nil, "%s: %v", p, err)
	}
	for _, p := range file.Invalid {
		_, err := routing.ParseTemplate(p)
		check(err != nil, "%s is accepted", p)
	}
	for _, c := range file.Match {
		tpl, err := routing.ParseTemplate(c.Pattern)
		if err != nil {
			tally.Fail(t, "%s: %v", c.Pattern, err)
			continue
		}
		ok := tpl.Matches(c.Path) == c.Match
		for name, want := range c.Captures {
			w, err := routing.NewTemplateRewrite(tpl, "/{"+name+"}")
			ok = ok && err == nil && w.Replace(c.Path) == "/"+want
		}
		check(ok, "%s on %s", c.Pattern, c.Path)
	}
	rewrite := func(pattern, rewrite string) (*routing.TemplateRewrite, error) {
		tpl, err := routing.ParseTemplate(pattern)
		if err != nil {
			return nil, err
		}
		return routing.NewTemplateRewrite(tpl, rewrite)
	}
	for _, c := range file.Rewrite {
		w, err := rewrite(c.Pattern, c.Rewrite)
		check(err == nil && w.Replace(c.Path) == c.Rewritten, "%s to %s on %s: %v", c.Pattern, c.Rewrite, c.Path, err)
	}
	for _, p := range file.Refused {
		_, err := rewrite("/{var1}/{var2}/{var3}", p)
		check(err != nil, "the rewrite %s is accepted", p)
	}
	for _, c := range file.Shared {
		_, err := rewrite(c[1].(string), c[0].(string))
		check((err == nil) == c[2].(bool), "%s to %s: %v", c[1], c[0], err)
	}
	tally.Check(t, "envoy-facts/path_template.json", 54, 0)
}

func TestRecordedHashes(t *testing.T) {
	type one struct {
		Input json.RawMessage
		Seed  uint64
		Hash  string
	}
	var file map[string]json.RawMessage
	conformance.Load(t, "envoy-facts/hashes.json", &file)
	tally := conformance.Recorded(t, "envoy-facts/hashes.json")
	policy := []routing.HashPolicy{{Header: routing.NewHeaderName("x")}}
	run := func(values []string, want string) {
		t.Helper()
		hash, ok, _ := routing.HashOf(policy, &routing.Request{Header: map[string][]string{"X": values}}, routing.HashOrigin{})
		if !ok || strconv.FormatUint(hash, 10) != want {
			tally.Fail(t, "%q: %d, want %s", values, hash, want)
			return
		}
		tally.Pass()
	}
	var plain, lists []one
	var computed struct {
		Plain  []one `json:"xxhash64"`
		Seeded []one `json:"xxhash64_seed_1"`
	}
	for name, into := range map[string]any{"xxhash64": &plain, "xxhash64_string_list": &lists, "computed_here": &computed} {
		if file[name] == nil {
			continue
		}
		if err := json.Unmarshal(file[name], into); err != nil {
			t.Fatal(err)
		}
	}
	text := func(raw json.RawMessage) (s string) {
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, c := range append(plain, computed.Plain...) {
		run([]string{text(c.Input)}, c.Hash)
	}
	for _, c := range lists {
		var values []string
		if err := json.Unmarshal(c.Input, &values); err != nil {
			t.Fatal(err)
		}
		// The list is recorded as it stands, and a header's values are put in
		// order first: so the record is held against this chain, and the chain
		// against what a header with the same values hashes to.
		chain := func(values []string) string {
			hash := uint64(0)
			for _, v := range values {
				d := xxhash.NewWithSeed(hash)
				_, _ = d.WriteString(v)
				hash = d.Sum64()
			}
			return strconv.FormatUint(hash, 10)
		}
		if got := chain(values); got != c.Hash {
			tally.Fail(t, "%q: %s, want %s", values, got, c.Hash)
			continue
		}
		run(values, chain(slices.Sorted(slices.Values(values))))
	}
	for range computed.Seeded {
		tally.RunIn(t, "routing/lb", "TestRecordedHashes") // a hash that no policy uses
	}
	for name, raw := range file {
		var rest []json.RawMessage
		if name == "xxhash64" || name == "xxhash64_string_list" || json.Unmarshal(raw, &rest) != nil {
			continue
		}
		for range rest {
			tally.RunIn(t, "routing/lb", "TestRecordedHashes") // a hash that no policy uses
		}
	}
	tally.Check(t, "envoy-facts/hashes.json", 17, 22)
}

func hashPolicies(t *testing.T, raw json.RawMessage) (policies []routing.HashPolicy) {
	t.Helper()
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil // "none configured on the route"
	}
	for _, one := range list {
		var p routev3.RouteAction_HashPolicy
		if err := protojson.Unmarshal(one, &p); err != nil {
			t.Fatal(err)
		}
		out := routing.HashPolicy{Terminal: p.Terminal}
		switch s := p.PolicySpecifier.(type) {
		case *routev3.RouteAction_HashPolicy_Header_:
			out.Header = routing.NewHeaderName(s.Header.HeaderName)
			if rw := s.Header.RegexRewrite; rw != nil {
				r, err := routing.NewRegexRewrite(rw.Pattern.Regex, rw.Substitution)
				if err != nil {
					t.Fatal(err)
				}
				out.Regex = r
			}
		case *routev3.RouteAction_HashPolicy_Cookie_:
			out.Kind = routing.HashCookie
			out.Cookie = routing.HashCookieSpec{Name: s.Cookie.Name, Path: s.Cookie.Path, Issue: s.Cookie.Ttl != nil, TTL: s.Cookie.Ttl.AsDuration()}
		case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
			out.Kind = routing.HashSource
		case *routev3.RouteAction_HashPolicy_QueryParameter_:
			out.Kind, out.Query = routing.HashQuery, s.QueryParameter.Name
		default:
			t.Fatalf("unknown policy %v", &p)
		}
		policies = append(policies, out)
	}
	return policies
}

func TestRecordedHashPolicies(t *testing.T) {
	var file struct {
		Cases []struct {
			Test          string
			Policy        json.RawMessage
			Headers       [][2]string
			Path          string
			SourceIP      string          `json:"source_ip"`
			Hash          string          `json:"expect_hash"`
			Differs       [][2]string     `json:"expect_differs_from"`
			DiffersSource string          `json:"expect_differs_from_source"`
			Same          [][2]string     `json:"same_as"`
			Expect        json.RawMessage `json:"expect"`
			SetCookie     *struct {
				Name, Path string
				TTL        int
				Session    bool `json:"session_cookie"`
			} `json:"expect_set_cookie"`
		}
	}
	conformance.Load(t, "envoy-facts/hash_policy.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/hash_policy.json")
	for i, c := range file.Cases {
		policies := hashPolicies(t, c.Policy)
		hash := func(headers [][2]string, source string) (uint64, bool, string) {
			r := &routing.Request{Path: c.Path, Form: routing.LowerHeaders, Header: map[string][]string{}}
			for _, h := range headers {
				r.Header[h[0]] = append(r.Header[h[0]], h[1])
			}
			return routing.HashOf(policies, r, routing.HashOrigin{Address: source, Local: "5.6.7.8:80"})
		}
		got, found, cookie := hash(c.Headers, c.SourceIP)
		ok := true
		asked := 0
		if c.Hash != "" {
			asked++
			ok = ok && found && strconv.FormatUint(got, 10) == c.Hash
		}
		if c.Differs != nil {
			asked++
			other, _, _ := hash(c.Differs, c.SourceIP)
			ok = ok && found && other != got
		}
		if c.DiffersSource != "" {
			asked++
			other, _, _ := hash(c.Headers, c.DiffersSource)
			ok = ok && found && other != got
		}
		if c.Same != nil {
			asked++
			other, _, _ := hash(c.Same, c.SourceIP)
			ok = ok && found && other == got
		}
		if c.SetCookie != nil {
			asked++
			r := fmt.Sprintf("%s=\"", c.SetCookie.Name)
			ok = ok && found && strings.HasPrefix(cookie, r) && strings.Contains(cookie, "; Path="+c.SetCookie.Path) &&
				strings.Contains(cookie, "Max-Age") != c.SetCookie.Session && time.Duration(c.SetCookie.TTL) == policies[0].Cookie.TTL
		} else {
			ok = ok && cookie == ""
		}
		if string(c.Expect) == "null" {
			asked++
			ok = ok && !found
		}
		if !ok || asked == 0 {
			tally.Fail(t, "case %d %s: %d %v %q", i, c.Test, got, found, cookie)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/hash_policy.json", 10, 0)
}

func TestRecordedHeaderMutations(t *testing.T) {
	type common struct {
		Name    string
		Rules   map[string]any
		Headers map[string][]string
		Result  map[string][]string
		Error   bool
	}
	var file struct {
		Set []struct {
			common
			Set []json.RawMessage `json:"set_headers"`
		}
		Remove []struct {
			common
			Remove []string
		}
	}
	conformance.Load(t, "grpc-facts/header_mutation_rules.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/header_mutation_rules.json")
	check := func(c common, changes routing.HeaderChanges, err error) {
		t.Helper()
		if c.Error || err != nil {
			if (err != nil) != c.Error {
				tally.Fail(t, "%s: the error is %v", c.Name, err)
				return
			}
			tally.Pass()
			return
		}
		h := maps.Clone(c.Headers)
		if h == nil {
			h = map[string][]string{}
		}
		changes.Apply(h, routing.LowerHeaders, &routing.Values{})
		if len(h)+len(c.Result) > 0 && !reflect.DeepEqual(h, c.Result) {
			tally.Fail(t, "%s: %v, want %v", c.Name, h, c.Result)
			return
		}
		tally.Pass()
	}
	actions := map[corev3.HeaderValueOption_HeaderAppendAction]routing.HeaderAction{
		corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:    routing.AppendOrAdd,
		corev3.HeaderValueOption_ADD_IF_ABSENT:              routing.AddIfAbsent,
		corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:        routing.OverwriteIfExists,
		corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD: routing.OverwriteOrAdd,
	}
	for _, c := range file.Set {
		if len(c.Rules) > 0 {
			tally.Differs(t, "set "+c.Name)
			continue
		}
		var changes routing.HeaderChanges
		var failed error
		raw := false
		for _, one := range c.Set {
			var p corev3.HeaderValueOption
			if err := protojson.Unmarshal(one, &p); err != nil {
				t.Fatal(err)
			}
			raw = raw || len(p.Header.RawValue) > 0
			change, err := routing.NewHeaderChange(p.Header.Key, p.Header.Value, actions[p.AppendAction], p.KeepEmptyValue)
			if err != nil {
				failed = err
			}
			changes.Set = append(changes.Set, change)
		}
		if raw {
			tally.Differs(t, "set "+c.Name)
			continue
		}
		check(c.common, changes, failed)
	}
	for _, c := range file.Remove {
		if len(c.Rules) > 0 {
			tally.Differs(t, "remove "+c.Name)
			continue
		}
		var changes routing.HeaderChanges
		var failed error
		for _, name := range c.Remove {
			n, err := routing.NewHeaderRemoval(name)
			if err != nil {
				failed = err
			}
			changes.Remove = append(changes.Remove, n)
		}
		check(c.common, changes, failed)
	}
	tally.Check(t, "grpc-facts/header_mutation_rules.json", 15, 7)
}

// TestRecordedGRPCHashes has the keys of requests that gRPC's ring gets from hash
// policies, and from a header that its own configuration names.
func TestRecordedGRPCHashes(t *testing.T) {
	var file struct {
		Keys []struct {
			Name   string
			Values []string `json:"header_values"`
			Input  string   `json:"hash_input"`
		} `json:"request_header_key"`
		Hashes []struct {
			Name    string
			Policy  json.RawMessage `json:"hash_policy"`
			Headers map[string]string
			Hash    string `json:"hash_xxh64"`
		} `json:"request_hash"`
	}
	conformance.Load(t, "grpc-facts/ring_hash.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/ring_hash.json#request_hash")
	for _, c := range file.Keys {
		r := &routing.Request{Form: routing.LowerHeaders, Header: map[string][]string{}}
		if c.Values != nil {
			r.Header["x-key"] = c.Values
		}
		got, found, _ := routing.HashOf([]routing.HashPolicy{{Header: routing.NewHeaderName("x-key")}}, r, routing.HashOrigin{})
		switch {
		case found != (c.Input != "(random)"):
			tally.Fail(t, "%s: found %v", c.Name, found)
		case !found, got == xxhash.Sum64String(c.Input):
			tally.Pass()
		default:
			tally.Differs(t, c.Name)
		}
	}
	for _, c := range file.Hashes {
		r := &routing.Request{Path: c.Headers[":path"], Form: routing.LowerHeaders, Header: map[string][]string{}}
		for name, value := range c.Headers {
			if name != ":path" {
				r.Header[name] = []string{value}
			}
		}
		got, found, _ := routing.HashOf(hashPolicies(t, c.Policy), r, routing.HashOrigin{})
		if !found || strconv.FormatUint(got, 10) != c.Hash {
			tally.Fail(t, "%s: %d, want %s", c.Name, got, c.Hash)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "grpc-facts/ring_hash.json#request_hash", 6, 1)
}
