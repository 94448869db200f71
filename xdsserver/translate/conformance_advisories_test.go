package translate

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// listenerUnder is the listener that policy becomes, as our client reads it.
func listenerUnder(t testing.TB, set *policy.Set) *snapshot.Inbound {
	t.Helper()
	return changedListener(t, set, nil)
}

// changedListener is listenerUnder with HTTP connection managers that were changed on the way.
func changedListener(t testing.TB, set *policy.Set, change func(*hcmv3.HttpConnectionManager)) *snapshot.Inbound {
	t.Helper()
	c := client(Sinew)
	c.Namespace = "ns1"
	r, err := NewView(set).Resource(ListenerType, webListener, c)
	if err != nil {
		t.Fatal(err)
	}
	body := r.Body
	if change != nil {
		var listener listenerv3.Listener
		var hcm hcmv3.HttpConnectionManager
		if err := body.UnmarshalTo(&listener); err != nil {
			t.Fatal(err)
		}
		for _, chain := range listener.GetFilterChains() {
			for _, filter := range chain.GetFilters() {
				if config := filter.GetTypedConfig(); config.UnmarshalTo(&hcm) == nil {
					change(&hcm)
					if err := config.MarshalFrom(&hcm); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if body, err = anypb.New(&listener); err != nil {
			t.Fatal(err)
		}
	}
	_, in, err := compile.Inbound(body)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestIstioPaths sends the paths of Istio's own test through the listener that
// MeshConfig's pathNormalization becomes.
func TestIstioPaths(t *testing.T) {
	var file struct {
		Cases []struct{ Normalization, In, Out string }
	}
	conformance.Load(t, "istio/path_normalization.json", &file)
	tally := conformance.Deciding(t, "istio/path_normalization.json")
	chains := map[string]*snapshot.FilterChain{}
	for _, c := range file.Cases {
		chain := chains[c.Normalization]
		if chain == nil {
			chain = listenerUnder(t, &policy.Set{MeshConfig: meshConfig(t, "{pathNormalization: {normalization: "+c.Normalization+"}}")}).Plain
			chains[c.Normalization] = chain
		}
		path, _, _ := strings.Cut(c.In, "#") // the recorded client does not send the fragment
		got, outcome := chain.Paths.Apply(path)
		if outcome == identity.PathRefuse {
			got = "400"
		}
		if got != c.Out {
			tally.Fail(t, "%s %q: %q, want %q", c.Normalization, c.In, got, c.Out)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/path_normalization.json", 172, 0)
}

// asks is a request to a listener; what is empty has a value that no rule is about.
type asks struct {
	path, host, principal string
	header                map[string][]string
}

// lets reports whether a chain of a listener lets a request in.
func (a asks) lets(chain *snapshot.FilterChain) bool {
	if a.path == "" {
		a.path = "/"
	}
	if a.host == "" {
		a.host = "b.ns1"
	}
	path, outcome := chain.Paths.Apply(a.path)
	if outcome != identity.PathGoOn {
		return false
	}
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return false
	}
	r := &identity.AccessRequest{
		Request:   routing.Request{Method: "GET", Scheme: "http", Authority: chain.Hosts.Apply(a.host, 0), Path: path, Header: a.header, Form: routing.LowerHeaders},
		Principal: a.principal, DecodedPath: decoded,
		PeerIP: netip.MustParseAddr("10.0.1.1"), RemoteIP: netip.MustParseAddr("10.0.1.1"),
	}
	if chain.Authorizer == nil {
		return true
	}
	d := chain.Authorizer.Decide(r)
	return d.Allowed
}

func policyOf(action, rule string) string {
	return "kind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {action: " + action + ", rules: [" + rule + "]}\n"
}

func quoted(list []string) string {
	b, _ := json.Marshal(list)
	return string(b)
}

// TestIstioAdvisories writes what Istio's security bulletins are about as policy, and
// sends the requests through the listeners that it becomes.
func TestIstioAdvisories(t *testing.T) {
	var file struct {
		Advisories []struct {
			ID     string
			Policy struct{ Paths, Hosts []string }
			Cases  []struct {
				Normalization, Path, Host string
				Hosts, Principals         []string
				Principal                 string
				Strip                     bool   `json:"strip_trailing_host_dot"`
				SAN                       string `json:"san_bytes"`
				Exact                     string `json:"matcher_exact"`
				Jwks, Secret              string
				Expect                    any
			}
		}
	}
	var tokens struct {
		Tokens map[string]struct{ JWT string }
	}
	conformance.Load(t, "istio/security_advisories.json", &file)
	conformance.Load(t, "istio/jwt_tokens.json", &tokens)
	tally := conformance.Deciding(t, "istio/security_advisories.json")
	under := func(normalization string, policies string) *snapshot.Inbound {
		set := accessObjects(t, policies)
		if normalization != "" {
			set.MeshConfig = meshConfig(t, "{pathNormalization: {normalization: "+normalization+"}}")
		}
		return listenerUnder(t, set)
	}
	for _, adv := range file.Advisories {
		if len(adv.Cases) == 0 {
			inWords := map[string]func() string{"CVE-2020-25017": repeatedHeaders(under), "CVE-2022-21679": hostsNeverAlways(under)}[adv.ID]
			if inWords == nil {
				tally.Fail(t, "%s is a rule in words that is not known", adv.ID)
			} else if wrong := inWords(); wrong != "" {
				tally.Fail(t, "%s: %s", adv.ID, wrong)
			} else {
				tally.Pass()
			}
		}
		for i, c := range adv.Cases {
			name := fmt.Sprintf("%s [%d]", adv.ID, i)
			var got bool // whether it is let in
			expect := fmt.Sprint(c.Expect)
			want := strings.HasPrefix(expect, "allow") || expect == "match"
			switch {
			case c.Path != "":
				in := under(c.Normalization, policyOf("DENY", "{to: [{operation: {paths: "+quoted(adv.Policy.Paths)+"}}]}"))
				got = asks{path: c.Path}.lets(in.Plain)
			case c.Strip:
				set := accessObjects(t, policyOf("ALLOW", "{to: [{operation: {hosts: "+quoted(c.Hosts)+"}}]}"))
				in := changedListener(t, set, func(hcm *hcmv3.HttpConnectionManager) { hcm.StripTrailingHostDot = true })
				got = asks{host: c.Host}.lets(in.Plain)
			case c.Host != "" && len(c.Hosts) == 0:
				in := under("", policyOf("DENY", "{to: [{operation: {hosts: "+quoted(adv.Policy.Hosts)+"}}]}"))
				got = asks{host: c.Host}.lets(in.Plain)
			case c.Host != "":
				in := under("", policyOf("ALLOW", "{to: [{operation: {hosts: "+quoted(c.Hosts)+"}}]}"))
				got = asks{host: c.Host}.lets(in.Plain)
			case len(c.Principals) > 0:
				in := under("", policyOf("ALLOW", "{from: [{source: {principals: "+quoted(c.Principals)+"}}]}"))
				switch c.Principal {
				case "(none, plaintext)":
					got = asks{}.lets(in.Plain)
				case "any authenticated":
					got = asks{principal: "spiffe://td/x"}.lets(in.TLS)
				default:
					got = asks{principal: "spiffe://" + c.Principal}.lets(in.TLS)
				}
			case c.SAN != "":
				in := under("", policyOf("ALLOW", "{from: [{source: {principals: "+quoted([]string{strings.TrimPrefix(c.Exact, "spiffe://")})+"}}]}"))
				san := strings.ReplaceAll(c.SAN, `\u0000`, "\x00")
				if _, err := identity.ParseID(san); err == nil {
					t.Errorf("%q is an ID", san)
				}
				got = asks{principal: san}.lets(in.TLS)
			case c.Jwks != "":
				in := under("", "kind: RequestAuthentication\nmetadata: {name: x}\nspec: {jwtRules: [{issuer: test-issuer-1@istio.io, jwksUri: 'https://keys.example.com/k'}]}\n")
				none := &identity.JWTState{Keys: func(*identity.JWTProvider) *identity.KeySet { return nil }}
				r := &recordedRequest{Path: "/", Transport: "plaintext"}
				for token := range tokens.Tokens {
					signed := strings.ReplaceAll(tokens.Tokens[token].JWT, "<dot>", ".")
					if code := decide(in.Plain, in.TLS, r, signed, time.Unix(1_700_000_000, 0), none); fmt.Sprint(code) != expect {
						got = !want
						t.Errorf("%s: token %s: %d", name, token, code)
					}
				}
			case c.Secret != "":
				// No secret of the cluster is served to anybody: the field that names one is refused.
				f := policy.Parse("f.yaml", []byte("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x, namespace: ns1}\n"+
					"spec: {host: x.example, trafficPolicy: {tls: {mode: SIMPLE, credentialName: "+fmt.Sprintf("%q", c.Secret)+"}}}\n"))
				r := policy.Build([]*policy.File{f}, nil)
				got = len(r.Set.DestinationRules) > 0 || !slices.ContainsFunc(r.Problems, func(p policy.Problem) bool {
					return p.Field == "spec.trafficPolicy.tls.credentialName" && p.Severity == policy.Error
				})
			default:
				t.Fatalf("%s is not known", name)
			}
			if got != want {
				tally.Fail(t, "%s: let in %v, want %s", name, got, expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "istio/security_advisories.json", 20, 0)
}

// repeatedHeaders: all values of a header count, wherever the one stands that matters.
func repeatedHeaders(under func(string, string) *snapshot.Inbound) func() string {
	return func() string {
		deny := under("", policyOf("DENY", "{when: [{key: 'request.headers[x-role]', values: [admin]}]}")).Plain
		allow := under("", policyOf("ALLOW", "{when: [{key: 'request.headers[x-role]', values: [user]}]}")).Plain
		unless := under("", policyOf("ALLOW", "{when: [{key: 'request.headers[x-role]', notValues: [admin]}]}")).Plain
		for _, values := range [][]string{{"admin"}, {"admin", "user"}, {"user", "admin"}, {"user", "admin", "user"}, {"", "admin"}} {
			for name, chain := range map[string]*snapshot.FilterChain{"DENY": deny, "ALLOW": allow, "ALLOW unless": unless} {
				if (asks{header: map[string][]string{"x-role": values}}).lets(chain) {
					return fmt.Sprintf("%s lets in %q", name, values)
				}
			}
		}
		if user := (asks{header: map[string][]string{"x-role": {"user"}}}); !user.lets(deny) || !user.lets(allow) || !user.lets(unless) {
			return "the user is refused"
		}
		return ""
	}
}

// hostsNeverAlways: hosts and notHosts are about the host that they name, in every action.
func hostsNeverAlways(under func(string, string) *snapshot.Inbound) func() string {
	return func() string {
		for _, c := range []struct {
			action, field string
			named, other  bool // whether the named host and another are let in
		}{
			{"ALLOW", "hosts", true, false}, {"ALLOW", "notHosts", false, true},
			{"DENY", "hosts", false, true}, {"DENY", "notHosts", true, false},
		} {
			for _, pattern := range []string{"a.example", "a.*", "*.example"} {
				chain := under("", policyOf(c.action, "{to: [{operation: {"+c.field+": ['"+pattern+"']}}]}")).Plain
				if (asks{host: "a.example"}).lets(chain) != c.named || (asks{host: "b.test"}).lets(chain) != c.other {
					return fmt.Sprintf("%s %s %s decides about every host", c.action, c.field, pattern)
				}
			}
		}
		return ""
	}
}
