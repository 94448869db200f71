package identity

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/routing"
)

type recordedAccess struct {
	Client, Method, Path, Host, Jwt, Transport string
	Port                                       uint16
	Headers                                    map[string]string
	SNI                                        string
}

func (c *recordedAccess) request(tokens *istioTokens) *AccessRequest {
	r := &AccessRequest{Request: routing.Request{Method: c.Method, Scheme: "http", Authority: c.Host, Header: map[string][]string{}, Form: routing.CanonicalHeaders}}
	r.Path, r.RawQuery, _ = strings.Cut(c.Path, "?")
	if r.Method == "" {
		r.Method = "GET"
	}
	if r.Authority == "" {
		r.Authority = "b.ns1.svc.cluster.local"
	}
	r.PeerIP, r.Principal = netip.MustParseAddr("10.0.1.1"), "spiffe://cluster.local/ns/ns1/sa/a"
	if c.Client == "D" {
		r.PeerIP, r.Principal = netip.MustParseAddr("10.0.2.1"), "spiffe://cluster.local/ns/ns2/sa/a"
	}
	r.RemoteIP, r.DestinationIP = r.PeerIP, netip.MustParseAddr("10.0.1.2")
	r.ServerName = "outbound_.80_._.b.ns1.svc.cluster.local"
	if c.Transport == "plaintext" {
		r.Principal, r.ServerName = "", ""
	}
	if r.DestinationPort = c.Port; c.Port == 0 {
		r.DestinationPort = 18080
	}
	if c.Jwt != "" {
		r.Header["Authorization"] = []string{"Bearer " + tokens.token(c.Jwt)}
	}
	for k, v := range c.Headers {
		r.Header[routing.NewHeaderName(k).String()] = []string{v}
		r.Form = routing.LowerHeaders
	}
	return r
}

// istioAuthenticator puts Istio's RequestAuthentication together: one provider
// alone, or nothing; with several, each of them or nothing, all at once.
func istioAuthenticator(t testing.TB, policies []istioPolicy, keys *KeySet) *JWTAuthenticator {
	var config JWTConfig
	var each []Requirement
	for _, p := range policies {
		for _, j := range p.Spec.JwtRules {
			name := fmt.Sprintf("origins-%d", len(config.Providers))
			provider := JWTProvider{Name: name, Issuer: j.Issuer, Audiences: j.Audiences, SpaceDelimited: append(j.SpaceDelimited, "scope", "permission"), PayloadHeader: j.Output, Forward: j.Forward, Keys: keys}
			if strings.Contains(j.JwksURI, "not-exist") {
				provider.Keys = nil
			}
			config.Providers = append(config.Providers, provider)
			each = append(each, RequireProvider(name))
		}
	}
	if len(each) > 0 {
		requires := RequireAny(append(each, AllowMissing())...)
		config.Rules = []JWTRule{{Requires: &requires}}
	}
	return authenticator(t, config)
}

func TestRecordedIstioRequests(t *testing.T) {
	var file struct {
		Authorization []struct {
			Name, Policies string
			Cases          []struct {
				Request recordedAccess
				Expect  string
			}
		}
		Authentication []struct {
			Name, Policies string
			Cases          []struct {
				Name    string
				Request recordedAccess
				Expect  struct {
					Status  int
					Headers map[string]*string `json:"upstream_headers"`
				}
			}
		} `json:"request_authentication"`
	}
	var tokens istioTokens
	conformance.Load(t, "istio/security_requests.json", &file)
	conformance.Load(t, "istio/jwt_tokens.json", &tokens)
	keys := keySet(t, string(tokens.Jwks))
	tally := conformance.Recorded(t, "istio/security_requests.json")
	for _, suite := range file.Authorization {
		policies := istioPolicies(t, suite.Policies)
		sets, err := istioSets(policies)
		if err != nil {
			t.Fatalf("%s: %v", suite.Name, err)
		}
		a, jwt := authorizer(t, sets...), istioAuthenticator(t, policies, keys)
		for _, c := range suite.Cases {
			r := c.Request.request(&tokens)
			if verified := jwt.Authenticate(r, recordedTime, nil); verified.Status != JWTOk {
				tally.Fail(t, "%s %+v: %v", suite.Name, c.Request, verified.Status)
				continue
			} else {
				r.Claims = verified.Claims()
			}
			if got := a.Decide(r); got.Allowed != (c.Expect == "allow") {
				tally.Fail(t, "%s %+v: %v, want %s", suite.Name, c.Request, &got, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	for _, suite := range file.Authentication {
		policies := istioPolicies(t, suite.Policies)
		sets, err := istioSets(policies)
		if err != nil {
			t.Fatalf("%s: %v", suite.Name, err)
		}
		a, jwt := authorizer(t, sets...), istioAuthenticator(t, policies, keys)
		for _, c := range suite.Cases {
			r := c.Request.request(&tokens)
			verified := jwt.Authenticate(r, recordedTime, nil)
			r.Claims = verified.Claims()
			status := 200
			if verified.Status != JWTOk {
				status = verified.Status.HTTPStatus()
			} else if !a.Decide(r).Allowed {
				status = 403
			}
			ok := status == c.Expect.Status
			for name, want := range c.Expect.Headers {
				switch {
				case name == "authorization":
					ok = ok && verified.Tokens[0].Provider().Forward == (want != nil) && verified.Tokens[0].At.Name == name
				case want != nil:
					h := verified.Tokens[0].Headers()
					ok = ok && len(h) == 1 && h[0] == ClaimHeader{name, *want}
				}
			}
			if !ok {
				tally.Fail(t, "%s %s: %d (%v), want %+v", suite.Name, c.Name, status, verified.Status, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "security_requests", 81, 0)
}

func TestRecordedIstioAdvisories(t *testing.T) {
	var file struct {
		Advisories []struct {
			ID, Rule string
			Policy   struct {
				Action       string
				Paths, Hosts []string
			}
			Cases []struct {
				Normalization, Path, Host string
				Hosts, Principals         []string
				Principal                 string
				Strip                     bool   `json:"strip_trailing_host_dot"`
				SAN                       string `json:"san_bytes"`
				Exact                     string `json:"matcher_exact"`
				Jwks                      string
				Secret                    string
				Expect                    json.RawMessage
			}
		}
	}
	conformance.Load(t, "istio/security_advisories.json", &file)
	tally := conformance.Recorded(t, "istio/security_advisories.json")
	for _, adv := range file.Advisories {
		if len(adv.Cases) == 0 {
			tally.RunIn(t, "xdsserver/translate", "TestIstioAdvisories")
		}
		for _, c := range adv.Cases {
			var expect string
			_ = json.Unmarshal(c.Expect, &expect)
			var ok bool
			switch {
			case c.Path != "":
				path, outcome := namedPathOptions(t, c.Normalization).Apply(c.Path)
				deny := must(protoCombined(adv.Policy.Paths, istioPath, AnyOf))
				a := authorizer(t, ruleSet(t, Deny, Rule{Permissions: []Condition{deny}, Principals: []Condition{Any()}}))
				allowed := outcome == PathGoOn && a.Decide(&AccessRequest{Request: routing.Request{Path: path}}).Allowed
				ok = allowed == strings.HasPrefix(expect, "allow")
			case c.Host != "" && len(c.Hosts) == 0:
				a := authorizer(t, ruleSet(t, Deny, Rule{Permissions: []Condition{must(protoCombined(adv.Policy.Hosts, istioHeader(":authority", true), AnyOf))}, Principals: []Condition{Any()}}))
				ok = !a.Decide(&AccessRequest{Request: routing.Request{Path: "/", Authority: c.Host}}).Allowed
			case c.Host != "":
				host := HostOptions{Dot: c.Strip}.Apply(c.Host, 0)
				a := authorizer(t, ruleSet(t, Allow, Rule{Permissions: []Condition{must(protoCombined(c.Hosts, istioHeader(":authority", true), AnyOf))}, Principals: []Condition{Any()}}))
				ok = a.Decide(&AccessRequest{Request: routing.Request{Path: "/", Authority: host}}).Allowed == !strings.HasPrefix(expect, "no match")
			case len(c.Principals) > 0:
				principal := "spiffe://" + c.Principal
				switch c.Principal {
				case "any authenticated":
					principal = "spiffe://td/x"
				case "(none, plaintext)":
					principal = ""
				}
				condition := must(protoCombined(c.Principals, istioPrincipal, AnyOf))
				ok = condition.holds(&AccessRequest{Principal: principal}, "/", true) == (expect == "match")
			case c.SAN != "":
				condition := must(PrincipalIs(c.Exact))
				ok = !condition.holds(&AccessRequest{Principal: strings.ReplaceAll(c.SAN, `\u0000`, "\x00")}, "/", true)
			case c.Jwks != "":
				p := JWTProvider{}
				_, status := p.Verify(testToken{payload: `{}`}.sign(t), nil, recordedTime)
				ok = fmt.Sprint(status.HTTPStatus()) == string(c.Expect)
			default:
				tally.RunIn(t, "xdsserver/translate", "TestIstioAdvisories")
				continue
			}
			if !ok {
				tally.Fail(t, "%s %+v: want %s", adv.ID, c, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "security_advisories", 17, 3)
}
