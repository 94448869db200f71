package identity

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

// recordedTime is a present at which the recorded good tokens hold.
var recordedTime = time.Unix(1_700_000_000, 0)

type recordedProvider struct {
	Issuer    string
	Audiences []string
	Subjects  *struct {
		Suffix, Prefix string
	}
	RequireExpiration bool                  `yaml:"require_expiration"`
	MaxLifetime       struct{ Seconds int } `yaml:"max_lifetime"`
	ClockSkew         int                   `yaml:"clock_skew_seconds"`
	RemoteJwks        any                   `yaml:"remote_jwks"`
	LocalJwks         any                   `yaml:"local_jwks"`
	Forward           bool                  ``
	PayloadHeader     string                `yaml:"forward_payload_header"`
	FromHeaders       []recordedTokenHeader `yaml:"from_headers"`
	FromParams        []string              `yaml:"from_params"`
	FromCookies       []string              `yaml:"from_cookies"`
	ClaimHeaders      []recordedClaimHeader `yaml:"claim_to_headers"`
}

type recordedTokenHeader struct {
	Name   string
	Prefix string `yaml:"value_prefix"`
}

type recordedClaimHeader struct {
	Header string `yaml:"header_name"`
	Claim  string `yaml:"claim_name"`
}

func (c *recordedProvider) provider(name string) JWTProvider {
	p := JWTProvider{
		Name: name, Issuer: c.Issuer, Audiences: c.Audiences, RequireExpiration: c.RequireExpiration,
		MaxLifetime: time.Duration(c.MaxLifetime.Seconds) * time.Second, ClockSkew: time.Duration(c.ClockSkew) * time.Second,
		Params: c.FromParams, Cookies: c.FromCookies, Forward: c.Forward, PayloadHeader: c.PayloadHeader,
	}
	if c.Subjects != nil {
		m := routing.Prefix(c.Subjects.Prefix, false)
		if c.Subjects.Suffix != "" {
			m = routing.Suffix(c.Subjects.Suffix, false)
		}
		p.Subject = &m
	}
	for _, h := range c.FromHeaders {
		p.Headers = append(p.Headers, TokenHeader(h))
	}
	for _, h := range c.ClaimHeaders {
		p.ClaimHeaders = append(p.ClaimHeaders, ClaimHeader(h))
	}
	return p
}

func recordedProviders(t testing.TB, doc string) map[string]*recordedProvider {
	t.Helper()
	var config struct{ Providers map[string]*recordedProvider }
	// Two keys of one name, as one recorded regex has, are beside the point.
	doc = strings.ReplaceAll(doc, "      safe_regex:\n      safe_regex:\n", "      safe_regex:\n")
	if err := yaml.Unmarshal([]byte(doc), &config); err != nil {
		t.Fatal(err)
	}
	return config.Providers
}

type recordedRequirement struct {
	Provider      string                `json:"provider_name"`
	Any           *recordedRequirements `json:"requires_any"`
	All           *recordedRequirements `json:"requires_all"`
	AllowMissing  *struct{}             `json:"allow_missing"`
	AllowFailed   *struct{}             `json:"allow_missing_or_failed"`
	WithAudiences *struct {
		Provider  string   `json:"provider_name"`
		Audiences []string `json:"audiences"`
	} `json:"provider_and_audiences"`
}

type recordedRequirements struct{ Requirements []recordedRequirement }

func (q *recordedRequirement) requirement() Requirement {
	list := func(l *recordedRequirements) (out []Requirement) {
		for i := range l.Requirements {
			out = append(out, l.Requirements[i].requirement())
		}
		return out
	}
	switch {
	case q.Any != nil:
		return RequireAny(list(q.Any)...)
	case q.All != nil:
		return RequireAll(list(q.All)...)
	case q.AllowMissing != nil:
		return AllowMissing()
	case q.AllowFailed != nil:
		return AllowMissingOrFailed()
	case q.WithAudiences != nil:
		return RequireProvider(q.WithAudiences.Provider, q.WithAudiences.Audiences...)
	}
	return RequireProvider(q.Provider)
}

func TestRecordedEnvoyJWT(t *testing.T) {
	var file struct {
		Tokens map[string]struct{ JWT string }
		Jwks   map[string]json.RawMessage `json:"jwks_strict_json"`
		Configs,
		Expected map[string]string
		Values        map[string]string `json:"expected_values"`
		Authenticator []struct {
			Test, Config, Provider, Also string
			Headers                      map[string]string
			Status                       string `json:"expect_status"`
		} `json:"authenticator_cases"`
		Template     string `json:"requirement_config_template"`
		Requirements []struct {
			Test      string
			Requires  recordedRequirement
			Headers   [][2]string
			Status    string          `json:"expect_status"`
			Forwarded map[string]bool `json:"payload_forwarded"`
		} `json:"requirement_cases"`
		Extractor string `json:"extractor_config"`
		Extracted []struct {
			Headers [][2]string
			Tokens  []struct {
				Token   string
				Issuers []string `json:"issuers_allowed"`
			} `json:"expect_tokens_in_order"`
		} `json:"extractor_cases"`
		Matches []struct {
			Test    string
			Rule    struct{ Match map[string]any }
			Headers [][2]string
			Expect  bool
		} `json:"match_cases"`
	}
	conformance.Load(t, "envoy-facts/jwt_authn.json", &file)
	token := func(name string) string {
		return strings.ReplaceAll(file.Tokens[name].JWT, "<dot>", ".")
	}
	fill := func(s string) string {
		for name := range file.Tokens {
			s = strings.ReplaceAll(s, "$"+name, token(name))
			if s == name {
				s = token(name)
			}
		}
		return s
	}
	publicKey := keySet(t, string(file.Jwks["PublicKey"]))
	tally := conformance.Recorded(t, "envoy-facts/jwt_authn.json")

	for _, c := range file.Authenticator {
		name, change, _ := strings.Cut(c.Config, " ")
		if name == "same" {
			name = "ExampleConfig"
		}
		config := recordedProviders(t, file.Configs[name])[c.Provider]
		keys, failed := publicKey, strings.Contains(change, "allow_failed")
		requires := RequireProvider(c.Provider)
		switch {
		case strings.HasPrefix(c.Test, "TestSubject") || strings.HasPrefix(c.Test, "TestLifetime"):
			config.Issuer = "" // these look at one condition alone
		case strings.Contains(change, "issuer and audiences cleared"):
			config.Issuer, config.Audiences = "", nil
		case strings.Contains(change, "issuer cleared"):
			config.Issuer, keys = "", keySet(t, string(file.Jwks["ES256PublicKey"]))
		case strings.Contains(change, "issuer=other_issuer"):
			config.Issuer = "other_issuer"
		case strings.Contains(change, "clock_skew_seconds"):
			config.ClockSkew = 1205005587
		case strings.Contains(change, `"invalid"`):
			if _, err := ParseKeySet([]byte("invalid")); err == nil {
				t.Error("an invalid key set was accepted")
			}
			keys = &KeySet{}
		case strings.Contains(change, "forward_payload_header cleared"):
			config.PayloadHeader = ""
		case change != "" && !failed && !strings.Contains(change, "in_metadata"):
			t.Fatalf("%s: the change %q is not known", c.Test, change)
		}
		if failed {
			requires = RequireAny(requires, AllowMissingOrFailed())
		}
		a := authenticator(t, JWTConfig{Providers: []JWTProvider{config.provider(c.Provider)}, Rules: []JWTRule{{Requires: &requires}}})
		var pairs [][2]string
		for k, v := range c.Headers {
			pairs = append(pairs, [2]string{k, fill(v)})
		}
		result := a.Authenticate(jwtRequest(pairs), recordedTime, &JWTState{Keys: func(*JWTProvider) *KeySet { return keys }})
		if result.Status.String() != c.Status {
			tally.Fail(t, "%s: %v, want %s", c.Test, result.Status, c.Status)
			continue
		}
		if strings.Contains(c.Also, "failure reason recorded") && result.Failure != JWTAudienceRefused {
			tally.Fail(t, "%s: the failure is %v", c.Test, result.Failure)
			continue
		}
		if config.PayloadHeader != "" && result.Claims() != nil && c.Headers["Authorization"] == "Bearer $GoodToken" {
			if h := result.Tokens[0].Headers(); h[0].Claim != file.Values["ExpectedPayloadValue"] || h[0].Header != config.PayloadHeader {
				tally.Fail(t, "%s: passes on %v", c.Test, h)
				continue
			}
		}
		if c.Test == "TestClaimToHeader" {
			got := map[string]string{}
			for _, h := range result.Tokens[0].Headers() {
				got[h.Header] = h.Claim
			}
			want := map[string]string{
				"x-jwt-claim-sub": "test@example.com", "x-jwt-claim-nested": "value1", "x-jwt-bool-claim": "true", "x-jwt-int-claim": "9999",
				"x-jwt-claim-object-key": base64.StdEncoding.EncodeToString([]byte(`["str1","str2"]`)), "sec-istio-auth-userinfo": got["sec-istio-auth-userinfo"],
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				tally.Fail(t, "%s: %v, want %v", c.Test, got, want)
				continue
			}
		}
		tally.Pass()
	}

	for _, c := range file.Requirements {
		var config JWTConfig
		for name, p := range recordedProviders(t, file.Template) {
			provider := p.provider(name)
			provider.Keys = publicKey
			config.Providers = append(config.Providers, provider)
		}
		requires := c.Requires.requirement()
		config.Rules = []JWTRule{{Match: routing.Match{Path: routing.PathMatch{Kind: routing.PathExact, Value: "/"}}, Requires: &requires}}
		pairs := make([][2]string, len(c.Headers))
		for i, h := range c.Headers {
			pairs[i] = [2]string{h[0], fill(h[1])}
		}
		result := authenticator(t, config).Authenticate(jwtRequest(pairs), recordedTime, nil)
		forwarded := map[string]bool{}
		for _, token := range result.Tokens {
			forwarded[token.At.Name] = true
		}
		ok := result.Status.String() == c.Status
		for name, want := range c.Forwarded {
			ok = ok && (forwarded[name] == want || result.Status != JWTOk)
		}
		if !ok {
			tally.Fail(t, "%s: %v, %v, want %s, %v", c.Test, result.Status, forwarded, c.Status, c.Forwarded)
			continue
		}
		tally.Pass()
	}

	var all []*JWTProvider
	for name, p := range recordedProviders(t, file.Extractor) {
		provider := p.provider(name)
		all = append(all, &provider)
	}
	for _, c := range file.Extracted {
		pairs := make([][2]string, len(c.Headers))
		for i, h := range c.Headers {
			pairs[i] = [2]string{h[0], fill(h[1])}
		}
		got := presented(jwtRequest(pairs), tokenLocations(all), nil)
		ok := len(got) == len(c.Tokens)
		for i := 0; ok && i < len(got); i++ {
			slices.Sort(got[i].at.issuers)
			ok = got[i].token == fill(c.Tokens[i].Token) && slices.Equal(got[i].at.issuers, c.Tokens[i].Issuers)
		}
		if !ok {
			tally.Fail(t, "%v: %v, want %v", c.Headers, got, c.Tokens)
			continue
		}
		tally.Pass()
	}

	for i, c := range file.Matches {
		nothing := RequireProvider("p")
		rule := JWTRule{Match: recordedJWTMatch(t, c.Rule.Match), Requires: &nothing}
		if policy, ok := c.Rule.Match["path_match_policy"].(map[string]any); ok {
			template, err := routing.ParseTemplate(policy["typed_config"].(map[string]any)["path_template"].(string))
			if err != nil {
				t.Fatal(err)
			}
			rule.Template = template
		}
		r := jwtRequest(c.Headers)
		if strings.Contains(r.Path, "#") {
			tally.Differs(t, fmt.Sprintf("match_cases %s [%d]", c.Test, i))
			continue
		}
		// A rule that fits asks for a token, which is not there.
		got := authenticator(t, JWTConfig{Providers: []JWTProvider{{Name: "p"}}, Rules: []JWTRule{rule}}).Authenticate(r, recordedTime, nil)
		if (got.Status == JWTMissing) != c.Expect {
			tally.Fail(t, "%s %v %v: %v, want %v", c.Test, c.Rule.Match, c.Headers, got.Status, c.Expect)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "jwt_authn", len(file.Authenticator)+len(file.Requirements)+len(file.Extracted)+len(file.Matches)-1, 1)
}

func recordedJWTMatch(t *testing.T, m map[string]any) routing.Match {
	t.Helper()
	var out routing.Match
	text := func(m any) routing.StringMatch {
		exact, ok := m.(map[string]any)["exact"].(string)
		if !ok {
			t.Fatalf("%v is not an exact match", m)
		}
		return routing.Exact(exact, false)
	}
	for key, v := range m {
		switch key {
		case "prefix":
			out.Path = routing.PathMatch{Kind: routing.PathPrefix, Value: v.(string), IgnoreCase: out.Path.IgnoreCase}
		case "path":
			out.Path = routing.PathMatch{Kind: routing.PathExact, Value: v.(string), IgnoreCase: out.Path.IgnoreCase}
		case "path_separated_prefix":
			out.Path = routing.PathMatch{Kind: routing.PathSeparatedPrefix, Value: v.(string), IgnoreCase: out.Path.IgnoreCase}
		case "safe_regex":
			re, err := routing.Regex(v.(map[string]any)["regex"].(string))
			if err != nil {
				t.Fatal(err)
			}
			out.Path = routing.PathMatch{Kind: routing.PathRegex, Regex: re}
		case "case_sensitive":
			out.Path.IgnoreCase = !v.(bool)
		case "connect_matcher":
			out.Headers = append(out.Headers, routing.HeaderMatch{Name: routing.NewHeaderName(":method"), String: routing.Exact("CONNECT", false)})
		case "query_parameters":
			for _, q := range v.([]any) {
				q := q.(map[string]any)
				out.Query = append(out.Query, routing.QueryMatch{Name: q["name"].(string), Kind: routing.QueryString, String: text(q["string_match"])})
			}
		case "headers":
			for _, h := range v.([]any) {
				out.Headers = append(out.Headers, routing.HeaderMatch{Name: routing.NewHeaderName(h.(map[string]any)["name"].(string)), Kind: routing.HeaderPresent, Present: true})
			}
		case "path_match_policy":
		default:
			t.Fatalf("%q is not known", key)
		}
	}
	return out
}

type istioTokens struct {
	Jwks   json.RawMessage
	Tokens map[string]struct {
		JWT     string
		Payload map[string]any
		Valid   bool `json:"signature_valid_here"`
	}
}

func (f *istioTokens) token(name string) string {
	return strings.ReplaceAll(f.Tokens[name].JWT, "<dot>", ".")
}

func TestRecordedIstioTokens(t *testing.T) {
	var file istioTokens
	conformance.Load(t, "istio/jwt_tokens.json", &file)
	keys := keySet(t, string(file.Jwks))
	var tally conformance.Tally
	for name, c := range file.Tokens {
		p := JWTProvider{ClockSkew: DefaultClockSkew}
		got, status := p.Verify(file.token(name), keys, recordedTime)
		want := JWTOk
		switch {
		case name == "TokenExpired":
			want = JWTExpired
		case name == "TokenInvalid":
			want = JWTBadFormat
		case !c.Valid:
			want = JWTSignatureMismatch
		}
		if status != want {
			tally.Fail(t, "%s: %v, want %v", name, status, want)
			continue
		}
		if status == JWTOk && got.Claims.Principal() != c.Payload["iss"].(string)+"/"+c.Payload["sub"].(string) {
			tally.Fail(t, "%s: principal %q", name, got.Claims.Principal())
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "jwt_tokens", 14, 0)
}

// TestRecordedIstioRequestAuthentication: what Istio makes of its rules compiles,
// passes a request without a token and refuses one whose keys can not be had.
func TestRecordedIstioRequestAuthentication(t *testing.T) {
	var file struct {
		Cases []struct {
			Authentication struct {
				Bypass    bool `json:"bypass_cors_preflight"`
				Providers map[string]struct {
					Issuer    string
					Forward   bool
					LocalJwks struct {
						Inline string `json:"inline_string"`
					} `json:"local_jwks"`
					Claims []struct {
						Claim  string `json:"claim_name"`
						Header string `json:"header_name"`
					} `json:"claim_to_headers"`
					Normalize struct {
						SpaceDelimited []string `json:"space_delimited_claims"`
					} `json:"normalize_payload_in_metadata"`
				}
				Rules []struct {
					Requires recordedRequirement
				}
			} `json:"jwt_authentication"`
		}
	}
	conformance.Load(t, "istio/requestauthentication_to_jwt_authn.json", &file)
	tally := conformance.Recorded(t, "istio/requestauthentication_to_jwt_authn.json")
	for i, c := range file.Cases {
		config := JWTConfig{BypassPreflight: c.Authentication.Bypass}
		for name, p := range c.Authentication.Providers {
			provider := JWTProvider{Name: name, Issuer: p.Issuer, Forward: p.Forward, SpaceDelimited: p.Normalize.SpaceDelimited}
			for _, h := range p.Claims {
				provider.ClaimHeaders = append(provider.ClaimHeaders, ClaimHeader{h.Header, h.Claim})
			}
			if keys, err := ParseKeySet([]byte(p.LocalJwks.Inline)); err == nil {
				provider.Keys = keys
			}
			config.Providers = append(config.Providers, provider)
		}
		for _, rule := range c.Authentication.Rules {
			requires := rule.Requires.requirement()
			config.Rules = append(config.Rules, JWTRule{Requires: &requires})
		}
		a := authenticator(t, config)
		none := a.Authenticate(jwtRequest(nil), recordedTime, nil)
		forged := testToken{claims: map[string]any{"iss": config.Providers[0].Issuer, "sub": "x"}}.sign(t)
		bad := a.Authenticate(jwtRequest([][2]string{{"authorization", "Bearer " + forged}}), recordedTime, nil)
		if none.Status != JWTOk || bad.Status == JWTOk || bad.Status.HTTPStatus() != 401 || bad.Claims() != nil {
			tally.Fail(t, "case %d: without a token %v, with a forged one %v", i, none.Status, bad.Status)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "requestauthentication_to_jwt_authn", len(file.Cases), 0)
}
