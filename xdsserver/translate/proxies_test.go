package translate

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// proxied is policy for a workload behind so many proxies, with one rule for the caller's address.
func proxied(t testing.TB, proxies int, rule string) *View {
	return NewView(&policy.Set{
		MeshConfig:            meshConfig(t, fmt.Sprintf("defaultConfig: {gatewayTopology: {numTrustedProxies: %d}}", proxies)),
		AuthorizationPolicies: []*policy.AuthorizationPolicy{authorizationPolicy(t, "default", "p", rule)},
	})
}

func TestTrustedProxiesOnTheWire(t *testing.T) {
	for _, proxies := range []int{0, 2} {
		for _, agent := range []Agent{Sinew, Other} {
			_, hcm, _ := inboundOf(t, proxied(t, proxies, "{}"), webListener, client(agent))
			if !hcm.GetUseRemoteAddress().GetValue() || hcm.GetXffNumTrustedHops() != uint32(proxies) {
				t.Errorf("%d proxies, %v: use_remote_address %v with %d hops", proxies, agent, hcm.GetUseRemoteAddress(), hcm.GetXffNumTrustedHops())
			}
		}
		// gRPC refuses a listener that counts proxies.
		_, hcm, r := inboundOf(t, proxied(t, proxies, "{}"), webListener, client(GRPC))
		if hcm.GetXffNumTrustedHops() != 0 || hcm.GetUseRemoteAddress() != nil || strings.Contains(fmt.Sprint(r.Notes), "AuthorizationPolicy") {
			t.Errorf("%d proxies, gRPC: %v, notes %v", proxies, hcm, r.Notes)
		}
	}
	for _, rule := range []string{
		`{rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}]}`, `{rules: [{from: [{source: {notRemoteIpBlocks: [192.0.2.0/24]}}]}]}`,
		`{action: DENY, rules: [{when: [{key: remote.ip, values: [192.0.2.0/24]}]}]}`,
	} {
		// Without proxies the caller is the other end of the connection, which gRPC knows.
		if _, _, r := inboundOf(t, proxied(t, 0, rule), webListener, client(GRPC)); strings.Contains(fmt.Sprint(r.Notes), "AuthorizationPolicy") {
			t.Errorf("%s: notes %v", rule, r.Notes)
		}
		_, err := proxied(t, 1, rule).Resource(ListenerType, webListener, client(GRPC))
		if !isWithheld(err) || !strings.Contains(err.Error(), "behind trusted proxies") {
			t.Errorf("%s behind a proxy: error %v", rule, err)
		}
	}
}

// TestTrustedProxiesDecide sends requests through the listener that our client makes of
// MeshConfig and a rule: what a caller writes into the header itself never counts.
func TestTrustedProxiesDecide(t *testing.T) {
	const peer, office = "10.0.0.5", "203.0.113.7"
	for _, c := range []struct {
		proxies   int
		forwarded []string
		caller    string // who the rules must take for the caller
	}{
		{0, nil, peer},
		{0, []string{office}, peer},
		{0, []string{office + ", 10.0.0.5"}, peer},
		{1, []string{office}, office},
		{1, []string{"198.51.100.1, " + office}, office},
		{1, []string{"198.51.100.1", office}, office},
		{1, []string{office + ", 198.51.100.1"}, "198.51.100.1"},
		{2, []string{office + ", 198.51.100.1"}, office},
		{2, []string{"192.0.2.9," + office, "198.51.100.1"}, office},
		// Fewer entries than proxies, or one that is no address: nobody trusted wrote them.
		{1, nil, peer},
		{2, []string{office}, peer},
		{1, []string{office + ":443"}, peer},
		{1, []string{office + ","}, peer},
		{4294967295, []string{office}, peer},
	} {
		for _, action := range []string{"ALLOW", "DENY"} {
			for _, rule := range []string{"from: [{source: {remoteIpBlocks: [%s/32]}}]", "when: [{key: remote.ip, values: [%s]}]", "from: [{source: {notRemoteIpBlocks: [%s]}}]"} {
				for _, named := range []string{peer, office, "198.51.100.1", "192.0.2.9"} {
					text := fmt.Sprintf("{action: %s, rules: [{"+rule+"}]}", action, named)
					want := (named == c.caller) != strings.Contains(rule, "not") == (action == "ALLOW")
					if got := admitted(t, proxied(t, c.proxies, text), peer, c.forwarded); got != want {
						t.Errorf("%d proxies, %q, %s: admitted %v, want %v", c.proxies, c.forwarded, text, got, want)
					}
				}
			}
		}
	}
}

// admitted sends a plaintext request to the engine that has the listener which our client compiles.
func admitted(t *testing.T, v *View, peer string, forwarded []string) bool {
	t.Helper()
	_, _, r := inboundOf(t, v, webListener, client(Sinew))
	_, in, err := compile.Inbound(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	defer e.Close()
	e.Install(&snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{"10.0.0.9:8080": in}})
	request := &inbound.Request{
		Local: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 8080}, Remote: netip.AddrPortFrom(netip.MustParseAddr(peer), 4711),
		Access: identity.AccessRequest{Request: routing.Request{Method: "GET", Scheme: "http", Authority: "web", Path: "/",
			Header: map[string][]string{"X-Forwarded-For": forwarded}}},
	}
	return e.Admit(context.Background(), request, &inbound.Admission{}) == nil
}
