package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// This file decides on requests as Istio's documentation says, with nothing but loops
// over the text of policies: it knows neither protos nor compiled rules.
// https://istio.io/latest/docs/reference/config/security/authorization-policy/

// yamlPolicy is an AuthorizationPolicy as its author writes it.
type yamlPolicy struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name, Namespace string
		Annotations     map[string]string `yaml:",omitempty"`
	}
	Spec struct {
		Selector map[string]map[string]string `yaml:",omitempty"`
		Action   string                       `yaml:",omitempty"`
		Provider map[string]string            `yaml:",omitempty"`
		Rules    []yamlRule                   `yaml:",omitempty"`
	}
}

type yamlRule struct {
	From []map[string]yamlFields `yaml:",omitempty"`
	To   []map[string]yamlFields `yaml:",omitempty"`
	When []yamlCondition         `yaml:",omitempty"`
}

// yamlFields are the fields of a source or an operation.
type yamlFields map[string][]string

type yamlCondition struct {
	Key       string
	Values    []string `yaml:",omitempty"`
	NotValues []string `yaml:"notValues,omitempty"`
}

// visit is a request to the workload web in namespace default, whose labels are app=web.
type visit struct {
	Method, Host, Path string
	Decoded            string // another reading of the path; "" for none
	ID                 string // of the peer, without its scheme; "" for plaintext
	Peer, Here, SNI    string
	Port               uint16
	Header             map[string][]string
	Forwarded          []string
	Token              map[string]any // nil for none

	claims *identity.Claims
}

// istio decides as the documentation says, over the text of policies. mistake makes
// it get one thing wrong; "" makes it right.
type istio struct {
	policies []yamlPolicy
	proxies  int
	mistake  string
}

const (
	ownDomain, oldDomain = "td", "old"
	ownNamespace         = "default"
)

// text is the match of texts: exact, by prefix "a*", by suffix "*a", or present "*".
func (w *istio) text(pattern, s string) bool {
	prefix, begins := strings.CutSuffix(pattern, "*")
	suffix, ends := strings.CutPrefix(pattern, "*")
	switch {
	case pattern == "*":
		return s != ""
	case ends:
		return strings.HasSuffix(s, suffix)
	case begins && w.mistake == "a prefix is found anywhere":
		return strings.Contains(s, prefix)
	case begins:
		return strings.HasPrefix(s, prefix)
	}
	return s == pattern
}

// has is text for what a request may not have at all.
func (w *istio) has(pattern, s string) bool { return s != "" && w.text(pattern, s) }

// anywhere is the match of namespaces and trust domains, where "*" may stand anywhere.
func anywhere(pattern, s string) bool {
	before, after, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	for i := len(before); i <= len(s) && strings.HasPrefix(s, before); i++ {
		if anywhere(after, s[i:]) {
			return true
		}
	}
	return false
}

func within(block, address string) bool {
	if !strings.Contains(block, "/") {
		return block == address
	}
	return netip.MustParsePrefix(block).Contains(netip.MustParseAddr(address))
}

// caller is the address that the proxies in front tell of.
func (w *istio) caller(v *visit) string {
	entries := strings.Split(strings.Join(v.Forwarded, ","), ",")
	n := w.proxies
	if w.mistake == "anybody's word on the caller is taken" && len(v.Forwarded) > 0 {
		n = max(n, 1)
	}
	if n == 0 || len(entries) < n {
		return v.Peer
	}
	if a, err := netip.ParseAddr(strings.TrimSpace(entries[len(entries)-n])); err == nil {
		return a.String()
	}
	return v.Peer
}

// principal takes aliases into account: the mesh's own trust domain, its alias and
// "cluster.local" mean the same in a policy.
func (w *istio) principal(pattern, id string) bool {
	ours := []string{ownDomain, oldDomain}
	domain, rest, _ := strings.Cut(pattern, "/")
	if strings.Count(pattern, "/") == 4 && slices.Contains(append(ours, "cluster.local"), domain) && w.mistake != "aliases do not count" {
		actual, name, _ := strings.Cut(id, "/")
		return slices.Contains(ours, actual) && w.text(rest, name)
	}
	return w.has(pattern, id)
}

// tokenPrincipal is "issuer/subject": the last slash divides them, and a star at one
// end belongs to the part at that end.
func (w *istio) tokenPrincipal(pattern string, token map[string]any) bool {
	issuer, _ := token["iss"].(string)
	subject, _ := token["sub"].(string)
	if issuer == "" || subject == "" {
		return false
	}
	i := strings.LastIndex(pattern, "/")
	switch {
	case pattern == "*":
		return true
	case i < 0 && strings.HasPrefix(pattern, "*"):
		return w.text(pattern, subject)
	case i < 0:
		return w.text(pattern, issuer)
	case strings.HasPrefix(pattern, "*"):
		return w.text(pattern[:i], issuer) && pattern[i+1:] == subject
	}
	return pattern[:i] == issuer && w.text(pattern[i+1:], subject)
}

// path matches a path or the template of one: {*} is one segment, {**} any rest.
func (w *istio) path(pattern, path string) bool {
	if before, after, ok := strings.Cut(pattern, "/{**}"); ok && !strings.Contains(before, "{*}") {
		return strings.HasPrefix(path, before+"/") && strings.HasSuffix(path, after) && len(path) > len(before)+len(after)
	}
	if !strings.Contains(pattern, "{*}") {
		return w.text(pattern, path)
	}
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	for i := range want {
		if i >= len(got) || want[i] == "{*}" && got[i] == "" || want[i] != "{*}" && want[i] != got[i] {
			return false
		}
	}
	return len(want) == len(got) || w.mistake == "{*} at the end takes the rest"
}

// claim looks for a text, alone or in a list; scope is a list of words.
func (w *istio) claim(names []string, pattern string, token map[string]any) bool {
	var v any = token
	for _, name := range names {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	list, _ := v.([]any)
	if s, ok := v.(string); ok {
		list = []any{s}
		if len(names) == 1 && names[0] == "scope" {
			list = nil
			for _, word := range strings.Fields(s) {
				list = append(list, word)
			}
		}
	}
	return slices.ContainsFunc(list, func(e any) bool { s, ok := e.(string); return ok && w.text(pattern, s) })
}

// attributes are the keys of conditions that are fields of sources and operations too.
var attributes = map[string]string{
	"source.ip": "ipBlocks", "remote.ip": "remoteIpBlocks", "source.namespace": "namespaces", "source.principal": "principals",
	"source.serviceAccount": "serviceAccounts", "source.trustDomain": "trustDomains", "request.auth.principal": "requestPrincipals", "destination.port": "ports",
}

// matches reports whether a value of an attribute fits the request. widely: a request
// that can be read in several ways fits if one of them does, else all must. That much
// Istio leaves open; a rule that refuses must not miss what a handler may read.
func (w *istio) matches(p *yamlPolicy, attribute, value, path string, v *visit, widely bool) bool {
	var domain, namespace, account string
	if parts := strings.Split(v.ID, "/"); v.ID != "" {
		domain = parts[0]
		if len(parts) == 5 {
			namespace, account = parts[2], parts[4]
		}
	}
	if same := attributes[attribute]; same != "" {
		attribute = same
	}
	name, key, _ := strings.Cut(strings.TrimSuffix(attribute, "]"), "[")
	switch name {
	case "principals":
		return w.principal(value, v.ID)
	case "requestPrincipals":
		return w.tokenPrincipal(value, v.Token)
	case "namespaces":
		return namespace != "" && anywhere(value, namespace)
	case "trustDomains":
		return domain != "" && anywhere(value, domain)
	case "serviceAccounts":
		if !strings.Contains(value, "/") {
			if w.mistake == "a bare service account is one of any namespace" {
				return value == account
			}
			value = p.Metadata.Namespace + "/" + value
		}
		return account != "" && value == namespace+"/"+account
	case "ipBlocks":
		return within(value, v.Peer)
	case "remoteIpBlocks":
		return within(value, w.caller(v))
	case "destination.ip":
		return within(value, v.Here)
	case "ports":
		return value == fmt.Sprint(v.Port)
	case "methods":
		return w.text(value, v.Method)
	case "paths":
		return w.path(value, path)
	case "connection.sni":
		return w.text(value, v.SNI)
	case "hosts":
		value = strings.ToLower(value)
		host := strings.ToLower(v.Host)
		bare := strings.TrimSuffix(strings.Split(host, ":")[0], ".")
		return w.text(value, host) || widely && w.text(value, bare)
	case "request.headers":
		values := v.Header[key]
		for k, have := range v.Header {
			if strings.EqualFold(k, key) {
				values = have
			}
		}
		fits := func(s string) bool { return value == "*" || w.text(value, s) }
		if widely {
			return slices.ContainsFunc(values, fits)
		}
		return len(values) > 0 && !slices.ContainsFunc(values, func(s string) bool { return !fits(s) })
	case "request.auth.audiences":
		return w.claim([]string{"aud"}, value, v.Token)
	case "request.auth.presenter":
		return w.claim([]string{"azp"}, value, v.Token)
	case "request.auth.claims":
		return w.claim(strings.Split(key, "]["), value, v.Token)
	}
	panic(attribute)
}

// fields holds where each field does: one of its values fits, or, of a field that begins
// with "not", none.
func (w *istio) fields(p *yamlPolicy, fields yamlFields, path string, v *visit, refusing bool) bool {
	for name, values := range fields {
		attribute, negative := strings.CutPrefix(name, "not")
		attribute = strings.ToLower(attribute[:1]) + attribute[1:]
		if negative && name == "notPrincipals" && v.ID == "" && w.mistake == "plaintext fulfils no notPrincipals" {
			return false
		}
		some := slices.ContainsFunc(values, func(value string) bool { return w.matches(p, attribute, value, path, v, refusing != negative) })
		if some == negative {
			return false
		}
	}
	return true
}

// rule is one of from, one of to and all of when.
func (w *istio) rule(p *yamlPolicy, r *yamlRule, path string, v *visit, refusing bool) bool {
	from, to := len(r.From) == 0, len(r.To) == 0
	for _, f := range r.From {
		from = from || w.fields(p, f["source"], path, v, refusing)
	}
	for _, o := range r.To {
		to = to || w.fields(p, o["operation"], path, v, refusing)
	}
	for _, c := range r.When {
		values := c.Values
		if w.mistake == "the last value of a condition is lost" && len(values) > 1 {
			values = values[:len(values)-1]
		}
		is := func(value string) bool { return w.matches(p, c.Key, value, path, v, refusing) }
		isNot := func(value string) bool { return w.matches(p, c.Key, value, path, v, !refusing) }
		if len(values) > 0 && !slices.ContainsFunc(values, is) || slices.ContainsFunc(c.NotValues, isNot) {
			return false
		}
	}
	return from && to
}

// applies: policies apply to the workloads of their namespace, those of the root
// namespace to all, where their selector has no label that the workload lacks.
func (w *istio) applies(p *yamlPolicy) bool {
	for k, v := range p.Spec.Selector["matchLabels"] {
		if (k != "app" || v != "web") && w.mistake != "a selector does not count" {
			return false
		}
	}
	root := p.Metadata.Namespace == policy.RootNamespace && w.mistake != "the root namespace is one like others"
	return p.Metadata.Namespace == ownNamespace || root
}

// takes reports whether there is a policy of the action, and whether one matches.
func (w *istio) takes(action, path string, v *visit) (any, matches bool) {
	for i := range w.policies {
		p := &w.policies[i]
		if p.Spec.Action != action && (p.Spec.Action != "" || action != "ALLOW") || !w.applies(p) {
			continue
		}
		if p.Metadata.Annotations["istio.io/dry-run"] == "true" && w.mistake != "a dry run is in force" {
			continue
		}
		any = any || len(p.Spec.Rules) > 0 || w.mistake != "an ALLOW policy without a rule is none"
		for j := range p.Spec.Rules {
			matches = matches || w.rule(p, &p.Spec.Rules[j], path, v, action != "ALLOW")
		}
	}
	return any, matches
}

// verdict is what comes of a request.
type verdict struct{ Allowed, Audited, Asked bool }

// decide: CUSTOM asks, DENY refuses, and where there are ALLOW policies one must match.
// AUDIT only reports. What the path may also mean has to be allowed too.
func (w *istio) decide(v *visit) verdict {
	out := verdict{Allowed: true}
	paths := []string{v.Path}
	if v.Decoded != "" {
		paths = append(paths, v.Decoded)
	}
	for _, path := range paths {
		_, denied := w.takes("DENY", path, v)
		some, allowed := w.takes("ALLOW", path, v)
		out.Allowed = out.Allowed && !denied && (allowed || !some)
		_, audited := w.takes("AUDIT", path, v)
		early := *v
		early.Token = nil // tokens are verified only afterwards
		_, asked := w.takes("CUSTOM", path, &early)
		out.Audited, out.Asked = out.Audited || audited, out.Asked || asked
	}
	return out
}
