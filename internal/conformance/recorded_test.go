package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// decided are the files, or parts of files, whose cases pass or are named in
// docs/decisions.md (identity and access) or docs/traffic.md.
var decided = []string{
	"envoy-facts/rbac_engine.json", "envoy-facts/rbac_matchers.json", "envoy-facts/jwt_authn.json", "envoy-facts/local_ratelimit.json",
	"envoy-facts/path_host_header_normalisation.json", "envoy-facts/path_host_header_normalisation.json#header_ops",
	"grpc-facts/rbac.json", "grpc-facts/san_matching.json", "grpc-facts/san_matching.json#auto_host_rewrite",
	"istio/security_requests.json", "istio/path_normalization.json", "istio/security_advisories.json", "istio/requestauthentication_to_jwt_authn.json",
	"spiffe/bundles", "spiffe/certs", "spiffe/envoy_spiffe_validator.json", "spiffe/istio_identity.json", "spiffe/spiffe_ids.json",
	"spiffe/x509_svid_cases.json", "spiffe/x509_svid_rules.json",

	"envoy-facts/route_config_impl.json",
	"grpc-facts/resource_validation.json#RouteConfiguration", "grpc-facts/resource_validation.json#Route",
	"grpc-facts/resource_validation.json#HashPolicy", "grpc-facts/resource_validation.json#CommonTlsContext",
	"grpc-facts/resource_validation.json#Listener", "grpc-facts/resource_validation.json#filter_chain_lookup",
	"grpc-facts/resource_validation.json#Cluster", "grpc-facts/resource_validation.json#ClusterLoadAssignment",
	"grpc-facts/resource_validation.json#endpoint_hash_key", "grpc-facts/ring_hash.json#config", "envoy-facts/ring_hash_maglev.json#config_errors",
	"grpc-facts/outlier_detection.json#lb_config_parse", "grpc-facts/outlier_detection.json#cluster_to_lb_config",
	"grpc-facts/filter_override_precedence.json", "grpc-facts/fault.json#compiled",
	"grpc-facts/outlier_detection.json#ejection_rounds",
	"istio/virtualservice_to_routes.json", "istio/virtualservice_to_routes.json#translated",
	"istio/trafficpolicy_to_cluster.json", "istio/trafficpolicy_to_cluster.json#translated",
	"istio/traffic_simulation.json", "istio/traffic_simulation.json#routes", "istio/traffic_simulation.json#clusters",
	"istio/virtualservice_behaviour.json", "istio/locality_lb.json", "istio/config_validation.json",
	"envoy-facts/header_matchers.json", "envoy-facts/value_string_path_matchers.json", "envoy-facts/path_template.json",
	"envoy-facts/hashes.json", "envoy-facts/hash_policy.json", "envoy-facts/ring_hash_maglev.json", "envoy-facts/outlier_detection.json",
	"envoy-facts/fault.json", "envoy-facts/fault.json#filter_behaviour",
	"envoy-facts/retry.json#decision_cases", "envoy-facts/retry.json#backoff", "envoy-facts/retry.json#reset_headers", "envoy-facts/retry.json#retry_on",
	"envoy-facts/retry.json#budget", "envoy-facts/retry.json#matrix", "envoy-facts/retry.json#removed_headers",
	"grpc-facts/header_matchers.json", "grpc-facts/string_matchers.json", "grpc-facts/string_matchers.json#proto_validation",
	"grpc-facts/route_matching.json", "grpc-facts/header_mutation_rules.json", "grpc-facts/ring_hash.json", "grpc-facts/ring_hash.json#request_hash",
	"grpc-facts/retry.json", "grpc-facts/fault.json", "grpc-facts/drop_overload.json",
}

// TestEachFileHasADecidingTest holds that the section names no file that no
// test reads, and that each file has one test with the last word.
func TestEachFileHasADecidingTest(t *testing.T) {
	deciding := map[string]int{}
	err := filepath.WalkDir(root(), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") || filepath.Base(filepath.Dir(path)) == "conformance" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, rest := range strings.Split(string(b), `conformance.Deciding(t, "`) {
			if file, _, _ := strings.Cut(rest, `"`); i > 0 {
				deciding[file]++
			}
		}
		for _, file := range decided {
			counted := strings.Contains(string(b), `conformance.Recorded(t, "`+file) || strings.Contains(string(b), `conformance.Deciding(t, "`+file)
			if strings.Contains(string(b), `conformance.Load(t, "`+file+`"`) && !counted {
				t.Errorf("%s reads %s and may set its cases aside without a name: it wants Recorded or Deciding", path, file)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range decided {
		if deciding[file] != 1 {
			t.Errorf("%s: %d tests have the last word", file, deciding[file])
		}
		delete(deciding, file)
	}
	for file := range deciding {
		t.Errorf("%s: a test has the last word, and the list here does not know it", file)
	}
	rows, err := differences()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range decided {
		delete(rows, file)
	}
	for file := range rows {
		t.Errorf("docs/decisions.md names %q, which no test decides", file)
	}
	dir := Dir(t)
	known := strings.Join(decided, "\n") + "\nistio/jwt_tokens.json" // the tokens that cases of other files carry
	for _, folder := range []string{"envoy-facts", "grpc-facts", "istio", "spiffe"} {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.Contains(known, folder+"/"+e.Name()) {
				t.Errorf("%s/%s: no test reads it", folder, e.Name())
			}
		}
	}
	for _, file := range decided {
		name, _, _ := strings.Cut(file, "#")
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestParseDifferences(t *testing.T) {
	rows, err := parseDifferences("# x\n| `no` | `row` | here |\n" + sectionTitle + "\nText.\n\n| file | cases | reason |\n|---|---|---|\n" +
		"| `a.json` | `one`, `t|wo` | because |\n| `a.json#p` | `one` | so |\n\n## Next\n| `b` | `c` | d |\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || len(rows["a.json"]) != 2 || rows["a.json"][1] != (Difference{"t|wo", "because"}) || rows["a.json#p"][0].Reason != "so" {
		t.Errorf("%v", rows)
	}
	for _, doc := range []string{
		"nothing", sectionTitle + "\n| `a` | one | x |\n", sectionTitle + "\n| `a` | `one` | |\n", sectionTitle + "\n| `a` | `one`, `one` | x |\n",
	} {
		if rows, err := parseDifferences(doc); err == nil {
			t.Errorf("%q: %v", doc, rows)
		}
	}
}

// recorder takes what a tally reports.
type recorder struct {
	testing.TB
	failed int
}

func (r *recorder) Helper()               {}
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Errorf(string, ...any) { r.failed++ }

func TestTallyKnowsDifferences(t *testing.T) {
	tally := func() *Tally { return &Tally{named: map[string]string{"a": "because"}, deciding: true} }
	for name, c := range map[string]struct {
		run    func(testing.TB, *Tally)
		failed int
	}{
		"named":                    {func(t testing.TB, c *Tally) { c.Differs(t, "a"); c.Check(t, "f", 0, 1) }, 0},
		"not named":                {func(t testing.TB, c *Tally) { c.Differs(t, "a"); c.Differs(t, "b"); c.Check(t, "f", 0, 1) }, 1},
		"stale":                    {func(t testing.TB, c *Tally) { c.Pass(); c.Check(t, "f", 1, 0) }, 1},
		"counts":                   {func(t testing.TB, c *Tally) { c.Differs(t, "a"); c.Check(t, "f", 1, 1) }, 1},
		"set aside without a name": {func(t testing.TB, c *Tally) { c.Differs(t, "a"); c.SetAside("so"); c.Check(t, "f", 0, 2) }, 1},
		"not the last word": {func(t testing.TB, c *Tally) {
			c.deciding = false
			c.Pass()
			c.Check(t, "f", 1, 0)
		}, 0},
	} {
		r := &recorder{TB: t}
		if c.run(r, tally()); r.failed != c.failed {
			t.Errorf("%s: %d failures, want %d", name, r.failed, c.failed)
		}
	}
	if !tested("internal/conformance", "TestTallyKnowsDifferences") || tested("internal/conformance", "TestNothing") || tested("nowhere", "TestX") {
		t.Error("tests are not found by their names")
	}
}
