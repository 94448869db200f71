package compile

import (
	"errors"
	"testing"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

func TestCheckRateLimit(t *testing.T) {
	for _, test := range []struct{ text, path string }{
		{`{"stat_prefix": "s"}`, ""},
		{`{` + perSecond("5") + `}`, ""},
		{`{"stat_prefix": "s", "local_cluster_rate_limit": {}}`, "local_cluster_rate_limit"},
		{`{"stat_prefix": "s", "token_bucket": {"max_tokens": 1}}`, "token_bucket.fill_interval"},
		{`{` + perSecond("5") + `, "rate_limits": [{"actions": [{"source_cluster": {}}]}]}`, "rate_limits[0].actions[0].source_cluster"},
	} {
		var m ratelimitv3.LocalRateLimit
		if err := protojson.Unmarshal([]byte(test.text), &m); err != nil {
			t.Fatal(err)
		}
		err := CheckRateLimit(&m)
		var refused *Error
		if errors.As(err, &refused); (err != nil) != (test.path != "") || refused != nil && refused.Path != test.path {
			t.Errorf("%s: %v, want an error at %q", test.text, err, test.path)
		}
		// What is refused here is refused in a listener, and the other way round.
		text := limitFilterOf("l", test.text[1:len(test.text)-1], "")
		if _, _, inErr := Inbound(listenerOf(t, guarded(text))); (inErr != nil) != (err != nil) {
			t.Errorf("%s: alone %v, in a listener %v", test.text, err, inErr)
		}
	}
}
