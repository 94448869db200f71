package meshgrpc

import (
	"encoding/base64"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"
)

// binarySuffix is the end of the names whose values gRPC carries in base64 and gives
// to handlers decoded.
const binarySuffix = "-bin"

// onTheWire returns metadata as rules see it. Its map and slices may be md's
// own. The pseudo-header that gRPC keeps among it is no header, and a binary
// value has one spelling, whichever of those that base64 allows was sent:
// else two spellings of what a handler can not tell apart would be two to the rules.
func onTheWire(md metadata.MD) map[string][]string {
	_, authority := md[":authority"]
	encode := false
	for name := range md {
		encode = encode || strings.HasSuffix(name, binarySuffix)
	}
	if !authority && !encode {
		return md
	}
	wire := make(map[string][]string, len(md))
	for name, values := range md {
		switch {
		case name == ":authority":
			continue
		case strings.HasSuffix(name, binarySuffix):
			encoded := make([]string, len(values))
			for i, v := range values {
				encoded[i] = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			values = encoded
		}
		wire[name] = values
	}
	return wire
}

// offTheWire returns the metadata that the handler is given, of the headers as
// policy has left them. before is what onTheWire made of md. A binary value
// that policy has set is the handler's as it is where it is not base64.
func offTheWire(header, before map[string][]string, md metadata.MD) metadata.MD {
	out := make(metadata.MD, len(header)+1)
	if authority, ok := md[":authority"]; ok {
		out[":authority"] = authority
	}
	for name, values := range header {
		lower := strings.ToLower(name)
		if !strings.HasSuffix(lower, binarySuffix) {
			out[lower] = append(out[lower], values...)
			continue
		}
		if slices.Equal(values, before[name]) {
			out[lower] = md[name]
			continue
		}
		for _, v := range values {
			if b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "=")); err == nil {
				v = string(b)
			}
			out[lower] = append(out[lower], v)
		}
	}
	return out
}
