package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

// validated maps the functions of the recorded cases to the kinds that this package reads.
var validated = map[string]string{
	"ValidateVirtualService":  "VirtualService",
	"ValidateDestinationRule": "DestinationRule",
	"ValidateServiceEntry":    "ServiceEntry",
	"ValidateWorkloadEntry":   "WorkloadEntry",

	"ValidatePeerAuthentication":    "PeerAuthentication",
	"ValidateAuthorizationPolicy":   "AuthorizationPolicy",
	"ValidateRequestAuthentication": "RequestAuthentication",
}

// unread has the API versions of kinds that are left out with a notice, or refused whatever they hold.
var unread = map[string]string{
	"Gateway": "networking.istio.io/v1", "WorkloadGroup": "networking.istio.io/v1", "Sidecar": "networking.istio.io/v1",
	"ProxyConfig": "networking.istio.io/v1beta1", "EnvoyFilter": "networking.istio.io/v1alpha3", "Telemetry": "telemetry.istio.io/v1",
	"WasmPlugin": "extensions.istio.io/v1alpha1", "TrafficExtension": "extensions.istio.io/v1alpha1",
}

func TestConformanceConfigValidation(t *testing.T) {
	var recorded struct {
		Cases []struct {
			Func, From, Name, Namespace, Error, Warning string
			Spec                                        json.RawMessage
			Labels, Annotations                         map[string]string
		}
	}
	conformance.Load(t, "istio/config_validation.json", &recorded)
	tally := conformance.Deciding(t, "istio/config_validation.json")
	for i, c := range recorded.Cases {
		kind, ok := validated[c.Func]
		if !ok {
			kind = strings.TrimPrefix(c.Func, "Validate")
			text := fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "metadata": {"name": "x"}}`, unread[kind], kind)
			if len(c.Spec) > 0 {
				text = fmt.Sprintf(`%s, "spec": %s}`, strings.TrimSuffix(text, "}"), c.Spec)
			}
			r := Build([]*File{Parse("f.json", []byte(text))}, nil)
			warned := slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Severity == Warning })
			if refused := len(errorsOf(r)) > 0; refused != (c.Error != "") || !refused && warned != (c.Warning != "") {
				tally.Differs(t, fmt.Sprintf("%s [%d]", c.Func, i))
				continue
			}
			tally.Pass()
			continue
		}
		if strings.Contains(c.Error, "`to` must not be empty") || strings.Contains(c.Error, "port level mTLS, if defined") {
			// The record does not show the empty list or mapping that is refused.
			tally.RunIn(t, "xdsserver/policy", "TestHollowFields")
			continue
		}
		spec := specs()[kind]()
		d := &decoder{lines: map[string]int{}}
		if len(c.Spec) > 0 && string(c.Spec) != "null" {
			var n yaml.Node
			if err := yaml.Unmarshal(c.Spec, &n); err != nil {
				t.Fatal(err)
			}
			var b builder
			d.message(b.build(n.Content[0], 0), spec.ProtoReflect(), "spec")
		}
		meta := Meta{Kind: kind, Name: c.Name, Namespace: c.Namespace, Labels: c.Labels, Annotations: c.Annotations}
		refused, warned := len(d.problems) > 0, false
		found := Validate(meta, spec)
		for _, f := range found {
			refused = refused || f.Severity == Error
			warned = warned || f.Severity == Warning
		}
		switch {
		case refused != (c.Error != ""):
			tally.Fail(t, "%s %s %s: refused %v, want error %q\n%v %v", c.Func, c.Name, c.Spec, refused, c.Error, d.problems, found)
		case c.Error == "" && warned != (c.Warning != ""):
			tally.Fail(t, "%s %s %s: warned %v, want warning %q\n%v", c.Func, c.Name, c.Spec, warned, c.Warning, found)
		default:
			tally.Pass()
		}
	}
	tally.Check(t, "istio/config_validation.json", 194, 53)
}

// TestConformanceSecurityPolicies reads the policies of Istio's own tests of access:
// all of them are put in force.
func TestConformanceSecurityPolicies(t *testing.T) {
	type suite struct{ Name, Policies string }
	var recorded struct {
		Authorization         []suite
		RequestAuthentication []suite `json:"request_authentication"`
	}
	conformance.Load(t, "istio/security_requests.json", &recorded)
	tally := conformance.Recorded(t, "istio/security_requests.json")
	for _, s := range append(recorded.Authorization, recorded.RequestAuthentication...) {
		// The keys are served at an address that is known while the tests run.
		text := strings.ReplaceAll(s.Policies, "@jwks", "https://issuer.example/keys")
		f := Parse("f.yaml", []byte(text))
		r := Build([]*File{f}, nil)
		if got := accessInForce(r.Set); len(got) == 0 || len(got) != len(f.access) || r.Set.Broken != nil {
			tally.Fail(t, "%s: %d objects, in force %q: %q", s.Name, len(f.access), got, texts(r.Problems))
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "istio/security_requests.json (policies)", 11, 0)
}
