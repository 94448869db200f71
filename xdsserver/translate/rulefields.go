package translate

//lint:file-ignore SA1019 Istio and gRPC know claims by this field, not by the one that came after it.

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	security "istio.io/api/security/v1beta1"

	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// source translates who asks.
func (t *ruleTranslator) source(at string, s *security.Source) ([]*rbacv3.Principal, error) {
	return addAll(t, &principals, at, s, []field[*rbacv3.Principal]{
		{name: "principals", values: s.GetPrincipals(), notValues: s.GetNotPrincipals(), one: t.principal, expand: t.b.aliases},
		{name: "requestPrincipals", values: s.GetRequestPrincipals(), notValues: s.GetNotRequestPrincipals(), one: t.requestPrincipal},
		{name: "namespaces", values: s.GetNamespaces(), notValues: s.GetNotNamespaces(), one: t.namespace},
		{name: "serviceAccounts", values: s.GetServiceAccounts(), notValues: s.GetNotServiceAccounts(), one: t.serviceAccount},
		{name: "trustDomains", values: s.GetTrustDomains(), notValues: s.GetNotTrustDomains(), one: t.trustDomain},
		{name: "ipBlocks", values: s.GetIpBlocks(), notValues: s.GetNotIpBlocks(), one: t.peerIP},
		{name: "remoteIpBlocks", values: s.GetRemoteIpBlocks(), notValues: s.GetNotRemoteIpBlocks(), one: t.remoteIP},
	})
}

// operation translates what is asked for.
func (t *ruleTranslator) operation(at string, o *security.Operation) ([]*rbacv3.Permission, error) {
	return addAll(t, &permissions, at, o, []field[*rbacv3.Permission]{
		{name: "hosts", values: o.GetHosts(), notValues: o.GetNotHosts(), one: t.host},
		{name: "ports", values: o.GetPorts(), notValues: o.GetNotPorts(), one: t.port},
		{name: "methods", values: o.GetMethods(), notValues: o.GetNotMethods(), one: t.method},
		{name: "paths", values: o.GetPaths(), notValues: o.GetNotPaths(), one: t.path},
	})
}

// condition translates one condition of "when", which is about who asks or about
// what is asked for.
// https://istio.io/latest/docs/reference/config/security/conditions/
func (t *ruleTranslator) condition(at string, c *security.Condition, who *[]*rbacv3.Principal, what *[]*rbacv3.Permission) error {
	if len(c.GetValues()) == 0 && len(c.GetNotValues()) == 0 {
		return fmt.Errorf("%s: has neither values nor notValues", at)
	}
	asks := field[*rbacv3.Principal]{name: "values", values: c.GetValues(), notValues: c.GetNotValues()}
	asked := field[*rbacv3.Permission]{name: "values", values: c.GetValues(), notValues: c.GetNotValues()}
	name, _, _ := strings.Cut(c.GetKey(), "[")
	switch name {
	case "source.ip":
		asks.one = t.peerIP
	case "remote.ip":
		asks.one = t.remoteIP
	case "source.namespace":
		asks.one = t.namespace
	case "source.principal":
		asks.one, asks.expand = t.principal, t.b.aliases
	case "source.serviceAccount":
		asks.one = t.serviceAccount
	case "source.trustDomain":
		asks.one = t.trustDomain
	case "request.auth.principal":
		asks.one = t.requestPrincipal
	case "request.auth.audiences":
		asks.one = t.claim([]string{"aud"})
	case "request.auth.presenter":
		asks.one = t.claim([]string{"azp"})
	case "request.auth.claims":
		path, err := bracketed(c.GetKey())
		if err != nil {
			return fmt.Errorf("%s.key: %w", at, err)
		}
		asks.one = t.claim(path)
	case "request.headers":
		path, err := bracketed(c.GetKey())
		if err == nil && len(path) > 1 {
			err = fmt.Errorf("%q names more than one header", c.GetKey())
		}
		if err != nil {
			return fmt.Errorf("%s.key: %w", at, err)
		}
		asks.one = t.header(path[0])
	case "destination.ip":
		asked.one = t.destinationIP
	case "destination.port":
		asked.one = t.port
	case "connection.sni":
		asked.one = t.serverName
	default:
		return unsupported(at, "key "+c.GetKey())
	}
	if asks.one == nil {
		return add(t, &permissions, what, at, &asked)
	}
	return add(t, &principals, who, at, &asks)
}

// bracketed reads the names of a key such as request.auth.claims[a][b].
func bracketed(key string) ([]string, error) {
	_, rest, _ := strings.Cut(key, "[")
	rest, ok := strings.CutSuffix(rest, "]")
	names := strings.Split(rest, "][")
	for _, n := range names {
		if n == "" || strings.ContainsAny(n, "[]") {
			ok = false
		}
	}
	if !ok {
		return nil, fmt.Errorf("%q does not end in names in brackets", key)
	}
	return names, nil
}

// text is Istio's match of a text: "*" is any that is not empty, "p*" and "*s" are
// beginnings and ends, everything else stands for itself.
func text(v string, fold bool) *matcherv3.StringMatcher {
	out := &matcherv3.StringMatcher{IgnoreCase: fold}
	switch {
	case v == "*":
		return regex(".+")
	case strings.HasPrefix(v, "*"):
		out.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: v[1:]}
	case strings.HasSuffix(v, "*"):
		out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: v[:len(v)-1]}
	default:
		out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: v}
	}
	return out
}

func exact(v string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: v}}
}

func regex(expr string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: fullMatch(expr)}}
}

// wildcards is a regular expression for a text in which "*" stands for any text.
func wildcards(v string) string {
	parts := strings.Split(v, "*")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return strings.Join(parts, ".*")
}

func authenticated(name *matcherv3.StringMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: name}}}
}

// principal matches the peer's SPIFFE ID, which policy writes without its scheme.
func (t *ruleTranslator) principal(_, v string, _ bool) (*rbacv3.Principal, error) {
	const scheme = "spiffe://"
	switch {
	case v == "*":
		return authenticated(regex(".+")), nil
	case strings.HasPrefix(v, "*"):
		return authenticated(regex(scheme + ".*" + regexp.QuoteMeta(v[1:]))), nil
	}
	return authenticated(text(scheme+v, false)), nil
}

// namespace matches peers of a namespace, by the form that compiling an index knows.
func (t *ruleTranslator) namespace(_, v string, _ bool) (*rbacv3.Principal, error) {
	return authenticated(regex(".*/ns/" + wildcards(v) + "/.*")), nil
}

// serviceAccount matches peers that run as an account of the policy's namespace, or
// of that which the value names before a slash, whatever their trust domain. Other
// parts may stand between and behind, as in Istio.
func (t *ruleTranslator) serviceAccount(at, v string, _ bool) (*rbacv3.Principal, error) {
	ns, account, both := strings.Cut(v, "/")
	if !both {
		ns, account = t.policy.Namespace, v
	}
	if ns == "" || account == "" || strings.Contains(account, "/") {
		return nil, fmt.Errorf("%s: %q is neither a name nor namespace/name", at, v)
	}
	is := authenticated(regex(fmt.Sprintf("spiffe://.+/ns/%s/(.+/|)sa/%s(/.+)?", regexp.QuoteMeta(ns), regexp.QuoteMeta(account))))
	if t.b.client.Agent != Sinew {
		return is, nil
	}
	// The namespace alone says nothing new, but Sinew finds rules by it.
	in, err := t.namespace(at, ns, false)
	return principals.and([]*rbacv3.Principal{in, is}), err
}

func (t *ruleTranslator) trustDomain(_, v string, _ bool) (*rbacv3.Principal, error) {
	if !strings.Contains(v, "*") {
		return authenticated(text("spiffe://"+v+"/*", false)), nil
	}
	return authenticated(regex("spiffe://" + strings.ReplaceAll(wildcards(v), ".*", "[^/]*") + "/.*")), nil
}

func (t *ruleTranslator) peerIP(at, v string, _ bool) (*rbacv3.Principal, error) {
	r, err := ipRange(at, v)
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: r}}, err
}

// remoteIP matches the caller, as far as proxies that are believed tell of it.
func (t *ruleTranslator) remoteIP(at, v string, _ bool) (*rbacv3.Principal, error) {
	if t.b.view.set.MeshConfig.TrustedProxies() > 0 {
		// gRPC takes the other end of the connection for the caller (gRFC A41).
		if err := t.b.can(at, "the caller behind trusted proxies"); err != nil {
			return nil, err
		}
	}
	r, err := ipRange(at, v)
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: r}}, err
}

func (t *ruleTranslator) destinationIP(at, v string, _ bool) (*rbacv3.Permission, error) {
	r, err := ipRange(at, v)
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: r}}, err
}

// ipRange reads an address or a range of them.
func ipRange(at, v string) (*corev3.CidrRange, error) {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		ip, err := netip.ParseAddr(v)
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("%s: %q is neither an address nor a range of them", at, v)
		}
		p = netip.PrefixFrom(ip, ip.BitLen())
	}
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}, nil
}

func (t *ruleTranslator) port(at, v string, _ bool) (*rbacv3.Permission, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%s: %q is not a port", at, v)
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(n)}}, nil
}

func (t *ruleTranslator) serverName(at, v string, _ bool) (*rbacv3.Permission, error) {
	if err := t.b.can(at, "connection.sni"); err != nil {
		return nil, err
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: text(v, false)}}, nil
}

// path matches the path without its query, or its form: "{*}" is one segment, "{**}" any rest.
func (t *ruleTranslator) path(at, v string, _ bool) (*rbacv3.Permission, error) {
	if !strings.Contains(v, "{*}") && !strings.Contains(v, "{**}") {
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{
			Rule: &matcherv3.PathMatcher_Path{Path: text(v, false)},
		}}}, nil
	}
	if err := t.b.can(at, "path template"); err != nil {
		return nil, err
	}
	template := strings.NewReplacer("{*}", "*", "{**}", "**").Replace(v)
	if _, err := routing.ParseTemplate(template); err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UriTemplate{UriTemplate: &corev3.TypedExtensionConfig{
		Name:        "uri-template",
		TypedConfig: mustPack(&uritemplatev3.UriTemplateMatchConfig{PathTemplate: template}),
	}}}, nil
}

// headerText matches a header's value; "*" asks only that the header is there.
func headerText(name, v string, fold bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: strings.ToLower(name)}
	if v == "*" {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	} else {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: text(v, fold)}
	}
	return h
}

func headerPermission(h *routev3.HeaderMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: h}}
}

func (t *ruleTranslator) method(_, v string, _ bool) (*rbacv3.Permission, error) {
	return headerPermission(headerText(":method", v, false)), nil
}

var endsInPort = regexp.MustCompile(`:[0-9]+$`)

// host matches the host that is asked for, in any letter case. A caller may write a
// port or a dot behind it. Sinew reads a host in all of these ways by itself; for
// others, a rule that must not miss a request also covers them.
func (t *ruleTranslator) host(_, v string, wide bool) (*rbacv3.Permission, error) {
	plain := headerPermission(headerText(":authority", v, true))
	if !wide || t.b.client.Agent == Sinew || strings.HasSuffix(v, "*") || endsInPort.MatchString(v) {
		return plain, nil
	}
	expr := regexp.QuoteMeta(strings.TrimSuffix(v, "."))
	if strings.HasPrefix(v, "*") {
		expr = ".*" + regexp.QuoteMeta(strings.TrimSuffix(v[1:], "."))
	}
	spelled := headerPermission(&routev3.HeaderMatcher{Name: ":authority",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: regex("(?i)" + expr + `\.?(:[0-9]*)?`)}})
	return permissions.or([]*rbacv3.Permission{plain, spelled}), nil
}

// header matches one header of the request.
//
// gRPC joins the values of a header by commas (gRFC A41). There, a rule that must
// not miss a request looks at every part of the joined text, and one that must not
// match one too many takes no text with a comma: a second value then helps nobody.
func (t *ruleTranslator) header(name string) func(at, v string, wide bool) (*rbacv3.Principal, error) {
	return func(at, v string, wide bool) (*rbacv3.Principal, error) {
		h := headerText(name, v, false)
		if t.b.client.Agent == GRPC {
			if lower := h.Name; strings.HasPrefix(lower, "grpc-") || strings.HasSuffix(lower, "-bin") || lower == ":scheme" || lower == "te" || lower == "connection" {
				return nil, t.b.can(at, "request.headers["+name+"]")
			}
			if m := h.GetStringMatch(); m != nil && !strings.HasPrefix(h.Name, ":") && h.Name != "host" {
				h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: joined(v, wide)}
			}
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: h}}, nil
	}
}

// joined matches values of a header that are joined by commas: any of them, or the only one.
func joined(v string, wide bool) *matcherv3.StringMatcher {
	before, after, gap := "(.*, *)?", "( *,.*)?", ".*"
	if !wide {
		before, after, gap = "", "", "[^,]*"
	}
	switch {
	case strings.HasPrefix(v, "*"):
		return regex(gap + regexp.QuoteMeta(v[1:]) + after)
	case strings.HasSuffix(v, "*"):
		return regex(before + regexp.QuoteMeta(v[:len(v)-1]) + gap)
	}
	return regex(before + regexp.QuoteMeta(v) + after)
}

// claim matches a claim of the verified token that is a text, or a list with it.
func (t *ruleTranslator) claim(path []string) func(at, v string, wide bool) (*rbacv3.Principal, error) {
	return func(at, v string, _ bool) (*rbacv3.Principal, error) {
		if err := t.b.can(at, "a claim of a token"); err != nil {
			return nil, err
		}
		is := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: text(v, false)}}
		has := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{
			ListMatch: &matcherv3.ListMatcher{MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: is}},
		}}
		return inToken(path, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{
			OrMatch: &matcherv3.OrMatcher{ValueMatchers: []*matcherv3.ValueMatcher{is, has}},
		}}), nil
	}
}

// inToken asks of a claim in the metadata that the filter for tokens writes.
func inToken(path []string, value *matcherv3.ValueMatcher) *rbacv3.Principal {
	m := &matcherv3.MetadataMatcher{Filter: jwtFilter, Value: value}
	for _, key := range append([]string{payloadKey}, path...) {
		m.Path = append(m.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Metadata{Metadata: m}}
}

// requestPrincipal matches "issuer/subject" of the verified token. The last slash
// divides them, because an issuer may be a URL. A wildcard at one end belongs to the
// part that it stands at, and a star elsewhere is a star; without a slash, the other
// part is any.
func (t *ruleTranslator) requestPrincipal(at, v string, _ bool) (*rbacv3.Principal, error) {
	if err := t.b.can(at, "the principal of a token"); err != nil {
		return nil, err
	}
	issuer, subject := text("*", false), text("*", false)
	i := strings.LastIndexByte(v, '/')
	front, back := strings.HasPrefix(v, "*"), strings.HasSuffix(v, "*")
	switch {
	case i == 0 || i >= 0 && i == len(v)-1:
		return nil, fmt.Errorf("%s: %q has no issuer or no subject", at, v)
	case i > 0 && front:
		issuer, subject = text(v[:i], false), exact(v[i+1:])
	case i > 0 && back:
		issuer, subject = exact(v[:i]), text(v[i+1:], false)
	case i > 0:
		issuer, subject = exact(v[:i]), exact(v[i+1:])
	case front: // "*" alone is any subject, of any issuer
		subject = text(v, false)
	case back:
		issuer = text(v, false)
	default:
		return nil, fmt.Errorf("%s: %q is not issuer/subject", at, v)
	}
	claim := func(name string, m *matcherv3.StringMatcher) *rbacv3.Principal {
		return inToken([]string{name}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}})
	}
	return principals.and([]*rbacv3.Principal{claim("iss", issuer), claim("sub", subject)}), nil
}

// aliases replaces the trust domain of principals: one that is the mesh's own, one
// of its aliases or "cluster.local" stands for all of them, as in Istio. Patterns
// that do not give the whole identity stay as they are.
// https://istio.io/latest/docs/tasks/security/authorization/authz-td-migration/
func (b *builder) aliases(list []string) []string {
	domains := b.trustDomains()
	var out []string
	seen := map[string]bool{}
	keep := func(p string) {
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	for _, p := range list {
		td, rest, _ := strings.Cut(p, "/")
		// As many parts as an identity has; "*" does not care about the trust domain.
		if strings.Count(p, "/") != 4 || td == "*" || td == "" {
			keep(p)
			continue
		}
		suffix, wild := strings.CutPrefix(td, "*")
		ours := td == policy.DefaultTrustDomain
		for _, d := range domains {
			ours = ours || d == td || wild && strings.HasSuffix(d, suffix)
		}
		if !ours {
			keep(p)
			continue
		}
		for _, d := range domains {
			if wild && strings.HasSuffix(d, suffix) {
				keep(p)
			} else {
				keep(d + "/" + rest)
			}
		}
	}
	return out
}
