package policy

import (
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	mesh "istio.io/api/mesh/v1alpha1"
)

const (
	// MeshConfigName is the name of the ConfigMap in RootNamespace that has the mesh's settings.
	MeshConfigName = "istio"
	// DefaultTrustDomain is the mesh's trust domain where MeshConfig names none.
	DefaultTrustDomain = "cluster.local"
)

// MeshConfig is what the mesh as a whole is told, in the key "mesh" of the ConfigMap
// MeshConfigName in RootNamespace
// (https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/). Its methods take
// nil, which stands for a mesh without that ConfigMap, and give Istio's defaults.
type MeshConfig struct {
	Meta
	Spec *mesh.MeshConfig
}

func (m *MeshConfig) spec() *mesh.MeshConfig {
	if m == nil {
		return nil
	}
	return m.Spec
}

// TrustDomain is that of the mesh's identities. Default "cluster.local".
func (m *MeshConfig) TrustDomain() string {
	if td := m.spec().GetTrustDomain(); td != "" {
		return td
	}
	return DefaultTrustDomain
}

// TrustDomainAliases are trust domains whose identities count as those of TrustDomain
// in access rules.
func (m *MeshConfig) TrustDomainAliases() []string { return m.spec().GetTrustDomainAliases() }

// Authorizer returns the external authorizer of this name, with envoyExtAuthzHttp or
// envoyExtAuthzGrpc set, or nil if there is none.
func (m *MeshConfig) Authorizer(name string) *mesh.MeshConfig_ExtensionProvider {
	for _, p := range m.spec().GetExtensionProviders() {
		if p.GetName() == name && (p.GetEnvoyExtAuthzHttp() != nil || p.GetEnvoyExtAuthzGrpc() != nil) {
			return p
		}
	}
	return nil
}

// TLS12 reports whether TLS 1.2 is taken in connections of the mesh. By default only
// 1.3 is, which every member of this mesh speaks; Istio's default is 1.2.
func (m *MeshConfig) TLS12() bool {
	return m.spec().GetMeshMTLS().GetMinProtocolVersion() == mesh.MeshConfig_TLSConfig_TLSV1_2
}

// PathNormalization is what is done to paths before access rules see them; never
// DEFAULT, which is BASE, as in Istio.
func (m *MeshConfig) PathNormalization() mesh.MeshConfig_ProxyPathNormalization_NormalizationType {
	if n := m.spec().GetPathNormalization().GetNormalization(); n != mesh.MeshConfig_ProxyPathNormalization_DEFAULT {
		return n
	}
	return mesh.MeshConfig_ProxyPathNormalization_BASE
}

// TrustedProxies is how many proxies in front of each program are believed when they
// say in X-Forwarded-For whom they were called by
// (defaultConfig.gatewayTopology.numTrustedProxies). Default 0: the caller is whoever
// is at the other end of the connection. In Istio the proxies stand in front of the
// gateway; here every program is the gateway of its own requests. Who reaches a program
// without passing through them is believed as they are, so nothing else may reach it.
func (m *MeshConfig) TrustedProxies() uint32 {
	return m.spec().GetDefaultConfig().GetGatewayTopology().GetNumTrustedProxies()
}

// AuthorizerAddress returns the service that an external authorizer is, "host:port".
func (s *Set) AuthorizerAddress(p *mesh.MeshConfig_ExtensionProvider) string {
	return hostPort(s.authorizerAt(p))
}

func (s *Set) authorizerAt(p *mesh.MeshConfig_ExtensionProvider) (host string, port uint32) {
	service, port := p.GetEnvoyExtAuthzHttp().GetService(), p.GetEnvoyExtAuthzHttp().GetPort()
	if g := p.GetEnvoyExtAuthzGrpc(); g != nil {
		service, port = g.GetService(), g.GetPort()
	}
	namespace, host, qualified := strings.Cut(service, "/")
	if !qualified {
		namespace, host = RootNamespace, service
	}
	return s.ResolveHost(host, namespace), port
}

func hostPort(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// holdsMeshConfig reports whether a document is, or may be meant for, the ConfigMap with
// MeshConfig: one with errors in its metadata is, unless it has another name.
func holdsMeshConfig(v *value, m *Meta, problems []Problem) bool {
	if m.Name == MeshConfigName && m.Namespace == RootNamespace {
		return true
	}
	return v.get("data").get("mesh") != nil && len(problems) > 0 && (m.Name == "" || m.Name == MeshConfigName)
}

// meshConfig reads the ConfigMap with MeshConfig. Its fields are named as they are in
// the text that the ConfigMap holds, after "data.mesh".
func (d *decoder) meshConfig(v *value, o *Object, version string) {
	const at = "data.mesh"
	d.discreet = true
	out := &mesh.MeshConfig{}
	o.Spec = out
	if version != "v1" {
		d.errorf(v.get("apiVersion").line, "apiVersion", "a ConfigMap has apiVersion v1")
	}
	given := false
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata", "immutable":
			continue
		case "data":
		default:
			d.errorf(e.line, e.key, "unknown field%s", suggest(e.key, []string{"metadata", "data"}))
			continue
		}
		d.fields(e.val, "data", map[string]func(*value, string){
			"mesh": func(v *value, _ string) {
				given = true
				d.embedded(v, at, func(inner *value) { d.message(inner, out.ProtoReflect(), at) })
			},
			"meshNetworks": func(v *value, at string) {
				d.embedded(v, at, func(inner *value) {
					if len(inner.keys) > 1 || inner.kind != mapValue || len(inner.get("networks").entries()) > 0 {
						d.errorf(inner.line, at, notEnforced)
					}
				})
			},
		})
	}
	if !given {
		d.errorf(d.lineOf(at), at, "required")
	}
	d.check(o.Meta, out)
}

// entries returns what a mapping or a list holds; null holds nothing.
func (v *value) entries() []*value {
	if v == nil {
		return nil
	}
	out := slices.Clone(v.items)
	for _, e := range v.keys {
		out = append(out, e.val)
	}
	if v.kind == scalarValue && !v.isNull() {
		out = append(out, v)
	}
	return out
}

// embedded reads the one YAML document in a text. Lines are those of the file where
// the text is a literal block, else that at which it begins. An empty text says nothing.
func (d *decoder) embedded(v *value, at string, read func(*value)) {
	if !d.expect(v, scalarValue, at) {
		return
	}
	text, ok := v.str()
	if !ok {
		d.errorf(v.line, at, "must be text: put it in quotes")
		return
	}
	literal := v.node.Style&yaml.LiteralStyle != 0
	docs, bad := readDocuments(chunk{text: []byte(text), before: v.line})
	if bad != nil {
		line := v.line
		if literal {
			line = bad.line
		}
		d.errorf(line, at, "%s", bad.text)
		return
	}
	if len(docs) > 1 {
		d.errorf(v.line, at, "must be one document, holds %d", len(docs))
		return
	}
	for _, doc := range docs {
		if !literal {
			doc.moveTo(v.line)
		}
		read(doc)
	}
}

// moveTo gives a value, and all in it, another line.
func (v *value) moveTo(line int) {
	v.line = line
	for _, item := range v.items {
		item.moveTo(line)
	}
	for i := range v.keys {
		v.keys[i].line = line
		v.keys[i].val.moveTo(line)
	}
}

// trustDomainPattern has the characters of a trust domain's name
// (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#21-trust-domain).
var trustDomainPattern = regexp.MustCompile(`^[-a-z0-9._]{1,255}$`)

func (f *findings) meshConfig(m *mesh.MeshConfig) {
	const at = "data.mesh"
	if td := m.GetTrustDomain(); td != "" && !trustDomainPattern.MatchString(td) {
		f.errorf(at+".trustDomain", "%q is not the name of a trust domain", td)
	}
	for i, td := range m.GetTrustDomainAliases() {
		if !trustDomainPattern.MatchString(td) {
			f.errorf(fmt.Sprintf("%s.trustDomainAliases[%d]", at, i), "%q is not the name of a trust domain", td)
		}
	}
	if v := m.GetMeshMTLS().GetMinProtocolVersion(); mesh.MeshConfig_TLSConfig_TLSProtocol_name[int32(v)] == "" {
		f.errorf(at+".meshMTLS.minProtocolVersion", "%d is not a version of TLS", v)
	}
	if n := m.GetPathNormalization().GetNormalization(); mesh.MeshConfig_ProxyPathNormalization_NormalizationType_name[int32(n)] == "" {
		f.errorf(at+".pathNormalization.normalization", "%d is not a kind of normalization", n)
	}
	f.meshTraffic(at, m)
	seen := make(map[string]bool)
	for i, p := range m.GetExtensionProviders() {
		in := fmt.Sprintf("%s.extensionProviders[%d]", at, i)
		switch {
		case p.GetName() == "":
			f.errorf(in+".name", "required")
		case seen[p.GetName()]:
			f.errorf(in+".name", "provider %q is given twice", p.GetName())
		}
		seen[p.GetName()] = true
		switch {
		case p.GetProvider() == nil:
			f.errorf(in, "must say what kind of provider it is")
		case p.GetEnvoyExtAuthzHttp() != nil:
			f.authorizerHTTP(in+".envoyExtAuthzHttp", p.GetEnvoyExtAuthzHttp())
		case p.GetEnvoyExtAuthzGrpc() != nil:
			a := p.GetEnvoyExtAuthzGrpc()
			f.authorizer(in+".envoyExtAuthzGrpc", a)
			f.err(in+".envoyExtAuthzGrpc.timeout", checkDuration(a.GetTimeout()))
		}
	}
}

// authorizerSpec is what both kinds of external authorizers have.
type authorizerSpec interface {
	GetService() string
	GetPort() uint32
	GetStatusOnError() string
	GetIncludeRequestBodyInCheck() *mesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody
}

func (f *findings) authorizer(in string, a authorizerSpec) {
	namespace, host, qualified := strings.Cut(a.GetService(), "/")
	if !qualified {
		host = namespace
	}
	switch {
	case a.GetService() == "":
		f.errorf(in+".service", "required")
	case qualified && !isLabel(namespace), checkDomain(host) != nil && !isIP(host):
		f.errorf(in+".service", "%q is neither \"host\" nor \"namespace/host\" of a service", a.GetService())
	}
	f.err(in+".port", checkPort(a.GetPort()))
	if text := a.GetStatusOnError(); text != "" {
		if code, err := strconv.Atoi(text); err != nil || code < 200 || http.StatusText(code) == "" {
			f.errorf(in+".statusOnError", "%q is not a status of HTTP", text)
		}
	}
	if body := a.GetIncludeRequestBodyInCheck(); body != nil && body.GetMaxRequestBytes() == 0 {
		f.errorf(in+".includeRequestBodyInCheck.maxRequestBytes", "required")
	}
}

// headerPatternPattern is a header's name, which may have one wildcard at an end.
var headerPatternPattern = regexp.MustCompile("^\\*?[!#$%&'+\\-.^_`|~A-Za-z0-9]*\\*?$")

func (f *findings) authorizerHTTP(in string, a *mesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) {
	f.authorizer(in, a)
	f.err(in+".timeout", checkDuration(a.GetTimeout()))
	if prefix := a.GetPathPrefix(); prefix != "" {
		if !strings.HasPrefix(prefix, "/") || strings.ContainsAny(prefix, "?#") {
			f.errorf(in+".pathPrefix", "%q is not a path that begins with \"/\"", prefix)
		}
	}
	for _, list := range []values{
		{"includeRequestHeadersInCheck", a.GetIncludeRequestHeadersInCheck()},
		{"headersToUpstreamOnAllow", a.GetHeadersToUpstreamOnAllow()},
		{"headersToDownstreamOnAllow", a.GetHeadersToDownstreamOnAllow()},
		{"headersToDownstreamOnDeny", a.GetHeadersToDownstreamOnDeny()},
	} {
		for i, name := range list.list {
			if name == "" || !headerPatternPattern.MatchString(name) || len(name) > 1 && strings.Count(name, "*") > 1 {
				f.errorf(fmt.Sprintf("%s.%s[%d]", in, list.field, i), "%q is not the name of a header, which may begin or end with \"*\"", name)
			}
		}
	}
	for _, name := range sortedKeys(a.GetIncludeAdditionalHeadersInCheck()) {
		at := in + ".includeAdditionalHeadersInCheck[" + name + "]"
		if !headerNamePattern.MatchString(name) {
			f.errorf(at, "%q is not the name of a header", name)
		}
		// The value may be a secret: it is not repeated.
		if strings.ContainsAny(a.GetIncludeAdditionalHeadersInCheck()[name], "\r\n\x00") {
			f.errorf(at, "is not the value of a header")
		}
	}
}

// relateAuthorizers warns of an external authorizer that nobody can reach.
func (b *build) relateAuthorizers(set *Set) {
	for _, p := range set.AuthorizationPolicies {
		a := set.MeshConfig.Authorizer(p.Spec.GetProvider().GetName())
		if a == nil {
			continue
		}
		host, port := set.authorizerAt(a)
		if svc := set.ServiceByHost(host); svc != nil {
			if _, ok := svc.PortNumber(port); ok {
				continue
			}
		}
		b.say(Warning, b.good[p.Ref()], "spec.provider.name", "no Service or ServiceEntry has %s, where external authorizer %q is", hostPort(host, port), a.GetName())
	}
}
