package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

type documentJSON struct {
	Servers              []serverJSON              `json:"xds_servers"`
	Node                 *nodeJSON                 `json:"node,omitempty"`
	ListenerTemplate     string                    `json:"client_default_listener_resource_name_template,omitempty"`
	InboundTemplate      string                    `json:"server_listener_resource_name_template,omitempty"`
	CertificateProviders map[string]pluginJSON     `json:"certificate_providers,omitempty"`
	Authorities          map[string]*authorityJSON `json:"authorities,omitempty"`
}

type serverJSON struct {
	URI      string      `json:"server_uri"`
	Creds    []credsJSON `json:"channel_creds"`
	Features []string    `json:"server_features,omitempty"`
}

type credsJSON struct {
	Type   string          `json:"type"`
	Config json.RawMessage `json:"config,omitempty"`
}

type nodeJSON struct {
	ID       string          `json:"id,omitempty"`
	Cluster  string          `json:"cluster,omitempty"`
	Locality *localityJSON   `json:"locality,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

type localityJSON struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	SubZone string `json:"sub_zone,omitempty"`
}

type pluginJSON struct {
	Plugin string          `json:"plugin_name"`
	Config json.RawMessage `json:"config,omitempty"`
}

type authorityJSON struct {
	ListenerTemplate string       `json:"client_listener_resource_name_template,omitempty"`
	Servers          []serverJSON `json:"xds_servers,omitempty"`
}

// Document writes a bootstrap document for c, indented and ending in a
// newline; Unread and Raw are not read. What it writes is always accepted by
// Parse and by gRPC: a configuration that would not be is an error.
func Document(c *Config) ([]byte, error) {
	d := documentJSON{
		Servers:         servers(c.Servers),
		InboundTemplate: c.InboundTemplate,
	}
	if c.ListenerTemplate != "%s" {
		d.ListenerTemplate = c.ListenerTemplate
	}
	if n := c.Node; n != nil {
		node, err := nodeDocument(n)
		if err != nil {
			return nil, err
		}
		d.Node = node
	}
	for name, p := range c.CertificateProviders {
		if d.CertificateProviders == nil {
			d.CertificateProviders = make(map[string]pluginJSON)
		}
		d.CertificateProviders[name] = pluginJSON(p)
	}
	for name, a := range c.Authorities {
		if d.Authorities == nil {
			d.Authorities = make(map[string]*authorityJSON)
		}
		d.Authorities[name] = &authorityJSON{ListenerTemplate: a.ListenerTemplate, Servers: servers(a.Servers)}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	if _, err := Parse(b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func servers(list []Server) []serverJSON {
	var out []serverJSON
	for _, s := range list {
		j := serverJSON{URI: s.URI, Features: s.Features.names()}
		for _, c := range s.ChannelCreds {
			j.Creds = append(j.Creds, credsJSON(c))
		}
		out = append(out, j)
	}
	return out
}

func nodeDocument(n *corev3.Node) (*nodeJSON, error) {
	node := &nodeJSON{ID: n.GetId(), Cluster: n.GetCluster()}
	if l := n.GetLocality(); l != nil {
		node.Locality = &localityJSON{Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubZone()}
	}
	if n.GetMetadata() != nil {
		b, err := protojson.Marshal(n.GetMetadata())
		if err != nil {
			return nil, fmt.Errorf("bootstrap: node.metadata: %w", err)
		}
		node.Metadata = b
	}
	return node, nil
}

// names lists the features as server_features spells them.
func (f *Features) names() []string {
	var names []string
	for _, feature := range []struct {
		set  bool
		name string
	}{
		{f.IgnoreResourceDeletion, "ignore_resource_deletion"},
		{f.FailOnDataErrors, "fail_on_data_errors"},
		{f.ResourceTimerIsTransientError, "resource_timer_is_transient_error"},
		{f.TrustedServer, "trusted_xds_server"},
	} {
		if feature.set {
			names = append(names, feature.name)
		}
	}
	return slices.Concat(names, f.Other)
}
