package identity

import (
	"fmt"
	"slices"
	"strings"
)

// Action is what a set of rules does with the requests that one of them matches.
type Action uint8

const (
	Allow  Action = iota // lets them through, and refuses all others
	Deny                 // refuses them
	Audit                // notes them, and lets them through (Envoy's LOG)
	Custom               // has an external authorizer decide on them
)

func (a Action) String() string {
	switch a {
	case Allow:
		return "ALLOW"
	case Deny:
		return "DENY"
	case Audit:
		return "AUDIT"
	case Custom:
		return "CUSTOM"
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Rule is one rule of access (envoy.config.rbac.v3.Policy): it matches a
// request for which one of the permissions and one of the principals hold.
type Rule struct {
	// Name is what decisions name, as "ns[default]-policy[payment]-rule[0]" in Istio's resources.
	Name        string
	Permissions []Condition
	Principals  []Condition
}

func (r *Rule) matches(q *AccessRequest, path string, lenient bool) bool {
	return anyHolds(r.Permissions, q, path, lenient) && anyHolds(r.Principals, q, path, lenient)
}

func anyHolds(conditions []Condition, q *AccessRequest, path string, lenient bool) bool {
	for i := range conditions {
		if conditions[i].holds(q, path, lenient) {
			return true
		}
	}
	return false
}

// RuleSet is rules with one action, compiled. It is immutable.
//
// A request is compared only with rules that it can match: those that name its
// principal, the namespace of its principal, its path or a prefix of its path,
// and those that name none of these outside a Not.
type RuleSet struct {
	// Provider names the external authorizer of a CUSTOM set.
	Provider string

	action Action
	dryRun bool
	rules  []Rule // by name

	principals map[string][]int32
	namespaces map[string][]int32
	paths      map[string][]int32
	prefixes   prefixIndex
	always     []int32
}

// NewRuleSet compiles rules. An ALLOW set without rules refuses every request,
// as Istio's `spec: {}`; a set of another action without rules does nothing.
// With dryRun, for ALLOW and DENY, the set decides nothing but what Decision.DryRun says.
//
// A rule without permissions or principals, a condition that is not set and two
// rules of one name are errors: a rule is never narrowed, widened or dropped.
func NewRuleSet(action Action, dryRun bool, rules []Rule) (*RuleSet, error) {
	if action > Custom {
		return nil, fmt.Errorf("action %d is unknown", action)
	}
	if dryRun && action != Allow && action != Deny {
		return nil, fmt.Errorf("a dry run of %s rules has no meaning", action)
	}
	s := &RuleSet{action: action, dryRun: dryRun, rules: slices.Clone(rules)}
	slices.SortFunc(s.rules, func(a, b Rule) int { return strings.Compare(a.Name, b.Name) })
	for i := range s.rules {
		r := &s.rules[i]
		if i > 0 && r.Name == s.rules[i-1].Name {
			return nil, fmt.Errorf("two rules are named %q", r.Name)
		}
		if err := checkConditions("permission", r.Permissions); err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Name, err)
		}
		if err := checkConditions("principal", r.Principals); err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Name, err)
		}
	}
	s.index()
	return s, nil
}

func checkConditions(what string, conditions []Condition) error {
	if len(conditions) == 0 {
		return fmt.Errorf("has no %s", what)
	}
	for i := range conditions {
		if conditions[i].kind == conditionUnset {
			return fmt.Errorf("%s %d is not set", what, i)
		}
	}
	return nil
}

// Action returns what the set does.
func (s *RuleSet) Action() Action { return s.action }

// Len returns the number of rules.
func (s *RuleSet) Len() int { return len(s.rules) }

// match returns the first rule by name that matches the request; -1 if none does.
func (s *RuleSet) match(r *AccessRequest, path string) int32 {
	lenient := s.action != Allow
	best := s.first(s.always, int32(len(s.rules)), r, path, lenient)
	if r.Principal != "" {
		best = s.first(s.principals[r.Principal], best, r, path, lenient)
		if len(s.namespaces) > 0 {
			for rest := r.Principal; ; {
				at := strings.Index(rest, "/ns/")
				if at < 0 {
					break
				}
				end := strings.IndexByte(rest[at+4:], '/')
				if end < 0 {
					break
				}
				best = s.first(s.namespaces[rest[at:at+4+end+1]], best, r, path, lenient)
				rest = rest[at+3:] // the slash may begin the next
			}
		}
	}
	best = s.first(s.paths[path], best, r, path, lenient)
	for i := s.prefixes.longest(path); i >= 0; i = s.prefixes.shorter[i] {
		best = s.first(s.prefixes.rules[i], best, r, path, lenient)
	}
	if best == int32(len(s.rules)) {
		return -1
	}
	return best
}

// first returns the first rule of the list that matches, if it comes before best.
func (s *RuleSet) first(list []int32, best int32, r *AccessRequest, path string, lenient bool) int32 {
	for _, i := range list {
		if i >= best {
			break
		}
		if s.rules[i].matches(r, path, lenient) {
			return i
		}
	}
	return best
}

// indexKey is something that a request must have for a rule to match it.
type indexKey struct {
	kind conditionKind // conditionPrincipalExact, conditionNamespace, conditionPathExact or conditionPathPrefix
	text string
}

func (c *Condition) key() (indexKey, bool) {
	switch c.kind {
	case conditionPrincipalExact, conditionNamespace, conditionPathExact, conditionPathPrefix:
		return indexKey{c.kind, c.text}, true
	}
	return indexKey{}, false
}

// count adds one for each key in the condition.
func (c *Condition) count(uses map[indexKey]int) {
	if k, ok := c.key(); ok {
		uses[k]++
	}
	if c.kind != conditionNot {
		for i := range c.parts {
			c.parts[i].count(uses)
		}
	}
}

// keys returns keys of which a request must have one to fulfil the condition,
// and how many rules share them; cost is negative if there are no such keys.
func (c *Condition) keys(uses map[indexKey]int) (keys []indexKey, cost int) {
	if k, ok := c.key(); ok {
		cost := uses[k]
		if k.kind == conditionPathPrefix {
			// A prefix is shared by many paths: prefer what names one.
			cost *= 2
			if len(k.text) < 2 {
				cost += len(uses) // nearly every path has it
			}
		}
		return []indexKey{k}, cost
	}
	switch c.kind {
	case conditionAll:
		cost = -1
		for i := range c.parts {
			if k, n := c.parts[i].keys(uses); n >= 0 && (cost < 0 || n < cost) {
				keys, cost = k, n
			}
		}
		return keys, cost
	case conditionOneOf:
		return keysOfAny(c.parts, uses)
	}
	return nil, -1
}

func keysOfAny(conditions []Condition, uses map[indexKey]int) (keys []indexKey, cost int) {
	for i := range conditions {
		k, n := conditions[i].keys(uses)
		if n < 0 {
			return nil, -1
		}
		keys, cost = append(keys, k...), cost+n
	}
	return keys, cost
}

func (s *RuleSet) index() {
	uses := make(map[indexKey]int)
	for i := range s.rules {
		for j := range s.rules[i].Permissions {
			s.rules[i].Permissions[j].count(uses)
		}
		for j := range s.rules[i].Principals {
			s.rules[i].Principals[j].count(uses)
		}
	}
	s.principals, s.namespaces, s.paths = make(map[string][]int32), make(map[string][]int32), make(map[string][]int32)
	prefixes := make(map[string][]int32)
	for i := range s.rules {
		keys, cost := keysOfAny(s.rules[i].Permissions, uses)
		if k, n := keysOfAny(s.rules[i].Principals, uses); n >= 0 && (cost < 0 || n < cost) {
			keys, cost = k, n
		}
		if cost < 0 {
			s.always = append(s.always, int32(i))
			continue
		}
		for _, k := range keys {
			m := map[conditionKind]map[string][]int32{
				conditionPrincipalExact: s.principals, conditionNamespace: s.namespaces, conditionPathExact: s.paths, conditionPathPrefix: prefixes,
			}[k.kind]
			if list := m[k.text]; len(list) == 0 || list[len(list)-1] != int32(i) {
				m[k.text] = append(list, int32(i))
			}
		}
	}
	s.prefixes = newPrefixIndex(prefixes)
}

// prefixIndex finds the texts that a path begins with. They are sorted; those
// that a path begins with are the longest of them and then its own prefixes,
// which shorter links.
type prefixIndex struct {
	texts   []string
	shorter []int32 // the longest other text that this one begins with; -1 if there is none
	rules   [][]int32
}

func newPrefixIndex(prefixes map[string][]int32) prefixIndex {
	var x prefixIndex
	for text := range prefixes {
		x.texts = append(x.texts, text)
	}
	slices.Sort(x.texts)
	for i, text := range x.texts {
		before := int32(i) - 1
		for before >= 0 && !strings.HasPrefix(text, x.texts[before]) {
			before = x.shorter[before]
		}
		x.shorter = append(x.shorter, before)
		x.rules = append(x.rules, prefixes[text])
	}
	return x
}

// longest returns the longest text that the path begins with; -1 if there is none.
func (x *prefixIndex) longest(path string) int32 {
	// Every text that the path begins with sorts at or before the path, and the
	// last text that does begins with it as well.
	i, found := slices.BinarySearch(x.texts, path)
	at := int32(i)
	if !found {
		at--
	}
	for at >= 0 && !strings.HasPrefix(path, x.texts[at]) {
		at = x.shorter[at]
	}
	return at
}
