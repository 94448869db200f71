package identity

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sinew-mesh/sinew/routing"
)

// This file reads Istio's AuthorizationPolicy as its documentation describes
// it and makes rules of it, for tests on recorded cases and on random policies.

type istioSource struct {
	Principals           []string
	NotPrincipals        []string `yaml:"notPrincipals"`
	RequestPrincipals    []string `yaml:"requestPrincipals"`
	NotRequestPrincipals []string `yaml:"notRequestPrincipals"`
	Namespaces           []string
	NotNamespaces        []string `yaml:"notNamespaces"`
	ServiceAccounts      []string `yaml:"serviceAccounts"`
	NotServiceAccounts   []string `yaml:"notServiceAccounts"`
	TrustDomains         []string `yaml:"trustDomains"`
	NotTrustDomains      []string `yaml:"notTrustDomains"`
	IPBlocks             []string `yaml:"ipBlocks"`
	NotIPBlocks          []string `yaml:"notIpBlocks"`
	RemoteIPBlocks       []string `yaml:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `yaml:"notRemoteIpBlocks"`
}

type istioOperation struct {
	Hosts      []string
	NotHosts   []string `yaml:"notHosts"`
	Ports      []string
	NotPorts   []string `yaml:"notPorts"`
	Methods    []string
	NotMethods []string `yaml:"notMethods"`
	Paths      []string
	NotPaths   []string `yaml:"notPaths"`
}

type istioCondition struct {
	Key       string
	Values    []string
	NotValues []string `yaml:"notValues"`
}

type istioRule struct {
	From []struct{ Source istioSource }
	To   []struct{ Operation istioOperation }
	When []istioCondition
}

type istioPolicy struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		Action   string
		Selector any
		Rules    []istioRule
		JwtRules []struct {
			Issuer         string
			Audiences      []string
			SpaceDelimited []string `yaml:"spaceDelimitedClaims"`
			Jwks           string
			JwksURI        string `yaml:"jwksUri"`
			Output         string `yaml:"outputPayloadToHeader"`
			Forward        bool   `yaml:"forwardOriginalToken"`
		} `yaml:"jwtRules"`
	}
}

func istioPolicies(t testing.TB, docs string) (out []istioPolicy) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(docs))
	for {
		var p istioPolicy
		if err := d.Decode(&p); err != nil {
			if err.Error() == "EOF" {
				return out
			}
			t.Fatal(err)
		}
		if p.Kind != "" {
			out = append(out, p)
		}
	}
}

// istioText is Istio's string match: exact, "p*", "*s", and "*" for anything that is not empty.
func istioText(v string, fold bool) routing.StringMatch {
	switch {
	case v == "*":
		m, _ := routing.Regex(".+")
		return m
	case strings.HasSuffix(v, "*"):
		return routing.Prefix(strings.TrimSuffix(v, "*"), fold)
	case strings.HasPrefix(v, "*"):
		return routing.Suffix(strings.TrimPrefix(v, "*"), fold)
	}
	return routing.Exact(v, fold)
}

func quoted(format string, parts ...string) (routing.StringMatch, error) {
	escaped := make([]any, len(parts))
	for i, p := range parts {
		escaped[i] = strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, `.*`)
	}
	return routing.Regex(fmt.Sprintf(format, escaped...))
}

func istioPrincipal(v string) (Condition, error) {
	switch {
	case v == "*":
		return Authenticated(), nil
	case strings.HasPrefix(v, "*"):
		return PrincipalMatches(routing.Suffix(strings.TrimPrefix(v, "*"), false)), nil
	case strings.HasSuffix(v, "*"):
		return PrincipalMatches(routing.Prefix("spiffe://"+strings.TrimSuffix(v, "*"), false)), nil
	}
	return PrincipalIs("spiffe://" + v)
}

func istioNamespace(v string) (Condition, error) {
	if !strings.Contains(v, "*") {
		return NamespaceIs(v)
	}
	m, err := quoted(".*/ns/%s/.*", v)
	return PrincipalMatches(m), err
}

func istioServiceAccount(v string) (Condition, error) {
	ns, sa, ok := strings.Cut(v, "/")
	if !ok {
		ns, sa = "ns1", v // the policies' own namespace
	}
	return PrincipalMatches(routing.Suffix("/ns/"+ns+"/sa/"+sa, false)), nil
}

func istioTrustDomain(v string) (Condition, error) {
	m, err := quoted("spiffe://%s/.*", v)
	return PrincipalMatches(m), err
}

func istioRequestPrincipal(v string) (Condition, error) {
	if v == "*" {
		return AllOf(must(ClaimIs([]string{"iss"}, ValueText(istioText("*", false)), false)), must(ClaimIs([]string{"sub"}, ValueText(istioText("*", false)), false)))
	}
	at := strings.LastIndex(v, "/")
	if at < 0 {
		return Condition{}, fmt.Errorf("request principal %q has no slash", v)
	}
	iss, sub := v[:at], v[at+1:]
	return AllOf(must(ClaimIs([]string{"iss"}, ValueText(istioText(iss, false)), false)), must(ClaimIs([]string{"sub"}, ValueText(istioText(sub, false)), false)))
}

func istioClaim(path []string) func(string) (Condition, error) {
	return func(v string) (Condition, error) {
		text := ValueText(istioText(v, false))
		return ClaimIs(path, ValueOneOf(text, ValueInList(text)), false)
	}
}

func istioHeader(name string, fold bool) func(string) (Condition, error) {
	return func(v string) (Condition, error) {
		if v == "*" {
			return HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(name), Kind: routing.HeaderPresent, Present: true})
		}
		return HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(name), String: istioText(v, fold)})
	}
}

func istioPath(v string) (Condition, error) {
	switch {
	case strings.Contains(v, "{*}") || strings.Contains(v, "{**}"):
		t, err := routing.ParseTemplate(strings.NewReplacer("{*}", "*", "{**}", "**").Replace(v))
		if err != nil {
			return Condition{}, err
		}
		return PathFits(t)
	case v == "*":
		return PathMatches(istioText(v, false)), nil
	case strings.HasSuffix(v, "*"):
		return PathBegins(strings.TrimSuffix(v, "*")), nil
	case strings.HasPrefix(v, "*"):
		return PathMatches(istioText(v, false)), nil
	}
	return PathIs(v), nil
}

func istioPort(v string) (Condition, error) {
	var port uint32
	if _, err := fmt.Sscan(v, &port); err != nil {
		return Condition{}, err
	}
	return DestinationPortIs(port)
}

func istioIP(make func(netip.Prefix) (Condition, error)) func(string) (Condition, error) {
	return func(v string) (Condition, error) {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			addr, err := netip.ParseAddr(v)
			if err != nil {
				return Condition{}, err
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		return make(p)
	}
}

// istioField is a field with its values and those that must not be.
func istioField(to *[]Condition, values, notValues []string, one func(string) (Condition, error)) error {
	if len(values) > 0 {
		c, err := protoCombined(values, one, AnyOf)
		if err != nil {
			return err
		}
		*to = append(*to, c)
	}
	if len(notValues) > 0 {
		c, err := protoNot(protoCombined(notValues, one, AnyOf))
		if err != nil {
			return err
		}
		*to = append(*to, c)
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *istioSource) conditions() ([]Condition, error) {
	var out []Condition
	err := first(
		istioField(&out, s.Principals, s.NotPrincipals, istioPrincipal),
		istioField(&out, s.RequestPrincipals, s.NotRequestPrincipals, istioRequestPrincipal),
		istioField(&out, s.Namespaces, s.NotNamespaces, istioNamespace),
		istioField(&out, s.ServiceAccounts, s.NotServiceAccounts, istioServiceAccount),
		istioField(&out, s.TrustDomains, s.NotTrustDomains, istioTrustDomain),
		istioField(&out, s.IPBlocks, s.NotIPBlocks, istioIP(PeerIPIn)),
		istioField(&out, s.RemoteIPBlocks, s.NotRemoteIPBlocks, istioIP(RemoteIPIn)),
	)
	return out, err
}

func (o *istioOperation) conditions() ([]Condition, error) {
	var out []Condition
	err := first(
		istioField(&out, o.Hosts, o.NotHosts, istioHeader(":authority", true)),
		istioField(&out, o.Ports, o.NotPorts, istioPort),
		istioField(&out, o.Methods, o.NotMethods, istioHeader(":method", false)),
		istioField(&out, o.Paths, o.NotPaths, istioPath),
	)
	return out, err
}

func (w *istioCondition) conditions() ([]Condition, error) {
	var one func(string) (Condition, error)
	names := func(s string) []string {
		return strings.Split(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), "][")
	}
	switch key := w.Key; {
	case strings.HasPrefix(key, "request.headers["):
		one = istioHeader(names(strings.TrimPrefix(key, "request.headers"))[0], false)
	case strings.HasPrefix(key, "request.auth.claims["):
		one = istioClaim(names(strings.TrimPrefix(key, "request.auth.claims")))
	case key == "request.auth.principal":
		one = istioRequestPrincipal
	case key == "request.auth.audiences":
		one = istioClaim([]string{"aud"})
	case key == "request.auth.presenter":
		one = istioClaim([]string{"azp"})
	case key == "source.principal":
		one = istioPrincipal
	case key == "source.namespace":
		one = istioNamespace
	case key == "source.ip":
		one = istioIP(PeerIPIn)
	case key == "remote.ip":
		one = istioIP(RemoteIPIn)
	case key == "destination.ip":
		one = istioIP(DestinationIPIn)
	case key == "destination.port":
		one = istioPort
	case key == "connection.sni":
		one = func(v string) (Condition, error) { return ServerNameMatches(istioText(v, false)), nil }
	default:
		return nil, fmt.Errorf("condition key %q is not known", key)
	}
	var out []Condition
	err := istioField(&out, w.Values, w.NotValues, one)
	return out, err
}

// orAny is all of the conditions; every request if there are none.
func orAny(parts []Condition, err error) (Condition, error) {
	if err != nil || len(parts) == 0 {
		return Any(), err
	}
	return AllOf(parts...)
}

func (r *istioRule) rule(name string) (Rule, error) {
	out := Rule{Name: name}
	var when []Condition
	for i := range r.When {
		parts, err := r.When[i].conditions()
		if err != nil {
			return out, err
		}
		when = append(when, parts...)
	}
	for i := range r.From {
		c, err := orAny(r.From[i].Source.conditions())
		if err != nil {
			return out, err
		}
		out.Principals = append(out.Principals, c)
	}
	for i := range r.To {
		c, err := orAny(r.To[i].Operation.conditions())
		if err != nil {
			return out, err
		}
		out.Permissions = append(out.Permissions, c)
	}
	if r.From == nil {
		out.Principals = []Condition{Any()}
	}
	if r.To == nil {
		out.Permissions = []Condition{Any()}
	}
	if len(when) > 0 {
		all := must(AllOf(when...))
		for i := range out.Principals {
			out.Principals[i] = must(AllOf(out.Principals[i], all))
		}
	}
	return out, nil
}

// istioSets makes one set of all the policies of an action.
func istioSets(policies []istioPolicy) ([]*RuleSet, error) {
	rules := map[Action][]Rule{}
	present := map[Action]bool{}
	for i := range policies {
		p := &policies[i]
		if p.Kind != "AuthorizationPolicy" {
			continue
		}
		action, ok := map[string]Action{"": Allow, "ALLOW": Allow, "DENY": Deny, "AUDIT": Audit}[p.Spec.Action]
		if !ok {
			return nil, fmt.Errorf("action %q is not known", p.Spec.Action)
		}
		present[action] = true
		for j := range p.Spec.Rules {
			r, err := p.Spec.Rules[j].rule(fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]-%d", p.Metadata.Namespace, p.Metadata.Name, j, i))
			if err != nil {
				return nil, err
			}
			rules[action] = append(rules[action], r)
		}
	}
	var out []*RuleSet
	for action := range present {
		s, err := NewRuleSet(action, false, rules[action])
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
