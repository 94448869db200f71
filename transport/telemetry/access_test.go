package telemetry

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/sinew-mesh/sinew/transport/inbound"
)

// counts returns a counter's series as "attributes = n", sorted.
func counts(t *testing.T, reader *sdk.ManualReader, name string) []string {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				var kv []string
				for _, a := range p.Attributes.ToSlice() {
					kv = append(kv, string(a.Key)+"="+a.Value.AsString())
				}
				out = append(out, fmt.Sprintf("%s = %d", strings.Join(kv, " "), p.Value))
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestAccessMetrics: each decision is counted by what it was, and its rule where
// it refused.
func TestAccessMetrics(t *testing.T) {
	reader := sdk.NewManualReader()
	tel, err := New(Options{MeterProvider: sdk.NewMeterProvider(sdk.WithReader(reader))})
	if err != nil {
		t.Fatal(err)
	}
	o := tel.InboundObserver()
	for _, out := range []inbound.Outcome{
		{Listener: "10.0.0.7:80", MutualTLS: true, Rule: "allow"},
		{Listener: "10.0.0.8:80", MutualTLS: true, Rule: "another"},
		{Reason: inbound.ReasonAuthorization, Rule: "deny"},
		{Reason: inbound.ReasonPlaintext},
		{Audited: "audit", StrictDryRun: "PeerAuthentication a/b", DryRun: true, DryRunRule: "shadow"},
		{DryRun: true, ExternalFailed: true},
	} {
		o.Decided(t.Context(), &out)
	}
	o.HandshakeFailed("10.0.0.7:80", "expired")
	o.HandshakeFailed("10.0.0.8:80", "expired")
	for name, want := range map[string][]string{
		"mesh.server.decisions": {
			"mesh.connection=mutual_tls mesh.decision=allowed = 2",
			"mesh.connection=plaintext mesh.decision=allowed = 2",
			"mesh.connection=plaintext mesh.decision=authorization mesh.rule=deny = 1",
			"mesh.connection=plaintext mesh.decision=plaintext = 1",
		},
		"mesh.server.audited":             {"mesh.rule=audit = 1"},
		"mesh.server.dry_run":             {"mesh.dry_run=authorization = 1", "mesh.dry_run=authorization mesh.rule=shadow = 1", "mesh.dry_run=mutual_tls mesh.rule=PeerAuthentication a/b = 1"},
		"mesh.server.authorizer_failures": {" = 1"},
		"mesh.server.handshake_failures":  {"mesh.rule=expired = 2"},
	} {
		if got := counts(t, reader, name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestAccessMetricsAreBounded: however many rules policy has had, there are so many series.
func TestAccessMetricsAreBounded(t *testing.T) {
	reader := sdk.NewManualReader()
	tel, err := New(Options{MeterProvider: sdk.NewMeterProvider(sdk.WithReader(reader), sdk.WithCardinalityLimit(0))})
	if err != nil {
		t.Fatal(err)
	}
	o := tel.InboundObserver()
	for i := range 3000 {
		rule := fmt.Sprintf("rule %d", i)
		o.Decided(t.Context(), &inbound.Outcome{Reason: inbound.ReasonAuthorization, Rule: rule, Audited: rule, DryRun: true, DryRunRule: rule, StrictDryRun: rule})
	}
	for _, name := range []string{"mesh.server.decisions", "mesh.server.audited", "mesh.server.dry_run"} {
		got := counts(t, reader, name)
		if len(got) < maxAccessSets || len(got) > maxAccessSets+4 {
			t.Errorf("%s has %d series", name, len(got))
		}
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "_OTHER") }) {
			t.Errorf("%s has none for the rest", name)
		}
	}
}
