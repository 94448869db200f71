package policy

import "google.golang.org/protobuf/encoding/protojson"

var unmarshalJSON = protojson.Unmarshal
