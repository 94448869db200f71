package policy

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// delegation is a VirtualService with one route, and the one that it delegates to.
func delegation(root, child, childMeta string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: root}\nspec: {hosts: [a], http: [{" + root + "}]}\n---\n" +
		"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: child" + childMeta + "}\nspec: {http: [{" + child + "}]" + "}\n"
}

func TestDelegate(t *testing.T) {
	const to = "delegate: {name: child}"
	for _, tt := range []struct {
		name, root, child, want, problem string
	}{
		{"all of the delegate's", to, "name: c, route: [{destination: {host: b}}]", "name: c, route: [{destination: {host: b.default.svc.cluster.local}}]", ""},
		{"what it leaves out", to + ", name: r, timeout: 1s, match: [{uri: {prefix: /a}}], headers: {request: {set: {x: root}}}, retries: {attempts: 1}",
			"name: c, route: [{destination: {host: b.x}}], timeout: 2s",
			"name: r-c, timeout: 2s, match: [{uri: {prefix: /a}}], headers: {request: {set: {x: root}}}, retries: {attempts: 1}, route: [{destination: {host: b.x}}]", ""},
		{"a match within", to + ", match: [{name: m, uri: {prefix: /a}, port: 80, headers: {x: {exact: '1'}}}]",
			"match: [{name: n, uri: {exact: /a/b}, method: {exact: GET}, headers: {y: {exact: '2'}}}], directResponse: {status: 200}",
			"match: [{name: m-n, uri: {exact: /a/b}, port: 80, method: {exact: GET}, headers: {x: {exact: '1'}, y: {exact: '2'}}}], directResponse: {status: 200}", ""},
		{"each of several", to + ", match: [{uri: {prefix: /a}}, {uri: {prefix: /b}}]", "match: [{uri: {prefix: /b/1}}, {uri: {prefix: /a/1}}], directResponse: {status: 200}",
			"match: [{uri: {prefix: /b/1}}, {uri: {prefix: /a/1}}], directResponse: {status: 200}", ""},
		{"the root without a match", to, "match: [{sourceNamespace: x, gateways: [mesh]}], directResponse: {status: 200}", "match: [{sourceNamespace: x, gateways: [mesh]}], directResponse: {status: 200}", ""},
		{"a match outside", to + ", match: [{uri: {prefix: /a}}]", "match: [{uri: {prefix: /}}], directResponse: {status: 200}", "", "spec.http[0].delegate: warning: spec.http[0] of VirtualService default/child is left out"},
		{"expressions", to + ", match: [{uri: {prefix: /a}}]", "match: [{uri: {regex: /a.*}}], directResponse: {status: 200}", "", "is left out"},
		{"another port", to + ", match: [{port: 80}]", "match: [{port: 81}], directResponse: {status: 200}", "", "is left out"},
		{"other labels", to + ", match: [{sourceLabels: {a: b}}]", "match: [{sourceLabels: {a: c}}], directResponse: {status: 200}", "", "is left out"},
		{"letter case", to + ", match: [{uri: {prefix: /a}, ignoreUriCase: true}]", "match: [{uri: {prefix: /a}}], directResponse: {status: 200}", "", "is left out"},
		{"missing", "delegate: {name: other}", "directResponse: {status: 200}", "", "spec.http[0].delegate: warning: the route is left out: there is no VirtualService default/other"},
		{"in another namespace", "delegate: {name: child, namespace: other}", "directResponse: {status: 200}", "", "there is no VirtualService other/child"},
	} {
		r := Build([]*File{Parse("f.yaml", []byte(delegation(tt.root, tt.child, "")))}, nil)
		want := newSpec["VirtualService"]().(*networking.VirtualService)
		d := &decoder{lines: map[string]int{}}
		text := "{hosts: [a], http: [{" + tt.want + "}]}"
		if tt.want == "" {
			text = "{hosts: [a]}"
		}
		docs, bad := readDocuments(chunk{text: []byte(text)})
		if bad != nil {
			t.Fatal(bad)
		}
		d.message(docs[0], want.ProtoReflect(), "")
		if len(r.Set.VirtualServices) != 1 || !proto.Equal(r.Set.VirtualServices[0].Spec, want) {
			t.Errorf("%s: %v, want %v", tt.name, r.Set.VirtualServices, want)
		}
		found := tt.problem == ""
		for _, p := range r.Problems {
			found = found || strings.Contains(p.String(), tt.problem) && p.At.Line == 4
		}
		if !found {
			t.Errorf("%s: %q, want %s", tt.name, texts(r.Problems), tt.problem)
		}
	}
}

// TestDelegateVisibility: one that is not exported is as good as missing, and a delegate
// without anybody who delegates to it says so.
func TestDelegateVisibility(t *testing.T) {
	text := delegation("delegate: {name: child, namespace: other}", "directResponse: {status: 200}", ", namespace: other")
	for _, tt := range []struct {
		text   string
		routes int
	}{
		{text, 1},
		{strings.Replace(text, "spec: {http", "spec: {exportTo: ['.'], http", 1), 0},
		{strings.Replace(text, "spec: {http", "spec: {exportTo: [default], http", 1), 1},
	} {
		r := Build([]*File{Parse("f.yaml", []byte(tt.text))}, nil)
		if len(r.Set.VirtualServices) != 1 || len(r.Set.VirtualServices[0].Spec.Http) != tt.routes {
			t.Errorf("%s: %v %q", tt.text, r.Set.VirtualServices, texts(r.Problems))
		}
	}
	alone := text[strings.Index(text, "---")+4:]
	r := Build([]*File{Parse("f.yaml", []byte(alone))}, nil)
	if len(r.Set.VirtualServices) != 0 || !slices.ContainsFunc(r.Problems, func(p Problem) bool { return strings.Contains(p.Message, "no VirtualService delegates to it") }) {
		t.Errorf("%q", texts(r.Problems))
	}
}

// TestMirrorSubsets: a copy to a subset that nobody declares would silently go nowhere.
func TestMirrorSubsets(t *testing.T) {
	for _, field := range []string{"mirror: {host: b, subset: v}", "mirrors: [{destination: {host: b, subset: v}}]"} {
		text := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}], " + field + "}]}\n"
		r := Build([]*File{Parse("f.yaml", []byte(text))}, nil)
		if !slices.ContainsFunc(r.Problems, func(p Problem) bool {
			return p.Severity == Error && strings.HasPrefix(p.Field, "spec.http[0].mirror") && strings.HasSuffix(p.Field, ".subset")
		}) || len(r.Set.VirtualServices) != 0 {
			t.Errorf("%s: %q", field, texts(r.Problems))
		}
	}
}

func TestClaimPath(t *testing.T) {
	for name, want := range map[string][]string{
		"@request.auth.claims.group": {"group"}, "@request.auth.claims.a.b": {"a", "b"}, "@REQUEST.auth.claims.A": {"A"},
		"@request.auth.claims[a.b]": {"a.b"}, "@request.auth.claims[a][b]": {"a", "b"},
		"@request.auth.claims": nil, "@request.auth.claims.": nil, "@request.auth.claims[]": nil, "@request.auth.claims[a][]": nil,
		"@request.auth.claims-a": nil, "@request.auth.claims.a..b": nil, "group": nil,
	} {
		got, ok := ClaimPath(name)
		if ok != (want != nil) || want != nil && !slices.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", name, got, ok, want)
		}
	}
	text := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}], match: [{headers: {'@request.auth.claims': {exact: a}}}]}]}\n"
	if f := Parse("f.yaml", []byte(text)); len(f.Problems) != 1 || !strings.Contains(f.Problems[0].String(), "names no claim") {
		t.Errorf("%q", texts(f.Problems))
	}
}

// TestTrafficProblems are mistakes that only the rules of requests and of places have.
func TestTrafficProblems(t *testing.T) {
	for _, tt := range []struct{ kind, spec, want string }{
		{"VirtualService", `hosts: [a], http: [{route: [{destination: {host: a}}], rewrite: {uriRegexRewrite: {match: "a(b)", rewrite: '\2'}}}]`, "uriRegexRewrite.rewrite"},
		{"VirtualService", `hosts: [a], http: [{route: [{destination: {host: a}}], rewrite: {uriRegexRewrite: {match: "a(b)", rewrite: '\1'}}}]`, ""},
		{"DestinationRule", "host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {failoverPriority: [topology.kubernetes.io/zone]}}}", "zoneAwareLbSetting.failoverPriority[0]"},
		{"DestinationRule", "host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {failover: [{from: a, to: a}]}}}", "zoneAwareLbSetting.failover[0]"},
		{"DestinationRule", "host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {enabled: true}, localityLbSetting: {enabled: true}}}", "zoneAwareLbSetting"},
	} {
		f := Parse("f.yaml", []byte("apiVersion: networking.istio.io/v1\nkind: "+tt.kind+"\nmetadata: {name: x}\nspec: {"+tt.spec+"}\n"))
		if tt.want == "" {
			if len(f.Problems) > 0 {
				t.Errorf("%s: %q", tt.spec, texts(f.Problems))
			}
			continue
		}
		if len(f.Problems) != 1 || !strings.HasSuffix(f.Problems[0].Field, tt.want) || f.Problems[0].Severity != Error {
			t.Errorf("%s: %q, want %s", tt.spec, texts(f.Problems), tt.want)
		}
	}
}
