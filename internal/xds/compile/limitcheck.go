package compile

import ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"

// CheckRateLimit reports why Inbound would refuse a rate limit, as an *Error with the
// path of the field inside the message, so that whoever hands one out can refuse it
// before. One without a token bucket and descriptors limits nothing and is sound.
func CheckRateLimit(m *ratelimitv3.LocalRateLimit) error {
	f := unlisted(m.ProtoReflect())
	if f == nil && (m.GetTokenBucket() != nil || len(m.GetDescriptors()) > 0) {
		_, f = rateLimit("", m)
	}
	return f.of("LocalRateLimit", m.GetStatPrefix())
}
