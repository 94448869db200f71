package policy

import (
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
	selectors "istio.io/api/type/v1beta1"
)

// dryRunAnnotation marks a policy that is evaluated but not enforced. Istio knows it for
// AuthorizationPolicy; the mesh takes it for PeerAuthentication as well.
const dryRunAnnotation = "istio.io/dry-run"

// accessIndex finds access objects by namespace, in the order of the set.
type accessIndex struct {
	peers    map[string][]*PeerAuthentication // without dry runs
	dryPeers map[string][]*PeerAuthentication // dry runs, then the others
	authz    map[string][]*AuthorizationPolicy
	requests map[string][]*RequestAuthentication
	servers  map[string][]*Server
	limits   map[string][]*RateLimitPolicy
	filters  map[string][]*portLimits
}

func newAccessIndex(s *Set) accessIndex {
	var inForce, dry []*PeerAuthentication
	for _, p := range s.PeerAuthentications {
		if p.DryRun() {
			dry = append(dry, p)
		} else {
			inForce = append(inForce, p)
		}
	}
	filters := make(map[string][]*portLimits)
	for _, p := range s.EnvoyFilters {
		filters[p.Namespace] = append(filters[p.Namespace], newPortLimits(p))
	}
	return accessIndex{
		peers: byNamespace(inForce), dryPeers: byNamespace(append(dry, inForce...)),
		authz: byNamespace(s.AuthorizationPolicies), requests: byNamespace(s.RequestAuthentications),
		servers: byNamespace(s.Servers), limits: byNamespace(s.RateLimits), filters: filters,
	}
}

func byNamespace[T interface{ Ref() Ref }](list []T) map[string][]T {
	out := make(map[string][]T)
	for _, o := range list {
		ns := o.Ref().Namespace
		out[ns] = append(out[ns], o)
	}
	return out
}

// selectsAll reports whether a selector selects every workload of its scope: one
// without labels is as good as none.
func selectsAll(s *selectors.WorkloadSelector) bool { return len(s.GetMatchLabels()) == 0 }

// accessNamespaces are those whose policies may select a workload of the namespace.
func accessNamespaces(namespace string) []string {
	if namespace == RootNamespace {
		return []string{RootNamespace}
	}
	return []string{RootNamespace, namespace}
}

// Mode of mutual TLS, as in PeerAuthentication.
type Mode = security.PeerAuthentication_MutualTLS_Mode

// PeerAuthenticationFor returns the mode of mutual TLS of a workload's port (that at
// the workload, not the service's), and the policy that decides it: nil for the
// default, PERMISSIVE. It is never UNSET.
//
// The policy that selects the workload decides before that of its namespace, and that
// before the mesh's, which is the one in RootNamespace; UNSET leaves the decision to
// the next. Of several in one place the oldest counts, and only that one. Modes of
// single ports come from the workload's policy alone. A policy with a selector in
// RootNamespace has no effect, and neither has a dry run.
// (https://istio.io/latest/docs/reference/config/security/peer_authentication/)
func (s *Set) PeerAuthenticationFor(labels map[string]string, namespace string, port uint32) (Mode, *PeerAuthentication) {
	return peerMode(s.lookup().access.peers, labels, namespace, port)
}

// PeerAuthenticationDryRunFor returns what PeerAuthenticationFor would if the dry runs
// took the place of the policies beside them: in one place a dry run counts before what
// is in force there. Without a dry run both return the same.
func (s *Set) PeerAuthenticationDryRunFor(labels map[string]string, namespace string, port uint32) (Mode, *PeerAuthentication) {
	return peerMode(s.lookup().access.dryPeers, labels, namespace, port)
}

// peerMode decides by the policies of each namespace, in their order.
func peerMode(peers map[string][]*PeerAuthentication, labels map[string]string, namespace string, port uint32) (Mode, *PeerAuthentication) {
	first := func(ns string, keep func(*PeerAuthentication) bool) *PeerAuthentication {
		if i := slices.IndexFunc(peers[ns], keep); i >= 0 {
			return peers[ns][i]
		}
		return nil
	}
	wide := func(p *PeerAuthentication) bool { return selectsAll(p.Spec.GetSelector()) }
	scopes := []*PeerAuthentication{first(RootNamespace, wide)}
	if namespace != RootNamespace {
		own := first(namespace, func(p *PeerAuthentication) bool {
			return !wide(p) && HasLabels(labels, p.Spec.GetSelector().GetMatchLabels())
		})
		if own != nil {
			if mode := own.Spec.GetPortLevelMtls()[port].GetMode(); mode != security.PeerAuthentication_MutualTLS_UNSET {
				return mode, own
			}
		}
		scopes = []*PeerAuthentication{own, first(namespace, wide), scopes[0]}
	}
	for _, p := range scopes {
		if p == nil {
			continue
		}
		if mode := p.Spec.GetMtls().GetMode(); mode != security.PeerAuthentication_MutualTLS_UNSET {
			return mode, p
		}
	}
	return security.PeerAuthentication_MutualTLS_PERMISSIVE, nil
}

// Authorization has the policies that apply to a workload, by what they do, in the
// order in which they are evaluated. Those of RootNamespace come first in each list.
type Authorization struct {
	Custom, Audit, Deny, Allow []*AuthorizationPolicy
	// Dry runs refuse nothing, and do not turn an empty Allow into a refusal.
	DryRunDeny, DryRunAllow []*AuthorizationPolicy
}

// DryRun reports whether the policy is evaluated but not enforced.
func (p *AuthorizationPolicy) DryRun() bool { return p.dryRun() }

// DryRun reports whether the policy is not in force: see Set.PeerAuthenticationDryRunFor.
func (p *PeerAuthentication) DryRun() bool { return p.dryRun() }

func (m *Meta) dryRun() bool {
	on, err := strconv.ParseBool(m.Annotations[dryRunAnnotation])
	return err == nil && on
}

// AuthorizationPoliciesFor returns the policies that apply to a workload: those of its
// namespace and of RootNamespace that select it.
// (https://istio.io/latest/docs/reference/config/security/authorization-policy/)
func (s *Set) AuthorizationPoliciesFor(labels map[string]string, namespace string) Authorization {
	x := s.lookup().access
	var out Authorization
	for _, ns := range accessNamespaces(namespace) {
		for _, p := range x.authz[ns] {
			if !HasLabels(labels, p.Spec.GetSelector().GetMatchLabels()) {
				continue
			}
			list := &out.Allow
			switch action := p.Spec.GetAction(); {
			case action == security.AuthorizationPolicy_CUSTOM:
				list = &out.Custom
			case action == security.AuthorizationPolicy_AUDIT:
				list = &out.Audit
			case action == security.AuthorizationPolicy_DENY && p.DryRun():
				list = &out.DryRunDeny
			case action == security.AuthorizationPolicy_DENY:
				list = &out.Deny
			case p.DryRun():
				list = &out.DryRunAllow
			}
			*list = append(*list, p)
		}
	}
	return out
}

// JWTRule is a rule of a RequestAuthentication that applies to a workload.
type JWTRule struct {
	Policy *RequestAuthentication
	Rule   *security.JWTRule
}

// RequestAuthenticationsFor returns the rules for tokens that apply to a workload, of
// all policies of its namespace and of RootNamespace that select it, by issuer; those
// of one issuer in the order of the policies, RootNamespace first.
// (https://istio.io/latest/docs/reference/config/security/request_authentication/)
func (s *Set) RequestAuthenticationsFor(labels map[string]string, namespace string) []JWTRule {
	x := s.lookup().access
	var out []JWTRule
	for _, ns := range accessNamespaces(namespace) {
		for _, p := range x.requests[ns] {
			if !HasLabels(labels, p.Spec.GetSelector().GetMatchLabels()) {
				continue
			}
			for _, r := range p.Spec.GetJwtRules() {
				out = append(out, JWTRule{p, r})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b JWTRule) int { return strings.Compare(a.Rule.GetIssuer(), b.Rule.GetIssuer()) })
	return out
}
