package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// Error is a fault in a bootstrap document.
type Error struct {
	Path string // of the JSON value, such as "xds_servers[0].channel_creds"; empty for the document as a whole
	Why  string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return "bootstrap: " + e.Why
	}
	return "bootstrap: " + e.Path + ": " + e.Why
}

// Parse reads a bootstrap document. Every error is an *Error that names the
// JSON path. Fields that are not known are skipped and listed in Unread.
func Parse(document []byte) (*Config, error) {
	p := &parser{}
	fields := p.object(append(json.RawMessage{}, document...), "",
		"xds_servers", "node", "certificate_providers", "authorities",
		"client_default_listener_resource_name_template", "server_listener_resource_name_template")
	c := &Config{
		Servers:              p.servers(fields["xds_servers"], "xds_servers"),
		Node:                 p.node(fields["node"], "node"),
		ListenerTemplate:     p.str(fields["client_default_listener_resource_name_template"], "client_default_listener_resource_name_template"),
		InboundTemplate:      p.str(fields["server_listener_resource_name_template"], "server_listener_resource_name_template"),
		CertificateProviders: p.providers(fields["certificate_providers"]),
		Authorities:          p.authorities(fields["authorities"]),
		Raw:                  bytes.Clone(document),
	}
	if c.ListenerTemplate == "" {
		c.ListenerTemplate = "%s"
	}
	if len(c.Servers) == 0 {
		p.fail("xds_servers", "at least one server is needed")
	}
	for _, t := range []struct{ path, template string }{
		{"client_default_listener_resource_name_template", c.ListenerTemplate},
		{"server_listener_resource_name_template", c.InboundTemplate},
	} {
		p.knownAuthority(t.path, t.template, c.Authorities)
	}
	if p.err != nil {
		return nil, p.err
	}
	slices.Sort(p.unread)
	c.Unread = p.unread
	return c, nil
}

// parser keeps the first error; after it, every method returns zero values.
type parser struct {
	err    *Error
	unread []string
}

func (p *parser) fail(path, format string, args ...any) {
	if p.err == nil {
		p.err = &Error{Path: path, Why: fmt.Sprintf(format, args...)}
	}
}

// decode reads raw into v, which describes the JSON type that is wanted.
func (p *parser) decode(raw json.RawMessage, path, want string, v any) bool {
	if p.err != nil {
		return false
	}
	if err := json.Unmarshal(raw, v); err != nil {
		if syntax, ok := err.(*json.SyntaxError); ok {
			p.fail(path, "not JSON: %v (at byte %d)", err, syntax.Offset)
		} else {
			p.fail(path, "must be %s", want)
		}
		return false
	}
	return true
}

// object reads a JSON object and lists the fields outside of known as unread.
func (p *parser) object(raw json.RawMessage, path string, known ...string) map[string]json.RawMessage {
	fields := p.dict(raw, path)
	for name := range fields {
		if !slices.Contains(known, name) {
			p.unread = append(p.unread, join(path, name))
		}
	}
	return fields
}

// dict reads a JSON object whose keys are data. Values of null are left out.
func (p *parser) dict(raw json.RawMessage, path string) map[string]json.RawMessage {
	if raw == nil {
		return nil
	}
	var fields map[string]json.RawMessage
	if !p.decode(raw, path, "an object", &fields) {
		return nil
	}
	if fields == nil {
		p.fail(path, "must be an object")
		return nil
	}
	for name, value := range fields {
		if isNull(value) {
			delete(fields, name)
		}
	}
	return fields
}

func (p *parser) list(raw json.RawMessage, path string) []json.RawMessage {
	if raw == nil {
		return nil
	}
	var list []json.RawMessage
	p.decode(raw, path, "a list", &list)
	return list
}

func (p *parser) str(raw json.RawMessage, path string) string {
	if raw == nil {
		return ""
	}
	var s string
	p.decode(raw, path, "a string", &s)
	return s
}

func (p *parser) servers(raw json.RawMessage, path string) []Server {
	var servers []Server
	for i, raw := range p.list(raw, path) {
		servers = append(servers, p.server(raw, index(path, i)))
	}
	return servers
}

func (p *parser) server(raw json.RawMessage, path string) Server {
	fields := p.object(raw, path, "server_uri", "channel_creds", "server_features")
	s := Server{URI: p.str(fields["server_uri"], join(path, "server_uri"))}
	if s.URI == "" {
		p.fail(join(path, "server_uri"), "missing or empty")
	}
	credsPath := join(path, "channel_creds")
	for i, raw := range p.list(fields["channel_creds"], credsPath) {
		at := index(credsPath, i)
		f := p.object(raw, at, "type", "config")
		creds := ChannelCreds{Type: p.str(f["type"], join(at, "type")), Config: f["config"]}
		if creds.Type == "" {
			p.fail(join(at, "type"), "missing or empty")
		}
		s.ChannelCreds = append(s.ChannelCreds, creds)
	}
	if p.err == nil {
		switch i := s.selected(); {
		case i < 0:
			p.fail(credsPath, noneKnown)
		case s.ChannelCreds[i].Type == TLS:
			p.tls(s.ChannelCreds[i].Config, join(index(credsPath, i), "config"))
		case s.ChannelCreds[i].Type == CertificateProviderCreds:
			p.providerCreds(s.ChannelCreds[i].Config, join(index(credsPath, i), "config"))
		}
	}
	featuresPath := join(path, "server_features")
	for i, raw := range p.list(fields["server_features"], featuresPath) {
		switch name := p.str(raw, index(featuresPath, i)); name {
		case "ignore_resource_deletion":
			s.Features.IgnoreResourceDeletion = true
		case "fail_on_data_errors":
			s.Features.FailOnDataErrors = true
		case "resource_timer_is_transient_error":
			s.Features.ResourceTimerIsTransientError = true
		case "trusted_xds_server":
			s.Features.TrustedServer = true
		default:
			s.Features.Other = append(s.Features.Other, name)
		}
	}
	return s
}

func (p *parser) node(raw json.RawMessage, path string) *corev3.Node {
	n := &corev3.Node{}
	if raw == nil {
		return n
	}
	fields := p.object(raw, path, "id", "cluster", "metadata", "locality")
	n.Id = p.str(fields["id"], join(path, "id"))
	n.Cluster = p.str(fields["cluster"], join(path, "cluster"))
	if raw := fields["metadata"]; raw != nil {
		n.Metadata = &structpb.Struct{}
		if err := protojson.Unmarshal(raw, n.Metadata); err != nil {
			p.fail(join(path, "metadata"), "must be an object of JSON values in UTF-8")
		}
	}
	if raw := fields["locality"]; raw != nil {
		at := join(path, "locality")
		f := p.object(raw, at, "region", "zone", "sub_zone")
		l := &corev3.Locality{
			Region:  p.str(f["region"], join(at, "region")),
			Zone:    p.str(f["zone"], join(at, "zone")),
			SubZone: p.str(f["sub_zone"], join(at, "sub_zone")),
		}
		if l.Region != "" || l.Zone != "" || l.SubZone != "" {
			n.Locality = l
		}
	}
	return n
}

func (p *parser) providers(raw json.RawMessage) map[string]CertificateProvider {
	const path = "certificate_providers"
	entries := p.dict(raw, path)
	if len(entries) == 0 {
		return nil
	}
	providers := make(map[string]CertificateProvider, len(entries))
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		at := key(path, name)
		f := p.object(entries[name], at, "plugin_name", "config")
		plugin := p.str(f["plugin_name"], join(at, "plugin_name"))
		if plugin == "" {
			p.fail(join(at, "plugin_name"), "missing or empty")
		}
		providers[name] = CertificateProvider{Plugin: plugin, Config: f["config"]}
	}
	return providers
}

func (p *parser) authorities(raw json.RawMessage) map[string]Authority {
	const path = "authorities"
	entries := p.dict(raw, path)
	if len(entries) == 0 {
		return nil
	}
	authorities := make(map[string]Authority, len(entries))
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		at := key(path, name)
		f := p.object(entries[name], at, "client_listener_resource_name_template", "xds_servers")
		a := Authority{
			ListenerTemplate: p.str(f["client_listener_resource_name_template"], join(at, "client_listener_resource_name_template")),
			Servers:          p.servers(f["xds_servers"], join(at, "xds_servers")),
		}
		prefix := "xdstp://" + url.PathEscape(name) + "/"
		switch {
		case a.ListenerTemplate == "":
			a.ListenerTemplate = prefix + "envoy.config.listener.v3.Listener/%s"
		case !strings.HasPrefix(a.ListenerTemplate, prefix):
			p.fail(join(at, "client_listener_resource_name_template"), "must begin with %q (gRFC A47)", prefix)
		}
		authorities[name] = a
	}
	return authorities
}

// knownAuthority refuses an xdstp template whose authority is not in the document.
func (p *parser) knownAuthority(path, template string, authorities map[string]Authority) {
	rest, ok := strings.CutPrefix(template, "xdstp:")
	if !ok {
		return
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(rest, "//"), "/")
	unescaped, err := url.PathUnescape(name)
	if err != nil {
		p.fail(path, "malformed authority %q", name)
		return
	}
	if _, ok := authorities[unescaped]; !ok {
		p.fail(path, "authority %q is not in authorities", unescaped)
	}
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func key(path, k string) string { return path + "[" + strconv.Quote(k) + "]" }
