package translate

import (
	"strings"
	"testing"
)

// TestPrivateKeysStay: of a private key that stands in a policy by mistake only the public half is sent.
func TestPrivateKeysStay(t *testing.T) {
	const public = `{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"AQ","y":"Ag"}]}`
	if got := publicKeys(public); got != public {
		t.Errorf("a public set became %s", got)
	}
	got := publicKeys(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"AQ","y":"Ag","d":"SECRET"},` +
		`{"kty":"RSA","n":"AQ","e":"AQAB","d":"SECRET","p":"SECRET","q":"SECRET","dp":"SECRET","dq":"SECRET","qi":"SECRET","oth":[{"r":"SECRET"}]},` +
		`{"kty":"oct","k":"SECRET"}],"more":1}`)
	if strings.Contains(got, "SECRET") {
		t.Errorf("sent: %s", got)
	}
	for _, kept := range []string{`"x":"AQ"`, `"kid":"a"`, `"n":"AQ"`, `"more":1`} {
		if !strings.Contains(got, kept) {
			t.Errorf("%s is gone: %s", kept, got)
		}
	}
	for _, other := range []string{"", "none", "[]", `{"keys":1}`, `{}`} {
		if got := publicKeys(other); got != other {
			t.Errorf("%q became %q", other, got)
		}
	}
}
