package translate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestIstioTokens holds what a RequestAuthentication becomes against what istiod makes of it.
func TestIstioTokens(t *testing.T) {
	var file struct {
		Cases []struct {
			From  string
			Rules []json.RawMessage `json:"jwt_rules"`
			Want  json.RawMessage   `json:"jwt_authentication"`
		}
	}
	conformance.Load(t, "istio/requestauthentication_to_jwt_authn.json", &file)
	tally := conformance.Deciding(t, "istio/requestauthentication_to_jwt_authn.json")
	for i, c := range file.Cases {
		want := &jwtv3.JwtAuthentication{}
		if err := protojson.Unmarshal(c.Want, want); err != nil {
			t.Fatalf("case %d: %v", i, err)
		}
		set := &policy.Set{Services: []*policy.Service{service("mesh", "jwt-token-issuer", http(7443))}}
		var rules []policy.JWTRule
		asks := false
		for _, raw := range c.Rules {
			rule := &security.JWTRule{}
			if err := protojson.Unmarshal(raw, rule); err != nil {
				t.Fatalf("case %d: %v", i, err)
			}
			asks = asks || rule.GetJwks() == "" && rule.GetJwksUri() == ""
			rules = append(rules, policy.JWTRule{Policy: &policy.RequestAuthentication{Meta: policy.Meta{Kind: "RequestAuthentication", Namespace: "default", Name: "x"}}, Rule: rule})
		}
		b := &builder{view: NewView(set), client: client(Sinew)}
		got, err := b.tokens(rules)
		if asks {
			if err == nil {
				tally.Fail(t, "case %d: keys of nowhere", i)
				continue
			}
			tally.Differs(t, fmt.Sprintf("cases [%d]", i))
			continue
		}
		if err != nil {
			tally.Fail(t, "case %d (%s): %v", i, c.From, err)
			continue
		}
		for name, p := range want.GetProviders() {
			// istiod fetches keys itself where it can; here whoever verifies does.
			if mine := got.GetProviders()[name]; p.GetLocalJwks() != nil && mine.GetRemoteJwks() != nil {
				p.JwksSourceSpecifier = mine.JwksSourceSpecifier
			}
		}
		if !proto.Equal(got, want) {
			tally.Fail(t, "case %d (%s):\n got %s\nwant %s", i, c.From, plainJSON(t, got), plainJSON(t, want))
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/requestauthentication_to_jwt_authn.json", 6, 1)
}

// TestSeveralIssuers holds that rules of several policies are put together by issuer:
// any token that is good, or each that is there.
func TestSeveralIssuers(t *testing.T) {
	v := NewView(&policy.Set{RequestAuthentications: []*policy.RequestAuthentication{
		requestAuthentication(t, "default", "x", `{jwtRules: [{issuer: c, jwksUri: "http://c.example.com:8080/k", timeout: 1s, forwardOriginalToken: true, fromParams: [t], fromCookies: [k], outputPayloadToHeader: x-p, spaceDelimitedClaims: [roles]}]}`),
		requestAuthentication(t, policy.RootNamespace, "y", `{jwtRules: [{issuer: a, jwks: '{}', audiences: [one]}]}`),
	}})
	_, hcm, r := inboundOf(t, v, webListener, client(Sinew))
	const want = `{"bypassCorsPreflight":true,"providers":{` +
		`"origins-0":{"audiences":["one"],"issuer":"a","localJwks":{"inlineString":"{}"},"normalizePayloadInMetadata":{"spaceDelimitedClaims":["permission","scope"]},"payloadInMetadata":"payload"},` +
		`"origins-1":{"forward":true,"forwardPayloadHeader":"x-p","fromCookies":["k"],"fromParams":["t"],"issuer":"c","normalizePayloadInMetadata":{"spaceDelimitedClaims":["permission","roles","scope"]},"payloadInMetadata":"payload",` +
		`"remoteJwks":{"cacheDuration":"300s","httpUri":{"cluster":"outbound|8080||c.example.com","timeout":"1s","uri":"http://c.example.com:8080/k"}}}},` +
		`"rules":[{"match":{"prefix":"/"},"requires":{"requiresAny":{"requirements":[{"providerName":"origins-0"},{"providerName":"origins-1"},{"requiresAll":{"requirements":[` +
		`{"requiresAny":{"requirements":[{"providerName":"origins-0"},{"allowMissing":{}}]}},{"requiresAny":{"requirements":[{"providerName":"origins-1"},{"allowMissing":{}}]}}]}}]}}}]}`
	if got := plainJSON(t, filterOf(t, hcm, "jwt_authn", &jwtv3.JwtAuthentication{})); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if _, err := compiled(ListenerType, r.Body); err != nil {
		t.Errorf("our client refuses it: %v", err)
	}
	for text, why := range map[string]string{
		"{issuer: a}": "jwksUri: required",
		`{issuer: a, jwks: "{}", jwksUri: "http://a.b/c"}`: "both jwks and jwksUri",
		`{issuer: a, jwksUri: "ftp://a.b/c"}`:              "jwksUri: has a scheme",
		`{issuer: a, jwksUri: "http://user:secret@a.b/c"}`: "jwksUri: is not a URL",
	} {
		v := NewView(&policy.Set{RequestAuthentications: []*policy.RequestAuthentication{requestAuthentication(t, "default", "x", "{jwtRules: ["+text+"]}")}})
		_, err := v.Resource(ListenerType, webListener, client(Sinew))
		if !isWithheld(err) || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %v", text, err)
		}
	}
}

// accessObjects reads the access objects of a text of YAML documents into the
// namespace ns1, for every workload there.
func accessObjects(t testing.TB, text string) *policy.Set {
	set := &policy.Set{}
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var doc struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     map[string]any
		}
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			return set
		} else if err != nil {
			t.Fatal(err)
		}
		delete(doc.Spec, "selector")
		meta := policy.Meta{Kind: doc.Kind, Namespace: "ns1", Name: doc.Metadata.Name}
		spec, err := json.Marshal(doc.Spec)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(spec), `"@jwks"`, `"https://keys.example.com/jwks.json"`)
		switch doc.Kind {
		case "AuthorizationPolicy":
			set.AuthorizationPolicies = append(set.AuthorizationPolicies, &policy.AuthorizationPolicy{Meta: meta, Spec: read(t, &security.AuthorizationPolicy{}, text)})
		case "RequestAuthentication":
			set.RequestAuthentications = append(set.RequestAuthentications, &policy.RequestAuthentication{Meta: meta, Spec: read(t, &security.RequestAuthentication{}, text)})
		}
	}
}

type recordedRequest struct {
	Client, Method, Path, Host, Jwt, Transport string
	Port                                       uint16
	Headers                                    map[string]string
}

// TestIstioRequests sends the requests of Istio's own tests through the listeners that
// their policies become, as our client reads them.
func TestIstioRequests(t *testing.T) {
	type suite struct {
		Name, Policies string
		Cases          []struct {
			Name    string
			Request recordedRequest
			Expect  json.RawMessage
		}
	}
	var file struct {
		Authorization  []suite
		Authentication []suite `json:"request_authentication"`
	}
	var tokens struct {
		Jwks   json.RawMessage
		Tokens map[string]struct{ JWT string }
	}
	conformance.Load(t, "istio/security_requests.json", &file)
	conformance.Load(t, "istio/jwt_tokens.json", &tokens)
	keys, err := identity.ParseKeySet(tokens.Jwks)
	if err != nil {
		t.Fatal(err)
	}
	present := time.Unix(1_700_000_000, 0) // the recorded good tokens hold
	state := &identity.JWTState{Keys: func(p *identity.JWTProvider) *identity.KeySet { return keys }}
	tally := conformance.Deciding(t, "istio/security_requests.json")
	for _, s := range append(file.Authorization, file.Authentication...) {
		if strings.Contains(s.Policies, "jwks-not-exist") {
			state = &identity.JWTState{Keys: func(p *identity.JWTProvider) *identity.KeySet { return nil }}
		}
		c := client(Sinew)
		c.Namespace = "ns1"
		r, err := NewView(accessObjects(t, s.Policies)).Resource(ListenerType, webListener, c)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		_, in, err := compile.Inbound(r.Body)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		for _, test := range s.Cases {
			want := 0
			var expect string
			var status struct{ Status int }
			switch {
			case json.Unmarshal(test.Expect, &expect) == nil:
				if want = 403; expect == "allow" {
					want = 200
				}
			case json.Unmarshal(test.Expect, &status) == nil:
				want = status.Status
			}
			token := ""
			if test.Request.Jwt != "" {
				token = strings.ReplaceAll(tokens.Tokens[test.Request.Jwt].JWT, "<dot>", ".")
			}
			if got := decide(in.Plain, in.TLS, &test.Request, token, present, state); got != want {
				tally.Fail(t, "%s %s %+v: %d, want %d", s.Name, test.Name, test.Request, got, want)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "istio/security_requests.json", 81, 0)
}

// decide is what a compiled listener answers a recorded request.
func decide(plain, tls *snapshot.FilterChain, c *recordedRequest, token string, present time.Time, state *identity.JWTState) int {
	r := &identity.AccessRequest{Request: routing.Request{Method: c.Method, Scheme: "http", Authority: c.Host, Header: map[string][]string{}, Form: routing.LowerHeaders}}
	r.Path, r.RawQuery, _ = strings.Cut(c.Path, "?")
	if r.Method == "" {
		r.Method = "GET"
	}
	if r.Authority == "" {
		r.Authority = "b.ns1.svc.cluster.local"
	}
	chain := tls
	r.PeerIP, r.Principal = netip.MustParseAddr("10.0.1.1"), "spiffe://cluster.local/ns/ns1/sa/a"
	if c.Client == "D" {
		r.PeerIP, r.Principal = netip.MustParseAddr("10.0.2.1"), "spiffe://cluster.local/ns/ns2/sa/a"
	}
	r.ServerName = "outbound_.80_._.b.ns1.svc.cluster.local"
	if c.Transport == "plaintext" {
		chain, r.Principal, r.ServerName = plain, "", ""
	}
	r.RemoteIP, r.DestinationIP = r.PeerIP, netip.MustParseAddr("10.0.1.2")
	if r.DestinationPort = c.Port; c.Port == 0 {
		r.DestinationPort = 18080
	}
	if token != "" {
		r.Header["authorization"] = []string{"Bearer " + token}
	}
	for k, v := range c.Headers {
		r.Header[strings.ToLower(k)] = []string{v}
	}
	if chain.Tokens != nil {
		result := chain.Tokens.Authenticator.Authenticate(r, present, state)
		if result.Status != identity.JWTOk {
			return result.Status.HTTPStatus()
		}
		r.Claims = result.Claims()
	}
	if chain.Authorizer != nil {
		if d := chain.Authorizer.Decide(r); !d.Allowed {
			return 403
		}
	}
	return 200
}
