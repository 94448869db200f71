package translate

//lint:file-ignore SA1019 Istio's older name for the headers that an authorizer is given is still read.

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	mesh "istio.io/api/mesh/v1alpha1"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// externalPolicy begins the names of rules for external authorizers.
const externalPolicy = "istio-ext-authz"

// externalTimeout is how long an authorizer may take where its provider does not
// say, which is Istio's way to leave it to the route.
const externalTimeout = 600 * time.Second

// Fields of the providers that are enforced.
var (
	httpProviderFields = []string{
		"service", "port", "timeout", "pathPrefix", "failOpen", "statusOnError", "includeRequestHeadersInCheck", "includeHeadersInCheck",
		"includeAdditionalHeadersInCheck", "includeRequestBodyInCheck", "headersToUpstreamOnAllow", "headersToDownstreamOnDeny", "headersToDownstreamOnAllow",
	}
	grpcProviderFields = []string{"service", "port", "timeout", "failOpen", "statusOnError", "includeRequestBodyInCheck"}
)

// externalFilters are the CUSTOM policies of a workload: rules that note which
// requests an external authorizer decides, and the filter that asks it about those. A
// workload has one authorizer, as in Istio.
// https://istio.io/latest/docs/tasks/security/authorization/authz-custom/
func (b *builder) externalFilters(policies []*policy.AuthorizationPolicy) ([]*hcmv3.HttpFilter, error) {
	if len(policies) == 0 {
		return nil, nil
	}
	first := policies[0]
	at := about(&first.Meta) + " spec"
	if err := b.can(at, "action CUSTOM"); err != nil {
		return nil, err
	}
	name := first.Spec.GetProvider().GetName()
	for _, p := range policies[1:] {
		if other := p.Spec.GetProvider().GetName(); other != name {
			return nil, fmt.Errorf("%s and %s ask different authorizers, %q and %q: a workload takes one", about(&first.Meta), about(&p.Meta), name, other)
		}
	}
	provider := b.view.set.MeshConfig.Authorizer(name)
	if provider == nil {
		return nil, fmt.Errorf("%s.provider: MeshConfig has no extensionProviders entry %q for external authorization", at, name)
	}
	config, err := b.externalAuthorizer(provider)
	if err != nil {
		return nil, fmt.Errorf("MeshConfig extensionProviders[%s]: %w", name, err)
	}
	rules, err := b.rbac(rbacv3.RBAC_DENY, policies, func(p *policy.AuthorizationPolicy, i int) string {
		return externalPolicy + "-" + name + "-" + policyName(p, i)
	})
	if err != nil {
		return nil, err
	}
	return []*hcmv3.HttpFilter{
		httpFilter(rbacFilter+".CUSTOM", &rbacfilterv3.RBAC{ShadowRules: rules, ShadowRulesStatPrefix: askExternal}),
		httpFilter("envoy.filters.http.ext_authz", config),
	}, nil
}

// externalAuthorizer is how the service of a provider is asked.
func (b *builder) externalAuthorizer(p *mesh.MeshConfig_ExtensionProvider) (*extauthzv3.ExtAuthz, error) {
	out := &extauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		FilterEnabledMetadata: &matcherv3.MetadataMatcher{
			Filter: rbacFilter,
			Path: []*matcherv3.MetadataMatcher_PathSegment{{
				Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: askExternal + "shadow_effective_policy_id"},
			}},
			Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: text(externalPolicy+"*", false)}},
		},
	}
	var err error
	if h := p.GetEnvoyExtAuthzHttp(); h != nil {
		err = b.externalHTTP(out, h)
	} else {
		err = b.externalGRPC(out, p.GetEnvoyExtAuthzGrpc())
	}
	return out, err
}

func (b *builder) externalHTTP(out *extauthzv3.ExtAuthz, p *mesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) error {
	const kind = "envoyExtAuthzHttp"
	if field := unknownField(p, httpProviderFields); field != "" {
		return unsupported(kind, field)
	}
	host, cluster, err := b.authorizerCluster(p.GetService(), p.GetPort())
	if err != nil {
		return fmt.Errorf("%s.%w", kind, err)
	}
	if prefix := p.GetPathPrefix(); prefix != "" && !strings.HasPrefix(prefix, "/") {
		return fmt.Errorf("%s.pathPrefix: %q does not begin with a slash", kind, prefix)
	}
	service := &extauthzv3.HttpService{
		ServerUri: &corev3.HttpUri{
			Uri:              "http://" + host,
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster},
			Timeout:          authorizerTimeout(p.GetTimeout()),
		},
		PathPrefix: p.GetPathPrefix(),
	}
	if more := p.GetIncludeAdditionalHeadersInCheck(); len(more) > 0 {
		service.AuthorizationRequest = &extauthzv3.AuthorizationRequest{}
		for _, name := range slices.Sorted(maps.Keys(more)) {
			service.AuthorizationRequest.HeadersToAdd = append(service.AuthorizationRequest.HeadersToAdd, &corev3.HeaderValue{Key: name, Value: more[name]})
		}
	}
	if len(p.GetHeadersToUpstreamOnAllow())+len(p.GetHeadersToDownstreamOnDeny())+len(p.GetHeadersToDownstreamOnAllow()) > 0 {
		service.AuthorizationResponse = &extauthzv3.AuthorizationResponse{
			AllowedUpstreamHeaders:        headerNames(p.GetHeadersToUpstreamOnAllow()),
			AllowedClientHeaders:          headerNames(p.GetHeadersToDownstreamOnDeny()),
			AllowedClientHeadersOnSuccess: headerNames(p.GetHeadersToDownstreamOnAllow()),
		}
	}
	out.Services = &extauthzv3.ExtAuthz_HttpService{HttpService: service}
	out.AllowedHeaders = headerNames(append(slices.Clone(p.GetIncludeHeadersInCheck()), p.GetIncludeRequestHeadersInCheck()...))
	return commonAuthorizer(out, kind, p.GetFailOpen(), p.GetStatusOnError(), p.GetIncludeRequestBodyInCheck())
}

func (b *builder) externalGRPC(out *extauthzv3.ExtAuthz, p *mesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) error {
	const kind = "envoyExtAuthzGrpc"
	if field := unknownField(p, grpcProviderFields); field != "" {
		return unsupported(kind, field)
	}
	host, cluster, err := b.authorizerCluster(p.GetService(), p.GetPort())
	if err != nil {
		return fmt.Errorf("%s.%w", kind, err)
	}
	out.Services = &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: cluster,
			Authority:   host, // the cluster's name, which Envoy would send, is no authority
		}},
		Timeout: authorizerTimeout(p.GetTimeout()),
	}}
	return commonAuthorizer(out, kind, p.GetFailOpen(), p.GetStatusOnError(), p.GetIncludeRequestBodyInCheck())
}

// commonAuthorizer sets what both protocols have.
func commonAuthorizer(out *extauthzv3.ExtAuthz, kind string, failOpen bool, statusOnError string, body *mesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) error {
	out.FailureModeAllow = failOpen
	if statusOnError != "" {
		code, err := strconv.ParseUint(statusOnError, 10, 16)
		if err != nil || code < 400 || code > 599 || typev3.StatusCode_name[int32(code)] == "" {
			return fmt.Errorf("%s.statusOnError: %q is not the status of an error", kind, statusOnError)
		}
		out.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode(code)}
	}
	if body != nil {
		if field := unknownField(body, []string{"maxRequestBytes", "allowPartialMessage", "packAsBytes"}); field != "" {
			return unsupported(kind, "includeRequestBodyInCheck."+field)
		}
		if body.GetMaxRequestBytes() == 0 {
			return fmt.Errorf("%s.includeRequestBodyInCheck.maxRequestBytes: required", kind)
		}
		out.WithRequestBody = &extauthzv3.BufferSettings{
			MaxRequestBytes:     body.GetMaxRequestBytes(),
			AllowPartialMessage: body.GetAllowPartialMessage(),
			// The HTTP protocol sends bytes in any case, and has no such field.
			PackAsBytes: body.GetPackAsBytes() && out.GetGrpcService() != nil,
		}
	}
	return nil
}

// authorizerCluster is the cluster of a provider's service, "[namespace/]host".
func (b *builder) authorizerCluster(service string, port uint32) (host, cluster string, err error) {
	namespace, host, both := strings.Cut(service, "/")
	if !both {
		namespace, host = policy.RootNamespace, service
	}
	full := b.view.set.ResolveHost(host, namespace)
	s := b.view.set.ServiceByHost(full)
	if s == nil || strings.HasPrefix(full, "*") || both && s.Namespace != namespace {
		return "", "", fmt.Errorf("service: no service %q is known", service)
	}
	if _, ok := s.PortNumber(port); !ok {
		return "", "", fmt.Errorf("port: service %q has no port %d", service, port)
	}
	return full, TrafficName{Port: port, Host: full}.String(), nil
}

func authorizerTimeout(d *durationpb.Duration) *durationpb.Duration {
	if d == nil {
		return durationpb.New(externalTimeout)
	}
	return d
}

// headerNames matches headers by name; a name may end or begin with a wildcard.
func headerNames(names []string) *matcherv3.ListStringMatcher {
	if len(names) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, n := range names {
		out.Patterns = append(out.Patterns, text(n, true))
	}
	return out
}
