package policy

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/routing"
)

// treatment says what the mesh does with a field of Istio's API.
type treatment int

const (
	enforced treatment = iota + 1 // read by the translation; the fields of a message have their own treatment
	harmless                      // changes neither who may call, nor where a request goes, nor whether it is tried again
	refused                       // valid in Istio, not enforced by the mesh
	partly                        // enforced for some values: see partial
)

// treatments has every field of every message of Istio's API that can occur in an
// object this package reads. A field in no list is refused, and fails a test.
var treatments = map[string]map[treatment]string{
	"VirtualService": {
		enforced: "hosts gateways http exportTo",
		refused:  "tls tcp",
	},
	"HTTPRoute": {
		enforced: "name match route redirect directResponse delegate rewrite timeout retries fault mirror mirrors mirrorPercent mirrorPercentage corsPolicy headers",
	},
	"Delegate": {enforced: "name namespace"},
	"HTTPRedirect": {
		enforced: "uri authority port derivePort scheme prefixRewrite",
		partly:   "redirectCode",
	},
	"HTTPDirectResponse":       {enforced: "status body"},
	"HTTPBody":                 {enforced: "string bytes"},
	"HTTPRewrite":              {enforced: "uri authority uriRegexRewrite"},
	"RegexRewrite":             {enforced: "match rewrite"},
	"HTTPFaultInjection":       {enforced: "delay abort"},
	"HTTPFaultInjection.Delay": {enforced: "percent fixedDelay percentage", refused: "exponentialDelay"},
	"HTTPFaultInjection.Abort": {enforced: "httpStatus grpcStatus percentage", refused: "http2Error"},
	"Percent":                  {enforced: "value"},
	"HTTPMirrorPolicy":         {enforced: "destination percentage"},
	"CorsPolicy": {
		enforced: "allowOrigin allowOrigins allowMethods allowHeaders exposeHeaders maxAge allowCredentials unmatchedPreflights",
	},
	"Headers":                  {enforced: "request response"},
	"Headers.HeaderOperations": {enforced: "remove", partly: "set add"},
	"HTTPMatchRequest": {
		// A header that stands for a JWT claim is matched with the token of the request
		// that the client is serving: Validate checks its name.
		enforced: "uri scheme method authority headers port sourceLabels gateways queryParams ignoreUriCase withoutHeaders sourceNamespace",
		harmless: "name statPrefix",
	},
	"StringMatch":          {enforced: "exact prefix regex"},
	"HTTPRouteDestination": {enforced: "destination weight headers"},
	"Destination":          {enforced: "host subset port"},
	"PortSelector":         {enforced: "number"},
	"HTTPRetry": {
		enforced: "attempts perTryTimeout retryIgnorePreviousHosts retryRemoteLocalities backoff",
		partly:   "retryOn",
	},
	"DestinationRule": {
		enforced: "host trafficPolicy subsets exportTo",
		refused:  "workloadSelector",
	},
	"Subset": {enforced: "name labels trafficPolicy"},
	"TrafficPolicy": {
		enforced: "loadBalancer connectionPool outlierDetection portLevelSettings tls retryBudget",
		refused:  "tunnel proxyProtocol",
	},
	"TrafficPolicy.PortTrafficPolicy": {enforced: "port loadBalancer connectionPool outlierDetection tls"},
	"TrafficPolicy.RetryBudget":       {enforced: "percent minRetryConcurrency", refused: "budgetInterval"},
	"LoadBalancerSettings": {
		enforced: "consistentHash localityLbSetting zoneAwareLbSetting",
		partly:   "simple warmupDurationSecs warmup",
	},
	"LoadBalancerSettings.ConsistentHashLB": {
		enforced: "httpHeaderName httpCookie useSourceIp httpQueryParameterName ringHash maglev minimumRingSize",
	},
	"LoadBalancerSettings.ConsistentHashLB.RingHash":             {enforced: "minimumRingSize"},
	"LoadBalancerSettings.ConsistentHashLB.MagLev":               {enforced: "tableSize"},
	"LoadBalancerSettings.ConsistentHashLB.HTTPCookie":           {enforced: "name path ttl attributes"},
	"LoadBalancerSettings.ConsistentHashLB.HTTPCookie.Attribute": {enforced: "name value"},
	"ZoneAwareLoadBalancerSetting":                               {enforced: "enabled failover failoverPriority minClusterSize"},
	"ZoneAwareLoadBalancerSetting.Failover":                      {enforced: "from to"},
	"LocalityLoadBalancerSetting":                                {enforced: "distribute failover failoverPriority enabled"},
	"LocalityLoadBalancerSetting.Distribute":                     {enforced: "from to"},
	"LocalityLoadBalancerSetting.Failover":                       {enforced: "from to"},
	"ConnectionPoolSettings":                                     {enforced: "tcp http"},
	"ConnectionPoolSettings.TCPSettings": {
		enforced: "maxConnections connectTimeout idleTimeout tcpKeepalive",
		// net/http does not say how old a connection is that it uses again.
		refused: "maxConnectionDuration",
	},
	"ConnectionPoolSettings.TCPSettings.TcpKeepalive": {enforced: "probes time interval"},
	"ConnectionPoolSettings.HTTPSettings": {
		enforced: "http1MaxPendingRequests http2MaxRequests maxRequestsPerConnection maxRetries idleTimeout h2UpgradePolicy " +
			"useClientProtocol maxConcurrentStreams http2KeepAlive",
	},
	"ConnectionPoolSettings.HTTPSettings.ConnectionKeepalive": {enforced: "interval timeout"},
	"OutlierDetection": {
		enforced: "consecutive5xxErrors consecutiveGatewayErrors interval baseEjectionTime maxEjectionPercent minHealthPercent " +
			"splitExternalLocalOriginErrors consecutiveLocalOriginFailures",
		// Istio does not read the first at all; nothing here counts by the second.
		refused: "consecutiveErrors outlierDetectionHttpErrorCodes",
	},
	"ClientTLSSettings": {
		enforced: "mode",
		partly:   "clientCertificate privateKey caCertificates subjectAltNames sni insecureSkipVerify",
		// Secrets of a cluster are not read, and lists of revoked certificates not looked at.
		refused: "credentialName caCrl",
	},
	"ServiceEntry": {
		enforced: "hosts ports location endpoints workloadSelector exportTo subjectAltNames",
		partly:   "resolution",
		harmless: "addresses", // for proxies that tell hosts apart by address
	},
	"ServicePort":      {enforced: "number protocol name targetPort"},
	"WorkloadSelector": {enforced: "labels"},
	"WorkloadEntry": {
		enforced: "ports labels locality weight serviceAccount",
		partly:   "address",
		harmless: "network", // endpoints are reached directly
	},
	"type.WorkloadSelector":        {enforced: "matchLabels"},
	"PeerAuthentication":           {enforced: "selector mtls portLevelMtls"},
	"PeerAuthentication.MutualTLS": {enforced: "mode"},
	"AuthorizationPolicy": {
		enforced: "selector rules action provider",
		// They attach to gateways and waypoints.
		refused: "targetRef targetRefs",
	},
	"AuthorizationPolicy.ExtensionProvider": {enforced: "name"},
	"Rule":                                  {enforced: "from to when"},
	"Rule.From":                             {enforced: "source"},
	"Rule.To":                               {enforced: "operation"},
	"Source": {
		enforced: "principals notPrincipals requestPrincipals notRequestPrincipals namespaces notNamespaces " +
			"serviceAccounts notServiceAccounts ipBlocks notIpBlocks remoteIpBlocks notRemoteIpBlocks trustDomains notTrustDomains",
	},
	"Operation": {enforced: "hosts notHosts ports notPorts methods notMethods paths notPaths"},
	"Condition": {enforced: "values notValues", partly: "key"},
	"RequestAuthentication": {
		enforced: "selector jwtRules",
		refused:  "targetRef targetRefs",
	},
	"JWTRule": {
		enforced: "audiences fromHeaders fromParams fromCookies forwardOriginalToken outputClaimToHeaders timeout spaceDelimitedClaims",
		partly:   "issuer jwksUri jwks outputPayloadToHeader",
	},
	"JWTHeader":     {enforced: "prefix", partly: "name"},
	"ClaimToHeader": {enforced: "header claim"},
	"MeshConfig": {
		enforced: "trustDomain trustDomainAliases extensionProviders meshMTLS pathNormalization defaultConfig " +
			"connectTimeout tcpKeepalive dnsRefreshRate h2UpgradePolicy localityLbSetting zoneAwareLbSetting defaultHttpRetryPolicy defaultTrafficPolicy",
		partly: "outboundTrafficPolicy inboundTrafficPolicy enableAutoMtls rootNamespace verifyCertificateAtClient " +
			"defaultServiceExportTo defaultVirtualServiceExportTo defaultDestinationRuleExportTo",
		// What concerns proxies, gateways, telemetry and names of statistics.
		harmless: "proxyListenPort proxyInboundListenPort proxyHttpPort hboneIdleTimeout protocolDetectionTimeout " +
			"ingressClass ingressService ingressControllerMode ingressSelector " +
			"enableTracing accessLogFile accessLogFormat accessLogEncoding enableEnvoyAccessLogService disableEnvoyListenerLog " +
			"inboundClusterStatName outboundClusterStatName enablePrometheusMerge defaultProviders",
		refused: "configSources caCertificates certificates ca serviceSettings serviceScopeConfigs discoverySelectors " +
			"tlsDefaults serviceEntryVisibility",
	},
	"MeshConfig.DefaultTrafficPolicy":   {enforced: "connectionPool outlierDetection"},
	"MeshConfig.TLSConfig":              {enforced: "minProtocolVersion", refused: "ecdhCurves cipherSuites"},
	"MeshConfig.ProxyPathNormalization": {enforced: "normalization"},
	"MeshConfig.ExtensionProvider": {
		enforced: "name envoyExtAuthzHttp envoyExtAuthzGrpc",
		// Telemetry is each program's own.
		harmless: "zipkin lightstep datadog stackdriver opencensus skywalking opentelemetry prometheus " +
			"envoyFileAccessLog envoyHttpAls envoyTcpAls envoyOtelAls",
		refused: "sds",
	},
	"MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationHttpProvider": {
		enforced: "service port timeout pathPrefix failOpen statusOnError includeRequestHeadersInCheck includeAdditionalHeadersInCheck " +
			"includeRequestBodyInCheck headersToUpstreamOnAllow headersToDownstreamOnAllow headersToDownstreamOnDeny",
		refused: "includeHeadersInCheck clearRouteCache",
	},
	"MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationGrpcProvider": {
		enforced: "service port timeout failOpen statusOnError includeRequestBodyInCheck",
		refused:  "clearRouteCache",
	},
	"MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationRequestBody": {enforced: "maxRequestBytes allowPartialMessage packAsBytes"},
	"ProxyConfig": {
		// A proxy's process, its telemetry and its way to the control plane.
		harmless: "configPath binaryPath serviceCluster tracingServiceName drainDuration discoveryAddress discoveryRefreshDelay " +
			"zipkinAddress statsdUdpAddress envoyMetricsServiceAddress proxyAdminPort availabilityZone controlPlaneAuthPolicy " +
			"statNameLength concurrency interceptionMode tracing sds envoyAccessLogService envoyMetricsService proxyMetadata " +
			"statusPort extraStatTags terminationDrainDuration meshId readinessProbe proxyStatsMatcher " +
			"holdApplicationUntilProxyStarts image privateKeyProvider fileFlushInterval fileFlushMinSizeKb statsCompression",
		enforced: "gatewayTopology",
		refused:  "customConfigFile proxyBootstrapTemplatePath runtimeValues caCertificatesPem proxyHeaders connectionSettings",
	},
	"Topology": {
		enforced: "numTrustedProxies",
		// What a proxy says of its caller's certificate, or says before the first request.
		refused: "forwardClientCertDetails proxyProtocol",
	},
}

// partial decides on fields that are enforced for some values only: it returns what is
// wrong with a value, or "".
var partial = map[string]func(m protoreflect.Message, v protoreflect.Value) string{
	"HTTPRetry.retryOn":                       refuseHTTP3,
	"LoadBalancerSettings.simple":             refusePassthrough,
	"HTTPRedirect.redirectCode":               refuseOtherCodes,
	"Headers.HeaderOperations.set":            refuseCommands,
	"Headers.HeaderOperations.add":            refuseCommands,
	"LoadBalancerSettings.warmup":             refuseNoWarmup,
	"LoadBalancerSettings.warmupDurationSecs": refuseNoWarmup,
	"ClientTLSSettings.clientCertificate":     refuseUnlessMutual,
	"ClientTLSSettings.privateKey":            refuseUnlessMutual,
	"ClientTLSSettings.caCertificates":        refuseUnlessFiles,
	"ClientTLSSettings.subjectAltNames":       refuseUnlessTLS,
	"ClientTLSSettings.sni":                   refuseUnlessTLS,
	"ClientTLSSettings.insecureSkipVerify":    refuseUnverified,
	"ServiceEntry.resolution":                 refuseDNS,
	"WorkloadEntry.address":                   refuseNames,
	"Condition.key":                           refuseProxyKeys,
	"JWTRule.issuer":                          refuseNoKeys,
	"JWTRule.jwks":                            refuseSecondKeys,
	"JWTRule.jwksUri":                         refuseNoHost,
	"JWTRule.outputPayloadToHeader":           refuseNoHeader,
	"JWTHeader.name":                          refuseNoHeader,

	"MeshConfig.outboundTrafficPolicy":          refuseOtherOutbound,
	"MeshConfig.inboundTrafficPolicy":           refuseOtherInbound,
	"MeshConfig.enableAutoMtls":                 refuseFalse,
	"MeshConfig.rootNamespace":                  refuseOtherRoot,
	"MeshConfig.verifyCertificateAtClient":      refuseFalse,
	"MeshConfig.defaultServiceExportTo":         refuseHidden,
	"MeshConfig.defaultVirtualServiceExportTo":  refuseHidden,
	"MeshConfig.defaultDestinationRuleExportTo": refuseHidden,
}

const notEnforced = "is valid in Istio, but the mesh does not enforce it"

func refuseTrue(_ protoreflect.Message, v protoreflect.Value) string {
	m := v.Message()
	if m.Get(m.Descriptor().Fields().ByName("value")).Bool() {
		return notEnforced
	}
	return ""
}

func refuseFalse(_ protoreflect.Message, v protoreflect.Value) string {
	if refuseTrue(nil, v) == "" {
		return "false " + notEnforced
	}
	return ""
}

func refuseOtherOutbound(m protoreflect.Message, _ protoreflect.Value) string {
	p := m.Interface().(*mesh.MeshConfig).GetOutboundTrafficPolicy()
	if p.GetMode() == mesh.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY && p.GetTls() == nil {
		return ""
	}
	return "only mode ALLOW_ANY is enforced by the server: a program refuses hosts outside the mesh by its own option"
}

func refuseOtherInbound(m protoreflect.Message, _ protoreflect.Value) string {
	if p := m.Interface().(*mesh.MeshConfig).GetInboundTrafficPolicy(); p.GetMode() == mesh.MeshConfig_InboundTrafficPolicy_PASSTHROUGH {
		return ""
	}
	return notEnforced
}

func refuseOtherRoot(_ protoreflect.Message, v protoreflect.Value) string {
	if v.String() == "" || v.String() == RootNamespace {
		return ""
	}
	return "the mesh's root namespace is " + RootNamespace
}

func refuseHidden(_ protoreflect.Message, v protoreflect.Value) string {
	if list := v.List(); list.Len() == 1 && list.Get(0).String() == "*" {
		return ""
	}
	return "another value than \"*\" " + notEnforced + ": use exportTo of each object"
}

func refuseHTTP3(_ protoreflect.Message, v protoreflect.Value) string {
	if slices.Contains(strings.Split(v.String(), ","), "http3-post-connect-failure") {
		return "http3-post-connect-failure " + notEnforced
	}
	return ""
}

// refusePassthrough: the address that the caller dialled, to which PASSTHROUGH sends, is
// in the caller's own process none but that of the host.
func refusePassthrough(_ protoreflect.Message, v protoreflect.Value) string {
	if networking.LoadBalancerSettings_SimpleLB(v.Enum()) == networking.LoadBalancerSettings_PASSTHROUGH {
		return "PASSTHROUGH " + notEnforced + ": a library's caller dials no address of its own that could be kept"
	}
	return ""
}

// refuseNoWarmup: Istio leaves it out without a word where the algorithm has no weights that could rise.
func refuseNoWarmup(m protoreflect.Message, _ protoreflect.Value) string {
	lb := m.Interface().(*networking.LoadBalancerSettings)
	if !m.Has(m.Descriptor().Fields().ByJSONName("warmup")) && lb.GetWarmupDurationSecs() == nil {
		return ""
	}
	switch {
	case lb.GetConsistentHash() != nil:
		return "with consistentHash " + notEnforced
	case lb.GetSimple() == networking.LoadBalancerSettings_RANDOM, lb.GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH:
		return "with " + lb.GetSimple().String() + " " + notEnforced + ": it is for ROUND_ROBIN and LEAST_REQUEST"
	}
	return ""
}

// refuseOtherCodes: Istio makes a route without any action of them.
func refuseOtherCodes(_ protoreflect.Message, v protoreflect.Value) string {
	if code := v.Uint(); code == 0 || slices.Contains([]uint64{301, 302, 303, 307, 308}, code) {
		return ""
	}
	return fmt.Sprintf("%d %s: use 301, 302, 303, 307 or 308", v.Uint(), notEnforced)
}

// refuseCommands refuses values of headers with a command that only a proxy knows the answer to.
func refuseCommands(_ protoreflect.Message, v protoreflect.Value) string {
	var why string
	names := make(map[string]string)
	v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		names[k.String()] = v.String()
		return true
	})
	for _, name := range sortedKeys(names) {
		if _, err := routing.ParseFormat(names[name]); err != nil && why == "" {
			why = fmt.Sprintf("the mesh does not take the value of %s: %v", name, err)
		}
	}
	return why
}

// These refuse what has no effect in the mode that is given.
func refuseUnlessMutual(m protoreflect.Message, v protoreflect.Value) string {
	return refuseUnlessMode(m, v, networking.ClientTLSSettings_MUTUAL)
}

func refuseUnlessFiles(m protoreflect.Message, v protoreflect.Value) string {
	return refuseUnlessMode(m, v, networking.ClientTLSSettings_SIMPLE, networking.ClientTLSSettings_MUTUAL)
}

func refuseUnlessTLS(m protoreflect.Message, v protoreflect.Value) string {
	return refuseUnlessMode(m, v, networking.ClientTLSSettings_SIMPLE, networking.ClientTLSSettings_MUTUAL, networking.ClientTLSSettings_ISTIO_MUTUAL)
}

func refuseUnlessMode(m protoreflect.Message, v protoreflect.Value, modes ...networking.ClientTLSSettings_TLSmode) string {
	mode := m.Interface().(*networking.ClientTLSSettings).GetMode()
	if text, isText := v.Interface().(string); isText && text == "" || slices.Contains(modes, mode) {
		return ""
	}
	return "the mesh does not use it with mode " + mode.String()
}

// refuseUnverified: whoever is on the way could take the place of a server that is not
// verified, so the mesh has no such mode.
func refuseUnverified(_ protoreflect.Message, v protoreflect.Value) string {
	if why := refuseTrue(nil, v); why != "" {
		return "true " + notEnforced + ": it verifies every server; give caCertificates, or mode DISABLE for plaintext"
	}
	return ""
}

func refuseDNS(m protoreflect.Message, v protoreflect.Value) string {
	se := m.Interface().(*networking.ServiceEntry)
	switch r := networking.ServiceEntry_Resolution(v.Enum()); r {
	case networking.ServiceEntry_STATIC, networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		return ""
	case networking.ServiceEntry_NONE:
		if se.Location == networking.ServiceEntry_MESH_EXTERNAL {
			return "" // the client passes the request through to the host
		}
		return "NONE is for hosts outside the mesh, to which the mesh passes requests as they are: use STATIC or DNS, or location MESH_EXTERNAL"
	default:
		return r.String() + " " + notEnforced + ": use STATIC or DNS"
	}
}

func refuseNames(_ protoreflect.Message, v protoreflect.Value) string {
	switch addr := v.String(); {
	case addr == "":
		return "a workload behind a network's gateway " + notEnforced
	case strings.HasPrefix(addr, "unix:"):
		return "a unix socket " + notEnforced
	}
	return ""
}

// refuseProxyKeys refuses conditions on what only a proxy's filters know.
func refuseProxyKeys(_ protoreflect.Message, v protoreflect.Value) string {
	for _, prefix := range []string{"experimental.envoy.filters.", "request.experimental."} {
		if strings.HasPrefix(v.String(), prefix) {
			return prefix + " " + notEnforced
		}
	}
	return ""
}

func refuseNoKeys(m protoreflect.Message, _ protoreflect.Value) string {
	if rule := m.Interface().(*security.JWTRule); rule.GetJwksUri() != "" || rule.GetJwks() != "" {
		return ""
	}
	return "has no keys: Istio would fetch the issuer's OpenID Connect discovery document to find them, the mesh does not: give jwksUri"
}

func refuseSecondKeys(m protoreflect.Message, v protoreflect.Value) string {
	rule := m.Interface().(*security.JWTRule)
	switch {
	case v.String() == "":
		return ""
	case rule.GetJwksUri() != "":
		return "can not be set together with jwksUri: the mesh takes the keys from one place"
	case !isKeySet(v.String()):
		return "the mesh takes a set of keys: put the key into {\"keys\": [...]}"
	}
	return ""
}

func refuseNoHost(_ protoreflect.Message, v protoreflect.Value) string {
	if v.String() == "" {
		return ""
	}
	if u, err := url.Parse(v.String()); err != nil || u.Hostname() == "" || u.User != nil {
		return "the mesh takes a URL with a host and without a user name or password"
	}
	return ""
}

func refuseNoHeader(_ protoreflect.Message, v protoreflect.Value) string {
	if v.String() != "" && !headerNamePattern.MatchString(v.String()) {
		return "is not the name of a header, so the mesh would never find it or set it"
	}
	return ""
}

// treatmentOf has the treatments by "Message.field".
var treatmentOf = func() map[string]treatment {
	out := make(map[string]treatment)
	for message, lists := range treatments {
		for t, names := range lists {
			for _, name := range strings.Fields(names) {
				out[message+"."+name] = t
			}
		}
	}
	return out
}()

// treat returns what the mesh does with a field; 0 where no list has it.
func treat(fd protoreflect.FieldDescriptor) treatment {
	return treatmentOf[messageName(fd.ContainingMessage())+"."+fd.JSONName()]
}

// messageName is the name of a message without its package.
func messageName(md protoreflect.MessageDescriptor) string {
	name := strings.TrimPrefix(string(md.FullName()), string(md.ParentFile().Package())+".")
	if md.ParentFile().Package() == "istio.type.v1beta1" {
		return "type." + name // these share names with others
	}
	return name
}

// Unenforced refuses what is valid in Istio but not enforced by the mesh, so that
// nobody takes a policy to be in force that is not. It does not look at what applies
// to gateways only.
func Unenforced(_ Meta, spec proto.Message) []Finding {
	var f findings
	if vs, ok := spec.(*networking.VirtualService); ok {
		if !appliesToMesh(vs) {
			return f
		}
	}
	root := "spec"
	if _, ok := spec.(*mesh.MeshConfig); ok {
		root = "data.mesh"
	}
	f.unenforced(root, spec.ProtoReflect())
	slices.SortStableFunc(f, func(a, b Finding) int { return strings.Compare(a.Field, b.Field) })
	return f
}

// appliesToMesh reports whether a VirtualService is for clients in the mesh at all.
func appliesToMesh(vs *networking.VirtualService) bool {
	return len(vs.GetGateways()) == 0 || slices.Contains(vs.GetGateways(), MeshGateway)
}

// routeAppliesToMesh reports whether one of the route's matches is for clients in the mesh.
func routeAppliesToMesh(r *networking.HTTPRoute) bool {
	if len(r.GetMatch()) == 0 {
		return true
	}
	return slices.ContainsFunc(r.GetMatch(), func(m *networking.HTTPMatchRequest) bool {
		return len(m.GetGateways()) == 0 || slices.Contains(m.GetGateways(), MeshGateway)
	})
}

func (f *findings) unenforced(path string, m protoreflect.Message) {
	if r, ok := m.Interface().(*networking.HTTPRoute); ok && !routeAppliesToMesh(r) {
		return
	}
	fields := m.Descriptor().Fields()
	for i := 0; i < fields.Len(); i++ {
		fd := fields.Get(i)
		at := join(path, fd.JSONName())
		how := treat(fd)
		if how == partly && (m.Has(fd) || fd.Message() == nil && !fd.HasPresence() && !fd.IsList() && !fd.IsMap()) {
			if why := partial[messageName(m.Descriptor())+"."+fd.JSONName()](m, m.Get(fd)); why != "" {
				f.errorf(at, "%s", why)
				continue
			}
		}
		if !m.Has(fd) {
			continue
		}
		switch how {
		case enforced, partly:
			f.unenforcedIn(at, fd, m.Get(fd))
		case harmless:
		default:
			f.errorf(at, "%s", notEnforced)
		}
	}
}

// unenforcedIn goes into the messages of a field.
func (f *findings) unenforcedIn(at string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch {
	case fd.IsMap():
		if composite(fd.MapValue()) {
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				f.unenforced(at+"["+k.String()+"]", v.Message())
				return true
			})
		}
	case fd.IsList():
		if composite(fd) {
			for i := 0; i < v.List().Len(); i++ {
				f.unenforced(fmt.Sprintf("%s[%d]", at, i), v.List().Get(i).Message())
			}
		}
	case composite(fd):
		if treat(fd) != partly {
			f.unenforced(at, v.Message())
		}
	}
}
