package policy

import (
	"maps"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var unmarshalJSON = protojson.Unmarshal

// specs makes an empty spec of every kind of Istio's that is read.
func specs() map[string]func() proto.Message {
	all := maps.Clone(newSpec)
	maps.Copy(all, newAccessSpec)
	return all
}
