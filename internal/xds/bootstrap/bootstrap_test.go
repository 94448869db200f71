package bootstrap

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// full is a document as an Istio agent writes it, with every field that is read.
const full = `{
  "xds_servers": [
    {"server_uri": "unix:///etc/istio/proxy/XDS", "channel_creds": [{"type": "google_default"}, {"type": "insecure"}],
     "server_features": ["xds_v3", "ignore_resource_deletion", "fail_on_data_errors", "resource_timer_is_transient_error", "trusted_xds_server"]},
    {"server_uri": "xds.example.com:15012", "channel_creds": [{"type": "certificate_provider", "config": {
      "plugin_name": "csr", "config": {"address": "xds.example.com:15012"}, "server_id": "spiffe://td.example/ns/sinew-system/sa/xdsserver", "server_name": "xds"}}, {"type": "insecure"}]},
    {"server_uri": "xds.example.com:15010", "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": "/etc/ca.pem"}}]}
  ],
  "node": {
    "id": "sidecar~10.1.2.3~productpage-1.default~default.svc.cluster.local",
    "cluster": "productpage",
    "metadata": {"NAMESPACE": "default", "INSTANCE_IPS": "10.1.2.3", "LABELS": {"app": "productpage"}, "N": 3},
    "locality": {"region": "eu", "zone": "eu-1", "sub_zone": "a"}
  },
  "certificate_providers": {
    "default": {"plugin_name": "file_watcher", "config": {"certificate_file": "cert-chain.pem", "private_key_file": "key.pem", "ca_certificate_file": "root-cert.pem", "refresh_interval": "900s"}}
  },
  "authorities": {
    "other": {"xds_servers": [{"server_uri": "other:1", "channel_creds": [{"type": "insecure"}]}]},
    "same/servers": {"client_listener_resource_name_template": "xdstp://same%2Fservers/L/%s"}
  },
  "client_default_listener_resource_name_template": "%s",
  "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s"
}`

func TestParseReadsEveryField(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Servers) != 3 || c.Servers[0].URI != "unix:///etc/istio/proxy/XDS" || c.Servers[1].URI != "xds.example.com:15012" || c.Servers[2].URI != "xds.example.com:15010" {
		t.Errorf("servers: %+v", c.Servers)
	}
	if got := c.Servers[0].selected(); got != 1 {
		t.Errorf("selected credentials %d, want the first that is known", got)
	}
	f := c.Servers[0].Features
	if !f.IgnoreResourceDeletion || !f.FailOnDataErrors || !f.ResourceTimerIsTransientError || !f.TrustedServer || !slices.Equal(f.Other, []string{"xds_v3"}) {
		t.Errorf("features: %+v", f)
	}
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": "default", "INSTANCE_IPS": "10.1.2.3", "LABELS": map[string]any{"app": "productpage"}, "N": 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	node := &corev3.Node{
		Id: "sidecar~10.1.2.3~productpage-1.default~default.svc.cluster.local", Cluster: "productpage",
		Metadata: metadata, Locality: &corev3.Locality{Region: "eu", Zone: "eu-1", SubZone: "a"},
	}
	if !proto.Equal(c.Node, node) {
		t.Errorf("node: %v", c.Node)
	}
	if p := c.CertificateProviders["default"]; p.Plugin != "file_watcher" || !strings.Contains(string(p.Config), `"cert-chain.pem"`) {
		t.Errorf("certificate providers: %+v", c.CertificateProviders)
	}
	if got := c.Authorities["other"].ListenerTemplate; got != "xdstp://other/envoy.config.listener.v3.Listener/%s" {
		t.Errorf("default template of an authority: %q", got)
	}
	if c.ListenerTemplate != "%s" || c.InboundTemplate != "xds.istio.io/grpc/lds/inbound/%s" {
		t.Errorf("templates: %q, %q", c.ListenerTemplate, c.InboundTemplate)
	}
	if len(c.Unread) != 0 {
		t.Errorf("unread: %q", c.Unread)
	}
	if string(c.Raw) != full {
		t.Error("Raw is not the document")
	}
}

const server = `{"server_uri": "a:1", "channel_creds": [{"type": "insecure"}]}`

func TestParseErrorsNameThePath(t *testing.T) {
	for _, tt := range []struct{ name, document, path string }{
		{"empty", ``, ""},
		{"not JSON", `{"xds_servers": [}`, ""},
		{"not an object", `[]`, ""},
		{"null", `null`, ""},
		{"two documents", `{"xds_servers": [` + server + `]} {}`, ""},
		{"no servers", `{}`, "xds_servers"},
		{"null servers", `{"xds_servers": null}`, "xds_servers"},
		{"empty servers", `{"xds_servers": []}`, "xds_servers"},
		{"servers of the wrong type", `{"xds_servers": {}}`, "xds_servers"},
		{"server of the wrong type", `{"xds_servers": ["a:1"]}`, "xds_servers[0]"},
		{"other letter case", `{"XDS_Servers": [` + server + `]}`, "xds_servers"},
		{"no uri", `{"xds_servers": [` + server + `, {"channel_creds": [{"type": "insecure"}]}]}`, "xds_servers[1].server_uri"},
		{"uri of the wrong type", `{"xds_servers": [{"server_uri": 3}]}`, "xds_servers[0].server_uri"},
		{"no credentials", `{"xds_servers": [{"server_uri": "a:1"}]}`, "xds_servers[0].channel_creds"},
		{"unknown credentials only", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "google_default"}]}]}`, "xds_servers[0].channel_creds"},
		{"credentials without a type", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{}]}]}`, "xds_servers[0].channel_creds[0].type"},
		{"a certificate without its key", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "tls", "config": {"certificate_file": "c"}}]}]}`, "xds_servers[0].channel_creds[0].config"},
		{"a bad interval", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "tls", "config": {"refresh_interval": "soon"}}]}]}`, "xds_servers[0].channel_creds[0].config.refresh_interval"},
		{"roots that would be left out", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "tls", "config": {"spiffe_trust_bundle_map_file": "m"}}]}]}`, "xds_servers[0].channel_creds[0].config.spiffe_trust_bundle_map_file"},
		{"a provider without a configuration", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "certificate_provider"}]}]}`, "xds_servers[0].channel_creds[0].config"},
		{"a provider without a plugin", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "certificate_provider", "config": {"config": {}}}]}]}`, "xds_servers[0].channel_creds[0].config.plugin_name"},
		{"a provider's configuration that is no object", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "certificate_provider", "config": {"plugin_name": "csr", "config": []}}]}]}`, "xds_servers[0].channel_creds[0].config.config"},
		{"a provider's member that is not known", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "x"}, {"type": "certificate_provider", "config": {"plugin_name": "csr", "server": "x"}}]}]}`, "xds_servers[0].channel_creds[1].config.server"},
		{"a server's ID that is none", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "certificate_provider", "config": {"plugin_name": "csr", "server_id": "xds"}}]}]}`, "xds_servers[0].channel_creds[0].config.server_id"},
		{"a server's empty ID", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "certificate_provider", "config": {"plugin_name": "csr", "server_id": ""}}]}]}`, "xds_servers[0].channel_creds[0].config.server_id"},
		{"a server's name that is no string", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "certificate_provider", "config": {"plugin_name": "csr", "server_name": 1}}]}]}`, "xds_servers[0].channel_creds[0].config.server_name"},
		{"feature of the wrong type", `{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "insecure"}], "server_features": [1]}]}`, "xds_servers[0].server_features[0]"},
		{"node of the wrong type", `{"xds_servers": [` + server + `], "node": "n"}`, "node"},
		{"node id of the wrong type", `{"xds_servers": [` + server + `], "node": {"id": {}}}`, "node.id"},
		{"metadata of the wrong type", `{"xds_servers": [` + server + `], "node": {"metadata": []}}`, "node.metadata"},
		{"zone of the wrong type", `{"xds_servers": [` + server + `], "node": {"locality": {"zone": 1}}}`, "node.locality.zone"},
		{"no plugin name", `{"xds_servers": [` + server + `], "certificate_providers": {"b": {}, "a": {}}}`, `certificate_providers["a"].plugin_name`},
		{"authority with another's template", `{"xds_servers": [` + server + `], "authorities": {"x": {"client_listener_resource_name_template": "xdstp://y/%s"}}}`, `authorities["x"].client_listener_resource_name_template`},
		{"authority with a prefix of its name", `{"xds_servers": [` + server + `], "authorities": {"x": {"client_listener_resource_name_template": "xdstp://xy/%s"}}}`, `authorities["x"].client_listener_resource_name_template`},
		{"server of an authority", `{"xds_servers": [` + server + `], "authorities": {"x": {"xds_servers": [{}]}}}`, `authorities["x"].xds_servers[0].server_uri`},
		{"template of an unknown authority", `{"xds_servers": [` + server + `], "client_default_listener_resource_name_template": "xdstp://x/%s"}`, "client_default_listener_resource_name_template"},
		{"template of the wrong type", `{"xds_servers": [` + server + `], "server_listener_resource_name_template": 1}`, "server_listener_resource_name_template"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse([]byte(tt.document))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %+v and %v, want an *Error", c, err)
			}
			if e.Path != tt.path {
				t.Errorf("path %q, want %q (%v)", e.Path, tt.path, err)
			}
		})
	}
}

func TestUnknownFieldsAreListed(t *testing.T) {
	c, err := Parse([]byte(`{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "insecure"}], "call_creds": []}], "allowed_grpc_services": {}, "node": {"name": "x"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"allowed_grpc_services", "node.name", "xds_servers[0].call_creds"}; !slices.Equal(c.Unread, want) {
		t.Errorf("unread %q, want %q", c.Unread, want)
	}
}

func TestNames(t *testing.T) {
	parse := func(fields string) *Config {
		t.Helper()
		c, err := Parse([]byte(`{"xds_servers": [` + server + `], "authorities": {"auth": {}, "": {"xds_servers": [` + server + `, ` + server + `]}}` + fields + `}`))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain := parse(`, "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s"`)
	xdstp := parse(`, "client_default_listener_resource_name_template": "xdstp://auth/envoy.config.listener.v3.Listener/%s?a=b", "server_listener_resource_name_template": "xdstp://auth/in/%s"`)
	for _, tt := range []struct{ got, want string }{
		{plain.ListenerName("reviews:9080"), "reviews:9080"},
		{plain.ListenerName("a b/ü?"), "a b/ü?"},
		{xdstp.ListenerName("reviews:9080"), "xdstp://auth/envoy.config.listener.v3.Listener/reviews:9080?a=b"},
		{xdstp.ListenerName("a b/ü?%"), "xdstp://auth/envoy.config.listener.v3.Listener/a%20b/%C3%BC%3F%25?a=b"},
	} {
		if tt.got != tt.want {
			t.Errorf("listener name %q, want %q", tt.got, tt.want)
		}
	}
	for _, tt := range []struct {
		c          *Config
		addr, want string
	}{
		{plain, "0.0.0.0:8080", "xds.istio.io/grpc/lds/inbound/0.0.0.0:8080"},
		{plain, "[::]:8080", "xds.istio.io/grpc/lds/inbound/[::]:8080"},
		{xdstp, "[::]:8080", "xdstp://auth/in/%5B::%5D:8080"},
	} {
		if got, err := tt.c.InboundName(tt.addr); got != tt.want || err != nil {
			t.Errorf("inbound name of %s: %q, %v, want %q", tt.addr, got, err, tt.want)
		}
	}
	if _, err := parse("").InboundName("0.0.0.0:1"); err == nil {
		t.Error("an inbound name without a template")
	}
	if got, err := plain.AuthorityListenerName("auth", "x:1"); got != "xdstp://auth/envoy.config.listener.v3.Listener/x:1" || err != nil {
		t.Errorf("authority's listener name: %q, %v", got, err)
	}
	if _, err := plain.AuthorityListenerName("none", "x:1"); err == nil {
		t.Error("a name under an unknown authority")
	}
	for _, tt := range []struct {
		resource string
		servers  int
	}{{"reviews:9080", 1}, {"xdstp://auth/L/x", 1}, {"xdstp:///L/x", 2}, {"xdstp://none/L/x", 0}, {"xdstp://%zz/", 0}} {
		if got, err := plain.ServersFor(tt.resource); len(got) != tt.servers || (err != nil) != (tt.servers == 0) {
			t.Errorf("servers for %s: %d, %v, want %d", tt.resource, len(got), err, tt.servers)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, []byte(`{"xds_servers": [{"server_uri": "from-file", "channel_creds": [{"type": "insecure"}]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	content := `{"xds_servers": [{"server_uri": "from-content", "channel_creds": [{"type": "insecure"}]}]}`
	for _, tt := range []struct{ name, file, content, uri, errorHas string }{
		{"the file comes first", file, content, "from-file", ""},
		{"content", "", content, "from-content", ""},
		{"neither", "", "", "", "GRPC_XDS_BOOTSTRAP_CONFIG"},
		{"a file that is not there does not fall back", file + ".none", content, "", "$GRPC_XDS_BOOTSTRAP"},
		{"bad content", "", "{}", "", "$GRPC_XDS_BOOTSTRAP_CONFIG"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(FileVariable, tt.file)
			t.Setenv(ContentVariable, tt.content)
			c, err := FromEnvironment()
			if tt.errorHas != "" {
				if err == nil || !strings.Contains(err.Error(), tt.errorHas) {
					t.Fatalf("error %v, want one with %q", err, tt.errorHas)
				}
				if errors.Is(err, ErrNone) != (tt.file == "" && tt.content == "") {
					t.Errorf("errors.Is(err, ErrNone) is %v", errors.Is(err, ErrNone))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Servers[0].URI != tt.uri {
				t.Errorf("server %q, want %q", c.Servers[0].URI, tt.uri)
			}
		})
	}
}

func TestDocumentRoundTrip(t *testing.T) {
	for _, document := range []string{full, `{"xds_servers": [` + server + `]}`} {
		before, err := Parse([]byte(document))
		if err != nil {
			t.Fatal(err)
		}
		b, err := Document(before)
		if err != nil {
			t.Fatal(err)
		}
		after, err := Parse(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		requireSame(t, before, after)
	}
	if _, err := Document(&Config{}); err == nil {
		t.Error("a document without a server")
	}
}

// requireSame compares two configurations by what their documents would say.
func requireSame(t *testing.T, a, b *Config) {
	t.Helper()
	if !proto.Equal(a.Node, b.Node) {
		t.Errorf("nodes differ: %v, %v", a.Node, b.Node)
	}
	plain := func(c *Config) string {
		clone := *c
		clone.Node, clone.Raw, clone.Unread = nil, nil, nil
		out, err := json.Marshal(clone)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if plain(a) != plain(b) {
		t.Errorf("configurations differ:\n%s\n%s", plain(a), plain(b))
	}
}

// gRPC must accept what is written here, because it reads the same file.
func TestGRPCAcceptsTheDocument(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	c.CertificateProviders = map[string]CertificateProvider{"default": {Plugin: "some_plugin", Config: json.RawMessage(`{}`)}}
	b, err := Document(c)
	if err != nil {
		t.Fatal(err)
	}
	s, err := xds.NewGRPCServer(xds.BootstrapContentsForTesting(b))
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	s.Stop()
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"xds_servers": [` + server + `], "authorities": {"": {}}, "node": {"metadata": {"a": [null, 1e9]}}}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		c, err := Parse(document)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T is not an *Error", err)
			}
			return
		}
		b, err := Document(c)
		if err != nil {
			t.Fatalf("what was read can not be written: %v", err)
		}
		again, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		requireSame(t, c, again)
		c.ListenerName("a/b:1")
		for i := range c.Servers {
			if _, err := c.Servers[i].DialOption(noCredentials); err != nil {
				t.Fatal(err)
			}
		}
	})
}
