package translate

import (
	"fmt"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// rbacFilter begins the names of filters with rules of access. The action follows,
// because gRPC refuses two filters of one name.
const rbacFilter = "envoy.filters.http.rbac"

// Prefixes of what dry runs and rules for external authorizers leave behind in a
// request's metadata, as Istio names them.
const (
	dryRunDeny  = "istio_dry_run_deny_"
	dryRunAllow = "istio_dry_run_allow_"
	askExternal = "istio_ext_authz_"
)

func httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustPack(config)}}
}

// ruleFilters are the AuthorizationPolicies of a workload: one filter for each
// action, which holds all policies of that action. ALLOW policies without a rule
// give a filter whose rules never match, which refuses every request.
// https://istio.io/latest/docs/reference/config/security/authorization-policy/
func (b *builder) ruleFilters(rules policy.Authorization) ([]*hcmv3.HttpFilter, error) {
	var out []*hcmv3.HttpFilter
	if len(rules.Audit) > 0 {
		if b.client.Agent == GRPC {
			b.noteAll(rules.Audit, "gRPC does not report what an AUDIT policy matches")
		} else {
			log, err := b.rbac(rbacv3.RBAC_LOG, rules.Audit, policyName)
			if err != nil {
				return nil, err
			}
			out = append(out, httpFilter(rbacFilter+".AUDIT", &rbacfilterv3.RBAC{Rules: log}))
		}
	}
	for _, f := range []struct {
		action          rbacv3.RBAC_Action
		enforced, tried []*policy.AuthorizationPolicy
		prefix          string
	}{
		{rbacv3.RBAC_DENY, rules.Deny, rules.DryRunDeny, dryRunDeny},
		{rbacv3.RBAC_ALLOW, rules.Allow, rules.DryRunAllow, dryRunAllow},
	} {
		if b.client.Agent == GRPC && len(f.tried) > 0 {
			b.noteAll(f.tried, "gRPC does not run policies dry")
			f.tried = nil
		}
		config := &rbacfilterv3.RBAC{}
		var err error
		if len(f.enforced) > 0 {
			if config.Rules, err = b.rbac(f.action, f.enforced, policyName); err != nil {
				return nil, err
			}
		}
		if len(f.tried) > 0 {
			config.ShadowRulesStatPrefix = f.prefix
			if config.ShadowRules, err = b.rbac(f.action, f.tried, policyName); err != nil {
				return nil, err
			}
		}
		if config.Rules != nil || config.ShadowRules != nil {
			out = append(out, httpFilter(rbacFilter+"."+f.action.String(), config))
		}
	}
	return out, nil
}

func (b *builder) noteAll(list []*policy.AuthorizationPolicy, text string) {
	for _, p := range list {
		b.note(about(&p.Meta), "%s", text)
	}
}

// policyName names a rule, as Istio does.
func policyName(p *policy.AuthorizationPolicy, rule int) string {
	return fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", p.Namespace, p.Name, rule)
}

// rbac puts the rules of policies together.
func (b *builder) rbac(action rbacv3.RBAC_Action, policies []*policy.AuthorizationPolicy, name func(*policy.AuthorizationPolicy, int) string) (*rbacv3.RBAC, error) {
	out := &rbacv3.RBAC{Action: action, Policies: map[string]*rbacv3.Policy{}}
	for _, p := range policies {
		at := about(&p.Meta) + " spec"
		if field := unknownField(p.Spec, authorizationFields); field != "" {
			return nil, unsupported(at, field)
		}
		// Without a rule a policy matches nothing. The one policy of this kind keeps
		// clients from taking an empty set for no set.
		if len(p.Spec.GetRules()) == 0 {
			out.Policies[name(p, 0)] = never()
		}
		for i, r := range p.Spec.GetRules() {
			t := &ruleTranslator{b: b, policy: p, at: fmt.Sprintf("%s.rules[%d]", at, i), wide: action != rbacv3.RBAC_ALLOW}
			rule, err := t.rule(r)
			if err != nil {
				return nil, err
			}
			out.Policies[name(p, i)] = rule
		}
	}
	return out, nil
}

// Fields that rbac enforces; provider is read by externalFilters.
var (
	authorizationFields = []string{"selector", "rules", "action", "provider"}
	ruleFields          = []string{"from", "to", "when"}
)

// never is a policy that matches no request.
func never() *rbacv3.Policy {
	return &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{permissions.not(permissions.any())},
		Principals:  []*rbacv3.Principal{principals.not(principals.any())},
	}
}

// algebra is how conditions of one kind are put together.
type algebra[T any] struct {
	any     func() T
	and, or func([]T) T
	not     func(T) T
}

var permissions = algebra[*rbacv3.Permission]{
	any: func() *rbacv3.Permission { return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}} },
	and: func(all []*rbacv3.Permission) *rbacv3.Permission {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: all}}}
	},
	or: func(some []*rbacv3.Permission) *rbacv3.Permission {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: some}}}
	},
	not: func(p *rbacv3.Permission) *rbacv3.Permission {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: p}}
	},
}

var principals = algebra[*rbacv3.Principal]{
	any: func() *rbacv3.Principal {
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	},
	and: func(all []*rbacv3.Principal) *rbacv3.Principal {
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: all}}}
	},
	or: func(some []*rbacv3.Principal) *rbacv3.Principal {
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: some}}}
	},
	not: func(p *rbacv3.Principal) *rbacv3.Principal {
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: p}}
	},
}

// all holds where every condition does; without conditions, always.
func (a *algebra[T]) all(conditions []T) T {
	switch len(conditions) {
	case 0:
		return a.any()
	case 1:
		return conditions[0]
	}
	return a.and(conditions)
}

// some holds where one of the conditions does. There is at least one.
func (a *algebra[T]) some(conditions []T) T {
	if len(conditions) == 1 {
		return conditions[0]
	}
	return a.or(conditions)
}

// ruleTranslator translates one rule of a policy.
type ruleTranslator struct {
	b      *builder
	policy *policy.AuthorizationPolicy
	at     string // the rule's path
	// wide: the rule refuses, reports or has others decide, so that it must not miss a
	// request; an ALLOW rule must not match one too many. Where a client knows less
	// than Sinew does, conditions are written to err to this side.
	wide bool
}

// field is one field of a rule: what values are asked for, and which must not be.
type field[T any] struct {
	name      string
	values    []string
	notValues []string // of the field notName
	one       func(at, value string, wide bool) (T, error)
	expand    func([]string) []string // nil: the values as they are
}

// notName is the name of the field with the values that must not be.
func (f *field[T]) notName() string { return "not" + strings.ToUpper(f.name[:1]) + f.name[1:] }

// add appends the conditions of a field: one of the values, and none of notValues.
func add[T any](t *ruleTranslator, a *algebra[T], to *[]T, at string, f *field[T]) error {
	list := func(name string, values []string, wide bool) ([]T, error) {
		for i, v := range values {
			if v == "" {
				return nil, fmt.Errorf("%s.%s[%d]: is empty", at, name, i)
			}
		}
		if f.expand != nil {
			values = f.expand(values)
		}
		var out []T
		for i, v := range values {
			c, err := f.one(fmt.Sprintf("%s.%s[%d]", at, name, i), v, wide)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
		return out, nil
	}
	if len(f.values) > 0 {
		some, err := list(f.name, f.values, t.wide)
		if err != nil {
			return err
		}
		*to = append(*to, a.some(some))
	}
	if len(f.notValues) > 0 {
		some, err := list(f.notName(), f.notValues, !t.wide)
		if err != nil {
			return err
		}
		*to = append(*to, a.not(a.some(some)))
	}
	return nil
}

// addAll puts the conditions of all fields of m, a source or an operation, together.
func addAll[T any](t *ruleTranslator, a *algebra[T], at string, m proto.Message, fields []field[T]) ([]T, error) {
	var known []string
	for i := range fields {
		known = append(known, fields[i].name, fields[i].notName())
	}
	if field := unknownField(m, known); field != "" {
		return nil, unsupported(at, field)
	}
	var out []T
	for i := range fields {
		if err := add(t, a, &out, at, &fields[i]); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: is empty", at)
	}
	return out, nil
}

// rule translates a rule: one of "from", one of "to" and all of "when".
func (t *ruleTranslator) rule(r *security.Rule) (*rbacv3.Policy, error) {
	if field := unknownField(r, ruleFields); field != "" {
		return nil, unsupported(t.at, field)
	}
	var whenWho []*rbacv3.Principal
	var whenWhat []*rbacv3.Permission
	for i, c := range r.GetWhen() {
		if err := t.condition(fmt.Sprintf("%s.when[%d]", t.at, i), c, &whenWho, &whenWhat); err != nil {
			return nil, err
		}
	}
	out := &rbacv3.Policy{}
	for i, from := range r.GetFrom() {
		who, err := t.source(fmt.Sprintf("%s.from[%d].source", t.at, i), from.GetSource())
		if err != nil {
			return nil, err
		}
		out.Principals = append(out.Principals, principals.all(append(who, whenWho...)))
	}
	for i, to := range r.GetTo() {
		what, err := t.operation(fmt.Sprintf("%s.to[%d].operation", t.at, i), to.GetOperation())
		if err != nil {
			return nil, err
		}
		out.Permissions = append(out.Permissions, permissions.all(append(what, whenWhat...)))
	}
	if len(r.GetFrom()) == 0 {
		out.Principals = []*rbacv3.Principal{principals.all(whenWho)}
	}
	if len(r.GetTo()) == 0 {
		out.Permissions = []*rbacv3.Permission{permissions.all(whenWhat)}
	}
	return out, nil
}
