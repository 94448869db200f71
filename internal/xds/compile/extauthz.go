package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// The defaults of an external authorizer (envoy.extensions.filters.http.ext_authz.v3).
const (
	DefaultAuthorizerTimeout = 200 * time.Millisecond
	defaultStatusOnError     = http.StatusForbidden
)

// external reads the external authorizer. With Istio's filter_enabled_metadata
// it is asked where a CUSTOM rule matches, without it on every request.
func (a *access) external(m *extauthzv3.ExtAuthz) *fault {
	if f := a.reach(stageExternal, true); f != nil {
		return f
	}
	out := &snapshot.ExternalAuthorizer{FailOpen: m.GetFailureModeAllow(), StatusOnError: defaultStatusOnError}
	var f *fault
	switch m.GetServices().(type) {
	case *extauthzv3.ExtAuthz_GrpcService:
		if f = authorizerGRPC(m, out); f != nil {
			return f
		}
	case *extauthzv3.ExtAuthz_HttpService:
		if f = authorizerHTTP(m.GetHttpService(), out); f != nil {
			return f.under("http_service")
		}
	default:
		return faultf("", "neither grpc_service nor http_service is set")
	}
	if f = authorizerHeaders(m, out); f != nil {
		return f
	}
	if b := m.GetWithRequestBody(); b != nil {
		if b.GetMaxRequestBytes() == 0 || b.GetMaxRequestBytes() > maxAuthorizerBody {
			return faultf("with_request_body.max_request_bytes", "%d is not between 1 and %d", b.GetMaxRequestBytes(), maxAuthorizerBody)
		}
		if b.GetPackAsBytes() && out.HTTP != nil {
			return faultf("with_request_body.pack_as_bytes", "not supported beside http_service, which sends bytes in any case")
		}
		out.MaxBody, out.PartialBody, out.RawBody = int(b.GetMaxRequestBytes()), b.GetAllowPartialMessage(), b.GetPackAsBytes()
	}
	if s := m.GetStatusOnError(); s != nil {
		if s.GetCode() < http.StatusBadRequest || s.GetCode() > 599 {
			return faultf("status_on_error.code", "%d is not the status of an error", s.GetCode())
		}
		out.StatusOnError = int(s.GetCode())
	}
	if m.GetFilterEnabled() != nil {
		if perMillion, f := runtimeFraction(m.GetFilterEnabled()); f != nil {
			return f.under("filter_enabled")
		} else if perMillion != 1_000_000 {
			return faultf("filter_enabled", "not supported: only all requests are")
		}
	}
	out.Provider = out.Host
	set, f := a.askedBy(m.GetFilterEnabledMetadata())
	if f != nil {
		return f
	}
	set.Provider = out.Provider
	a.sets = append(a.sets, set)
	a.chain.External = out
	return nil
}

// maxAuthorizerBody keeps a mistake in a resource from making every request's body wait in memory.
const maxAuthorizerBody = 64 << 20

// askedBy returns the rules by which the authorizer is asked.
func (a *access) askedBy(m *matcherv3.MetadataMatcher) (*identity.RuleSet, *fault) {
	if m == nil {
		if a.custom != nil {
			return nil, faultf("filter_enabled_metadata", "missing: there are CUSTOM rules before it, which would say nothing")
		}
		set, err := identity.NewRuleSet(identity.Custom, false, []identity.Rule{{
			Name: "ext_authz", Permissions: []identity.Condition{identity.Any()}, Principals: []identity.Condition{identity.Any()},
		}})
		if err != nil {
			return nil, faultf("", "%v", err)
		}
		return set, nil
	}
	if f := a.namesCustom(m); f != nil {
		return nil, f.under("filter_enabled_metadata")
	}
	return a.custom.set, nil
}

// namesCustom accepts the condition that holds where one of the CUSTOM rules matches.
func (a *access) namesCustom(m *matcherv3.MetadataMatcher) *fault {
	prefix := m.GetValue().GetStringMatch().GetPrefix()
	switch {
	case m.GetFilter() != ruleFilter:
		return faultf("filter", "%q is not supported: only %q is", m.GetFilter(), ruleFilter)
	case a.custom == nil:
		return faultf("", "there are no CUSTOM rules before it")
	case len(m.GetPath()) != 1 || m.GetPath()[0].GetKey() != a.custom.prefix+effectivePolicy:
		return faultf("path", "must be %q, which the CUSTOM rules before it set", a.custom.prefix+effectivePolicy)
	case m.GetInvert():
		return faultf("invert", notSupported)
	case prefix == "" || m.GetValue().GetStringMatch().GetIgnoreCase():
		return faultf("value", "must be a string_match with a prefix")
	}
	for _, name := range a.custom.names {
		if !strings.HasPrefix(name, prefix) {
			return faultf("value.string_match.prefix", "the rule %q before it does not begin with %q", name, prefix)
		}
	}
	return nil
}

func authorizerGRPC(m *extauthzv3.ExtAuthz, out *snapshot.ExternalAuthorizer) *fault {
	if m.GetTransportApiVersion() != corev3.ApiVersion_V3 {
		return faultf("transport_api_version", "%v is not supported: only V3 is", m.GetTransportApiVersion())
	}
	service := m.GetGrpcService()
	if service.GetEnvoyGrpc() == nil {
		return faultf("grpc_service", "must be envoy_grpc")
	}
	var f *fault
	if out.Host, f = clusterHost(service.GetEnvoyGrpc().GetClusterName()); f != nil {
		return f.under("cluster_name").under("envoy_grpc").under("grpc_service")
	}
	host, _, _ := net.SplitHostPort(out.Host)
	if authority := service.GetEnvoyGrpc().GetAuthority(); authority != "" && authority != out.Host && authority != host {
		return faultf("grpc_service.envoy_grpc.authority", "%q is not supported: only the service's own name is", authority)
	}
	out.Timeout, f = positive("timeout", service.GetTimeout(), DefaultAuthorizerTimeout)
	return f.under("grpc_service")
}

func authorizerHTTP(m *extauthzv3.HttpService, out *snapshot.ExternalAuthorizer) *fault {
	server := m.GetServerUri()
	u, err := url.Parse(server.GetUri())
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return faultf("server_uri.uri", "must be http://host:port")
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return faultf("server_uri.uri", "a path is not supported: only path_prefix is")
	}
	var f *fault
	if out.Host, f = clusterHost(server.GetCluster()); f != nil {
		return f.under("cluster").under("server_uri")
	}
	if out.Timeout, f = positive("timeout", server.GetTimeout(), DefaultAuthorizerTimeout); f != nil {
		return f.under("server_uri")
	}
	if p := m.GetPathPrefix(); p != "" && (p[0] != '/' || strings.ContainsAny(p, "?#")) {
		return faultf("path_prefix", "%q is not a path", p)
	}
	out.HTTP = &snapshot.ExternalHTTP{PathPrefix: m.GetPathPrefix()}
	for i, h := range m.GetAuthorizationRequest().GetHeadersToAdd() {
		if f := authorizerHeader(h, out.HTTP); f != nil {
			return f.underIndex("headers_to_add", i).under("authorization_request")
		}
	}
	r := m.GetAuthorizationResponse()
	for _, list := range []struct {
		field string
		m     *matcherv3.ListStringMatcher
		out   *[]routing.StringMatch
	}{
		{"allowed_upstream_headers", r.GetAllowedUpstreamHeaders(), &out.HTTP.UpstreamHeaders},
		{"allowed_upstream_headers_to_append", r.GetAllowedUpstreamHeadersToAppend(), &out.HTTP.UpstreamHeadersToAppend},
		{"allowed_client_headers", r.GetAllowedClientHeaders(), &out.HTTP.ClientHeaders},
		{"allowed_client_headers_on_success", r.GetAllowedClientHeadersOnSuccess(), &out.HTTP.ClientHeadersOnSuccess},
	} {
		if *list.out, f = stringMatches(list.m); f != nil {
			return f.under(list.field).under("authorization_response")
		}
	}
	return nil
}

// authorizerHeaders reads which headers of a request the authorizer is given.
func authorizerHeaders(m *extauthzv3.ExtAuthz, out *snapshot.ExternalAuthorizer) *fault {
	old := m.GetHttpService().GetAuthorizationRequest().GetAllowedHeaders()
	if m.GetAllowedHeaders() != nil && old != nil {
		return faultf("allowed_headers", "not supported beside http_service.authorization_request.allowed_headers")
	}
	var f *fault
	if out.Headers, f = stringMatches(m.GetAllowedHeaders()); f != nil {
		return f.under("allowed_headers")
	}
	if old != nil {
		out.Headers, f = stringMatches(old)
	}
	return f.under("allowed_headers").under("authorization_request").under("http_service")
}

// stringMatches reads a list of names. One that is there has patterns: without
// any it would allow nothing in Envoy, and no list allows a default here.
func stringMatches(m *matcherv3.ListStringMatcher) ([]routing.StringMatch, *fault) {
	if m == nil {
		return nil, nil
	}
	return some("patterns", m.GetPatterns(), stringMatch)
}

func authorizerHeader(h *corev3.HeaderValue, out *snapshot.ExternalHTTP) *fault {
	name := strings.ToLower(h.GetKey())
	switch {
	case !canSet(name):
		return faultf("key", "%q is not the name of a header that can be added", h.GetKey())
	case strings.Contains(h.GetValue(), "%"):
		return faultf("value", "a format is not supported") // the value may be a secret
	case strings.ContainsFunc(h.GetValue(), isControl):
		return faultf("value", "has a control character")
	case out.AddHeaders[name] != "":
		return faultf("key", "%q occurs twice", h.GetKey())
	}
	if out.AddHeaders == nil {
		out.AddHeaders = make(map[string]string)
	}
	out.AddHeaders[name] = h.GetValue()
	return nil
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// canSet reports whether a text names a header that can be set: the host has another place.
func canSet(name string) bool { return isToken(name) && !strings.EqualFold(name, "host") }

// isToken reports whether a text can name a header (RFC 9110, 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// clusterHost reads the host and port that a cluster's name stands for: Istio's
// form, "outbound|port||host", or "host:port" itself. There is no other way to
// a cluster than a host that is called through the mesh.
func clusterHost(cluster string) (string, *fault) {
	parts := strings.Split(cluster, "|")
	host, port := "", ""
	if len(parts) == 4 && parts[0] == "outbound" && parts[2] == "" {
		host, port = parts[3], parts[1]
	} else if h, p, err := net.SplitHostPort(cluster); err == nil {
		host, port = h, p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsFunc(host, func(r rune) bool { return r != ':' && notInName(r) }) {
		return "", faultf("", `%q is neither "outbound|port||host" nor "host:port"`, cluster)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}
