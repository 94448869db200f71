package compile

import (
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
)

// TestInboundConcurrency: adaptive concurrency stands before all that decides, or after all of it.
func TestInboundConcurrency(t *testing.T) {
	bound := adaptive(gradientOf(`"interval": "60s"`))
	off := strings.Replace(bound, `"gradient_controller_config"`, `"enabled": {"default_value": false}, "gradient_controller_config"`, 1)
	disabled := strings.Replace(bound, `"name"`, `"disabled": true, "name"`, 1)
	other := strings.Replace(bound, `"adaptive"`, `"another"`, 1)
	deny := rbacFilter("deny", `"rules": `+policies("DENY", rule("d", anyone, anyone)))
	audit := rbacFilter("audit", `"rules": `+policies("LOG", rule("l", anyone, anyone)))
	nothing := rbacFilter("nothing", `"shadow_rules_stat_prefix": "x"`)
	limits := limitFilterOf("limit", perSecond("5"), "")
	jwt := jwtFilter(localKeysOf, needsP)
	for _, tt := range []struct {
		name    string
		filters []string
		present bool
		last    bool
	}{
		{"alone", []string{bound}, true, false},
		{"first", []string{bound, jwt, deny, limits}, true, false},
		{"first, but for one that does nothing", []string{nothing, bound, deny}, true, false},
		{"last", []string{jwt, deny, limits, bound}, true, true},
		{"last, but for one that does nothing", []string{deny, bound, nothing}, true, true},
		{"switched off anywhere", []string{audit, off, deny}, false, false},
		{"disabled anywhere", []string{audit, disabled, deny}, false, false},
		{"switched off beside one that is not", []string{off, deny, other}, true, true},
	} {
		c := guard(t, tt.filters...)
		if (c.Concurrency != nil) != tt.present || c.ConcurrencyLast != tt.last {
			t.Errorf("%s: %+v %v", tt.name, c.Concurrency, c.ConcurrencyLast)
		}
		if c.Concurrency != nil && (c.Concurrency.MaxLimit != 1000 || c.Concurrency.Status != 503 || c.Concurrency.Validate() != nil) {
			t.Errorf("%s: %+v", tt.name, c.Concurrency)
		}
	}
	const at = "filter_chains[0].filters[0].typed_config.http_filters"
	for _, tt := range []struct {
		name, path string
		filters    []string
	}{
		{"between", at + "[2].typed_config.rules", []string{audit, bound, deny}},
		{"before rate limits", at + "[2].typed_config", []string{deny, bound, limits}},
		{"twice", at + "[1].typed_config", []string{bound, other, deny}},
		{"first and last", at + "[2].typed_config", []string{bound, deny, other}},
		{"without its controller", at + "[0].typed_config.gradient_controller_config", []string{adaptive(`"enabled": {"default_value": true}`)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := Inbound(listenerOf(t, guarded(tt.filters...)))
			requirePath(t, err, tt.path)
		})
	}
	// A route can not leave it out: that would be a way around it.
	leftOut := strings.Replace(guarded(bound), `"non_forwarding_action": {}`,
		`"non_forwarding_action": {}, "typed_per_filter_config": {"adaptive": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}`, 1)
	_, _, err := Inbound(listenerOf(t, leftOut))
	requirePath(t, err, `filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].typed_per_filter_config["adaptive"]`)
}

// TestInboundHosts: how authorities are spelled.
func TestInboundHosts(t *testing.T) {
	for fields, want := range map[string]identity.HostOptions{
		``:                                   {},
		`"strip_trailing_host_dot": true, `:  {Dot: true},
		`"strip_matching_host_port": true, `: {Port: identity.StripOwnPort},
		`"strip_any_host_port": true, `:      {Port: identity.StripAnyPort},
		`"strip_any_host_port": true, "strip_trailing_host_dot": true, `:       {Port: identity.StripAnyPort, Dot: true},
		`"strip_any_host_port": false, "strip_matching_host_port": false, `:    {},
		`"strip_matching_host_port": true, "strip_trailing_host_dot": false, `: {Port: identity.StripOwnPort},
	} {
		_, in, err := Inbound(listenerOf(t, inboundOf(`"filter_chains": [`+chain(fields+everyInbound, "")+`]`)))
		if err != nil || in.Plain.Hosts != want {
			t.Errorf("%s: %+v, %v", fields, in, err)
		}
	}
}
