package routing_test

//lint:file-ignore SA1019 recorded cases use Envoy's deprecated fields.

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

func stringMatch(t *testing.T, m *matcherv3.StringMatcher) routing.StringMatch {
	t.Helper()
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return routing.Exact(p.Exact, m.IgnoreCase)
	case *matcherv3.StringMatcher_Prefix:
		return routing.Prefix(p.Prefix, m.IgnoreCase)
	case *matcherv3.StringMatcher_Suffix:
		return routing.Suffix(p.Suffix, m.IgnoreCase)
	case *matcherv3.StringMatcher_Contains:
		return routing.Contains(p.Contains, m.IgnoreCase)
	case *matcherv3.StringMatcher_SafeRegex:
		return regex(t, p.SafeRegex.Regex)
	}
	t.Fatalf("no pattern in %v", m)
	return routing.StringMatch{}
}

func regex(t *testing.T, expr string) routing.StringMatch {
	t.Helper()
	m, err := routing.Regex(expr)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func headerMatch(t *testing.T, m *routev3.HeaderMatcher) routing.HeaderMatch {
	t.Helper()
	h := routing.HeaderMatch{Name: routing.NewHeaderName(m.Name), Invert: m.InvertMatch, MissingAsEmpty: m.TreatMissingHeaderAsEmpty}
	switch p := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		h.Kind, h.Present = routing.HeaderPresent, true
	case *routev3.HeaderMatcher_PresentMatch:
		h.Kind, h.Present = routing.HeaderPresent, p.PresentMatch
	case *routev3.HeaderMatcher_RangeMatch:
		h.Kind, h.Start, h.End = routing.HeaderRange, p.RangeMatch.Start, p.RangeMatch.End
	case *routev3.HeaderMatcher_StringMatch:
		h.String = stringMatch(t, p.StringMatch)
	case *routev3.HeaderMatcher_ExactMatch:
		h.String = routing.Exact(p.ExactMatch, false)
	case *routev3.HeaderMatcher_PrefixMatch:
		h.String = routing.Prefix(p.PrefixMatch, false)
	case *routev3.HeaderMatcher_SuffixMatch:
		h.String = routing.Suffix(p.SuffixMatch, false)
	case *routev3.HeaderMatcher_ContainsMatch:
		h.String = routing.Contains(p.ContainsMatch, false)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		h.String = regex(t, p.SafeRegexMatch.Regex)
	default:
		t.Fatalf("no specifier in %v", m)
	}
	return h
}

func TestRecordedEnvoyHeaderMatchers(t *testing.T) {
	var file struct {
		Cases []struct {
			Test     string
			Line     int
			Matchers []json.RawMessage
			Headers  [][2]string
			Expect   bool
		}
	}
	conformance.Load(t, "envoy-facts/header_matchers.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/header_matchers.json")
	for i, c := range file.Cases {
		r := &routing.Request{Form: routing.LowerHeaders, Header: map[string][]string{}}
		repeated := false
		for _, h := range c.Headers {
			name := strings.ToLower(h[0])
			r.Header[name] = append(r.Header[name], h[1])
			repeated = repeated || len(r.Header[name]) > 1
		}
		got := true
		for _, raw := range c.Matchers {
			var proto routev3.HeaderMatcher
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &proto); err != nil {
				t.Fatalf("line %d: %v", c.Line, err)
			}
			m := headerMatch(t, &proto)
			got = got && m.Matches(r)
		}
		switch {
		case got == c.Expect:
			tally.Pass()
		case repeated:
			tally.Differs(t, fmt.Sprintf("%s [%d]", c.Test, i))
		default:
			tally.Fail(t, "line %d, %s: %v, want %v", c.Line, c.Test, got, c.Expect)
		}
	}
	tally.Check(t, "envoy-facts/header_matchers.json", 52, 1)
}

func TestRecordedEnvoyStringAndPathMatchers(t *testing.T) {
	var file struct {
		Cases []struct {
			Test        string
			Line        int
			MatcherKind string `json:"matcher_kind"`
			Config      json.RawMessage
			Value       json.RawMessage
			Expect      bool
		}
	}
	conformance.Load(t, "envoy-facts/value_string_path_matchers.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/value_string_path_matchers.json")
	for i, c := range file.Cases {
		name := fmt.Sprintf("%s [%d]", c.Test, i)
		if c.MatcherKind == "MetadataMatcher" {
			m, claims, ok := claimMatch(t, c.Config, c.Value)
			switch {
			case !ok:
				tally.Differs(t, name)
			case m.Matches(claims) != c.Expect:
				tally.Fail(t, "line %d, %s: claims: %v, want %v", c.Line, c.Test, !c.Expect, c.Expect)
			default:
				tally.Pass()
			}
			continue
		}
		var value string
		if err := json.Unmarshal(c.Value, &value); err != nil {
			t.Fatalf("line %d: %v", c.Line, err)
		}
		fragment := strings.Contains(value, "#") // Envoy cuts it off; here it is part of the path that the handler sees
		config := c.Config
		if c.MatcherKind == "PathMatcher" {
			value, _, _ = strings.Cut(value, "?") // as the request's view does
			var inner struct{ Path json.RawMessage }
			if err := json.Unmarshal(config, &inner); err != nil {
				t.Fatalf("line %d: %v", c.Line, err)
			}
			if inner.Path != nil {
				config = inner.Path
			}
		}
		var proto matcherv3.StringMatcher
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(config, &proto); err != nil {
			t.Fatalf("line %d: %v", c.Line, err)
		}
		m := stringMatch(t, &proto)
		if got := m.Matches(value); got != c.Expect {
			if fragment {
				tally.Differs(t, name)
				continue
			}
			tally.Fail(t, "line %d, %s: string matcher: %v, want %v", c.Line, c.Test, got, c.Expect)
			continue
		}
		if c.MatcherKind == "PathMatcher" {
			path, ok := pathMatch(&proto, m)
			if ok && path.Matches(value) != c.Expect {
				tally.Fail(t, "line %d, %s: path match: %v, want %v", c.Line, c.Test, !c.Expect, c.Expect)
				continue
			}
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/value_string_path_matchers.json", 59, 15)
}

// claimMatch returns a metadata matcher as a condition on claims, and the
// metadata of its filter as claims, if it compares text.
func claimMatch(t *testing.T, config, value json.RawMessage) (m routing.ClaimMatch, claims map[string]any, ok bool) {
	t.Helper()
	var proto matcherv3.MetadataMatcher
	if err := protojson.Unmarshal(config, &proto); err != nil {
		t.Fatal(err)
	}
	var metadata struct {
		Filters map[string]map[string]any `json:"filter_metadata"`
	}
	if err := json.Unmarshal(value, &metadata); err != nil {
		t.Fatal(err)
	}
	m.Invert = proto.Invert
	for _, p := range proto.Path {
		m.Path = append(m.Path, p.GetKey())
	}
	text := proto.GetValue().GetStringMatch()
	if list := proto.GetValue().GetListMatch(); list != nil {
		text = list.GetOneOf().GetStringMatch()
	}
	switch p := proto.GetValue().GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_PresentMatch:
		m.Present, m.Invert = true, proto.Invert == p.PresentMatch
	default:
		if text == nil {
			return m, nil, false
		}
		m.Value = stringMatch(t, text)
	}
	return m, metadata.Filters[proto.Filter], true
}

// pathMatch returns the matcher as a route has it, if a route can have it.
func pathMatch(proto *matcherv3.StringMatcher, m routing.StringMatch) (routing.PathMatch, bool) {
	switch p := proto.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return routing.PathMatch{Kind: routing.PathExact, Value: p.Exact, IgnoreCase: proto.IgnoreCase}, true
	case *matcherv3.StringMatcher_Prefix:
		return routing.PathMatch{Kind: routing.PathPrefix, Value: p.Prefix, IgnoreCase: proto.IgnoreCase}, true
	case *matcherv3.StringMatcher_SafeRegex:
		return routing.PathMatch{Kind: routing.PathRegex, Regex: m}, true
	}
	return routing.PathMatch{}, false
}

func TestRecordedGRPCHeaderMatchers(t *testing.T) {
	var file struct {
		Cases []struct {
			Name    string
			Kind    string
			Header  string
			Value   json.RawMessage
			Invert  bool
			Headers map[string][]string
			Match   bool
		}
	}
	conformance.Load(t, "grpc-facts/header_matchers.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/header_matchers.json")
	for _, c := range file.Cases {
		m := routing.HeaderMatch{Name: routing.NewHeaderName(c.Header), Invert: c.Invert}
		var text string
		if strings.HasPrefix(string(c.Value), `"`) {
			if err := json.Unmarshal(c.Value, &text); err != nil {
				t.Fatal(err)
			}
		}
		switch c.Kind {
		case "exact":
			m.String = routing.Exact(text, false)
		case "prefix":
			m.String = routing.Prefix(text, false)
		case "suffix":
			m.String = routing.Suffix(text, false)
		case "regex (full match)":
			m.String = regex(t, text)
		case "range":
			m.Kind = routing.HeaderRange
			if err := json.Unmarshal(c.Value, &m); err != nil {
				t.Fatal(err)
			}
		case "present":
			m.Kind = routing.HeaderPresent
			if err := json.Unmarshal(c.Value, &m.Present); err != nil {
				t.Fatal(err)
			}
		case "string_match":
			m.String = grpcStringMatch(t, c.Value)
		default:
			t.Fatalf("%s: unknown kind %q", c.Name, c.Kind)
		}
		got := m.Matches(&routing.Request{Header: c.Headers, Form: routing.LowerHeaders})
		switch {
		case got == c.Match:
			tally.Pass()
		case len(c.Headers[c.Header]) > 1:
			tally.Differs(t, fmt.Sprintf("%s (%s)", c.Name, c.Kind))
		default:
			tally.Fail(t, "%s, %s of %s: %v, want %v", c.Name, c.Kind, c.Value, got, c.Match)
		}
	}
	tally.Check(t, "grpc-facts/header_matchers.json", 22, 3)
}

func grpcStringMatch(t *testing.T, raw json.RawMessage) routing.StringMatch {
	t.Helper()
	var m struct {
		ExactMatch, PrefixMatch, SuffixMatch, ContainsMatch, RegexMatch *string
		IgnoreCase                                                      bool
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	switch {
	case m.ExactMatch != nil:
		return routing.Exact(*m.ExactMatch, m.IgnoreCase)
	case m.PrefixMatch != nil:
		return routing.Prefix(*m.PrefixMatch, m.IgnoreCase)
	case m.SuffixMatch != nil:
		return routing.Suffix(*m.SuffixMatch, m.IgnoreCase)
	case m.ContainsMatch != nil:
		return routing.Contains(*m.ContainsMatch, m.IgnoreCase)
	case m.RegexMatch != nil:
		return regex(t, *m.RegexMatch)
	}
	t.Fatalf("no pattern in %s", raw)
	return routing.StringMatch{}
}

func TestRecordedGRPCStringMatchers(t *testing.T) {
	var file struct {
		ProtoValidation []struct{} `json:"proto_validation"`
		Match           []struct {
			Name    string
			Matcher json.RawMessage
			Input   string
			Match   bool
		}
		SafeRegex []struct {
			Name  string
			Regex string
			Valid bool
		} `json:"safe_regex"`
	}
	conformance.Load(t, "grpc-facts/string_matchers.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/string_matchers.json")
	for range file.ProtoValidation {
		tally.RunIn(t, "internal/xds/compile", "TestConformanceStringMatchers") // what a proto may hold is checked there
	}
	for _, c := range file.Match {
		m := grpcStringMatch(t, c.Matcher)
		if got := m.Matches(c.Input); got != c.Match {
			tally.Fail(t, "%s: %v, want %v", c.Name, got, c.Match)
			continue
		}
		tally.Pass()
	}
	for _, c := range file.SafeRegex {
		if _, err := routing.Regex(c.Regex); (err == nil) != c.Valid {
			tally.Fail(t, "%s: the error is %v, valid: %v", c.Name, err, c.Valid)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "grpc-facts/string_matchers.json", 11, 7)
}

func TestRecordedGRPCRoutes(t *testing.T) {
	var file struct {
		PathMatchers []struct {
			Name            string
			Path            string
			Prefix          *string
			SafeRegex       *string `json:"safe_regex"`
			CaseInsensitive bool    `json:"case_insensitive"`
			Match           bool
		} `json:"path_matchers"`
		DomainMatch []struct {
			Name, Domain, Host, Type string
			Match                    bool
		} `json:"domain_match"`
		DomainType []struct{ Domain, Type string } `json:"domain_type"`
		Best       struct {
			Domains [][]string `json:"virtual_hosts_domains"`
			Cases   []struct {
				Name, Host string
				Index      int `json:"virtual_host_index"`
			}
		} `json:"best_virtual_host"`
		Fractions []struct {
			PerMillion uint32 `json:"fraction_per_million"`
			Random     uint64
			Match      bool
		} `json:"runtime_fraction"`
	}
	conformance.Load(t, "grpc-facts/route_matching.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/route_matching.json")
	check := func(name string, got, want any) {
		t.Helper()
		if got != want {
			tally.Fail(t, "%s: %v, want %v", name, got, want)
			return
		}
		tally.Pass()
	}
	for i, c := range file.PathMatchers {
		m := routing.PathMatch{IgnoreCase: c.CaseInsensitive}
		switch {
		case c.Prefix != nil:
			m.Kind, m.Value = routing.PathPrefix, *c.Prefix
		case c.SafeRegex != nil:
			m.Kind, m.Regex = routing.PathRegex, regex(t, *c.SafeRegex)
		default:
			tally.Differs(t, fmt.Sprintf("%s [%d]", c.Name, i))
			continue
		}
		check(c.Name, m.Matches(c.Path), c.Match)
	}
	for _, c := range file.DomainMatch {
		d, err := routing.NewDomains([][]string{{c.Domain}})
		check(c.Name+" is valid", err == nil, c.Type != "invalid")
		if err == nil && (d.Lookup(c.Host) == 0) != c.Match {
			t.Errorf("%s: %q among %q: %d", c.Name, c.Host, c.Domain, d.Lookup(c.Host))
		}
	}
	for _, c := range file.DomainType {
		_, err := routing.NewDomains([][]string{{c.Domain}})
		check(c.Domain, err == nil, c.Type != "invalid")
	}
	best, err := routing.NewDomains(file.Best.Domains)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range file.Best.Cases {
		check(c.Name, best.Lookup(c.Host), c.Index)
	}
	for _, c := range file.Fractions {
		got := routing.Fraction{PerMillion: c.PerMillion}.Matches(c.Random)
		if c.Random == uint64(c.PerMillion) && got != c.Match {
			tally.Differs(t, fmt.Sprintf("runtime_fraction %d of a million, drawn %d", c.PerMillion, c.Random))
			continue
		}
		check("fraction", got, c.Match)
	}
	tally.Check(t, "grpc-facts/route_matching.json", 22, 3)
}

// TestDrawForValue pins the scale that others rely on to replay a choice: the
// draw ceil(value x 2^64 / sum) chooses the cluster that holds the value.
func TestDrawForValue(t *testing.T) {
	w, err := routing.NewWeighted([]routing.WeightedCluster{{Name: "a", Weight: 3}, {Name: "b", Weight: 7}})
	if err != nil {
		t.Fatal(err)
	}
	for value := range uint64(10) {
		draw, rest := bits.Div64(value, 0, 10)
		if rest != 0 {
			draw++
		}
		want := 0
		if value >= 3 {
			want = 1
		}
		if got := w.Choose(draw); got != want {
			t.Errorf("value %d: cluster %d, want %d", value, got, want)
		}
	}
}
