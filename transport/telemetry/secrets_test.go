package telemetry

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// TestSecretsInURLs: a credential in a URL, wherever it stands and however it is
// spelled, is not in the URL that spans show.
func TestSecretsInURLs(t *testing.T) {
	const canary = "canary9f3b"
	r := rand.New(rand.NewPCG(1, 51))
	// Who knows only the usual names in their usual spelling.
	careless := regexp.MustCompile(`((?:^|[?&])(?:token|access_token|password|api_key)=)[^&]*`)
	shows := func(u string) bool {
		for range 5 {
			if strings.Contains(u, canary) {
				return true
			}
			plain, err := url.QueryUnescape(u)
			if err != nil || plain == u {
				return false
			}
			u = plain
		}
		return false
	}
	caught := 0
	for range 400 {
		key := []string{"token", "access_token", "id_token", "client_secret", "password", "passwd", "X-Amz-Signature", "X-Amz-Security-Token", "sig", "api_key", "apikey", "code", "key", "auth", "session_id", "jwt"}[r.IntN(16)]
		spelled := ""
		for _, c := range key {
			switch r.IntN(6) {
			case 0:
				spelled += strings.ToUpper(string(c))
			case 1:
				spelled += fmt.Sprintf("%%%02x", c)
			default:
				spelled += string(c)
			}
		}
		query := spelled + "=" + canary
		for range r.IntN(3) { // as the value of a URL in a parameter
			query = "next=" + url.QueryEscape("https://b.example/?"+query)
		}
		for range r.IntN(3) {
			more := []string{"a=1", "b", "=", "c=%zz", "token"}[r.IntN(5)]
			if separator := []string{"&", ";", "&&", "?"}[r.IntN(4)]; r.IntN(2) == 0 {
				query = more + separator + query
			} else {
				query += separator + more
			}
		}
		authority := []string{"a.example", canary + "@a.example", "user:" + canary + "@a.example", canary + ":@" + "a.example:80", "x@" + canary + "@a.example", ":" + canary + "@[::1]"}[r.IntN(6)]
		if got := fullURL("https", authority, "/p", query); shows(got) {
			t.Errorf("%s?%s is shown as %s", authority, query, got)
		}
		if shows("https://" + authority + "/p?" + careless.ReplaceAllString(query, "${1}REDACTED")) {
			caught++
		}
	}
	if caught < 100 {
		t.Errorf("who knows the usual names only shows %d: too few", caught)
	}
	t.Logf("400 URLs; who knows the usual names only shows %d", caught)
}
