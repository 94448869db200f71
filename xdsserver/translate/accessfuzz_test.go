package translate

import (
	"net/netip"
	"testing"

	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// FuzzAccess translates any AuthorizationPolicy and RequestAuthentication, valid or
// not. What can not be translated withholds the listener, and beside whatever else is
// there, a policy that refuses everything goes on to do so.
func FuzzAccess(f *testing.F) {
	for _, seed := range [][2]string{
		{`{}`, `{}`},
		{`{"rules":[{}]}`, `{"jwtRules":[{"issuer":"a","jwks":"{}"},{"issuer":"b","jwksUri":"https://b.example.com/k"}]}`},
		{`{"action":"DENY","rules":[{"from":[{"source":{"principals":["*/sa/x","cluster.local/ns/a/sa/b"],"notNamespaces":["a*"]}}],"to":[{"operation":{"hosts":["a.com"],"notPaths":["/x*","/{*}/{**}"]}}]}]}`, `{"jwtRules":[{"issuer":"a"}]}`},
		{`{"action":"AUDIT","rules":[{"when":[{"key":"request.headers[x]","values":["a*","*"]},{"key":"request.auth.claims[a][b]","notValues":["*c"]}]}]}`, `{"jwtRules":[{"jwksUri":"http://a:99999/"}]}`},
		{`{"action":"CUSTOM","provider":{"name":"opa"},"rules":[{"to":[{"operation":{"ports":["80"],"methods":["G*"]}}]}]}`, `{"jwtRules":[{"issuer":"a","jwks":"{}","jwksUri":"x"}]}`},
		{`{"rules":[{"from":[{"source":{"serviceAccounts":["a","b/c"],"ipBlocks":["::/0"],"remoteIpBlocks":["10.0.0.1"],"requestPrincipals":["*","a/b","*/c"],"trustDomains":["*"]}}],"when":[{"key":"connection.sni","values":["*.x"]},{"key":"destination.ip","values":["10.0.0.0/8"]}]}]}`, `{"jwtRules":[{"issuer":"\u0000"}]}`},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, authz, tokens string) {
		spec, requests := &security.AuthorizationPolicy{}, &security.RequestAuthentication{}
		if len(authz)+len(tokens) > 4<<10 || protojson.Unmarshal([]byte(authz), spec) != nil || protojson.Unmarshal([]byte(tokens), requests) != nil {
			return
		}
		spec.Selector, requests.Selector = nil, nil
		any := &policy.AuthorizationPolicy{Meta: policy.Meta{Kind: "AuthorizationPolicy", Namespace: "default", Name: "any"}, Spec: spec}
		denyAll := authorizationPolicy(t, "default", "deny-all", `{action: DENY, rules: [{}]}`)
		allowNone := authorizationPolicy(t, "default", "allow-none", `{}`)
		for _, closed := range []*policy.AuthorizationPolicy{denyAll, allowNone} {
			if closed == allowNone && spec.GetAction() == security.AuthorizationPolicy_ALLOW {
				continue // what one ALLOW policy lets in, another does not refuse
			}
			set := accessSet(t)
			set.AuthorizationPolicies = []*policy.AuthorizationPolicy{any, closed}
			set.RequestAuthentications = []*policy.RequestAuthentication{{Meta: policy.Meta{Kind: "RequestAuthentication", Namespace: "default", Name: "any"}, Spec: requests}}
			set.RateLimits = nil
			v := NewView(set)
			for _, agent := range []Agent{Other, Sinew, GRPC} {
				r, err := v.Resource(ListenerType, webListener, client(agent))
				if err != nil {
					if !isWithheld(err) || r != nil {
						t.Fatalf("%v: an error that does not withhold: %v", agent, err)
					}
					continue
				}
				_, hcm, again := inboundOf(t, v, webListener, client(agent))
				if again.Version != r.Version {
					t.Fatalf("%v: two versions of the same", agent)
				}
				action := closed.Spec.GetAction().String()
				rules := filterOf(t, hcm, "rbac."+action, &rbacfilterv3.RBAC{}).GetRules()
				p := rules.GetPolicies()["ns[default]-policy["+closed.Name+"]-rule[0]"]
				if p == nil || rules.GetAction().String() != action || len(p.GetPermissions()) != 1 || len(p.GetPrincipals()) != 1 {
					t.Fatalf("%v: %s is lost: %v", agent, closed.Name, rules)
				}
				if agent != Sinew {
					continue
				}
				_, in, err := compile.Inbound(r.Body)
				if err != nil {
					continue // refused by the client, which then serves nothing
				}
				for _, path := range []string{"/", "/x/y"} {
					d := in.Plain.Authorizer.Decide(&identity.AccessRequest{
						Request:   routing.Request{Method: "GET", Scheme: "http", Authority: "a.com", Path: path, Header: map[string][]string{}, Form: routing.LowerHeaders},
						Principal: "spiffe://cluster.local/ns/a/sa/b", PeerIP: netip.MustParseAddr("10.0.0.1"), DestinationIP: netip.MustParseAddr("10.0.0.9"), DestinationPort: 8080,
					})
					if d.Allowed {
						t.Fatalf("%s lets %s through: %v", closed.Name, path, &d)
					}
				}
			}
		}
	})
}
