package resilience

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sinew-mesh/sinew/routing"
)

// RateLimitConfig bounds how often requests are let through
// (envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit).
//
// A request is described by the Actions, each list of which makes at most one
// descriptor: a list of keys and values. A descriptor that is equal to one of
// Descriptors takes a token from that one's bucket. Every bucket that is
// selected must have one. A limit counts for one process, not for all replicas
// of a workload together.
type RateLimitConfig struct {
	// Name is what errors and telemetry call the limit (stat_prefix).
	Name string
	// Identity tells this configuration from others: buckets are kept as they
	// are where a later policy has a limit of the same Identity. "" keeps them
	// only as long as the very same RateLimit is in force.
	Identity string
	// Bucket is for requests that no descriptor matches; nil means none.
	Bucket *TokenBucket
	// OnlyUnmatched leaves Bucket alone where a descriptor has matched
	// (always_consume_default_token_bucket: false). By default both must let through.
	OnlyUnmatched bool
	Descriptors   []LimitDescriptor
	Actions       []LimitActions
	// Principals limits each identity on its own; nil does not.
	Principals *PrincipalLimit
	// MaxDynamic is the least number of values, for each descriptor with an open
	// entry, that have a bucket of their own at a time. Default 20 (Envoy). A
	// caller may keep more; those beyond share buckets.
	MaxDynamic uint32
	// Enabled is the share of requests that are counted at all, and Enforced the
	// share of these that are refused where there is no token. Both are 0 by
	// default (Envoy), so that nothing is limited until policy says so.
	Enabled, Enforced routing.Fraction
	// Status answers refused requests. Default 429; below 400 means 429 (Envoy).
	Status int
	// ResourceExhausted refuses gRPC calls with RESOURCE_EXHAUSTED. Default UNAVAILABLE (Envoy).
	ResourceExhausted bool
	// Headers adds X-RateLimit-Limit, -Remaining and -Reset to responses (draft-polli-ratelimit-headers-03).
	Headers bool
	// RetryAfter adds Retry-After, in seconds, to refusals with status 429.
	RetryAfter bool
	// OmitLimited leaves out "x-envoy-ratelimited: true" of refusals.
	OmitLimited bool
	// ResponseHeaders are added to refusals.
	ResponseHeaders []LimitHeader
	// RequestHeaders are added to requests that are over the limit and let
	// through, because the limit is not enforced on them.
	RequestHeaders []LimitHeader
}

// LimitHeader is a header to add. It takes the place of one that is there only with Replace.
type LimitHeader struct {
	Name, Value string
	Replace     bool
}

// LimitDescriptor is a bucket for the requests of one descriptor.
type LimitDescriptor struct {
	// Entries must be equal to the request's, in order. An entry with the value ""
	// is open: it takes every value, and each value has a bucket of its own.
	Entries []LimitEntry
	Bucket  TokenBucket
	// Shadow counts but refuses nothing.
	Shadow bool
}

// LimitEntry is one key and value of a descriptor.
type LimitEntry struct{ Key, Value string }

// LimitActions makes a descriptor of a request (envoy.config.route.v3.RateLimit):
// one entry for each action, in order. An action that finds nothing makes the
// whole descriptor fall away, unless it may be skipped.
type LimitActions struct {
	Actions []LimitAction
	// Hits is how many tokens a request takes. Default 1.
	Hits uint32
}

// LimitActionKind says what makes an entry.
type LimitActionKind uint8

const (
	// LimitGenericKey is the fixed Value under Key, "generic_key" by default.
	LimitGenericKey LimitActionKind = iota + 1
	// LimitRequestHeader is the first value of the header under Key. ":path" and other pseudo-headers count as headers.
	LimitRequestHeader
	// LimitQueryParameter is the first value of the parameter, decoded, under Key.
	LimitQueryParameter
	// LimitRemoteAddress is the client's address under "remote_address".
	LimitRemoteAddress
	// LimitMaskedAddress is the client's range of addresses under "masked_remote_address".
	LimitMaskedAddress
	// LimitHeaderMatch is Value where the headers match, under Key, "header_match" by default.
	LimitHeaderMatch
	// LimitQueryMatch is Value where the parameters match, under Key, "query_match" by default.
	LimitQueryMatch
	// LimitAddressMatch is Value where the client's address is in Ranges, under Key, "remote_address_match" by default.
	LimitAddressMatch
)

// LimitAction makes one entry of a descriptor (envoy.config.route.v3.RateLimit.Action).
// Which fields count depends on Kind.
type LimitAction struct {
	Kind       LimitActionKind
	Key, Value string
	// Header and Parameter are what is looked up.
	Header    routing.HeaderName
	Parameter string
	// SkipIfAbsent leaves the entry out where there is nothing, and keeps the descriptor.
	SkipIfAbsent bool
	// Invert asks that there is no match (expect_match: false).
	Invert bool
	// Headers must all match; so must Query. Values of parameters are compared decoded.
	Headers []routing.HeaderMatch
	Query   []routing.QueryMatch
	Ranges  []netip.Prefix
	// Bits4 and Bits6 are the lengths of masks. Envoy's defaults are 32 and 128.
	Bits4, Bits6 int
}

// PrincipalLimit bounds each SPIFFE identity on its own, as Linkerd's
// HTTPLocalRateLimitPolicy does. All peers without an identity are one.
type PrincipalLimit struct {
	// PerSecond is for identities without an override; 0 means no limit.
	PerSecond uint32
	Overrides []PrincipalOverride
}

// PrincipalOverride is a limit of its own that the identities share.
type PrincipalOverride struct {
	PerSecond  uint32
	Principals []string
}

// RateLimit is a RateLimitConfig that was checked. It is immutable and says
// which buckets a request takes tokens from; the buckets' levels are the caller's.
type RateLimit struct {
	config     RateLimitConfig
	slots      []Bucket
	unmatched  int            // slot of config.Bucket; -1: none
	exact      map[string]int // slot by the entries in encoded form
	open       []int          // descriptors with open entries, in order
	principal  int            // slot of the principals without an override; -1: none
	principals map[string]int // slot by principal
}

const (
	// The fields' defaults, as in Envoy.
	defaultMaxDynamic  = 20
	defaultLimitStatus = 429
	maxHits            = 1_000_000_000
	// Lists longer than these are mistakes or attacks, and a request walks through some of them.
	maxLimitActions     = 64
	maxLimitDescriptors = 10_000
)

// NewRateLimit checks a configuration and fills in defaults. The error names the field.
func NewRateLimit(c RateLimitConfig) (*RateLimit, error) {
	l := &RateLimit{config: c, unmatched: -1, principal: -1}
	if c.MaxDynamic == 0 {
		l.config.MaxDynamic = defaultMaxDynamic
	}
	if c.Status < 400 {
		l.config.Status = defaultLimitStatus
	} else if c.Status > 599 {
		return nil, fmt.Errorf("status: %d is no HTTP status", c.Status)
	}
	if len(c.Descriptors) > maxLimitDescriptors {
		return nil, fmt.Errorf("descriptors: there are %d, the limit is %d", len(c.Descriptors), maxLimitDescriptors)
	}
	if len(c.Actions) > maxLimitActions {
		return nil, fmt.Errorf("rate_limits: there are %d, the limit is %d", len(c.Actions), maxLimitActions)
	}
	if err := l.addDescriptors(); err != nil {
		return nil, err
	}
	if c.Bucket != nil {
		b, err := newBucket(*c.Bucket)
		if err != nil {
			return nil, fmt.Errorf("token_bucket.%w", err)
		}
		l.unmatched = len(l.slots)
		l.slots = append(l.slots, b)
	}
	if err := l.addPrincipals(); err != nil {
		return nil, err
	}
	if len(l.slots) == 0 {
		return nil, fmt.Errorf("token_bucket: there is none, nor a descriptor")
	}
	for i, list := range c.Actions {
		if err := list.check(); err != nil {
			return nil, fmt.Errorf("rate_limits[%d].%w", i, err)
		}
	}
	l.config.Actions = withDefaults(c.Actions)
	for _, list := range [][]LimitHeader{c.ResponseHeaders, c.RequestHeaders} {
		for _, h := range list {
			if err := h.check(); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

// addDescriptors makes slot i the bucket of descriptor i.
func (l *RateLimit) addDescriptors() error {
	l.exact = make(map[string]int)
	seen := make(map[string]bool)
	for i, d := range l.config.Descriptors {
		if len(d.Entries) == 0 {
			return fmt.Errorf("descriptors[%d].entries: there is none", i)
		}
		var key []byte
		open := false
		for j, e := range d.Entries {
			if e.Key == "" {
				return fmt.Errorf("descriptors[%d].entries[%d].key: is empty", i, j)
			}
			open = open || e.Value == ""
			key = appendEntry(key, e.Key, e.Value)
		}
		if seen[string(key)] {
			return fmt.Errorf("descriptors[%d].entries: another descriptor has the same", i)
		}
		seen[string(key)] = true
		b, err := newBucket(d.Bucket)
		if err != nil {
			return fmt.Errorf("descriptors[%d].token_bucket.%w", i, err)
		}
		l.slots = append(l.slots, b)
		if open {
			l.open = append(l.open, i)
		} else {
			l.exact[string(key)] = i
		}
	}
	return nil
}

func (l *RateLimit) addPrincipals() error {
	p := l.config.Principals
	if p == nil {
		return nil
	}
	if p.PerSecond > 0 {
		b, err := perSecond(p.PerSecond)
		if err != nil {
			return fmt.Errorf("identity_rate_limit.%w", err)
		}
		l.principal = len(l.slots)
		l.slots = append(l.slots, b)
	}
	l.principals = make(map[string]int)
	for i, o := range p.Overrides {
		if o.PerSecond == 0 {
			return fmt.Errorf("identity_rate_limit.overrides[%d].requests_per_second: is 0", i)
		}
		if len(o.Principals) == 0 {
			return fmt.Errorf("identity_rate_limit.overrides[%d].principals: there is none", i)
		}
		b, err := perSecond(o.PerSecond)
		if err != nil {
			return fmt.Errorf("identity_rate_limit.overrides[%d].%w", i, err)
		}
		for j, id := range o.Principals {
			if _, ok := l.principals[id]; ok || id == "" {
				return fmt.Errorf("identity_rate_limit.overrides[%d].principals[%d]: %q is empty or occurs twice", i, j, id)
			}
			l.principals[id] = len(l.slots)
		}
		l.slots = append(l.slots, b)
	}
	if p.PerSecond == 0 && len(p.Overrides) == 0 {
		return fmt.Errorf("identity_rate_limit: says nothing")
	}
	return nil
}

func perSecond(n uint32) (Bucket, error) {
	return newBucket(TokenBucket{MaxTokens: n, TokensPerFill: n, FillInterval: time.Second})
}

func (a *LimitActions) check() error {
	if len(a.Actions) == 0 {
		return fmt.Errorf("actions: there is none")
	}
	if len(a.Actions) > maxLimitActions {
		return fmt.Errorf("actions: there are %d, the limit is %d", len(a.Actions), maxLimitActions)
	}
	if a.Hits > maxHits {
		return fmt.Errorf("hits_addend: %d is more than %d", a.Hits, maxHits)
	}
	for i := range a.Actions {
		if err := a.Actions[i].check(); err != nil {
			return fmt.Errorf("actions[%d].%w", i, err)
		}
	}
	return nil
}

func (a *LimitAction) check() error {
	switch a.Kind {
	case LimitGenericKey:
		if a.Value == "" {
			return fmt.Errorf("generic_key.descriptor_value: is empty")
		}
	case LimitRequestHeader:
		if a.Header.String() == "" || a.Key == "" {
			return fmt.Errorf("request_headers: header_name or descriptor_key is empty")
		}
	case LimitQueryParameter:
		if a.Parameter == "" || a.Key == "" {
			return fmt.Errorf("query_parameters: query_parameter_name or descriptor_key is empty")
		}
	case LimitRemoteAddress:
	case LimitMaskedAddress:
		if a.Bits4 < 0 || a.Bits4 > 32 || a.Bits6 < 0 || a.Bits6 > 128 {
			return fmt.Errorf("masked_remote_address: a mask of %d or %d bits is too long", a.Bits4, a.Bits6)
		}
	case LimitHeaderMatch:
		if a.Value == "" || len(a.Headers) == 0 {
			return fmt.Errorf("header_value_match: descriptor_value or headers is empty")
		}
	case LimitQueryMatch:
		if a.Value == "" || len(a.Query) == 0 {
			return fmt.Errorf("query_parameter_value_match: descriptor_value or query_parameters is empty")
		}
	case LimitAddressMatch:
		if a.Value == "" || len(a.Ranges) == 0 {
			return fmt.Errorf("remote_address_match: descriptor_value or ranges is empty")
		}
		// Unlike the others' values this one is a format in Envoy.
		if strings.Contains(a.Value, "%") {
			return fmt.Errorf("remote_address_match.descriptor_value: a format is not supported")
		}
		for _, p := range a.Ranges {
			if !p.IsValid() {
				return fmt.Errorf("remote_address_match: a range is not valid")
			}
		}
	default:
		return fmt.Errorf("action_specifier: is not set")
	}
	return nil
}

func withDefaults(lists []LimitActions) []LimitActions {
	names := map[LimitActionKind]string{
		LimitGenericKey: "generic_key", LimitRemoteAddress: "remote_address", LimitMaskedAddress: "masked_remote_address",
		LimitHeaderMatch: "header_match", LimitQueryMatch: "query_match", LimitAddressMatch: "remote_address_match",
	}
	out := make([]LimitActions, len(lists))
	for i, list := range lists {
		out[i] = LimitActions{Actions: slices.Clone(list.Actions), Hits: max(list.Hits, 1)}
		for j := range out[i].Actions {
			a := &out[i].Actions[j]
			if a.Key == "" || a.Kind == LimitRemoteAddress || a.Kind == LimitMaskedAddress {
				a.Key = names[a.Kind]
			}
		}
	}
	return out
}

func (h *LimitHeader) check() error {
	if h.Name == "" || h.Name[0] == ':' || strings.EqualFold(h.Name, "host") {
		return fmt.Errorf("headers_to_add: %q can not be added", h.Name)
	}
	for i := 0; i < len(h.Name); i++ {
		if c := h.Name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return fmt.Errorf("headers_to_add: %q is not a header's name", h.Name)
		}
	}
	for i := 0; i < len(h.Value); i++ {
		if c := h.Value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("headers_to_add: the value of %q has a control character", h.Name)
		}
	}
	// In Envoy it begins a format, whose meaning would be lost.
	if strings.Contains(h.Value, "%") {
		return fmt.Errorf("headers_to_add: the value of %q has a format", h.Name)
	}
	return nil
}

// Config returns the configuration with its defaults filled in, which the caller must not change.
func (l *RateLimit) Config() *RateLimitConfig { return &l.config }
