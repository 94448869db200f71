package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	selectors "istio.io/api/type/v1beta1"
)

// dryRun checks the annotation of a policy that is not enforced.
func (f *findings) dryRun(meta Meta, spec proto.Message) {
	value, given := meta.Annotations[dryRunAnnotation]
	if !given {
		return
	}
	const at = "metadata.annotations[" + dryRunAnnotation + "]"
	authz, ok := spec.(*security.AuthorizationPolicy)
	if _, peers := spec.(*security.PeerAuthentication); !ok && !peers {
		f.errorf(at, "only an AuthorizationPolicy and a PeerAuthentication can be run dry")
		return
	}
	if a := authz.GetAction(); a != security.AuthorizationPolicy_ALLOW && a != security.AuthorizationPolicy_DENY {
		f.errorf(at, "a policy of action %s can not be run dry, only ALLOW and DENY", a)
	} else if _, err := strconv.ParseBool(value); err != nil {
		f.errorf(at, "%q is neither \"true\" nor \"false\"", value)
	}
}

// selector checks which workloads a policy applies to, if it selects them by labels.
func (f *findings) selector(s *selectors.WorkloadSelector) {
	if s == nil {
		return
	}
	f.selectorLabels("spec.selector.matchLabels", s.GetMatchLabels())
	if len(s.GetMatchLabels()) == 0 {
		f.warnf("spec.selector", "has no labels and selects every workload")
	}
}

// attached checks which workloads or other objects a policy applies to.
func (f *findings) attached(spec targeted) {
	f.selector(spec.GetSelector())
	given := 0
	for _, is := range []bool{spec.GetSelector() != nil, spec.GetTargetRef() != nil, len(spec.GetTargetRefs()) > 0} {
		if is {
			given++
		}
	}
	if given > 1 {
		f.errorf("spec", "takes only one of selector, targetRef and targetRefs")
	}
	f.targetRef("spec.targetRef", spec.GetTargetRef())
	for i, ref := range spec.GetTargetRefs() {
		f.targetRef(fmt.Sprintf("spec.targetRefs[%d]", i), ref)
	}
}

// targetKinds are what a policy can be attached to, by "group/kind".
var targetKinds = []string{
	"/Service", "core/Service", "networking.istio.io/ServiceEntry",
	"gateway.networking.k8s.io/Gateway", "gateway.networking.k8s.io/GatewayClass",
}

func (f *findings) targetRef(in string, ref *selectors.PolicyTargetReference) {
	if ref == nil {
		return
	}
	if ref.GetName() == "" {
		f.errorf(in+".name", "required")
	}
	if ref.GetNamespace() != "" {
		f.errorf(in+".namespace", "must not be set: a policy applies to its own namespace")
	}
	if kind := ref.GetGroup() + "/" + ref.GetKind(); !slices.Contains(targetKinds, kind) {
		f.errorf(in+".kind", "%s is not one of Service, ServiceEntry, Gateway, GatewayClass", kind)
	}
}

func (f *findings) peerAuthentication(p *security.PeerAuthentication) {
	f.selector(p.GetSelector())
	if selectsAll(p.GetSelector()) && len(p.GetPortLevelMtls()) > 0 {
		f.errorf("spec.portLevelMtls", "needs a selector with labels")
	}
	ports := make([]uint32, 0, len(p.GetPortLevelMtls()))
	for port := range p.GetPortLevelMtls() {
		ports = append(ports, port)
	}
	slices.Sort(ports)
	for _, port := range ports {
		f.err(fmt.Sprintf("spec.portLevelMtls[%d]", port), checkPort(port))
	}
	f.mode("spec.mtls.mode", p.GetMtls().GetMode())
	for _, port := range ports {
		f.mode(fmt.Sprintf("spec.portLevelMtls[%d].mode", port), p.GetPortLevelMtls()[port].GetMode())
	}
}

// mode refuses numbers that stand for no mode: protobuf reads them.
func (f *findings) mode(field string, m Mode) {
	if _, known := security.PeerAuthentication_MutualTLS_Mode_name[int32(m)]; !known {
		f.errorf(field, "%d is not a mode", m)
	}
}

func (f *findings) authorizationPolicy(p *security.AuthorizationPolicy) {
	f.attached(p)
	switch action := p.GetAction(); action {
	case security.AuthorizationPolicy_CUSTOM:
		if len(p.GetRules()) > 0 && p.GetProvider().GetName() == "" {
			f.errorf("spec.provider.name", "required for action CUSTOM")
		}
		fallthrough
	case security.AuthorizationPolicy_DENY:
		if len(p.GetRules()) == 0 {
			f.errorf("spec.rules", "action %s without rules never applies: to apply it to every request, give an empty rule {}", action)
		}
	case security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_AUDIT:
	default:
		f.errorf("spec.action", "%d is not an action", action)
	}
	if p.GetProvider() != nil && p.GetAction() != security.AuthorizationPolicy_CUSTOM {
		f.errorf("spec.provider", "goes with action CUSTOM only, not with %s", p.GetAction())
	}
	for i, r := range p.GetRules() {
		in := fmt.Sprintf("spec.rules[%d]", i)
		if p.GetAction() == security.AuthorizationPolicy_CUSTOM {
			f.customRule(in, r)
		}
		tcpFrom, tcpTo := f.from(in, r), f.to(in, r)
		for j, c := range r.GetWhen() {
			f.condition(fmt.Sprintf("%s.when[%d]", in, j), c)
		}
		if p.GetAction() == security.AuthorizationPolicy_DENY &&
			(len(r.GetTo()) > 0 && !tcpTo || len(r.GetTo()) == 0 && len(r.GetFrom()) > 0 && !tcpFrom) {
			f.warnf(in, "has only attributes of HTTP, so that it denies every connection to a TCP port: name the ports")
		}
	}
}

// values is a field of a source or an operation.
type values struct {
	field string
	list  []string
}

func sourceValues(s *security.Source) (identities, accounts, addresses, tokens []values) {
	return []values{
			{"principals", s.GetPrincipals()}, {"notPrincipals", s.GetNotPrincipals()},
			{"namespaces", s.GetNamespaces()}, {"notNamespaces", s.GetNotNamespaces()},
			{"trustDomains", s.GetTrustDomains()}, {"notTrustDomains", s.GetNotTrustDomains()},
		}, []values{
			{"serviceAccounts", s.GetServiceAccounts()}, {"notServiceAccounts", s.GetNotServiceAccounts()},
		}, []values{
			{"ipBlocks", s.GetIpBlocks()}, {"notIpBlocks", s.GetNotIpBlocks()},
			{"remoteIpBlocks", s.GetRemoteIpBlocks()}, {"notRemoteIpBlocks", s.GetNotRemoteIpBlocks()},
		}, []values{
			{"requestPrincipals", s.GetRequestPrincipals()}, {"notRequestPrincipals", s.GetNotRequestPrincipals()},
		}
}

func anyGiven(lists ...[]values) bool {
	for _, list := range lists {
		if slices.ContainsFunc(list, func(v values) bool { return len(v.list) > 0 }) {
			return true
		}
	}
	return false
}

// from checks the sources of a rule, and reports whether one has an attribute that is
// known of a plain connection.
func (f *findings) from(in string, r *security.Rule) (tcp bool) {
	for i, from := range r.GetFrom() {
		at := fmt.Sprintf("%s.from[%d].source", in, i)
		identities, accounts, addresses, tokens := sourceValues(from.GetSource())
		switch {
		case from.GetSource() == nil:
			f.errorf(at, "required")
		case !anyGiven(identities, accounts, addresses, tokens):
			f.errorf(at, "must not be empty")
		}
		// Trust domains may stand beside service accounts.
		if anyGiven(identities[:4]) && anyGiven(accounts) {
			f.errorf(at, "serviceAccounts can not be set together with namespaces or principals")
		}
		f.checkEach(at, checkNotEmpty, identities, tokens)
		f.checkEach(at, checkServiceAccount, accounts)
		f.checkEach(at, checkSubnet, addresses)
		for _, a := range accounts {
			f.accountLimit(at+"."+a.field, a.list)
		}
		tcp = tcp || anyGiven(identities, accounts, addresses)
	}
	return tcp
}

// to checks the operations of a rule, as from does.
func (f *findings) to(in string, r *security.Rule) (tcp bool) {
	for i, to := range r.GetTo() {
		at := fmt.Sprintf("%s.to[%d].operation", in, i)
		op := to.GetOperation()
		names := []values{{"hosts", op.GetHosts()}, {"notHosts", op.GetNotHosts()}, {"methods", op.GetMethods()}, {"notMethods", op.GetNotMethods()}}
		paths := []values{{"paths", op.GetPaths()}, {"notPaths", op.GetNotPaths()}}
		ports := []values{{"ports", op.GetPorts()}, {"notPorts", op.GetNotPorts()}}
		switch {
		case op == nil:
			f.errorf(at, "required")
		case !anyGiven(names, paths, ports):
			f.errorf(at, "must not be empty")
		}
		f.checkEach(at, checkNotEmpty, names)
		f.checkEach(at, checkPathPattern, paths)
		f.checkEach(at, checkPortText, ports)
		tcp = tcp || anyGiven(ports)
	}
	return tcp
}

// customRule refuses what is not known yet when an external authorizer is asked.
func (f *findings) customRule(in string, r *security.Rule) {
	const why = "is not known when action CUSTOM is decided"
	for i, from := range r.GetFrom() {
		identities, accounts, _, tokens := sourceValues(from.GetSource())
		for _, v := range slices.Concat(identities[:4], accounts, tokens) {
			if len(v.list) > 0 {
				f.errorf(fmt.Sprintf("%s.from[%d].source.%s", in, i, v.field), why)
			}
		}
	}
	for i, c := range r.GetWhen() {
		switch key := c.GetKey(); {
		case key == "source.namespace", key == "source.serviceAccount", key == "source.principal", strings.HasPrefix(key, "request.auth."):
			f.errorf(fmt.Sprintf("%s.when[%d].key", in, i), "%s %s", key, why)
		}
	}
}

func (f *findings) checkEach(in string, check func(string) error, lists ...[]values) {
	for _, list := range lists {
		for _, v := range list {
			for i, s := range v.list {
				f.err(fmt.Sprintf("%s.%s[%d]", in, v.field, i), check(s))
			}
		}
	}
}

func checkNotEmpty(s string) error {
	if s == "" {
		return errors.New("must not be empty")
	}
	return nil
}

func checkPortText(s string) error {
	if _, err := strconv.ParseUint(s, 10, 16); err != nil {
		return fmt.Errorf("%q is not a port number", s)
	}
	return nil
}

const (
	maxServiceAccounts   = 16
	maxServiceAccountLen = 320
)

func checkServiceAccount(s string) error {
	namespace, name, both := strings.Cut(s, "/")
	switch {
	case len(s) > maxServiceAccountLen:
		return fmt.Errorf("is longer than %d characters", maxServiceAccountLen)
	case strings.Contains(s, "*"):
		return fmt.Errorf("%q: a service account takes no wildcard", s)
	case namespace == "", both && (name == "" || strings.Contains(name, "/")):
		return fmt.Errorf("%q is neither \"name\" nor \"namespace/name\" of a service account", s)
	}
	return nil
}

func (f *findings) accountLimit(field string, list []string) {
	if len(list) > maxServiceAccounts {
		f.errorf(field, "has %d values; at most %d are taken", len(list), maxServiceAccounts)
	}
}

var templateLiteral = regexp.MustCompile("^[-a-zA-Z0-9._~%!$&'()+,;:@=]+$")

// checkPathPattern accepts a path, which may have one wildcard at an end, or a
// template: "{*}" stands for one segment, "{**}" for any number of them and must be
// the last operator.
// (https://istio.io/latest/docs/reference/config/security/authorization-policy/#Operation)
func checkPathPattern(s string) error {
	if s == "" {
		return errors.New("must not be empty")
	}
	template := strings.Contains(s, "{*}") || strings.Contains(s, "{**}")
	rest := false
	for _, segment := range strings.Split(strings.Trim(s, "/"), "/") {
		switch {
		case segment == "{*}" || segment == "{**}":
			if rest {
				return fmt.Errorf("%q: {**} must be the last operator of a template", s)
			}
			rest = segment == "{**}"
		case strings.ContainsAny(segment, "{}"):
			return fmt.Errorf("%q: braces stand only in {*} and {**}, as a whole segment", s)
		case template && !templateLiteral.MatchString(segment):
			return fmt.Errorf("%q: segment %q can not stand in a template", s, segment)
		}
	}
	return nil
}

// conditionKeys have the check for the values of each key; one that ends with "["
// takes a name in brackets.
var conditionKeys = map[string]func(string) error{
	"request.headers[":                     checkNotEmpty,
	"request.experimental.inline.headers[": checkNotEmpty,
	"request.auth.claims[":                 checkNotEmpty,
	"request.auth.principal":               checkNotEmpty,
	"request.auth.audiences":               checkNotEmpty,
	"request.auth.presenter":               checkNotEmpty,
	"source.ip":                            checkSubnet,
	"source.namespace":                     checkNotEmpty,
	"source.principal":                     checkNotEmpty,
	"source.serviceAccount":                checkServiceAccount,
	"source.trustDomain":                   checkNotEmpty,
	"remote.ip":                            checkSubnet,
	"destination.ip":                       checkSubnet,
	"destination.port":                     checkPortText,
	"connection.sni":                       checkNotEmpty,
}

// conditionCheck returns the check for the values of a condition, or nil if there is
// no such key.
func conditionCheck(key string) func(string) error {
	name, inner, bracket := strings.Cut(key, "[")
	if !bracket {
		return conditionKeys[key]
	}
	if inner == "" || inner == "]" || !strings.HasSuffix(inner, "]") {
		return nil
	}
	if strings.HasPrefix(name, "experimental.envoy.filters.") {
		return checkNotEmpty
	}
	return conditionKeys[name+"["]
}

func (f *findings) condition(in string, c *security.Condition) {
	if c.GetKey() == "" {
		f.errorf(in+".key", "required")
		return
	}
	check := conditionCheck(c.GetKey())
	if check == nil {
		f.errorf(in+".key", "%q is not an attribute of a condition", c.GetKey())
		return
	}
	if len(c.GetValues()) == 0 && len(c.GetNotValues()) == 0 {
		f.errorf(in, "needs values or notValues")
	}
	f.checkEach(in, check, []values{{"values", c.GetValues()}, {"notValues", c.GetNotValues()}})
	if c.GetKey() == "source.serviceAccount" {
		f.accountLimit(in+".values", c.GetValues())
		f.accountLimit(in+".notValues", c.GetNotValues())
	}
}

func (f *findings) requestAuthentication(p *security.RequestAuthentication) {
	f.attached(p)
	for i, r := range p.GetJwtRules() {
		f.jwtRule(fmt.Sprintf("spec.jwtRules[%d]", i), r)
	}
}

var claimHeaderPattern = regexp.MustCompile("^[-_A-Za-z0-9]+$")

func (f *findings) jwtRule(in string, r *security.JWTRule) {
	if r.GetIssuer() == "" && r.GetJwksUri() == "" {
		f.errorf(in+".issuer", "issuer or jwksUri is required")
	}
	if uri := r.GetJwksUri(); uri != "" {
		// The parser's own error would repeat a password in it.
		if u, err := url.Parse(uri); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() != "" && checkPortText(u.Port()) != nil {
			f.errorf(in+".jwksUri", "must be a URL that begins with http:// or https://")
		}
	}
	f.keys(in+".jwks", r.GetJwks())
	f.checkEach(in, checkNotEmpty, []values{{"audiences", r.GetAudiences()}, {"fromParams", r.GetFromParams()}, {"fromCookies", r.GetFromCookies()}})
	for i, h := range r.GetFromHeaders() {
		f.err(fmt.Sprintf("%s.fromHeaders[%d].name", in, i), checkNotEmpty(h.GetName()))
	}
	for i, c := range r.GetOutputClaimToHeaders() {
		at := fmt.Sprintf("%s.outputClaimToHeaders[%d]", in, i)
		f.err(at+".claim", checkNotEmpty(c.GetClaim()))
		if !claimHeaderPattern.MatchString(c.GetHeader()) {
			f.errorf(at+".header", "%q is not the name of a header of letters, digits, \"-\" and \"_\"", c.GetHeader())
		}
	}
	f.err(in+".timeout", checkDuration(r.GetTimeout()))
}

// keys checks an inline set of keys, or a single key as Istio also takes it. No
// message repeats any of it: it may hold a private key by mistake.
func (f *findings) keys(in, text string) {
	if text == "" {
		return
	}
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if json.Unmarshal([]byte(text), &set) != nil {
		f.errorf(in, "is not a set of JSON web keys")
		return
	}
	list := []json.RawMessage{json.RawMessage(text)}
	if set.Keys != nil {
		list = *set.Keys
	}
	for i, raw := range list {
		var members map[string]json.RawMessage
		_ = json.Unmarshal(raw, &members) // what is no mapping is no key either
		_, private := members["d"]
		// Only the public half is used, so the other need not fit it.
		for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth"} {
			delete(members, name)
		}
		public, err := json.Marshal(members)
		var key jose.JSONWebKey
		if err != nil || key.UnmarshalJSON(public) != nil || !key.Valid() {
			f.errorf(in, "the key at index %d is not a JSON web key of a known type", i)
			continue
		}
		if private {
			f.warnf(in, "the key at index %d is a private key: only public keys are needed, and this file is no place for a private one; its private parts are sent to nobody", i)
		}
	}
}

// isKeySet reports whether an inline set of keys, which is valid, is not a single key.
func isKeySet(text string) bool {
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	return json.Unmarshal([]byte(text), &set) == nil && set.Keys != nil
}
