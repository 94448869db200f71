package compile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.yaml.in/yaml/v3"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// fromYAML is a recorded configuration as the protos' JSON.
func fromYAML(t *testing.T, doc string) json.RawMessage {
	t.Helper()
	var v any
	// Two keys of one name, as one recorded expression has, are beside the point.
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(doc, "      safe_regex:\n      safe_regex:\n", "      safe_regex:\n")), &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(durations(v))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// durations writes {seconds: 5} as "5s".
func durations(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if n, ok := v["seconds"]; ok && len(v) == 1 {
			return fmt.Sprintf("%vs", n)
		}
		for key := range v {
			v[key] = durations(v[key])
		}
	case []any:
		for i := range v {
			v[i] = durations(v[i])
		}
	}
	return v
}

func TestConformanceTokens(t *testing.T) {
	var file struct {
		Tokens        map[string]struct{ JWT string }
		Jwks          map[string]json.RawMessage `json:"jwks_strict_json"`
		Configs       map[string]string
		Authenticator []struct {
			Test, Config, Provider string
			Headers                map[string]string
			Status                 string `json:"expect_status"`
		} `json:"authenticator_cases"`
		Template     string `json:"requirement_config_template"`
		Requirements []struct {
			Test     string
			Requires json.RawMessage
			Headers  [][2]string
			Status   string `json:"expect_status"`
		} `json:"requirement_cases"`
		Extracted []any `json:"extractor_cases"`
		Matches   []struct {
			Test    string
			Rule    struct{ Match json.RawMessage }
			Headers [][2]string
			Expect  bool
		} `json:"match_cases"`
	}
	conformance.Load(t, "envoy-facts/jwt_authn.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/jwt_authn.json")
	fill := func(s string) string {
		for name, token := range file.Tokens {
			jwt := strings.ReplaceAll(token.JWT, "<dot>", ".")
			if s = strings.ReplaceAll(s, "$"+name, jwt); s == name {
				s = jwt
			}
		}
		return s
	}
	now := time.Unix(1_700_000_000, 0)
	verify := func(name string, config json.RawMessage, headers [][2]string, want string) {
		t.Helper()
		c, err := compiled("jwt_authn.v3.JwtAuthentication", config)
		if err != nil {
			tally.Fail(t, "%s: %v", name, err)
			return
		}
		for i := range headers {
			headers[i][1] = fill(headers[i][1])
		}
		if got := c.Tokens.Authenticator.Authenticate(headersOf(headers), now, nil); got.Status.String() != want {
			tally.Fail(t, "%s: %v, want %s", name, got.Status, want)
			return
		}
		tally.Pass()
	}
	for _, c := range file.Authenticator {
		name, change, _ := strings.Cut(c.Config, " ")
		if name == "same" {
			name = "ExampleConfig"
		}
		var config map[string]any
		if err := json.Unmarshal(fromYAML(t, file.Configs[name]), &config); err != nil {
			t.Fatal(err)
		}
		// The recorded test answers the fetch of the keys.
		p := config["providers"].(map[string]any)[c.Provider].(map[string]any)
		keys := string(file.Jwks["PublicKey"])
		requires := map[string]any{"provider_name": c.Provider}
		switch {
		case strings.HasPrefix(c.Test, "TestSubject") || strings.HasPrefix(c.Test, "TestLifetime"):
			delete(p, "issuer") // these look at one condition alone
		case strings.Contains(change, "issuer and audiences cleared"):
			delete(p, "issuer")
			delete(p, "audiences")
		case strings.Contains(change, "issuer cleared"):
			delete(p, "issuer")
			keys = string(file.Jwks["ES256PublicKey"])
		case strings.Contains(change, "forward_payload_header cleared"):
			delete(p, "forward_payload_header")
		case strings.Contains(change, `"invalid"`):
			keys = "invalid"
		case strings.Contains(change, "allow_failed"):
			requires = map[string]any{"requires_any": map[string]any{"requirements": []any{requires, map[string]any{"allow_missing_or_failed": map[string]any{}}}}}
		default:
			if field, value, ok := strings.Cut(change[strings.LastIndexByte(change, ' ')+1:], "="); ok {
				p[field] = value
			} else if change != "" {
				t.Fatalf("%s: the change %q is not known", c.Test, change)
			}
		}
		delete(p, "remote_jwks")
		p["local_jwks"] = map[string]any{"inline_string": keys}
		config["providers"] = map[string]any{c.Provider: p}
		config["rules"] = []any{map[string]any{"match": map[string]any{"prefix": "/"}, "requires": requires}}
		raw, _ := json.Marshal(config)
		var headers [][2]string
		for k, v := range c.Headers {
			headers = append(headers, [2]string{k, v})
		}
		verify(c.Test, raw, headers, c.Status)
	}
	for _, c := range file.Requirements {
		var config map[string]any
		if err := json.Unmarshal(fromYAML(t, file.Template), &config); err != nil {
			t.Fatal(err)
		}
		for _, p := range config["providers"].(map[string]any) {
			p.(map[string]any)["local_jwks"] = map[string]any{"inline_string": string(file.Jwks["PublicKey"])}
		}
		config["rules"] = []any{map[string]any{"match": map[string]any{"path": "/"}, "requires": c.Requires}}
		raw, _ := json.Marshal(config)
		verify(c.Test, raw, c.Headers, c.Status)
	}
	for range file.Extracted { // which tokens a request presents is no configuration of its own
		tally.RunIn(t, "identity", "TestRecordedEnvoyJWT")
	}
	for i, c := range file.Matches {
		r := headersOf(c.Headers)
		// A rule that fits asks for a token, which is not there.
		config := fmt.Sprintf(`{"providers": {"p": {%s}}, "rules": [{"match": %s, "requires": {"provider_name": "p"}}]}`, localKeysOf, c.Rule.Match)
		chain, err := compiled("jwt_authn.v3.JwtAuthentication", json.RawMessage(config))
		switch {
		case strings.Contains(r.Path, "#"):
			tally.Differs(t, fmt.Sprintf("match_cases %s [%d]", c.Test, i))
		case err != nil:
			tally.Fail(t, "%s %s: %v", c.Test, c.Rule.Match, err)
		default:
			if got := chain.Tokens.Authenticator.Authenticate(r, now, nil); (got.Status == identity.JWTMissing) != c.Expect {
				tally.Fail(t, "%s %s %v: %v, want %v", c.Test, c.Rule.Match, c.Headers, got.Status, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/jwt_authn.json", 71, 10)
}

// What Istio makes of its rules is accepted, lets a request without a token pass
// and refuses one whose keys can not be had.
func TestConformanceIstioTokens(t *testing.T) {
	var file struct {
		Cases []struct {
			From           string
			Authentication json.RawMessage `json:"jwt_authentication"`
		}
	}
	conformance.Load(t, "istio/requestauthentication_to_jwt_authn.json", &file)
	var tokens struct {
		Tokens map[string]struct{ JWT string }
	}
	conformance.Load(t, "istio/jwt_tokens.json", &tokens)
	tally := conformance.Recorded(t, "istio/requestauthentication_to_jwt_authn.json")
	for i, c := range file.Cases {
		chain, err := compiled("jwt_authn.v3.JwtAuthentication", c.Authentication)
		if err != nil {
			tally.Fail(t, "%s: %v", c.From, err)
			continue
		}
		a := chain.Tokens.Authenticator
		without := a.Authenticate(headersOf(nil), time.Unix(1_700_000_000, 0), &identity.JWTState{Keys: func(*identity.JWTProvider) *identity.KeySet { return nil }})
		token := ""
		for _, t := range tokens.Tokens {
			if t.JWT != "" {
				token = strings.ReplaceAll(t.JWT, "<dot>", ".")
			}
		}
		with := a.Authenticate(headersOf([][2]string{{"Authorization", "Bearer " + token}}), time.Unix(1_700_000_000, 0), &identity.JWTState{Keys: func(*identity.JWTProvider) *identity.KeySet { return nil }})
		if without.Status != identity.JWTOk || with.Status == identity.JWTOk {
			tally.Fail(t, "case %d: %v without a token, %v with one", i, without.Status, with.Status)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/requestauthentication_to_jwt_authn.json", 7, 0)
}

// Claims of a token that was verified are what rules ask about, in the form that Istio writes.
func TestRulesOnClaims(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := func(payload string) string {
		signed, err := signer.Sign([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		compact, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return compact
	}
	inline, _ := json.Marshal(string(keys))
	claim := func(path, value string) string {
		return `{"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, ` + path + `], "value": ` + value + `}}`
	}
	principal := `{"and_ids": {"ids": [` + claim(`{"key": "iss"}`, `{"string_match": {"exact": "me"}}`) + `, ` + claim(`{"key": "sub"}`, `{"string_match": {"prefix": "a"}}`) + `]}}`
	groups := claim(`{"key": "realm"}, {"key": "groups"}`, `{"or_match": {"value_matchers": [{"string_match": {"exact": "x"}}, {"list_match": {"one_of": {"string_match": {"exact": "x"}}}}]}}`)
	chain := guard(t, jwtFilter(`"issuer": "me", "payload_in_metadata": "payload", "local_jwks": {"inline_string": `+string(inline)+`}`, needsP),
		rbacFilter("allow", `"rules": `+policies("ALLOW", rule("r", anyone, `{"and_ids": {"ids": [`+principal+`, `+groups+`]}}`))))
	for payload, want := range map[string]bool{
		`{"iss": "me", "sub": "a", "realm": {"groups": ["y", "x"]}}`: true,
		`{"iss": "me", "sub": "a", "realm": {"groups": "x"}}`:        true,
		`{"iss": "me", "sub": "b", "realm": {"groups": "x"}}`:        false,
		`{"iss": "me", "sub": "a", "realm": {"groups": ["y"]}}`:      false,
		`{"iss": "me", "sub": "a"}`:                                  false,
	} {
		r := request("/", "")
		r.Header["Authorization"] = []string{"Bearer " + token(payload)}
		result := chain.Tokens.Authenticator.Authenticate(r, time.Unix(1_700_000_000, 0), nil)
		if result.Status != identity.JWTOk {
			t.Fatalf("%s: %v", payload, result.Status)
		}
		r.Claims = result.Claims()
		if d := chain.Authorizer.Decide(r); d.Allowed != want {
			t.Errorf("%s: %v, want %v", payload, &d, want)
		}
	}
}

func TestConformanceRateLimits(t *testing.T) {
	var file struct {
		Buckets []struct {
			Test     string
			Max      int `json:"max_tokens"`
			Fill     int `json:"tokens_per_fill"`
			Interval int `json:"fill_interval_ms"`
			Steps    []any
		} `json:"token_bucket"`
		Descriptors []struct {
			Descriptors json.RawMessage
			Default     json.RawMessage `json:"default_bucket"`
			Requests    []struct {
				Entries map[string]string
				Results []string
			}
		}
		Errors []map[string]string `json:"config_errors"`
	}
	conformance.Load(t, "envoy-facts/local_ratelimit.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/local_ratelimit.json")
	limit := func(fields string) (*resilience.RateLimit, error) {
		c, err := compiled("local_ratelimit.v3.LocalRateLimit", json.RawMessage(`{`+fields+`}`))
		if err != nil {
			return nil, err
		}
		return c.RateLimits[0], nil
	}
	for _, c := range file.Buckets {
		if strings.Contains(c.Test, "ShareProvider") {
			if _, err := limit(perSecond("1") + `, "local_cluster_rate_limit": {}`); err == nil || !strings.Contains(err.Error(), "local_cluster_rate_limit: not supported") {
				tally.Fail(t, "%s: %v", c.Test, err)
				continue
			}
			tally.Differs(t, c.Test)
			continue
		}
		l, err := limit(fmt.Sprintf(`"token_bucket": {"max_tokens": %d, "tokens_per_fill": %d, "fill_interval": "%.3fs"}, %s`, c.Max, c.Fill, float64(c.Interval)/1000, all100))
		if err != nil {
			tally.Fail(t, "%s: %v", c.Test, err)
			continue
		}
		levels, now, ok := newLevels(), time.Duration(0), true
		for _, step := range c.Steps {
			if wait, isWait := step.(string); isWait {
				d, err := time.ParseDuration(strings.TrimPrefix(strings.Fields(wait)[0], "+"))
				if err != nil {
					t.Fatal(err)
				}
				now += d
				continue
			}
			for _, want := range step.([]any) {
				ok = ok && levels.take(l, &resilience.LimitRequest{Request: &routing.Request{}}, now) == strings.HasPrefix(want.(string), "allow")
			}
		}
		if !ok {
			tally.Fail(t, "%s", c.Test)
			continue
		}
		tally.Pass()
	}
	for i, c := range file.Descriptors {
		for _, q := range c.Requests {
			// The recorded descriptor of a request, as an action for each entry.
			var actions []string
			for _, key := range sortedKeys(q.Entries) {
				actions = append([]string{fmt.Sprintf(`{"generic_key": {"descriptor_key": %q, "descriptor_value": %q}}`, key, q.Entries[key])}, actions...)
			}
			var bucket map[string]any
			if err := json.Unmarshal(c.Default, &bucket); err != nil {
				t.Fatal(err)
			}
			switch bucket["fill_interval"] {
			case nil:
				bucket["fill_interval"] = "1s"
			case "50ms":
				bucket["fill_interval"] = "0.050s"
			}
			raw, _ := json.Marshal(bucket)
			l, err := limit(fmt.Sprintf(`"token_bucket": %s, "descriptors": %s, "rate_limits": [{"actions": [%s]}], %s`, raw, c.Descriptors, strings.Join(actions, ", "), all100))
			if err != nil {
				tally.Fail(t, "descriptors %d %v: %v", i, q.Entries, err)
				continue
			}
			levels, ok := newLevels(), true
			for _, want := range q.Results {
				ok = ok && levels.take(l, &resilience.LimitRequest{Request: &routing.Request{}}, 0) == (want == "allow")
			}
			if !ok {
				tally.Fail(t, "descriptors %d %v: want %v", i, q.Entries, q.Results)
				continue
			}
			tally.Pass()
		}
	}
	entry := func(key, value, interval string) string {
		return fmt.Sprintf(`{"entries": [{"key": %q, "value": %q}], %s}`, key, value, bucket("1", interval))
	}
	for _, c := range file.Errors {
		fields := perSecond("1")
		switch {
		case c["fill_interval"] != "":
			fields = bucket("1", "0.049s")
		case c["descriptor fill_interval"] != "":
			fields += `, "descriptors": [` + entry("a", "b", "0.01s") + `]`
		case c["two descriptors"] != "":
			fields += `, "descriptors": [` + entry("foo2", "bar2", "1s") + `, ` + entry("foo2", "bar2", "2s") + `]`
		case c["two wildcard descriptors"] != "":
			fields += `, "descriptors": [` + entry("user", "", "1s") + `, ` + entry("user", "", "2s") + `]`
		default:
			t.Fatalf("%v is not known", c)
		}
		if _, err := limit(fields); err == nil {
			tally.Fail(t, "%v: accepted", c)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "envoy-facts/local_ratelimit.json", 17, 1)
}

// levels are the levels of a limit's buckets.
type levels map[string]time.Duration

func newLevels() levels { return make(levels) }

func (l levels) take(limit *resilience.RateLimit, r *resilience.LimitRequest, now time.Duration) bool {
	var uses resilience.LimitUses
	limit.Select(r, &uses)
	for i := range uses.Uses {
		use := &uses.Uses[i]
		key := fmt.Sprint(use.Slot, " ", string(uses.Key(i)))
		after, ok := use.Bucket.Take(l[key], now, use.Tokens)
		l[key] = after
		if !ok && !use.Shadow {
			return false
		}
	}
	return true
}
