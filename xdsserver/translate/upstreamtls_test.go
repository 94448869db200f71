package translate

//lint:file-ignore SA1019 deprecated fields are still written, and read here.

import (
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// writeSocket writes what a transport socket does, whichever way it says it.
func writeSocket(t testing.TB, s *corev3.TransportSocket) string {
	t.Helper()
	if !strings.HasSuffix(s.GetName(), "tls") {
		return "plain"
	}
	m := &tlsv3.UpstreamTlsContext{}
	if err := s.GetTypedConfig().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	common := m.GetCommonTlsContext()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, secret := range common.GetTlsCertificateSdsSecretConfigs() {
		if files, ok := strings.CutPrefix(secret.GetName(), "file-cert:"); ok {
			add("cert=%s", files)
		} else {
			add("cert=%s", secret.GetName())
		}
	}
	for _, c := range common.GetTlsCertificates() {
		add("cert=%s~%s", c.GetCertificateChain().GetFilename(), c.GetPrivateKey().GetFilename())
	}
	if p := common.GetTlsCertificateProviderInstance(); p != nil {
		add("cert=%s", p.GetCertificateName())
	}
	peer := common.GetValidationContext()
	if combined := common.GetCombinedValidationContext(); combined != nil {
		peer = combined.GetDefaultValidationContext()
		if secret := combined.GetValidationContextSdsSecretConfig(); secret != nil {
			add("roots=%s", strings.TrimPrefix(secret.GetName(), "file-root:"))
		}
	}
	if p := peer.GetCaCertificateProviderInstance(); p != nil {
		add("roots=%s", p.GetCertificateName())
	}
	if f := peer.GetTrustedCa().GetFilename(); f != "" {
		add("roots=%s", f)
	}
	if peer.GetSystemRootCerts() != nil {
		add("roots=system")
	}
	for _, n := range peer.GetMatchTypedSubjectAltNames() {
		add("san:%v%s", n.GetSanType(), writeText(n.GetMatcher()))
	}
	for _, n := range peer.GetMatchSubjectAltNames() {
		add("san%s", writeText(n))
	}
	if m.GetSni() != "" {
		add("sni=%s", m.GetSni())
	}
	if len(common.GetAlpnProtocols()) > 0 {
		add("alpn=%s", strings.Join(common.GetAlpnProtocols(), ","))
	}
	return strings.Join(out, " ")
}

// writeTLS writes how the connections of a cluster are secured.
func writeTLS(t testing.TB, c *clusterv3.Cluster) string {
	t.Helper()
	var out []string
	if s := c.GetTransportSocket(); s != nil {
		out = append(out, writeSocket(t, s))
	}
	for _, m := range c.GetTransportSocketMatches() {
		match := "*"
		if v := m.GetMatch().GetFields()["tlsMode"].GetStringValue(); v != "" {
			match = v
		}
		out = append(out, m.GetName()+"("+match+"): "+writeSocket(t, m.GetTransportSocket()))
	}
	for _, a := range c.GetTypedExtensionProtocolOptions() {
		opts := &upstreamv3.HttpProtocolOptions{}
		if err := a.UnmarshalTo(opts); err != nil {
			t.Fatal(err)
		}
		if n := opts.GetUpstreamHttpProtocolOptions(); n != nil {
			out = append(out, fmt.Sprintf("auto sni=%v name=%v", n.GetAutoSni(), n.GetAutoSanValidation()))
		}
		if err := opts.ValidateAll(); err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(out, "; ")
}

// secured is bookinfo with service accounts, and with workloads of reviews that take mutual TLS.
func secured(t testing.TB, versions ...string) *policy.Set {
	set := bookinfo(t)
	for _, w := range set.Workloads {
		w.ServiceAccount = "reviews-" + w.Labels["version"]
		for _, v := range versions {
			if w.Labels["version"] == v {
				w.Labels[policy.TLSModeLabel] = "istio"
			}
		}
	}
	return set
}

func TestAutomaticMutualTLS(t *testing.T) {
	const (
		ids       = "san:URI=spiffe://cluster.local/ns/default/sa/reviews-v1 san:URI=spiffe://cluster.local/ns/default/sa/reviews-v2"
		oldIDs    = "san=spiffe://cluster.local/ns/default/sa/reviews-v1 san=spiffe://cluster.local/ns/default/sa/reviews-v2"
		sni       = "sni=outbound_.9080_._." + reviews
		istioALPN = "alpn=istio-peer-exchange,istio,h2"
		chosen    = "tlsMode-istio(istio): cert=default roots=ROOTCA " + ids + " " + sni + " " + istioALPN + "; tlsMode-disabled(*): plain"
	)
	for _, test := range []struct {
		name   string
		set    func() *policy.Set
		agent  Agent
		want   string
		tagged int // endpoints that are marked
		notes  int
	}{
		{"nobody takes it", func() *policy.Set { return secured(t) }, Sinew, "", 0, 0},
		{"all take it", func() *policy.Set { return secured(t, "v1", "v2") }, Sinew, chosen, 3, 0},
		{"some take it", func() *policy.Set { return secured(t, "v2") }, Sinew, chosen, 2, 0},
		{"some take it", func() *policy.Set { return secured(t, "v2") }, Other, chosen, 2, 0},
		{"some take it", func() *policy.Set { return secured(t, "v2") }, GRPC, "", 0, 1},
		{"all take it", func() *policy.Set { return secured(t, "v1", "v2") }, GRPC, "cert=default roots=ROOTCA " + oldIDs + " " + sni, 0, 0},
		{"switched off at the port", func() *policy.Set {
			set := secured(t, "v1", "v2")
			set.PeerAuthentications = []*policy.PeerAuthentication{peerAuthentication(t, "default", "v1",
				`{selector: {matchLabels: {version: v1}}, portLevelMtls: {"9080": {mode: DISABLE}}}`)}
			return set
		}, Sinew, chosen, 2, 0},
		{"switched off", func() *policy.Set {
			set := secured(t, "v1", "v2")
			set.PeerAuthentications = []*policy.PeerAuthentication{peerAuthentication(t, "default", "off", `{mtls: {mode: DISABLE}}`)}
			return set
		}, Sinew, "", 0, 0},
		{"outside the mesh", func() *policy.Set {
			set := secured(t, "v1", "v2")
			set.Services[0].External, set.Services[0].Resolution = true, networking.ServiceEntry_STATIC
			return set
		}, Sinew, "", 0, 0},
		{"DISABLE stands above it", func() *policy.Set {
			set := secured(t, "v1", "v2")
			set.DestinationRules = []*policy.DestinationRule{destinationRule(t, "default", "x", "{host: reviews, trafficPolicy: {tls: {mode: DISABLE}}}")}
			return set
		}, Sinew, "", 3, 0},
		{"aliases and names of a ServiceEntry", func() *policy.Set {
			set := secured(t, "v1", "v2")
			set.DestinationRules = nil
			set.MeshConfig = meshConfig(t, "{trustDomain: td, trustDomainAliases: [old]}")
			for _, w := range set.Workloads {
				w.ServiceAccount = "r"
			}
			set.Services[0].SubjectAltNames = []string{"spiffe://td/ns/x/sa/y"}
			return set
		}, Sinew, "tlsMode-istio(istio): cert=default roots=ROOTCA san:URI=spiffe://old/ns/default/sa/r san:URI=spiffe://old/ns/x/sa/y " +
			"san:URI=spiffe://td/ns/default/sa/r san:URI=spiffe://td/ns/x/sa/y " + sni + " alpn=istio-peer-exchange,istio; tlsMode-disabled(*): plain", 3, 0},
	} {
		v := NewView(test.set())
		c, r := get(t, v, ClusterType, "outbound|9080||"+reviews, client(test.agent), &clusterv3.Cluster{})
		if got := writeTLS(t, c); got != test.want || len(r.Notes) != test.notes {
			t.Errorf("%s for %v:\n got %s\nwant %s\nnotes %v", test.name, test.agent, got, test.want, r.Notes)
		}
		if test.agent == Sinew {
			if _, err := compiled(ClusterType, r.Body); err != nil {
				t.Errorf("%s: our client refuses it: %v", test.name, err)
			}
		}
		a, _ := get(t, v, EndpointType, "outbound|9080||"+reviews, client(test.agent), &endpointv3.ClusterLoadAssignment{})
		tagged := 0
		for _, g := range a.GetEndpoints() {
			for _, e := range g.GetLbEndpoints() {
				if e.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields()["tlsMode"].GetStringValue() == "istio" {
					tagged++
				}
			}
		}
		if tagged != test.tagged {
			t.Errorf("%s for %v: %d endpoints are marked, want %d", test.name, test.agent, tagged, test.tagged)
		}
	}
}

func TestTLSModes(t *testing.T) {
	const subsets = ", subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: DISABLE}}}]}"
	for _, test := range []struct {
		rule, name       string
		change           func(*policy.Service)
		sinew, other     string
		grpc             string // "" as sinew; "-" withheld
		sinewNotes, note int
	}{
		{rule: "{tls: {mode: ISTIO_MUTUAL}}", name: "outbound|9080|v1|" + reviews,
			sinew: "cert=default roots=ROOTCA san:URI=spiffe://cluster.local/ns/default/sa/reviews-v1 san:URI=spiffe://cluster.local/ns/default/sa/reviews-v2 sni=outbound_.9080_.v1_." + reviews + " alpn=istio-peer-exchange,istio",
			grpc:  "cert=default roots=ROOTCA san=spiffe://cluster.local/ns/default/sa/reviews-v1 san=spiffe://cluster.local/ns/default/sa/reviews-v2 sni=outbound_.9080_.v1_." + reviews},
		{rule: "{tls: {mode: ISTIO_MUTUAL}}", name: "outbound|9080|v2|" + reviews, sinew: ""}, // the subset says otherwise
		{rule: "{tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 9080}, tls: {mode: ISTIO_MUTUAL, sni: s.com, subjectAltNames: [spiffe://x/y]}}]}", name: "outbound|9080||" + reviews,
			sinew: "cert=default roots=ROOTCA san:URI=spiffe://x/y sni=s.com alpn=istio-peer-exchange,istio", grpc: "cert=default roots=ROOTCA san=spiffe://x/y sni=s.com", note: 1},
		{rule: "{tls: {mode: SIMPLE}}", name: "outbound|9080||" + reviews, sinew: "roots=system; auto sni=true name=true", grpc: "-"},
		{rule: "{tls: {mode: SIMPLE}, connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}", name: "outbound|9080||" + reviews, sinew: "roots=system alpn=h2; auto sni=true name=true", grpc: "-"},
		{rule: "{tls: {mode: SIMPLE, caCertificates: /ca.pem, sni: s.com}}", name: "outbound|9080||" + reviews, sinew: "roots=/ca.pem sni=s.com", other: "roots=/ca.pem san=s.com sni=s.com", grpc: "-"},
		{rule: "{tls: {mode: SIMPLE, subjectAltNames: [a.com, b.com], insecureSkipVerify: false}}", name: "outbound|9080||" + reviews,
			sinew: "roots=system san=a.com san=b.com; auto sni=true name=false", grpc: "-"},
		{rule: "{tls: {mode: SIMPLE}}", name: "outbound|9080||" + reviews, change: func(s *policy.Service) { s.SubjectAltNames = []string{"se.com"} },
			sinew: "roots=system san=se.com; auto sni=true name=false", grpc: "-"},
		{rule: "{tls: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: /ca.pem}}", name: "outbound|9080||" + reviews,
			sinew: "cert=/c.pem~/k.pem roots=/ca.pem; auto sni=true name=true", grpc: "-"},
		{rule: "{tls: {mode: MUTUAL}}", name: "outbound|9080||" + reviews, sinew: "-", grpc: "-"},
		{rule: "{tls: {mode: ISTIO_MUTUAL, privateKey: /k.pem}}", name: "outbound|9080||" + reviews, sinew: "-", grpc: "-"},
	} {
		set := secured(t)
		if test.change != nil {
			test.change(set.Services[0])
		}
		set.DestinationRules = []*policy.DestinationRule{destinationRule(t, "default", "reviews", "{host: reviews, trafficPolicy: "+test.rule+subsets)}
		for agent, want := range map[Agent]string{Sinew: test.sinew, Other: test.other, GRPC: test.grpc} {
			if want == "" {
				want = test.sinew
			}
			if want == "-" {
				_, err := NewView(set).Resource(ClusterType, test.name, client(agent))
				if !isWithheld(err) || !strings.Contains(err.Error(), "DestinationRule default/reviews spec trafficPolicy.tls") {
					t.Errorf("%s for %v: error %v", test.rule, agent, err)
				}
				continue
			}
			c, r := get(t, NewView(set), ClusterType, test.name, client(agent), &clusterv3.Cluster{})
			if got := writeTLS(t, c); got != want {
				t.Errorf("%s for %v:\n got %s\nwant %s", test.rule, agent, got, want)
			}
			if agent == GRPC && len(r.Notes) != test.note {
				t.Errorf("%s for gRPC: notes %v", test.rule, r.Notes)
			}
			if err := c.ValidateAll(); err != nil {
				t.Errorf("%s for %v: %v", test.rule, agent, err)
			}
			if agent == Sinew {
				if _, err := compiled(ClusterType, r.Body); err != nil {
					t.Errorf("%s: our client refuses it: %v", test.rule, err)
				}
			}
		}
	}
}

// TestWildcardHostHasNoServerName: there is no one name to send.
func TestWildcardHostHasNoServerName(t *testing.T) {
	b := &builder{view: NewView(nil), client: client(Sinew)}
	c := &clusterv3.Cluster{}
	tls := &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_ISTIO_MUTUAL}
	if err := b.secure(c, tls, &destinationTLS{name: TrafficName{Port: 80, Host: "*.example.com"}}, "x"); err != nil {
		t.Fatal(err)
	}
	if got, want := writeTLS(t, c), "cert=default roots=ROOTCA alpn=istio-peer-exchange,istio"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
