package bootstrap

import (
	"fmt"
	"net/url"
	"strings"
)

// ListenerName is the name of the listener resource for requests to host,
// "host:port". The rules are gRFC A47's: "%s" in the template stands for the
// host, percent-encoded where the template begins with "xdstp:".
func (c *Config) ListenerName(host string) string {
	return expand(c.ListenerTemplate, host)
}

// InboundName is the name of the listener resource for requests that arrive
// at addr, "ip:port" (gRFC A36). It is an error where the document has no
// server_listener_resource_name_template.
func (c *Config) InboundName(addr string) (string, error) {
	if c.InboundTemplate == "" {
		return "", fmt.Errorf("bootstrap: server_listener_resource_name_template: missing: there is no name for the inbound listener at %s", addr)
	}
	return expand(c.InboundTemplate, addr), nil
}

// AuthorityListenerName is the name of the listener resource for requests to
// host where the target names an authority, "xds://authority/host:port".
func (c *Config) AuthorityListenerName(authority, host string) (string, error) {
	a, ok := c.Authorities[authority]
	if !ok {
		return "", fmt.Errorf("bootstrap: authorities: no authority %q", authority)
	}
	return expand(a.ListenerTemplate, host), nil
}

// ServersFor returns the servers that hold the resource with the name: those
// of its authority if the name begins with "xdstp:", else the top-level ones.
func (c *Config) ServersFor(resource string) ([]Server, error) {
	if !strings.HasPrefix(resource, "xdstp:") {
		return c.Servers, nil
	}
	u, err := url.Parse(resource)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: resource name %q: %w", resource, err)
	}
	a, ok := c.Authorities[u.Host]
	if !ok {
		return nil, fmt.Errorf("bootstrap: authorities: no authority %q, which resource %q names", u.Host, resource)
	}
	if len(a.Servers) == 0 {
		return c.Servers, nil
	}
	return a.Servers, nil
}

// expand puts value in the place of each "%s".
func expand(template, value string) string {
	if strings.HasPrefix(template, "xdstp:") {
		// A slash separates segments of a resource name and stays; all else
		// that a path segment can not hold is encoded.
		segments := strings.Split(value, "/")
		for i, s := range segments {
			segments[i] = url.PathEscape(s)
		}
		value = strings.Join(segments, "/")
	}
	return strings.ReplaceAll(template, "%s", value)
}
