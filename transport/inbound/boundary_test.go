package inbound

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// TestClaimHeadersAreTheTokens: without a token neither the caller nor an external
// authorizer can set a header in which claims are passed on.
func TestClaimHeadersAreTheTokens(t *testing.T) {
	_, keys := signer(t, "https://issuer.example")
	custom := set(identity.Custom, false, when("custom", identity.Any()))
	custom.Provider = "opa"
	d := newDesk(t, &snapshot.FilterChain{
		External:   &snapshot.ExternalAuthorizer{Provider: "opa", Host: "opa:80", HTTP: &snapshot.ExternalHTTP{UpstreamHeaders: []routing.StringMatch{routing.Prefix("x-", false)}}},
		Authorizer: sure(identity.NewAuthorizer(custom)),
		Tokens: &snapshot.Tokens{Authenticator: sure(identity.NewJWTAuthenticator(identity.JWTConfig{
			Providers: []identity.JWTProvider{{Name: "p", Keys: keys, ClaimHeaders: []identity.ClaimHeader{{Header: "X-Sub", Claim: "sub"}}}},
			Rules:     []identity.JWTRule{{Requires: ptr(identity.AllowMissing())}},
		}))},
	}, func(o *Options) {
		o.HTTP = transport(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{"X-Sub": {"mallory"}, "X-Opa": {"seen"}}, Request: r, Body: http.NoBody}, nil
		})
	})
	r := incoming("/", map[string][]string{"X-Sub": {"mallory"}})
	if err := d.Admit(t.Context(), r, new(Admission)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(r.Access.Header); got != "map[X-Opa:[seen]]" {
		t.Errorf("the handler gets %s", got)
	}
}

// TestRedirectToTheSafeSpelling keeps the query.
func TestRedirectToTheSafeSpelling(t *testing.T) {
	d := newDesk(t, &snapshot.FilterChain{Paths: identity.PathOptions{EscapedSlashes: identity.UnescapeSlashesAndRedirect}}, nil)
	for query, want := range map[string]string{"": "/a/b", "x=%2F": "/a/b?x=%2F"} {
		r := incoming("/a%2Fb", nil)
		r.Access.RawQuery = query
		var denied *DeniedError
		if err := d.Admit(t.Context(), r, new(Admission)); !errors.As(err, &denied) || denied.Reason != ReasonRedirect || len(denied.Header) != 1 || denied.Header[0] != (Header{"Location", want}) {
			t.Errorf("query %q: %+v, want a redirect to %s", query, err, want)
		}
	}
}

// TestWithoutParameter: a token that is not passed on goes from the query wherever it stands.
func TestWithoutParameter(t *testing.T) {
	for query, want := range map[string]string{
		"t=1&a=2&t=3": "a=2", "%74=1&t&a": "a", "t=1": "", "a=t&tt=1": "a=t&tt=1", "": "", "%zz=1&t=": "%zz=1",
	} {
		if got, changed := withoutParameter(query, "t"); got != want || changed != (got != query) {
			t.Errorf("%q: %q, changed %v, want %q", query, got, changed, want)
		}
	}
}
