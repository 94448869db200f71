package envoy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sinew-mesh/sinew/internal/envoy"
	"github.com/sinew-mesh/sinew/internal/xds/compile"
)

// placeOfFault is how an error of the mesh's names the field.
var placeOfFault = regexp.MustCompile(`^(Listener|Cluster) "[a-z]*": [a-z_]+[.\[: ]`)

// TestRefusesAsEnvoy has configurations that are broken, each in one way, read
// by Envoy and by the mesh. What Envoy refuses the mesh refuses. Where the mesh
// refuses what Envoy takes, and the other way round, docs/traffic.md says so.
func TestRefusesAsEnvoy(t *testing.T) {
	binary := envoy.Binary(t)
	dir := t.TempDir()
	section := differencesSection(t)
	type verdict struct {
		envoy string // its message; "" where it takes the configuration
		mesh  error
	}
	verdicts := make([]verdict, len(broken))
	var group sync.WaitGroup
	gate := make(chan struct{}, 4)
	for i, b := range broken {
		cluster, hcm, err := b.resources()
		if err != nil {
			t.Fatalf("%s %s: %v", b.where, b.text, err)
		}
		_, _, verdicts[i].mesh = compile.Cluster(packed(cluster))
		if verdicts[i].mesh == nil {
			_, _, verdicts[i].mesh = compile.Listener(packed(&listenerv3.Listener{
				Name: "host", ApiListener: &listenerv3.ApiListener{ApiListener: packed(hcm)},
			}))
		}
		group.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			path := filepath.Join(dir, fmt.Sprint(i, ".json"))
			if err := os.WriteFile(path, b.bootstrap(), 0o600); err != nil {
				t.Error(err)
				return
			}
			if out, err := exec.Command(binary, "--mode", "validate", "-c", path, "-l", "error").CombinedOutput(); err != nil {
				verdicts[i].envoy = string(out)
			}
		})
	}
	group.Wait()
	refused, taken := 0, 0
	for i, b := range broken {
		v := verdicts[i]
		if v.envoy != "" {
			refused++
		} else {
			taken++
		}
		if v.mesh != nil && !placeOfFault.MatchString(v.mesh.Error()) {
			t.Errorf("%s %s: the error names no place: %v", b.where, b.text, v.mesh)
		}
		same := (v.envoy != "") == (v.mesh != nil)
		switch {
		case b.differs == "" && !same:
			t.Errorf("%s %s:\n  Envoy: %s\n  mesh:  %v", b.where, b.text, lastLine(v.envoy), v.mesh)
		case b.differs != "" && same:
			t.Errorf("%s %s: no difference any more\n  Envoy: %s\n  mesh:  %v", b.where, b.text, lastLine(v.envoy), v.mesh)
		case b.differs != "" && !strings.Contains(section, "| "+b.differs+" |"):
			t.Errorf("docs/traffic.md does not explain %q", b.differs)
		}
	}
	t.Logf("%d configurations, of which Envoy refuses %d", refused+taken, refused)
	if refused < 100 {
		t.Error("too few that Envoy refuses")
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func merged(base, more string) (map[string]any, error) {
	var out, add map[string]any
	if err := json.Unmarshal([]byte(base), &out); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(more), &add); err != nil {
		return nil, err
	}
	maps.Copy(out, add)
	return out, nil
}

const baseRouter = `{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}`

// parts are the cluster and the connection manager with what is broken.
func (b *brokenConfig) parts() (cluster, hcm map[string]any, err error) {
	route, vh, rc, action := `{"match": {"prefix": "/"}, "route": {"cluster": "c"}}`, `{}`, `{}`, ``
	clusterMore, filter := `{}`, ``
	switch b.where {
	case "route":
		route = b.text
	case "match":
		route = `{"match": ` + b.text + `, "route": {"cluster": "c"}}`
	case "action":
		action = b.text
	case "prefix action":
		action = b.text
	case "retry":
		action = `{"cluster": "c", "retry_policy": ` + b.text + `}`
	case "vh":
		vh = b.text
	case "rc":
		rc = b.text
	case "cluster":
		clusterMore = b.text
	case "filter":
		filter = b.text + ","
	default:
		return nil, nil, fmt.Errorf("unknown place %q", b.where)
	}
	if action != "" {
		route = `{"match": {"prefix": "/"}, "route": ` + action + `}`
	}
	if cluster, err = merged(`{"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [
		{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}}]}]}}`, clusterMore); err != nil {
		return nil, nil, err
	}
	host, err := merged(`{"name": "v", "domains": ["*"], "routes": [`+route+`]}`, vh)
	if err != nil {
		return nil, nil, err
	}
	routes, err := merged(`{"name": "r"}`, rc)
	if err != nil {
		return nil, nil, err
	}
	if routes["virtual_hosts"] == nil {
		routes["virtual_hosts"] = []any{host}
	}
	hcm, err = merged(`{"stat_prefix": "x", "http_filters": [`+filter+baseRouter+`]}`, `{}`)
	if err == nil {
		hcm["route_config"] = routes
	}
	return cluster, hcm, err
}

func (b *brokenConfig) resources() (*clusterv3.Cluster, *hcmv3.HttpConnectionManager, error) {
	cluster, hcm, err := b.parts()
	if err != nil {
		return nil, nil, err
	}
	c, m := new(clusterv3.Cluster), new(hcmv3.HttpConnectionManager)
	if err := protojson.Unmarshal([]byte(asJSON(cluster)), c); err != nil {
		return nil, nil, err
	}
	return c, m, protojson.Unmarshal([]byte(asJSON(hcm)), m)
}

func (b *brokenConfig) bootstrap() []byte {
	cluster, hcm, _ := b.parts()
	hcm["@type"] = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	return []byte(asJSON(map[string]any{"static_resources": map[string]any{
		"clusters": []any{cluster},
		"listeners": []any{map[string]any{
			"name":    "l",
			"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 0}},
			"filter_chains": []any{map[string]any{"filters": []any{
				map[string]any{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm},
			}}},
		}},
	}}))
}
