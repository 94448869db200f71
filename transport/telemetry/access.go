package telemetry

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/sinew-mesh/sinew/transport/inbound"
)

const (
	keyDecision   = attribute.Key("mesh.decision")
	keyConnection = attribute.Key("mesh.connection")
	keyRule       = attribute.Key("mesh.rule")
	keyDryRun     = attribute.Key("mesh.dry_run")
)

// maxAccessSets bounds the attribute sets of each access metric. Rules come
// with policy, and policy may change for as long as the process lives.
const maxAccessSets = 500

// access are the metrics of what policy decides on requests that come in.
type access struct {
	decisions, audited, dryRun, failedAuthorizers, handshakes metric.Int64Counter

	decided, audits, dryRuns, failures accessSets
}

func newAccess(counter func(name, unit, text string) metric.Int64Counter) access {
	return access{
		decisions:         counter("mesh.server.decisions", "{request}", "Requests that policy let in or refused, by reason."),
		audited:           counter("mesh.server.audited", "{request}", "Requests that an AUDIT rule matched."),
		dryRun:            counter("mesh.server.dry_run", "{request}", "Requests that policy in dry run would have refused."),
		failedAuthorizers: counter("mesh.server.authorizer_failures", "{request}", "Requests about which an external authorizer was asked and gave no answer."),
		handshakes:        counter("mesh.server.handshake_failures", "{handshake}", "TLS handshakes that failed, by the rule that refused."),
	}
}

// accessKey is what makes one attribute set of an access metric.
type accessKey struct {
	kind       string // decision, or what is in dry run
	rule       string
	mutualTLS  bool
	connection bool // whether mutualTLS is told
}

func (k accessKey) attributes(kind attribute.Key) []attribute.KeyValue {
	var kv []attribute.KeyValue
	if k.kind != "" {
		kv = append(kv, kind.String(k.kind))
	}
	if k.connection {
		word := "plaintext"
		if k.mutualTLS {
			word = "mutual_tls"
		}
		kv = append(kv, keyConnection.String(word))
	}
	if k.rule != "" {
		kv = append(kv, keyRule.String(k.rule))
	}
	return kv
}

// accessSets are attribute sets, made once each. Beyond the bound a rule is "_OTHER".
type accessSets struct {
	sets atomic.Pointer[map[accessKey][]metric.AddOption]
	mu   sync.Mutex // serialises changes of sets
}

func (s *accessSets) options(kind attribute.Key, key accessKey) []metric.AddOption {
	if sets := s.sets.Load(); sets != nil {
		if o := (*sets)[key]; o != nil {
			return o
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[accessKey][]metric.AddOption)
	if sets := s.sets.Load(); sets != nil {
		if len(*sets) >= maxAccessSets && key.rule != "" {
			key.rule = other
		}
		if o := (*sets)[key]; o != nil {
			return o
		}
		maps.Copy(next, *sets)
	}
	o := []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(key.attributes(kind)...))}
	next[key] = o
	s.sets.Store(&next)
	return o
}

// InboundObserver returns what an inbound engine reports its decisions to.
func (t *Telemetry) InboundObserver() inbound.Observer { return (*inboundObserver)(t) }

type inboundObserver Telemetry

const decisionAllowed = "allowed"

// Decided implements inbound.Observer.
func (t *inboundObserver) Decided(ctx context.Context, o *inbound.Outcome) {
	a := &t.access
	key := accessKey{kind: decisionAllowed, mutualTLS: o.MutualTLS, connection: true}
	if o.Reason != "" {
		// Which rule let a request in is no news; which one refused is.
		key.kind, key.rule = string(o.Reason), o.Rule
	}
	a.decisions.Add(ctx, 1, a.decided.options(keyDecision, key)...)
	if o.Audited != "" {
		a.audited.Add(ctx, 1, a.audits.options("", accessKey{rule: o.Audited})...)
	}
	if o.DryRun {
		a.dryRun.Add(ctx, 1, a.dryRuns.options(keyDryRun, accessKey{kind: "authorization", rule: o.DryRunRule})...)
	}
	if o.StrictDryRun != "" {
		a.dryRun.Add(ctx, 1, a.dryRuns.options(keyDryRun, accessKey{kind: "mutual_tls", rule: o.StrictDryRun})...)
	}
	if o.ExternalFailed {
		a.failedAuthorizers.Add(ctx, 1)
	}
}

// HandshakeFailed implements inbound.Observer.
func (t *inboundObserver) HandshakeFailed(_, rule string) {
	t.access.handshakes.Add(context.Background(), 1, t.access.failures.options("", accessKey{rule: rule})...)
}
