package outbound

import "testing"

// TestPlace: a place has what is known of it, and says nothing twice.
func TestPlace(t *testing.T) {
	for name, test := range map[string]struct {
		place Place
		want  string
	}{
		"host alone":             {Place{Host: "a:80"}, "a:80"},
		"host of the mesh":       {Place{Host: "a:80", Route: "r", Cluster: "c", Endpoint: "10.0.0.1:80"}, "a:80 route=r cluster=c endpoint=10.0.0.1:80"},
		"no endpoint yet":        {Place{Host: "a:80", Route: "r", Cluster: "c"}, "a:80 route=r cluster=c"},
		"outside the mesh":       {Place{Host: "a:80", Route: "outside-the-mesh", Cluster: "passthrough|a:80", Endpoint: "a:80"}, "a:80 (outside the mesh)"},
		"outside, at an address": {Place{Host: "a:80", Route: "outside-the-mesh", Cluster: "passthrough|a:80", Endpoint: "10.0.0.1:80"}, "a:80 (outside the mesh) endpoint=10.0.0.1:80"},
		"outside, not tried":     {Place{Host: "a:80", Route: "outside-the-mesh", Cluster: "passthrough|a:80"}, "a:80 (outside the mesh)"},
		"no control plane":       {Place{Host: "a:80", Route: "default", Cluster: "passthrough|a:80", Endpoint: "a:80"}, "a:80"},
		"another host's cluster": {Place{Host: "a:80", Route: "default", Cluster: "passthrough|b:80", Endpoint: "b:80"}, "a:80 route=default cluster=passthrough|b:80 endpoint=b:80"},
		"a route of that name":   {Place{Host: "a:80", Route: "default", Cluster: "c", Endpoint: "a:80"}, "a:80 route=default cluster=c endpoint=a:80"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.place.String(); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
