package policy

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// reachable calls visit for every message of Istio's API that objects can hold.
func reachable(visit func(protoreflect.MessageDescriptor)) {
	seen := make(map[protoreflect.FullName]bool)
	var walk func(md protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] || md.ParentFile().Package() == "google.protobuf" {
			return
		}
		seen[md.FullName()] = true
		visit(md)
		for i := 0; i < md.Fields().Len(); i++ {
			fd := md.Fields().Get(i)
			if fd.IsMap() {
				fd = fd.MapValue()
			}
			// What lies under a refused field is never read.
			if how := treat(md.Fields().Get(i)); fd.Message() != nil && how != refused && how != partly && how != harmless {
				walk(fd.Message())
			}
		}
	}
	for _, newOf := range specs() {
		walk(newOf().ProtoReflect().Descriptor())
	}
}

func TestEveryFieldHasATreatment(t *testing.T) {
	known := make(map[string]bool)
	reachable(func(md protoreflect.MessageDescriptor) {
		for i := 0; i < md.Fields().Len(); i++ {
			fd := md.Fields().Get(i)
			name := messageName(md) + "." + fd.JSONName()
			known[name] = true
			lists := 0
			for _, names := range treatments[messageName(md)] {
				for _, n := range strings.Fields(names) {
					if n == fd.JSONName() {
						lists++
					}
				}
			}
			if lists != 1 {
				t.Errorf("%s is in %d lists, want exactly one", name, lists)
			}
			if (treat(fd) == partly) != (partial[name] != nil) {
				t.Errorf("%s: a field that is enforced for some values needs a check, and only such a one", name)
			}
		}
	})
	for message, lists := range treatments {
		for _, names := range lists {
			for _, n := range strings.Fields(names) {
				if !known[message+"."+n] {
					t.Errorf("%s.%s is in a list, but no object can hold it", message, n)
				}
			}
		}
	}
}

// TestRefusedFields sets every refused field of every message to something and
// expects an error that names it.
func TestRefusedFields(t *testing.T) {
	n := 0
	reachable(func(md protoreflect.MessageDescriptor) {
		for i := 0; i < md.Fields().Len(); i++ {
			fd := md.Fields().Get(i)
			if treat(fd) != refused {
				continue
			}
			m := newMessage(t, md)
			switch {
			case fd.IsMap():
				m.Mutable(fd).Map().Set(protoreflect.ValueOfString("x").MapKey(), m.NewField(fd).Map().NewValue())
			case fd.IsList():
				l := m.Mutable(fd).List()
				l.Append(l.NewElement())
			case fd.Message() != nil:
				m.Mutable(fd)
			case fd.Kind() == protoreflect.BoolKind:
				m.Set(fd, protoreflect.ValueOfBool(true))
			case fd.Kind() == protoreflect.StringKind:
				m.Set(fd, protoreflect.ValueOfString("x"))
			case fd.Kind() == protoreflect.EnumKind:
				m.Set(fd, protoreflect.ValueOfEnum(1))
			default:
				m.Set(fd, protoreflect.ValueOfInt32(1))
			}
			var f findings
			f.unenforced("spec", m)
			found := false
			for _, finding := range f {
				found = found || finding.Field == "spec."+fd.JSONName() && finding.Severity == Error
			}
			if !found {
				t.Errorf("%s.%s is set and not refused: %v", messageName(md), fd.JSONName(), f)
			}
			n++
		}
	})
	if n < 30 {
		t.Errorf("only %d refused fields were tried", n)
	}
}

func newMessage(t *testing.T, md protoreflect.MessageDescriptor) protoreflect.Message {
	t.Helper()
	var found protoreflect.Message
	for _, newOf := range specs() {
		var find func(m protoreflect.Message, depth int)
		find = func(m protoreflect.Message, depth int) {
			if m.Descriptor() == md {
				found = m.New()
			}
			for i := 0; found == nil && depth < 6 && i < m.Descriptor().Fields().Len(); i++ {
				switch fd := m.Descriptor().Fields().Get(i); {
				case fd.IsMap() && fd.MapValue().Message() != nil:
					find(m.NewField(fd).Map().NewValue().Message(), depth+1)
				case fd.IsMap() || fd.Message() == nil:
				case fd.IsList():
					find(m.NewField(fd).List().NewElement().Message(), depth+1)
				default:
					find(m.NewField(fd).Message(), depth+1)
				}
			}
		}
		if found == nil {
			find(newOf().ProtoReflect(), 0)
		}
	}
	if found == nil {
		t.Fatalf("no message %s", md.FullName())
	}
	return found
}

func TestUnenforced(t *testing.T) {
	vs := func(route string) string {
		return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [a], http: [{" + route + "}]}\n"
	}
	dr := func(policy string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a, trafficPolicy: {" + policy + "}}\n"
	}
	se := func(rest string) string {
		return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec: {hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}], " + rest + "}\n"
	}
	we := func(address string) string {
		return "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x}\nspec: {address: '" + address + "', network: n}\n"
	}
	const to = "route: [{destination: {host: a}}]"
	for _, tt := range []struct{ in, field, text string }{ // field "" = accepted
		{vs(to + ", timeout: 1s, retries: {attempts: 3, retryOn: '503,reset', retryRemoteLocalities: false, retryIgnorePreviousHosts: true, backoff: 10ms}"), "", ""},
		{vs(to + ", retries: {attempts: 3, retryRemoteLocalities: true}"), "", ""},
		{vs(to + ", retries: {attempts: 3, retryOn: http3-post-connect-failure}"), "spec.http[0].retries.retryOn", "http3-post-connect-failure"},
		{vs(to + ", fault: {abort: {httpStatus: 500}, delay: {fixedDelay: 1s, percent: 3}}, mirror: {host: b}, mirrorPercentage: {value: 3}"), "", ""},
		{vs("redirect: {uri: /x, redirectCode: 308, derivePort: FROM_REQUEST_PORT}"), "", ""},
		{vs("redirect: {uri: /x, redirectCode: 300}"), "spec.http[0].redirect.redirectCode", "300"},
		{vs("directResponse: {status: 200, body: {string: x}}, headers: {response: {set: {x: y}}}"), "", ""},
		{vs("route: [{destination: {host: a}, headers: {request: {remove: [x], add: {a: '%REQ(b)%'}}}}]"), "", ""},
		{vs(to + ", headers: {request: {set: {a: '%DYNAMIC_METADATA(a:b)%'}}}"), "spec.http[0].headers.request.set", "DYNAMIC_METADATA"},
		{vs(to + ", corsPolicy: {allowOrigins: [{exact: a}], maxAge: 1s, unmatchedPreflights: IGNORE}, rewrite: {uriRegexRewrite: {match: a, rewrite: b}}"), "", ""},
		{vs("delegate: {name: a}"), "", ""},
		{dr("loadBalancer: {zoneAwareLbSetting: {enabled: true}, localityLbSetting: {enabled: false}}"), "", ""},
		{vs(to + ", match: [{headers: {'@request.auth.claims.group': {exact: a}}, withoutHeaders: {'@request.auth.claims[a.b][c]': {}}}]"), "", ""},
		{vs(to + ", match: [{statPrefix: x, name: y, withoutHeaders: {x: {regex: '*'}}}]"), "", ""},
		// A route that no client in the mesh can take says nothing to the mesh.
		{strings.Replace(vs("match: [{gateways: [edge]}], redirect: {uri: /x}"), "hosts: [a]", "hosts: [a], gateways: [mesh, edge]", 1), "", ""},
		{dr("loadBalancer: {simple: LEAST_CONN, localityLbSetting: {enabled: false}}"), "", ""},
		{dr("loadBalancer: {localityLbSetting: {enabled: true}, warmup: {duration: 1s}}"), "", ""},
		{dr("loadBalancer: {localityLbSetting: {failoverPriority: [x]}}"), "", ""},
		{dr("loadBalancer: {zoneAwareLbSetting: {enabled: true, failover: [{from: a, to: b}], minClusterSize: 3}}"), "", ""},
		{dr("loadBalancer: {zoneAwareLbSetting: {enabled: false}}"), "", ""},
		{dr("loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}"), "spec.trafficPolicy.loadBalancer.warmup", "RANDOM"},
		{dr("loadBalancer: {consistentHash: {useSourceIp: true}, warmupDurationSecs: 1s}"), "spec.trafficPolicy.loadBalancer.warmupDurationSecs", "consistentHash"},
		{dr("loadBalancer: {simple: PASSTHROUGH}"), "spec.trafficPolicy.loadBalancer.simple", "PASSTHROUGH"},
		{dr("loadBalancer: {consistentHash: {httpCookie: {name: a, ttl: 0s, attributes: [{name: Secure}]}, maglev: {tableSize: 101}}}"), "", ""},
		{dr("connectionPool: {tcp: {tcpKeepalive: {probes: 1}}, http: {useClientProtocol: true, maxConcurrentStreams: 1, http2KeepAlive: {interval: 1s}}}"), "", ""},
		{dr("connectionPool: {tcp: {maxConnectionDuration: 1s}}"), "spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration", ""},
		{dr("outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3}"), "", ""},
		{dr("outlierDetection: {outlierDetectionHttpErrorCodes: [500]}"), "spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes", ""},
		{dr("tls: {mode: DISABLE}"), "", ""},
		{dr("tls: {mode: ISTIO_MUTUAL, subjectAltNames: [a]}"), "", ""},
		{dr("portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, sni: a, caCertificates: /ca.pem}}]"), "", ""},
		{dr("tls: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, insecureSkipVerify: false}"), "", ""},
		{dr("tls: {mode: SIMPLE, insecureSkipVerify: true}"), "spec.trafficPolicy.tls.insecureSkipVerify", "verifies every server"},
		{dr("tls: {mode: SIMPLE, clientCertificate: /c.pem}"), "spec.trafficPolicy.tls.clientCertificate", "SIMPLE"},
		{dr("tls: {mode: ISTIO_MUTUAL, privateKey: /k.pem}"), "spec.trafficPolicy.tls.privateKey", "ISTIO_MUTUAL"},
		{dr("tls: {mode: ISTIO_MUTUAL, caCertificates: /k.pem}"), "spec.trafficPolicy.tls.caCertificates", "ISTIO_MUTUAL"},
		{dr("tls: {mode: DISABLE, sni: a}"), "spec.trafficPolicy.tls.sni", "DISABLE"},
		{dr("tls: {mode: DISABLE, subjectAltNames: [a]}"), "spec.trafficPolicy.tls.subjectAltNames", "DISABLE"},
		{dr("tls: {mode: SIMPLE, credentialName: a}"), "spec.trafficPolicy.tls.credentialName", ""},
		{dr("tls: {mode: SIMPLE, caCrl: /a.crl}"), "spec.trafficPolicy.tls.caCrl", ""},
		{dr("connectionPool: {tcp: {maxConnections: 1, connectTimeout: 30ms, idleTimeout: 0s}, http: {http1MaxPendingRequests: 1, h2UpgradePolicy: UPGRADE, useClientProtocol: false}}"), "", ""},
		{dr("outlierDetection: {consecutive5xxErrors: 0, interval: 5m, minHealthPercent: 10}"), "", ""},
		{se("resolution: STATIC, endpoints: [{address: 10.0.0.1}], addresses: [240.0.0.1], subjectAltNames: ['spiffe://a/b']"), "", ""},
		{se("resolution: NONE"), "", ""},
		{se("resolution: NONE, location: MESH_INTERNAL"), "spec.resolution", "NONE"},
		{se("resolution: DNS"), "", ""},
		{se("resolution: DNS_ROUND_ROBIN, endpoints: [{address: b.example}]"), "", ""},
		{se("resolution: STATIC, endpoints: [{address: 'unix:///x'}]"), "spec.endpoints[0].address", "unix"},
		{we("10.0.0.1"), "", ""},
		{we("host.example"), "", ""},
		{we("unix:///x"), "spec.address", "unix"},
		{we(""), "spec.address", "gateway"},
	} {
		f := Parse("f.yaml", []byte(tt.in))
		found := tt.field == ""
		for _, p := range f.Problems {
			if p.Severity != Error {
				continue
			}
			if tt.field == "" || p.Field != tt.field || !strings.Contains(p.Message, tt.text) || !strings.Contains(p.Message, "mesh") || p.At.Line != 4 {
				t.Errorf("%s: unexpected %s", tt.in, p)
				continue
			}
			found = true
		}
		if !found {
			t.Errorf("%s: %s is not refused: %q", tt.in, tt.field, texts(f.Problems))
		}
	}
}

// TestDecodeAgainstProtojson holds the reader with line numbers against protobuf's own.
func TestDecodeAgainstProtojson(t *testing.T) {
	for _, tt := range []struct{ field, value string }{
		{"maxConnections", "1"}, {"maxConnections", "1.0"}, {"maxConnections", "1e2"}, {"maxConnections", `"7"`}, {"maxConnections", "1.5"},
		{"maxConnections", "2147483648"}, {"maxConnections", "true"}, {"maxConnections", "null"}, {"maxConnections", "-3"},
		{"connectTimeout", `"1.5s"`}, {"connectTimeout", `"-2s"`}, {"connectTimeout", `"0.000000001s"`}, {"connectTimeout", "3"},
		{"tcpKeepalive", "{}"}, {"tcpKeepalive", "[]"}, {"tcpKeepalive", `{"probes": 3, "time": "7200s"}`},
	} {
		doc := fmt.Sprintf(`{"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {%q: %s}}}}`, tt.field, tt.value)
		want := newSpec["DestinationRule"]()
		wantErr := unmarshalJSON([]byte(doc), want)
		got := newSpec["DestinationRule"]()
		d := &decoder{lines: map[string]int{}}
		docs, bad := readDocuments(chunk{text: []byte(doc)})
		if bad != nil {
			t.Fatal(bad)
		}
		d.message(docs[0], got.ProtoReflect(), "")
		if (len(d.problems) > 0) != (wantErr != nil) || wantErr == nil && !proto.Equal(got, want) {
			t.Errorf("%s: %v %q, want %v %v", doc, got, texts(d.problems), want, wantErr)
		}
	}
}

// TestTLSModes: protobuf reads a number that stands for no mode, which would be no security at all.
func TestTLSModes(t *testing.T) {
	for _, where := range []string{"trafficPolicy: {tls: {mode: 9}}", "subsets: [{name: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: 9}}]}}]"} {
		r := Build([]*File{Parse("f.yaml", []byte("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a, "+where+"}\n"))}, nil)
		if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), ".tls.mode: 9 is not a mode") || len(r.Set.DestinationRules) != 0 {
			t.Errorf("%s: %q", where, texts(r.Problems))
		}
	}
}
