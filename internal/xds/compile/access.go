package compile

import (
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	concurrencyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/adaptive_concurrency/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// stage is the place of a filter in the one order in which a request is
// looked at, which is Istio's. A chain in another order would decide
// otherwise, so it is refused. DENY and ALLOW rules may change places:
// a request has to pass both.
type stage uint8

const (
	stageCustom stage = iota + 1
	stageExternal
	stageTokens
	stageAudit
	stageRules
	stageLimits
	stageConcurrency
)

var stageNames = [...]string{"", "CUSTOM rules", "the external authorizer", "tokens", "AUDIT rules", "DENY and ALLOW rules", "rate limits", "adaptive concurrency"}

// access reads the HTTP filters of a filter chain that decide on requests.
type access struct {
	chain  *snapshot.FilterChain
	sets   []*identity.RuleSet
	stage  stage
	rules  rulesReader
	custom *customRules
	limits []limitFilter
	// bounded says that there is a filter for adaptive concurrency.
	bounded bool
	// enforced are the names of the filters that have been read.
	enforced map[string]bool
}

// customRules are rules whose requests an external authorizer decides on,
// which a later filter names by their prefix in the request's metadata.
type customRules struct {
	set    *identity.RuleSet
	names  []string
	prefix string
}

const (
	// istioCustom begins the prefix of Istio's CUSTOM rules.
	istioCustom     = "istio_ext_authz_"
	ruleFilter      = "envoy.filters.http.rbac"
	effectivePolicy = "shadow_effective_policy_id"
)

// filter reads one filter. known is false for those that it does not know.
func (a *access) filter(name string, config *anypb.Any, disabled bool) (known bool, f *fault) {
	if disabled && !config.MessageIs((*ratelimitv3.LocalRateLimit)(nil)) {
		return false, nil // a route that enables it is refused
	}
	switch {
	case config.MessageIs((*rbacfilterv3.RBAC)(nil)):
		f = read(config, &rbacfilterv3.RBAC{}, a.rbac)
	case config.MessageIs((*jwtv3.JwtAuthentication)(nil)):
		f = read(config, &jwtv3.JwtAuthentication{}, a.tokens)
	case config.MessageIs((*extauthzv3.ExtAuthz)(nil)):
		f = read(config, &extauthzv3.ExtAuthz{}, a.external)
	case config.MessageIs((*ratelimitv3.LocalRateLimit)(nil)):
		f = read(config, &ratelimitv3.LocalRateLimit{}, func(m *ratelimitv3.LocalRateLimit) *fault {
			return a.rateLimit(name, m, disabled)
		})
	case config.MessageIs((*concurrencyv3.AdaptiveConcurrency)(nil)):
		f = read(config, &concurrencyv3.AdaptiveConcurrency{}, a.concurrency)
	default:
		return false, nil
	}
	if a.enforced == nil {
		a.enforced = make(map[string]bool)
	}
	a.enforced[name] = true
	return true, f.under("typed_config")
}

// read decodes the configuration of a filter into m and hands it on.
func read[M proto.Message](config *anypb.Any, m M, to func(M) *fault) *fault {
	if f := extension(config, m); f != nil {
		return f
	}
	return to(m)
}

// reach moves on to a stage. Once allows nothing of the same stage before it.
func (a *access) reach(s stage, once bool) *fault {
	if s < a.stage || once && s == a.stage {
		return faultf("", "%s after %s: not supported", stageNames[s], stageNames[a.stage])
	}
	a.stage = s
	return nil
}

// concurrency reads a bound on the requests under way. Before all other filters
// that decide it counts what they refuse too, after all of them only what they let
// through: both places are kept, and any other is refused.
func (a *access) concurrency(m *concurrencyv3.AdaptiveConcurrency) *fault {
	limit, f := adaptiveConcurrency(m)
	switch {
	case f != nil:
		return f
	case a.bounded:
		return faultf("", "adaptive concurrency twice: not supported")
	case !limit.Enabled:
		return nil
	}
	a.bounded, a.chain.Concurrency = true, limit
	if a.stage > 0 {
		a.chain.ConcurrencyLast = true
		return a.reach(stageConcurrency, true)
	}
	return nil
}

// rbac reads rules that are in force and such as are only tried out. Without
// either a filter does nothing; rules without policies are rules all the same.
func (a *access) rbac(m *rbacfilterv3.RBAC) *fault {
	shadow := m.GetShadowRules()
	if shadow != nil && strings.HasPrefix(m.GetShadowRulesStatPrefix(), istioCustom) {
		if m.GetRules() != nil {
			return faultf("rules", "not supported beside CUSTOM rules")
		}
		return a.customRules(shadow, m.GetShadowRulesStatPrefix()).under("shadow_rules")
	}
	if m.GetRules() != nil {
		if f := a.ruleSet(m.GetRules(), false); f != nil {
			return f.under("rules")
		}
	}
	if shadow != nil {
		return a.ruleSet(shadow, true).under("shadow_rules")
	}
	return nil
}

func (a *access) ruleSet(m *rbacv3.RBAC, dryRun bool) *fault {
	action, at := identity.Allow, stageRules
	switch m.GetAction() {
	case rbacv3.RBAC_ALLOW:
	case rbacv3.RBAC_DENY:
		action = identity.Deny
	case rbacv3.RBAC_LOG:
		action, at = identity.Audit, stageAudit
	default:
		return faultf("action", "value %d is not known", m.GetAction())
	}
	if f := a.reach(at, false); f != nil {
		return f
	}
	set, f := a.rules.ruleSet(m, action, dryRun)
	if f != nil {
		return f
	}
	a.sets = append(a.sets, set)
	return nil
}

// customRules reads Istio's CUSTOM rules: shadow rules, whose effect is that
// the name of the rule that matches is in the request's metadata.
func (a *access) customRules(m *rbacv3.RBAC, prefix string) *fault {
	if m.GetAction() != rbacv3.RBAC_DENY {
		return faultf("action", "%v is not supported in CUSTOM rules, which are DENY", m.GetAction())
	}
	if f := a.reach(stageCustom, true); f != nil {
		return f
	}
	set, f := a.rules.ruleSet(m, identity.Custom, false)
	if f != nil {
		return f
	}
	a.custom = &customRules{set: set, names: sortedKeys(m.GetPolicies()), prefix: prefix}
	return nil
}

// finish puts the parts together when all filters have been read.
func (a *access) finish() *fault {
	if a.custom != nil && a.chain.External == nil {
		return faultf("", "there are CUSTOM rules and no external authorizer after them")
	}
	if len(a.sets) == 0 {
		return nil
	}
	authorizer, err := identity.NewAuthorizer(a.sets...)
	if err != nil {
		return faultf("", "%v", err)
	}
	a.chain.Authorizer = authorizer
	return nil
}
