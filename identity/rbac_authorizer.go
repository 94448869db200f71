package identity

import (
	"fmt"
	"strings"
)

// Refusal says why a request is refused.
type Refusal uint8

const (
	NotRefused    Refusal = iota
	RefusedByRule         // a DENY rule matches
	RefusedByNone         // there are ALLOW rules and none matches
	RefusedByPath         // the path has a "?" or "#" in it: what the handler would take it for is unknown
)

func (r Refusal) String() string {
	switch r {
	case RefusedByRule:
		return "a DENY rule matches"
	case RefusedByNone:
		return "no ALLOW rule matches"
	case RefusedByPath:
		return "the path is not a path"
	}
	return "not refused"
}

// Decision is what the rules say about a request. It holds names of rules only,
// nothing of the request, so it can be logged and counted.
type Decision struct {
	Allowed bool
	// Reason is why the request is refused.
	Reason Refusal
	// Rule is the name of the rule that decided: the DENY rule that refused, or
	// the ALLOW rule that let the request through; "" if there was none.
	Rule string
	// Audited is the name of the first AUDIT rule that matches; "" if none does.
	Audited string
	// DryRun is what the decision would be if the dry-run sets were in force
	// as well.
	DryRun DryRunDecision
}

// DryRunDecision is a decision that is not in force.
type DryRunDecision struct {
	// Ran reports whether there are any dry-run sets.
	Ran bool
	// Refused reports whether the request would be refused, and Reason and Rule why.
	Refused bool
	Reason  Refusal
	Rule    string
}

// String says the decision in words.
func (d *Decision) String() string {
	if d.Allowed {
		if d.Rule == "" {
			return "allowed: no rule refuses it"
		}
		return fmt.Sprintf("allowed by rule %q", d.Rule)
	}
	if d.Rule == "" {
		return "refused: " + d.Reason.String()
	}
	return fmt.Sprintf("refused: %s, %q", d.Reason, d.Rule)
}

// Authorizer decides on requests by all the sets of rules that select a
// workload. It is immutable. The zero value lets everything through.
type Authorizer struct {
	custom             *RuleSet
	audit, deny, allow []*RuleSet
	dryDeny, dryAllow  []*RuleSet
}

// NewAuthorizer puts sets together. Their order does not matter: an AUDIT set
// is asked first, then DENY, then ALLOW, as Istio does. Several sets of one
// action must all let a request through. More than one CUSTOM set is an error
// (Istio allows one provider for a workload).
func NewAuthorizer(sets ...*RuleSet) (*Authorizer, error) {
	a := &Authorizer{}
	for _, s := range sets {
		switch {
		case s == nil:
			return nil, fmt.Errorf("a set of rules is not set")
		case s.action == Custom && a.custom != nil:
			return nil, fmt.Errorf("there are two sets of CUSTOM rules")
		case s.action == Custom:
			a.custom = s
		case s.action == Audit:
			a.audit = append(a.audit, s)
		case s.action == Deny && s.dryRun:
			a.dryDeny = append(a.dryDeny, s)
		case s.action == Deny:
			a.deny = append(a.deny, s)
		case s.dryRun:
			a.dryAllow = append(a.dryAllow, s)
		default:
			a.allow = append(a.allow, s)
		}
	}
	return a, nil
}

// readings returns the two readings of the path; they are often the same.
func (r *AccessRequest) readings() (path, other string) {
	if r.DecodedPath == "" {
		return r.Path, r.Path
	}
	return r.Path, r.DecodedPath
}

// Custom reports whether an external authorizer has to be asked about the
// request, which one, and by which rule. It comes before tokens are verified,
// so that r.Claims plays no part, and its answer does not replace Decide.
func (a *Authorizer) Custom(r *AccessRequest) (provider, rule string, ask bool) {
	if a.custom == nil {
		return "", "", false
	}
	rule, ask = a.custom.either(r)
	return a.custom.Provider, rule, ask
}

// either returns the rule that matches under one of the readings of the path.
func (s *RuleSet) either(r *AccessRequest) (rule string, ok bool) {
	path, other := r.readings()
	i := s.match(r, path)
	if i < 0 && other != path {
		i = s.match(r, other)
	}
	if i < 0 {
		return "", false
	}
	return s.rules[i].Name, true
}

// both returns the rule that matches the path, if one matches its other reading too.
func (s *RuleSet) both(r *AccessRequest) (rule string, ok bool) {
	path, other := r.readings()
	i := s.match(r, path)
	if i < 0 || other != path && s.match(r, other) < 0 {
		return "", false
	}
	return s.rules[i].Name, true
}

// Decide decides on the request: it is refused if a DENY rule matches, or if
// there are ALLOW sets and no rule of one of them matches. It does not allocate.
func (a *Authorizer) Decide(r *AccessRequest) Decision {
	var d Decision
	for _, s := range a.audit {
		if rule, ok := s.either(r); ok {
			d.Audited = rule
			break
		}
	}
	ruled := len(a.deny)+len(a.allow)+len(a.dryDeny)+len(a.dryAllow) > 0
	if ruled && (strings.IndexByte(r.Path, '?') >= 0 || strings.IndexByte(r.Path, '#') >= 0) {
		d.Reason = RefusedByPath
		return d
	}
	denied, deniedBy := firstMatch(a.deny, r)
	allowed, allowedBy := allMatch(a.allow, r)
	switch {
	case denied:
		d.Reason, d.Rule = RefusedByRule, deniedBy
	case !allowed:
		d.Reason = RefusedByNone
	default:
		d.Allowed, d.Rule = true, allowedBy
	}
	if len(a.dryDeny)+len(a.dryAllow) > 0 {
		d.DryRun = a.dryRun(r, denied, deniedBy, allowed)
	}
	return d
}

// dryRun decides as if the dry-run sets were in force beside the others: a
// request that an ALLOW rule in force lets through needs no second one.
func (a *Authorizer) dryRun(r *AccessRequest, denied bool, deniedBy string, allowed bool) DryRunDecision {
	d := DryRunDecision{Ran: true}
	if !denied {
		denied, deniedBy = firstMatch(a.dryDeny, r)
	}
	if len(a.dryAllow) > 0 && (!allowed || len(a.allow) == 0) {
		allowed, _ = allMatch(a.dryAllow, r)
	}
	switch {
	case denied:
		d.Refused, d.Reason, d.Rule = true, RefusedByRule, deniedBy
	case !allowed:
		d.Refused, d.Reason = true, RefusedByNone
	}
	return d
}

func firstMatch(sets []*RuleSet, r *AccessRequest) (bool, string) {
	for _, s := range sets {
		if rule, ok := s.either(r); ok {
			return true, rule
		}
	}
	return false, ""
}

func allMatch(sets []*RuleSet, r *AccessRequest) (ok bool, rule string) {
	for _, s := range sets {
		if rule, ok = s.both(r); !ok {
			return false, ""
		}
	}
	return true, rule
}
