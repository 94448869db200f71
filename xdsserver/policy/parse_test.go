package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
)

// texts returns problems as a user reads them.
func texts(ps []Problem) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return out
}

// wantTexts compares all problems of a parse or a build.
func wantTexts(t *testing.T, got []Problem, want ...string) {
	t.Helper()
	g := texts(got)
	slices.Sort(g)
	w := slices.Clone(want)
	slices.Sort(w)
	if !slices.Equal(g, w) {
		t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(g, "\n"), strings.Join(w, "\n"))
	}
}

func TestParseProblems(t *testing.T) {
	const route = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec:
  hosts: [reviews]
  http:
`
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"nothing wrong", route + "  - route: [{destination: {host: reviews}}]\n", nil},
		{"unknown field in its own line", route + `  - route:
    - destination:
        host: reviews
      weight: 90
    - destination:
        host: reviews2
      wieght: 10
`, []string{"f.yaml:13: VirtualService default/r: spec.http[0].route[1].wieght: unknown field; did you mean weight?"}},
		{"every error, not the first only", route + `  - route: [{destination: {host: reviews}, weihgt: 1}]
    timeuot: 1s
    retries: {attempts: many}
`, []string{
			"f.yaml:7: VirtualService default/r: spec.http[0].route[0].weihgt: unknown field; did you mean weight?",
			"f.yaml:8: VirtualService default/r: spec.http[0].timeuot: unknown field; did you mean timeout?",
			`f.yaml:9: VirtualService default/r: spec.http[0].retries.attempts: invalid value for int32 field attempts: "many"`,
		}},
		{"wrong shapes", route + `  - route: {destination: {host: reviews}}
    match: nothing
    timeout: [1s]
    name: 7
`, []string{
			"f.yaml:7: VirtualService default/r: spec.http[0].route: must be a list, is a mapping",
			"f.yaml:8: VirtualService default/r: spec.http[0].match: must be a list, is a single value",
			"f.yaml:9: VirtualService default/r: spec.http[0].timeout: must be a single value, is a list",
			"f.yaml:10: VirtualService default/r: spec.http[0].name: must be text, is 7: put it in quotes",
			"f.yaml:7: VirtualService default/r: spec.http[0].route: required: a route needs a route, redirect or directResponse",
		}},
		{"two of one choice", route + `  - match: [{uri: {exact: /a, prefix: /b}}]
    route: [{destination: {host: reviews}}]
`, []string{"f.yaml:7: VirtualService default/r: spec.http[0].match[0].uri.prefix: can not be set together with exact"}},
		{"both spellings of a field", route + `  - match: [{ignoreUriCase: true, ignore_uri_case: false}]
    route: [{destination: {host: reviews}}]
`, []string{"f.yaml:7: VirtualService default/r: spec.http[0].match[0].ignoreUriCase: can not be set together with ignoreUriCase"}},
		{"an enum and a duration", `apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: d}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBBIN}
    connectionPool:
      tcp: {connectTimeout: 5, idleTimeout: 5 minutes}
`, []string{
			`f.yaml:7: DestinationRule default/d: spec.trafficPolicy.loadBalancer.simple: "ROUND_ROBBIN" is not one of UNSPECIFIED, LEAST_CONN, RANDOM, PASSTHROUGH, ROUND_ROBIN, LEAST_REQUEST`,
			`f.yaml:9: DestinationRule default/d: spec.trafficPolicy.connectionPool.tcp.connectTimeout: must be a duration with a unit, such as "2s" or "250ms", is 5`,
			`f.yaml:9: DestinationRule default/d: spec.trafficPolicy.connectionPool.tcp.idleTimeout: "5 minutes" is not a duration; write it as "2s", "250ms" or "5m"`,
		}},
		{"numbers that are none", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d}
spec:
  host: reviews
  trafficPolicy:
    retryBudget: {percent: .nan, minRetryConcurrency: -1}
`, []string{
			"f.yaml:7: DestinationRule default/d: spec.trafficPolicy.retryBudget.percent: must be a finite number",
			"f.yaml:7: DestinationRule default/d: spec.trafficPolicy.retryBudget.minRetryConcurrency: invalid value for uint32 field minRetryConcurrency: -1",
		}},
		{"a number that is none, as text", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d}
spec: {host: reviews, trafficPolicy: {retryBudget: {percent: "NaN"}}}
`, []string{"f.yaml:4: DestinationRule default/d: spec.trafficPolicy.retryBudget.percent: must be a finite number"}},
		{"key given twice", route + "  - route: [{destination: {host: reviews}}]\n    timeout: 1s\n    timeout: 2s\n",
			[]string{`f.yaml:9: key "timeout" is given twice, first on line 8`}},
		{"syntax error, and the documents around it", "# one\n" + route + "  - route: [{destination: {host: reviews}}]\n---\nkind: [\n---\n" + strings.Replace(route, "name: r", "name: s", 1) + "  - rout: []\n",
			[]string{
				"f.yaml:10: did not find expected node content",
				"f.yaml:18: VirtualService default/s: spec.http[0].rout: unknown field; did you mean route?",
				"f.yaml:18: VirtualService default/s: spec.http[0].route: required: a route needs a route, redirect or directResponse",
			}},
		{"neither kind nor version", "metadata: {name: x}\n---\napiversion: v1\nkind: Service\n", []string{
			"f.yaml:1: apiVersion: required", "f.yaml:1: kind: required", "f.yaml:3: apiVersion: required; there is apiversion",
		}},
		{"not a mapping", "just text\n", []string{"f.yaml:1: a document must be a mapping with apiVersion and kind, is a single value"}},
		{"a fragment", `# a comment
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
spec:
  http:
    - retries:
        attempts: 3
`, []string{
			"f.yaml:2: VirtualService default/(no name): metadata.name: required",
			"f.yaml:6: VirtualService default/(no name): spec.http[0].route: required: a route needs a route, redirect or directResponse",
		}},
		{"metadata", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: Bad_Name
  namespace: 7
  lables: {}
  labels: {version: 1}
  uid: anything
spec: {address: 10.0.0.1}
extra: 1
`, []string{
			`f.yaml:4: WorkloadEntry default/Bad_Name: metadata.name: "Bad_Name" is not a valid Kubernetes name`,
			"f.yaml:5: WorkloadEntry default/Bad_Name: metadata.namespace: must be text, is 7: put it in quotes",
			"f.yaml:6: WorkloadEntry default/Bad_Name: metadata.lables: unknown field; did you mean labels?",
			"f.yaml:7: WorkloadEntry default/Bad_Name: metadata.labels[version]: must be text, is 1: put it in quotes",
			"f.yaml:10: WorkloadEntry default/Bad_Name: extra: unknown field",
		}},
		{"unknown tag", "apiVersion: v1\nkind: !!python/object Service\n", []string{"f.yaml:2: tag !!python/object is not supported"}},
		{"weights that add up to nothing", route + "  - route: [{destination: {host: a}, weight: 0}, {destination: {host: b}}]\n",
			[]string{"f.yaml:7: VirtualService default/r: spec.http[0].route: the weights add up to 0"}},
		{"regular expression", route + "  - match:\n    - uri: {regex: '/a(?=b)'}\n    route: [{destination: {host: reviews}}]\n",
			[]string{"f.yaml:8: VirtualService default/r: spec.http[0].match[0].uri.regex: \"/a(?=b)\" is not a regular expression as RE2 takes it: error parsing regexp: invalid or unsupported Perl syntax: `(?=`"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantTexts(t, Parse("f.yaml", []byte(tt.in)).Problems, tt.want...)
		})
	}
}

func TestParseForms(t *testing.T) {
	const yes = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r, namespace: prod, creationTimestamp: 2026-01-31T12:00:00Z}
spec:
  hosts: [reviews]
  http:
  - timeout: 1m30s
    retries: {attempts: 2, perTryTimeout: 250ms, retryRemoteLocalities: null}
    match: [{headers: {user: {exact: "x"}, any: {}, none: null}, uri: {prefix: ""}}]
    route: [{destination: {host: reviews, port: {number: 9080}}, weight: 1}]
status: {anything: goes}
`
	anchors := `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r, namespace: prod, creationTimestamp: "2026-01-31T12:00:00Z"}
spec:
  hosts: [reviews]
  http:
  - &base
    timeout: 90s
    retries: {attempts: 2, perTryTimeout: 0.25s}
    match: [{headers: {user: {exact: "x"}, any: {}, none: {}}, uri: {prefix: ""}}]
    route: &to [{destination: {host: reviews, port: {number: 9080}}, weight: 1}]
  - <<: *base
    route: *to
    match: [{method: {exact: PUT}}]
`
	json := `{"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
	"metadata": {"name": "r", "namespace": "prod", "creationTimestamp": "2026-01-31T12:00:00Z"},
	"spec": {"hosts": ["reviews"], "http": [{"timeout": "90s", "retries": {"attempts": 2, "perTryTimeout": "0.25s"},
	"match": [{"headers": {"user": {"exact": "x"}, "any": {}, "none": {}}, "uri": {"prefix": ""}}],
	"route": [{"destination": {"host": "reviews", "port": {"number": 9080}}, "weight": 1}]}]}}`
	list := "apiVersion: v1\nkind: List\nmetadata: {}\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(yes), "\n", "\n  ") + "\n"
	for name, in := range map[string]string{"r.yaml": yes, "anchors.yaml": anchors, "r.json": json, "list.yml": list} {
		t.Run(name, func(t *testing.T) {
			f := Parse(name, []byte(in))
			if len(f.Problems) > 0 || len(f.Objects) != 1 || f.Partial {
				t.Fatalf("problems %q, %d objects, partial %v", texts(f.Problems), len(f.Objects), f.Partial)
			}
			o := f.Objects[0]
			if o.Ref() != (Ref{"VirtualService", "prod", "r"}) || !o.Created.Equal(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)) {
				t.Errorf("object %v created %v", o.Ref(), o.Created)
			}
			r := o.Spec.(*networking.VirtualService).Http[0]
			if r.Timeout.AsDuration() != 90*time.Second || r.Retries.PerTryTimeout.AsDuration() != 250*time.Millisecond {
				t.Errorf("timeout %v, per try %v", r.Timeout, r.Retries.PerTryTimeout)
			}
			if h := r.Match[0].Headers; h["user"].GetExact() != "x" || len(h) != 3 || h["none"] == nil {
				t.Errorf("headers %v", h)
			}
			if r.Match[0].Uri == nil || r.Route[0].Destination.Port.Number != 9080 || r.Route[0].Weight != 1 {
				t.Errorf("route %v", r)
			}
			if name == "anchors.yaml" {
				second := o.Spec.(*networking.VirtualService).Http[1]
				if second.Timeout.AsDuration() != 90*time.Second || second.Match[0].Method.GetExact() != "PUT" || len(second.Route) != 1 {
					t.Errorf("merged route %v", second)
				}
			}
		})
	}
}

func TestParseBounds(t *testing.T) {
	// Nine levels of ten aliases each would be a thousand million values.
	bomb := "apiVersion: v1\nkind: Service\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 10; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	for _, tt := range []struct{ name, in, want string }{
		{"aliases of aliases", bomb, "values once its aliases are expanded"},
		{"an alias of itself", "apiVersion: v1\nkind: Service\na: &a [*a]\n", "nested deeper than"},
		{"depth", "apiVersion: v1\nkind: Service\na: " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "nested deeper than"},
		{"size of a document", "apiVersion: v1\nkind: Service\na: " + strings.Repeat("x", maxDocumentSize), "at most 2097152 are read"},
		{"size of a file", strings.Repeat("# comment\n", MaxFileSize/10+1), "at most 16777216 are read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := Parse("f.yaml", []byte(tt.in))
			if len(f.Problems) != 1 || !strings.Contains(f.Problems[0].Message, tt.want) || !f.Partial {
				t.Errorf("problems %q, partial %v, want one with %q", texts(f.Problems), f.Partial, tt.want)
			}
		})
	}
}

func TestParseKinds(t *testing.T) {
	for _, tt := range []struct {
		version, kind string
		severity      Severity
		text          string
	}{
		{"apps/v1", "Deployment", Notice, "no meaning for the mesh"},
		{"v1", "ServiceAccount", Notice, "no meaning for the mesh"},
		{"networking.istio.io/v1alpha3", "Gateway", Notice, "no meaning for the mesh"},
		{"rbac.authorization.k8s.io/v1", "ClusterRoleBinding", Notice, "no meaning for the mesh"},
		{"security.istio.io/v2", "AuthorizationPolicy", Error, "use v1 or v1beta1"},
		{"policy.linkerd.io/v1beta2", "Server", Error, "use v1beta3"},
		{"security.istio.io/v1", "SomethingNew", Error, "not known"},
		{"access.smi-spec.io/v1alpha3", "TrafficTarget", Error, "does not enforce"},
		{"v1", "ConfigMap", Notice, "no meaning for the mesh"},
		{"discovery.k8s.io/v1", "EndpointSlice", Error, "WorkloadEntry"},
		{"v1", "Endpoints", Error, "WorkloadEntry"},
		{"networking.istio.io/v1", "Sidecar", Error, "does not enforce"},
		{"networking.istio.io/v1", "VirtualServcie", Error, "did you mean VirtualService?"},
		{"networking.istio.io/v2", "VirtualService", Error, "use v1, v1beta1 or v1alpha3"},
		{"example.com/v1", "Deployment", Error, "not known"},
		{"gateway.networking.k8s.io/v1", "HTTPRoute", Error, "Gateway API is not supported: use a VirtualService"},
		{"gateway.networking.k8s.io/v1", "GRPCRoute", Error, "Gateway API is not supported"},
		{"gateway.networking.k8s.io/v1beta1", "ReferenceGrant", Error, "Gateway API is not supported"},
		{"gateway.networking.k8s.io/v1", "Gateway", Notice, "no meaning for the mesh"},
		{"split.smi-spec.io/v1alpha4", "TrafficSplit", Error, "use v1alpha1 or v1alpha2"},
	} {
		f := Parse("f.yaml", fmt.Appendf(nil, "apiVersion: %s\nkind: %s\nmetadata: {name: x}\nspec: {}\n", tt.version, tt.kind))
		r := Build([]*File{f}, nil)
		found := slices.ContainsFunc(r.Problems, func(p Problem) bool {
			return p.Severity == tt.severity && strings.Contains(p.Message, tt.text) && p.At.Line > 0
		})
		if !found {
			t.Errorf("%s %s: %q", tt.version, tt.kind, texts(f.Problems))
		}
		if r.Failed() != (tt.severity == Error) {
			t.Errorf("%s %s: failed %v", tt.version, tt.kind, r.Failed())
		}
	}
}

func TestParseService(t *testing.T) {
	for _, tt := range []struct {
		name, spec string
		ports      []Port
		problems   []string
	}{
		{"usual", "{clusterIP: None, type: ClusterIP, selector: {app: x}, ports: [{port: 9080, name: http}]}",
			[]Port{{"http", 9080, 9080, "", "HTTP"}}, nil},
		{"targets and protocols", `{ports: [
  {port: 80, name: grpc-api, targetPort: 8080}, {port: 81, name: web, targetPort: main, appProtocol: kubernetes.io/h2c},
  {port: 82, name: grpc-web-x, nodePort: 3}, {port: 83, name: db, appProtocol: mysql}, {port: 84, name: dns, protocol: UDP}]}`,
			[]Port{
				{"grpc-api", 80, 8080, "", "GRPC"}, {"web", 81, 81, "main", "HTTP2"}, {"grpc-web-x", 82, 82, "", "GRPC-WEB"},
				{"db", 83, 83, "", "MYSQL"}, {"dns", 84, 84, "", "UDP"},
			}, nil},
		{"an alias", "{type: ExternalName, externalName: example.com, ports: [{port: 80}]}", []Port{{"", 80, 80, "", "HTTP"}}, []string{
			"f.yaml:4: Service default/x: spec.type: a Service of type ExternalName is a DNS alias, which the mesh does not route: use a ServiceEntry",
			"f.yaml:4: Service default/x: spec.externalName: a Service of type ExternalName is a DNS alias, which the mesh does not route: use a ServiceEntry",
		}},
		{"where requests go", "{sessionAffinity: ClientIP, internalTrafficPolicy: Local, trafficDistribution: PreferClose, ports: [{port: 80}]}",
			[]Port{{"", 80, 80, "", "HTTP"}}, []string{
				"f.yaml:4: Service default/x: spec.sessionAffinity: ClientIP is valid in Kubernetes, but the mesh enforces only None",
				"f.yaml:4: Service default/x: spec.internalTrafficPolicy: Local is valid in Kubernetes, but the mesh enforces only Cluster",
				"f.yaml:4: Service default/x: spec.trafficDistribution: is valid in Kubernetes, but the mesh does not enforce it",
			}},
		{"ports", `{selektor: {}, ports: [{port: 0}, {prot: 1}, {port: 80, name: a, targetPort: "8080"}, {port: 80, name: b, protocol: tcp}]}`,
			nil, []string{
				"f.yaml:4: Service default/x: spec.selektor: unknown field; did you mean selector?",
				"f.yaml:4: Service default/x: spec.ports[0].port: 0 is not a port number: it must be between 1 and 65535",
				"f.yaml:4: Service default/x: spec.ports[0].name: required where a Service has more than one port",
				"f.yaml:4: Service default/x: spec.ports[1].prot: unknown field; did you mean port?",
				"f.yaml:4: Service default/x: spec.ports[1].port: required",
				"f.yaml:4: Service default/x: spec.ports[1].name: required where a Service has more than one port",
				"f.yaml:4: Service default/x: spec.ports[1]: port 0/TCP is given twice",
				"f.yaml:4: Service default/x: spec.ports[2].targetPort: 8080 must be written without quotes",
				`f.yaml:4: Service default/x: spec.ports[3].protocol: "tcp" is not one of TCP, UDP, SCTP`,
			}},
		{"nothing", "{}", nil, []string{"f.yaml:4: Service default/x: spec.ports: required"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := strings.ReplaceAll(tt.spec, "\n", " ")
			f := Parse("f.yaml", []byte("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: "+spec+"\n"))
			wantTexts(t, f.Problems, tt.problems...)
			if got := f.Objects[0].Spec.(*KubernetesService).Ports; tt.ports != nil && !slices.Equal(got, tt.ports) {
				t.Errorf("ports %v, want %v", got, tt.ports)
			}
		})
	}
}

func TestTrafficSplit(t *testing.T) {
	for _, tt := range []struct {
		weights string
		want    []int32
		problem string
	}{
		{"900m 100m", []int32{9, 1}, ""},
		{"90 10", []int32{9, 1}, ""},
		{"1 0", []int32{1, 0}, ""},
		{"0.5 1.5 1", []int32{1, 3, 2}, ""},
		{"1k 1Ki", []int32{125, 128}, ""},
		{"1e3 500", []int32{2, 1}, ""},
		{"333333333n 666666667n", []int32{333333333, 666666667}, ""},
		{"'33' '67'", []int32{33, 67}, ""},
		{"0 0", nil, "the weights add up to 0"},
		{"1n 5E", nil, "the weights can not be kept exactly as whole numbers"},
		{"-1 2", nil, "must not be negative"},
		{"half 2", nil, `"half" is not a weight`},
		{"5% 95%", nil, `"5%" is not a weight`},
	} {
		doc := "apiVersion: split.smi-spec.io/v1alpha1\nkind: TrafficSplit\nmetadata: {name: s}\nspec:\n  service: reviews\n  backends:\n"
		for i, w := range strings.Fields(tt.weights) {
			doc += fmt.Sprintf("  - {service: v%d, weight: %s}\n", i, w)
		}
		f := Parse("f.yaml", []byte(doc))
		if tt.problem != "" {
			if len(f.Problems) == 0 || !strings.Contains(f.Problems[0].Message, tt.problem) {
				t.Errorf("%s: %q, want %q", tt.weights, texts(f.Problems), tt.problem)
			}
			continue
		}
		vs, ok := f.Objects[0].Spec.(*networking.VirtualService)
		if len(f.Problems) > 0 || !ok {
			t.Errorf("%s: %q", tt.weights, texts(f.Problems))
			continue
		}
		var got []int32
		for _, d := range vs.Http[0].Route {
			got = append(got, d.Weight)
		}
		if !slices.Equal(got, tt.want) || vs.Hosts[0] != "reviews" || vs.Http[0].Route[1].Destination.Host != "v1" {
			t.Errorf("%s: %v, want %v", tt.weights, vs, tt.want)
		}
	}
	f := Parse("f.yaml", []byte("apiVersion: split.smi-spec.io/v1alpha1\nkind: TrafficSplit\nmetadata: {name: s}\nspec:\n  backends: [{service: a, weigth: 1}]\n"))
	wantTexts(t, f.Problems,
		"f.yaml:4: TrafficSplit default/s: spec.service: required",
		"f.yaml:5: TrafficSplit default/s: spec.backends[0].weigth: unknown field; did you mean weight?",
		"f.yaml:5: TrafficSplit default/s: spec.backends[0].weight: required")
}

func FuzzParse(f *testing.F) {
	f.Add("f.yaml", []byte("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80}]}\n"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		file := Parse(name, data)
		// YAML breaks lines at more than newlines.
		lines := 2 + strings.Count(string(data), "\n") + strings.Count(string(data), "\r") +
			strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029")
		for _, p := range file.Problems {
			if p.At.File != name || p.Message == "" || p.At.Line < 0 || p.At.Line > lines {
				t.Errorf("problem %+v", p)
			}
		}
		first := Build([]*File{file}, nil)
		// What is accepted once stays accepted, and half a file takes nothing away from it.
		half := &File{Name: name, Partial: true}
		second := Build([]*File{half}, first)
		if len(second.Set.VirtualServices) != len(first.Set.VirtualServices) || len(second.Set.Services) != len(first.Set.Services) ||
			len(second.Set.Workloads) != len(first.Set.Workloads) || len(second.Set.DestinationRules) != len(first.Set.DestinationRules) {
			t.Errorf("a file that can not be read took policy away")
		}
		if third := Build([]*File{file}, first); len(texts(third.Problems)) < len(texts(first.Problems)) {
			t.Errorf("the same file has fewer problems the second time: %q, %q", texts(first.Problems), texts(third.Problems))
		}
		fuzzAccess(t, file, half)
	})
}

// fuzzAccess checks what must hold of the access policy in any file.
func fuzzAccess(t *testing.T, file, half *File) {
	first := Build([]*File{file}, nil)
	for _, o := range file.access {
		if inForce := first.good[o.Ref()]; inForce != nil && !inForce.bad {
			continue
		}
		labels := selectedLabels(o.Spec)
		if o.Kind == "PeerAuthentication" && o.Namespace == RootNamespace && len(labels) > 0 {
			continue // has no effect
		}
		if _, withheld := first.Set.Withheld(labels, o.Namespace); !withheld {
			t.Errorf("%s is neither in force nor withheld: %q", o.Ref(), texts(first.Problems))
		}
	}
	state, err := first.AccessState()
	if err != nil {
		t.Fatal(err)
	}
	restored, err := RestoreAccess(state)
	if err != nil {
		t.Fatalf("%v: %s", err, state)
	}
	for _, previous := range []*Result{first, restored} {
		again := Build([]*File{file}, previous)
		if !slices.Equal(accessInForce(again.Set), accessInForce(first.Set)) {
			t.Errorf("in force %q, then %q", accessInForce(first.Set), accessInForce(again.Set))
		}
		kept := Build([]*File{half}, previous)
		if !slices.Equal(accessInForce(kept.Set), accessInForce(first.Set)) {
			t.Errorf("a file that can not be read took access policy away: %q, then %q", accessInForce(first.Set), accessInForce(kept.Set))
		}
		if later, err := kept.AccessState(); err != nil || string(later) != string(state) {
			t.Errorf("state %s, then %s: %v", state, later, err)
		}
	}
}

// FuzzRestoreAccess: what is taken as a state gives the same state again.
func FuzzRestoreAccess(f *testing.F) {
	f.Add([]byte(`{"version":1,"objects":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := RestoreAccess(data)
		if err != nil {
			return
		}
		first, err := r.AccessState()
		if err != nil {
			t.Fatal(err)
		}
		again, err := RestoreAccess(first)
		if err != nil {
			t.Fatalf("%v: %s", err, first)
		}
		if second, err := again.AccessState(); err != nil || string(second) != string(first) {
			t.Errorf("state %s, then %s: %v", first, second, err)
		}
	})
}
