package compile

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/conformance"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// compiled compiles a listener with a filter, whose type and fields are given as JSON.
// A recorded message that the protos themselves do not take is an error too.
func compiled(filterType string, fields json.RawMessage, before ...string) (*snapshot.FilterChain, error) {
	body := strings.TrimPrefix(strings.TrimSpace(string(fields)), "{")
	if body != "}" {
		body = ", " + body
	}
	filter := `{"name": "f", "typed_config": {` + httpFilters3 + filterType + `"` + body + `}`
	var m listenerv3.Listener
	doc := strings.ReplaceAll(guarded(append(before, filter)...), "envoy::extensions::", "type.googleapis.com/envoy.extensions.")
	if err := (protojson.UnmarshalOptions{Resolver: extensionTypes{protoregistry.GlobalTypes}}).Unmarshal([]byte(doc), &m); err != nil {
		return nil, fmt.Errorf("protojson: %w", err)
	}
	in, f := inbound(&m)
	if f != nil {
		return nil, f.of("Listener", m.GetName())
	}
	return in.Plain, nil
}

func compiledRules(rules json.RawMessage) (*snapshot.FilterChain, error) {
	return compiled("rbac.v3.RBAC", json.RawMessage(`{"rules": `+string(rules)+`}`))
}

type recordedRequest struct {
	Headers    [][2]string
	Connection struct {
		Remote *recordedAddress `json:"connection_remote"`
		TLS    *struct {
			URI []string `json:"uri_sans"`
		}
		ServerName string `json:"requested_server_name"`
	}
	Stream struct {
		Local  *recordedAddress `json:"downstream_local"`
		Direct *recordedAddress `json:"downstream_direct_remote"`
		Remote *recordedAddress `json:"downstream_remote"`
	}
}

type recordedAddress struct {
	IP   string
	Port uint16
}

func (a *recordedAddress) addr() netip.Addr {
	if a == nil || a.IP == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(a.IP)
}

func (in *recordedRequest) request() *identity.AccessRequest {
	r := headersOf(in.Headers)
	r.ServerName = in.Connection.ServerName
	if tls := in.Connection.TLS; tls != nil && len(tls.URI) > 0 {
		r.Principal = tls.URI[0]
	}
	if r.PeerIP = in.Connection.Remote.addr(); in.Stream.Direct != nil {
		r.PeerIP = in.Stream.Direct.addr()
	}
	r.RemoteIP = in.Stream.Remote.addr()
	if in.Stream.Local != nil {
		r.DestinationIP, r.DestinationPort = in.Stream.Local.addr(), in.Stream.Local.Port
	}
	return r
}

// headersOf makes a request of headers, pseudo-headers among them.
func headersOf(pairs [][2]string) *identity.AccessRequest {
	r := &identity.AccessRequest{Request: routing.Request{Method: "GET", Scheme: "http", Path: "/", Header: map[string][]string{}, Form: routing.LowerHeaders}}
	for _, p := range pairs {
		switch name := strings.ToLower(p[0]); name {
		case ":path":
			r.Path, r.RawQuery, _ = strings.Cut(p[1], "?")
		case ":method":
			r.Method = p[1]
		case ":authority":
			r.Authority = p[1]
		case ":scheme":
			r.Scheme = p[1]
		default:
			r.Header[name] = append(r.Header[name], p[1])
		}
	}
	return r
}

func TestConformanceRBACEngine(t *testing.T) {
	var file struct {
		Cases []struct {
			Test   string
			Config json.RawMessage
			Input  recordedRequest
			Expect any
		}
	}
	conformance.Load(t, "envoy-facts/rbac_engine.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/rbac_engine.json")
	for i, c := range file.Cases {
		chain, err := compiledRules(c.Config)
		switch {
		case c.Expect == "config_rejected" && err != nil:
			tally.Pass()
		case c.Expect == "config_rejected":
			tally.Fail(t, "%s: accepted", c.Test)
		case err != nil && strings.Contains(err.Error(), "condition: not supported"):
			tally.Differs(t, fmt.Sprintf("%s [%d]", c.Test, i))
		case err != nil:
			tally.Fail(t, "%s: %v", c.Test, err)
		default:
			if d := chain.Authorizer.Decide(c.Input.request()); d.Allowed != c.Expect {
				tally.Fail(t, "%s: %v, want %v", c.Test, &d, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/rbac_engine.json", 9, 3)
}

// matcherPolicy puts a recorded matcher into the permission or principal of a policy.
func matcherPolicy(kind string, config json.RawMessage) string {
	permission := func(p string) string { return rule("r", p, anyone) }
	principal := func(p string) string { return rule("r", anyone, p) }
	in := func(field string) string { return `{"` + field + `": ` + string(config) + `}` }
	switch kind {
	case "AndMatcher", "OrMatcher":
		verb := map[string]string{"AndMatcher": "and", "OrMatcher": "or"}[kind]
		if strings.Contains(string(config), `"ids"`) {
			return principal(in(verb + "_ids"))
		}
		return permission(in(verb + "_rules"))
	case "NotMatcher":
		return principal(in("not_id"))
	case "HeaderMatcher":
		return permission(in("header"))
	case "IPMatcher":
		var m struct {
			CIDR    json.RawMessage
			Address string
		}
		if json.Unmarshal(config, &m) != nil || m.CIDR == nil || strings.Contains(string(m.CIDR), "ranges") {
			return permission(`{"matcher": {"name": "ip", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": ` + string(config) + `}}}`)
		}
		field := map[string]string{"ConnectionRemote": "source_ip", "DownstreamDirectRemote": "direct_remote_ip", "DownstreamRemote": "remote_ip", "DownstreamLocal": "destination_ip"}[m.Address]
		if config = m.CIDR; field == "destination_ip" {
			return permission(in(field))
		}
		return principal(in(field))
	case "Principal":
		return principal(string(config))
	case "Permission", "PortMatcher":
		return permission(string(config))
	case "PortRangeMatcher":
		return permission(in("destination_port_range"))
	case "AuthenticatedMatcher":
		return principal(in("authenticated"))
	case "MetadataMatcher":
		return permission(in("sourced_metadata"))
	case "PolicyMatcher":
		return `"r": ` + string(config)
	case "RequestedServerNameMatcher":
		return permission(in("requested_server_name"))
	case "PathMatcher":
		return permission(in("url_path"))
	case "FilterStateMatcher":
		return principal(in("filter_state"))
	case "MtlsAuthenticatedMatcher":
		return principal(`{"custom": {"name": "mtls", "typed_config": {"@type": "envoy::extensions::rbac::principals::mtls_authenticated::v3::Config", ` + strings.TrimPrefix(strings.TrimSpace(string(config)), "{") + `}}`)
	}
	panic("the matcher " + kind + " is not known")
}

func TestConformanceRBACMatchers(t *testing.T) {
	var file struct {
		Cases []struct {
			Test   string
			Kind   string `json:"matcher_kind"`
			Config json.RawMessage
			Input  recordedRequest
			Expect any
		}
	}
	conformance.Load(t, "envoy-facts/rbac_matchers.json", &file)
	tally := conformance.Deciding(t, "envoy-facts/rbac_matchers.json")
	for i, c := range file.Cases {
		policy := matcherPolicy(c.Kind, c.Config)
		r := c.Input.request()
		text := string(c.Config)
		if strings.Contains(text, "ConnectionRemote") || strings.Contains(text, "source_ip") {
			r.PeerIP = c.Input.Connection.Remote.addr() // there is no proxy protocol
		}
		tls := c.Input.Connection.TLS
		name := fmt.Sprintf("%s [%d]", c.Test, i)
		// Extensions, filter state and metadata that nothing sets are refused.
		refused := strings.Contains(text, "mtls_authenticated") || strings.Contains(text, "filter_state") || strings.Contains(policy, "sourced_metadata") ||
			c.Kind == "MtlsAuthenticatedMatcher" || c.Kind == "FilterStateMatcher" || strings.Contains(text, "ranges")
		// Only a SPIFFE ID names a peer.
		nameless := c.Expect == true && tls != nil && len(tls.URI) == 0 || strings.HasPrefix(c.Test, "AuthenticatedMatcher.dns")
		// A DENY rule asks what Envoy asks: whether the condition holds for any value of a header.
		chain, err := compiledRules(json.RawMessage(`{"action": "DENY", "policies": {` + policy + `}}`))
		switch {
		case c.Expect == "config_rejected" && err != nil:
			tally.Pass()
		case c.Expect == "config_rejected":
			tally.Fail(t, "%s %s: accepted", c.Test, c.Config)
		case refused && err != nil:
			tally.Differs(t, name)
		case err != nil:
			tally.Fail(t, "%s %s: %v", c.Test, c.Config, err)
		case strings.Contains(r.Path, "#"):
			if path, outcome := (identity.PathOptions{}).Apply(r.Path); outcome != identity.PathRefuse {
				tally.Fail(t, "%s: a path with a fragment becomes %q", c.Test, path)
				continue
			}
			tally.Differs(t, name)
		case nameless:
			if d := chain.Authorizer.Decide(r); !d.Allowed {
				tally.Fail(t, "%s: a peer without an ID has one: %v", c.Test, &d)
				continue
			}
			tally.Differs(t, name)
		default:
			if d := chain.Authorizer.Decide(r); d.Allowed == c.Expect {
				tally.Fail(t, "%s %s: %v, want %v", c.Test, c.Config, &d, c.Expect)
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "envoy-facts/rbac_matchers.json", 47, 17)
}

func TestConformanceGRPCRBAC(t *testing.T) {
	var file struct {
		Engine []struct {
			Name    string
			Chain   []json.RawMessage
			Queries []struct {
				Request struct {
					Source      string `json:"source_address"`
					Path        string
					Headers     map[string][]string
					Certificate *struct {
						URI []string `json:"uri_sans"`
					} `json:"peer_certificate"`
				}
				Allow bool
			}
		}
		Validation []struct {
			Name  string
			Chain []json.RawMessage
			Valid bool
		} `json:"config_validation"`
		EndToEnd []struct {
			Name     string
			Filter   json.RawMessage
			Requests []struct {
				Path  string
				Allow bool
			}
		} `json:"http_filter_end_to_end"`
		Precedence []struct {
			Name     string
			URI      []string `json:"uri_sans"`
			Contains string   `json:"principal_name_contains"`
			Match    bool
		} `json:"identity_precedence"`
		Nested []struct {
			Name   string
			Filter json.RawMessage
			Valid  bool
		} `json:"nested_header_rejected"`
	}
	conformance.Load(t, "grpc-facts/rbac.json", &file)
	tally := conformance.Deciding(t, "grpc-facts/rbac.json")
	chainOf := func(list []json.RawMessage) (*identity.Authorizer, error) {
		var filters []string
		for i, rules := range list[:len(list)-1] {
			filters = append(filters, rbacFilter(fmt.Sprint("g", i), `"rules": `+string(rules)))
		}
		c, err := compiled("rbac.v3.RBAC", json.RawMessage(`{"rules": `+string(list[len(list)-1])+`}`), filters...)
		if err != nil {
			return nil, err
		}
		return c.Authorizer, nil
	}
	hasLoggers := func(list []json.RawMessage) bool {
		return strings.Contains(fmt.Sprintf("%s", list), "auditLoggingOptions")
	}
	for _, c := range file.Engine {
		a, err := chainOf(c.Chain)
		if err != nil && hasLoggers(c.Chain) && strings.Contains(err.Error(), "audit_logging_options: not supported") || stricterThanGRPC(err) {
			tally.Differs(t, c.Name)
			continue
		}
		if err != nil {
			tally.Fail(t, "%s: %v", c.Name, err)
			continue
		}
		for _, q := range c.Queries {
			r := &identity.AccessRequest{Request: routing.Request{Method: "POST", Path: q.Request.Path, Header: q.Request.Headers, Form: routing.LowerHeaders}}
			host, _ := identity.HostPort(q.Request.Source)
			r.PeerIP = netip.MustParseAddr(host)
			r.RemoteIP = r.PeerIP
			if c.Name == "DestinationIpMatcher" {
				r.DestinationIP = r.PeerIP // the recorded listener is where the rule asks for it
			}
			if q.Request.Certificate != nil {
				r.Principal = q.Request.Certificate.URI[0]
			}
			if d := a.Decide(r); d.Allowed != q.Allow {
				tally.Fail(t, "%s %+v: %v, want %v", c.Name, q.Request, &d, q.Allow)
				continue
			}
			tally.Pass()
		}
	}
	for _, c := range file.Validation {
		_, err := chainOf(c.Chain)
		switch {
		case (err == nil) == c.Valid:
			tally.Pass()
		case hasLoggers(c.Chain) && err != nil && strings.Contains(err.Error(), "audit_logging_options: not supported"):
			tally.Differs(t, c.Name)
		case c.Name == "LogAction", c.Valid && stricterThanGRPC(err):
			tally.Differs(t, c.Name)
		default:
			tally.Fail(t, "%s: %v, want valid %v", c.Name, err, c.Valid)
		}
	}
	for _, c := range file.EndToEnd {
		chain, err := compiled("rbac.v3.RBAC", c.Filter)
		if err != nil {
			tally.Fail(t, "%s: %v", c.Name, err)
			continue
		}
		for _, q := range c.Requests {
			r := &identity.AccessRequest{Request: routing.Request{Method: "POST", Authority: "my-service-fallback", Path: q.Path, Form: routing.LowerHeaders, Header: map[string][]string{"user-agent": {"grpc-go"}}}}
			r.RemoteIP = netip.MustParseAddr("127.0.0.1")
			allowed := true
			if chain.Authorizer != nil {
				d := chain.Authorizer.Decide(r)
				allowed = d.Allowed
			}
			if allowed != q.Allow {
				tally.Fail(t, "%s %s: %v, want %v", c.Name, q.Path, allowed, q.Allow)
				continue
			}
			tally.Pass()
		}
	}
	for _, c := range file.Precedence {
		a, err := chainOf([]json.RawMessage{json.RawMessage(fmt.Sprintf(`{"policies": {"p": {"permissions": [{"any": true}],
			"principals": [{"authenticated": {"principal_name": {"contains": %q}}}]}}}`, c.Contains))})
		if err != nil {
			t.Fatal(err)
		}
		if len(c.URI) == 0 { // the peer has no SPIFFE ID
			if d := a.Decide(&identity.AccessRequest{Request: routing.Request{Path: "/"}}); d.Allowed {
				tally.Fail(t, "%s: a peer without an ID is let in", c.Name)
			}
			tally.Differs(t, c.Name)
			continue
		}
		if d := a.Decide(&identity.AccessRequest{Request: routing.Request{Path: "/"}, Principal: c.URI[0]}); d.Allowed != c.Match {
			tally.Fail(t, "%s: %v, want %v", c.Name, &d, c.Match)
			continue
		}
		tally.Pass()
	}
	for _, c := range file.Nested {
		if _, err := compiled("rbac.v3.RBAC", c.Filter); (err == nil) != c.Valid {
			tally.Differs(t, c.Name)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "grpc-facts/rbac.json", 34, 15)
}

// stricterThanGRPC reports whether rules that gRPC takes are refused on
// purpose: metadata that nothing sets, and a principal that no peer has.
func stricterThanGRPC(err error) bool {
	return err != nil && (strings.Contains(err.Error(), `metadata.filter: "" is not supported`) ||
		strings.Contains(err.Error(), "principal_name.exact: a principal is empty"))
}
