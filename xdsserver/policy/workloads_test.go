package policy

import (
	"strings"
	"testing"
)

// TestWorkloadWarnings: an endpoint that nobody is sent to, or not at the port it
// names, is said, and one that is in use is not.
func TestWorkloadWarnings(t *testing.T) {
	service := func(name, spec string) string {
		return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
	}
	workload := func(metadata, spec string) string {
		return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w" + metadata + "}\nspec:\n  address: 10.0.0.1\n" + spec
	}
	web := service("web", "selector: {app: web}, ports: [{port: 80, name: http, targetPort: main}, {port: 9090, name: grpc}]")
	const (
		labels   = "  labels: {app: web}\n"
		wrong    = "no Service or ServiceEntry that selects this workload has a port of this name"
		unwanted = "no Service or ServiceEntry of namespace default selects this workload: no request is sent to it"
	)
	for name, test := range map[string]struct {
		text string
		want []string // "field: severity: message"
	}{
		"port of the service":        {web + workload("", labels+"  ports: {http: 8080}\n"), nil},
		"named target port":          {web + workload("", labels+"  ports: {main: 8080, grpc: 1}\n"), nil},
		"no ports":                   {web + workload("", labels), nil},
		"labels of the metadata":     {web + workload(", labels: {app: web}", ""), nil},
		"port misspelt":              {web + workload("", labels+"  ports: {htpp: 9999}\n"), []string{"spec.ports[htpp]: warning: has no effect: " + wrong + "; did you mean http?"}},
		"one of two":                 {web + workload("", labels+"  ports:\n    http: 8080\n    metrics: 9\n"), []string{"spec.ports[metrics]: warning: has no effect: " + wrong}},
		"port of the other service":  {web + service("admin", "selector: {app: web}, ports: [{port: 1, name: admin}]") + workload("", labels+"  ports: {admin: 7}\n"), nil},
		"port of a stranger":         {web + service("admin", "selector: {app: x}, ports: [{port: 1, name: admin}]") + workload("", labels+"  ports: {admin: 7}\n"), []string{"spec.ports[admin]: warning: has no effect: " + wrong}},
		"port without a name":        {service("web", "selector: {app: web}, ports: [{port: 80}]") + workload("", labels+"  ports: {http: 8080}\n"), []string{"spec.ports[http]: warning: has no effect: " + wrong}},
		"other labels":               {web + workload("", "  labels: {app: wbe}\n  ports: {htpp: 1}\n"), []string{"spec.labels: warning: " + unwanted}},
		"other labels, in metadata":  {web + workload(", labels: {app: wbe}", ""), []string{"metadata.labels: warning: " + unwanted}},
		"ports, no labels":           {web + workload("", "  ports: {http: 8080}\n"), []string{"spec: warning: " + unwanted}},
		"an address and its account": {web + workload("", "  serviceAccount: cron\n"), []string{"spec: notice: " + unwanted}},
		"another namespace":          {web + workload(", namespace: other", labels), []string{"spec.labels: warning: " + strings.Replace(unwanted, "default", "other", 1)}},
		"service without selector":   {service("web", "ports: [{port: 80}]") + workload("", labels), []string{"spec.labels: warning: " + unwanted}},
		"ServiceEntry with a selector": {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\n" +
			"spec: {hosts: [a.example], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: web}}}\n" +
			workload("", labels+"  ports: {http: 8080}\n"), nil},
		"port of a Server": {web + workload("", labels+"  ports: {limited: 8080}\n") +
			"---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: s}\nspec: {podSelector: {matchLabels: {app: web}}, port: limited, accessPolicy: all-unauthenticated}\n", nil},
		"port of another's Server": {web + workload("", labels+"  ports: {limited: 8080}\n") +
			"---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: s}\nspec: {podSelector: {matchLabels: {app: x}}, port: limited, accessPolicy: all-unauthenticated}\n",
			[]string{"spec.ports[limited]: warning: has no effect: " + wrong}},
	} {
		t.Run(name, func(t *testing.T) {
			r := Build([]*File{Parse("f.yaml", []byte(test.text))}, nil)
			var got []string
			for _, p := range r.Problems {
				if p.Object.Kind == "WorkloadEntry" {
					got = append(got, p.Field+": "+p.Severity.String()+": "+p.Message)
					if at := strings.Count(test.text[:strings.Index(test.text, "WorkloadEntry")], "\n"); p.At.Line <= at {
						t.Errorf("%v: the workload begins after line %d", p, at)
					}
				} else if p.Severity == Error {
					t.Error(p)
				}
			}
			if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
				t.Errorf("%q, want %q", got, test.want)
			}
			if len(r.Set.Workloads) != 1 {
				t.Error("the workload is not in force")
			}
		})
	}
}
