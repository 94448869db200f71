// Package bootstrap reads and writes the document that tells a process where
// its xDS server is and who the process itself is. The schema is gRPC's
// (gRFC A27 and those that extend it), so that one document serves Sinew and
// gRPC in the same process.
package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// The environment variables of gRFC A27. The file wins where both are set.
const (
	FileVariable    = "GRPC_XDS_BOOTSTRAP"
	ContentVariable = "GRPC_XDS_BOOTSTRAP_CONFIG"
)

// ErrNone is returned by FromEnvironment where neither variable is set.
var ErrNone = errors.New("bootstrap: none given: set " + FileVariable + " to a file's path or " + ContentVariable + " to the document itself")

// Config is a parsed bootstrap document. It is not changed after Parse.
type Config struct {
	// Servers are the control planes in order of preference; at least one.
	Servers []Server
	// Node says who this process is. It is never nil; the user agent and the
	// client features are left for the caller to fill in on a copy.
	Node *corev3.Node
	// ListenerTemplate is client_default_listener_resource_name_template, default "%s".
	ListenerTemplate string
	// InboundTemplate is server_listener_resource_name_template; there is no
	// default, and a process without it can not ask for inbound listeners.
	InboundTemplate string
	// CertificateProviders are plugin configurations by instance name, as TLS contexts name them.
	CertificateProviders map[string]CertificateProvider
	// Authorities are the further control planes of gRFC A47, by name.
	Authorities map[string]Authority
	// Unread lists the JSON paths of fields that Parse does not know. gRPC's
	// schema asks readers to skip them; a caller may want to log them.
	Unread []string
	// Raw is the document as it was given.
	Raw []byte
}

// Server is one xDS server.
type Server struct {
	// URI is a gRPC target, such as "xds.example.com:15010" or "unix:///etc/istio/proxy/XDS".
	URI string
	// ChannelCreds are the credentials offered, in order of preference.
	ChannelCreds []ChannelCreds
	Features     Features
}

// ChannelCreds names one way to secure the channel to a server.
type ChannelCreds struct {
	Type   string          // Insecure, TLS, CertificateProviderCreds or a type that is skipped
	Config json.RawMessage // nil where there is none
}

// Features are the server_features that change how a client treats a server.
type Features struct {
	// IgnoreResourceDeletion keeps listeners and clusters that the server no longer sends (gRFC A53).
	IgnoreResourceDeletion bool
	// FailOnDataErrors drops cached resources on data errors (gRFC A88). It outranks IgnoreResourceDeletion.
	FailOnDataErrors bool
	// ResourceTimerIsTransientError treats a resource that does not come in
	// time as a transient error rather than as absent (gRFC A88).
	ResourceTimerIsTransientError bool
	// TrustedServer lets the server rewrite authorities and the like (gRFC A81).
	TrustedServer bool
	// Other holds features that are not listed above.
	Other []string
}

// CertificateProvider is a plugin's name and its configuration, which the plugin parses.
type CertificateProvider struct {
	Plugin string
	Config json.RawMessage // nil where there is none
}

// Authority is where resources come from whose name is "xdstp://<authority>/...".
type Authority struct {
	// ListenerTemplate defaults to "xdstp://<authority>/envoy.config.listener.v3.Listener/%s".
	ListenerTemplate string
	// Servers is empty where the top-level servers serve the authority.
	Servers []Server
}

// FromEnvironment parses the document that the environment points to: the
// file named by GRPC_XDS_BOOTSTRAP, else the content of
// GRPC_XDS_BOOTSTRAP_CONFIG, else ErrNone.
func FromEnvironment() (*Config, error) {
	if path := os.Getenv(FileVariable); path != "" {
		c, err := FromFile(path)
		if err != nil {
			return nil, fmt.Errorf("%w (from $%s)", err, FileVariable)
		}
		return c, nil
	}
	if content := os.Getenv(ContentVariable); content != "" {
		c, err := Parse([]byte(content))
		if err != nil {
			return nil, fmt.Errorf("%w (in $%s)", err, ContentVariable)
		}
		return c, nil
	}
	return nil, ErrNone
}

// FromFile parses the document in a file.
func FromFile(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w (in %s)", err, path)
	}
	return c, nil
}
