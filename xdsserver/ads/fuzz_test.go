package ads

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
)

// FuzzNameOf holds the quick reading of a resource's name against decoding all
// of it: where that works, both give the same.
func FuzzNameOf(f *testing.F) {
	for _, c := range []*clusterv3.Cluster{{}, {Name: "a"}, {Name: "a", AltStatName: "b"}} {
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		nameOf(b) // must not fail, whatever it reads
		c := &clusterv3.Cluster{}
		if proto.Unmarshal(b, c) != nil {
			return
		}
		// Encoded again, because a field that comes twice counts by its last occurrence, which this server never writes.
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := nameOf(again); got != c.GetName() {
			t.Fatalf("name %q, want %q", got, c.GetName())
		}
	})
}
