package inbound

import (
	"context"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// TestTrustedHops: rules on the caller's address see what trusted proxies wrote, and
// nothing that anybody else can have written.
func TestTrustedHops(t *testing.T) {
	caller := identity.Rule{Name: "caller", Permissions: []identity.Condition{identity.Any()},
		Principals: []identity.Condition{sure(identity.RemoteIPIn(sure(identity.CIDR("203.0.113.0", 24))))}}
	peer := identity.Rule{Name: "peer", Permissions: []identity.Condition{identity.Any()},
		Principals: []identity.Condition{sure(identity.RemoteIPIn(sure(identity.CIDR("10.9.0.1", 32))))}}
	for _, c := range []struct {
		hops      int
		forwarded []string
		rule      string // the rule that takes the request; "" for none
	}{
		{0, nil, "peer"},
		{0, []string{"203.0.113.7"}, "peer"},
		{1, nil, "peer"},
		{1, []string{"203.0.113.7"}, "caller"},
		{1, []string{"203.0.113.7, 192.0.2.1"}, ""},
		{1, []string{"192.0.2.1", "203.0.113.7"}, "caller"},
		{2, []string{"203.0.113.7, 192.0.2.1"}, "caller"},
		{2, []string{"203.0.113.7"}, "peer"},
		{1, []string{"unknown"}, "peer"},
	} {
		for _, form := range []routing.HeaderForm{routing.CanonicalHeaders, routing.LowerHeaders} {
			d := newDesk(t, &snapshot.FilterChain{TrustedHops: c.hops, Authorizer: sure(identity.NewAuthorizer(set(identity.Allow, false, caller, peer)))}, nil)
			name := "X-Forwarded-For"
			if form == routing.LowerHeaders {
				name = strings.ToLower(name)
			}
			r := incoming("/", map[string][]string{name: c.forwarded})
			r.Access.Form = form
			var a Admission
			err := d.Admit(context.Background(), r, &a)
			if got := d.seen.list[0].Rule; (err == nil) != (c.rule != "") || err == nil && got != c.rule {
				t.Errorf("%d hops, %q: taken by %q, want %q: %v", c.hops, c.forwarded, got, c.rule, err)
			}
			if d.Close(); a.HeaderChanged {
				t.Errorf("%d hops, %q: the header is changed", c.hops, c.forwarded)
			}
		}
	}
}
