package policy

import (
	"maps"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	mesh "istio.io/api/mesh/v1alpha1"
)

var unmarshalJSON = protojson.Unmarshal

// specs makes an empty spec of every kind of Istio's that is read.
func specs() map[string]func() proto.Message {
	all := maps.Clone(newSpec)
	maps.Copy(all, newAccessSpec)
	all[meshConfigKind] = func() proto.Message { return new(mesh.MeshConfig) }
	return all
}
