package translate

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// Agent is a kind of xDS client. Clients of one kind accept the same resources.
type Agent uint8

const (
	// Other is Envoy, and everything that does not say what it is.
	Other Agent = iota
	// Sinew is this project's own client.
	Sinew
	// GRPC is a gRPC library's own xDS client, in any language.
	GRPC
)

func (a Agent) String() string {
	switch a {
	case Sinew:
		return "sinew"
	case GRPC:
		return "grpc"
	}
	return "other"
}

// Client is what translation needs to know of an xDS client.
type Client struct {
	ID             string // node id, as sent
	UserAgent      string // user_agent_name, as sent
	Agent          Agent
	Namespace      string
	Name           string // workload name, from the node id; may be empty
	Labels         map[string]string
	IPs            []string // addresses that the client serves on
	ServiceAccount string
	// Locality is where the client is: the label istio-locality, what its node says, or
	// the labels of its node in Kubernetes. Never nil after ClientOf.
	Locality *corev3.Locality
	// Verified is what the client has proved to be on the connection it asks over;
	// zero where it has proved nothing. ClientOf leaves it zero.
	Verified policy.ServiceAccount

	class string
}

// ClientOf reads a node. The node id has Istio's form,
// "sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local"; the metadata keys
// NAMESPACE, LABELS, INSTANCE_IPS and SERVICE_ACCOUNT stand above it. A client
// with another id is served as one in the namespace that its metadata gives,
// or "default": the id only selects policy here, it proves nothing. An empty
// id is an error, because nothing could be reported about such a client.
func ClientOf(node *corev3.Node) (*Client, error) {
	if node.GetId() == "" {
		return nil, errors.New("node.id is empty")
	}
	c := &Client{ID: node.GetId(), UserAgent: node.GetUserAgentName(), Namespace: "default"}
	switch ua := strings.ToLower(c.UserAgent); {
	case ua == "sinew":
		c.Agent = Sinew
	case strings.HasPrefix(ua, "grpc"):
		c.Agent = GRPC
	}
	if parts := strings.Split(c.ID, "~"); len(parts) == 4 {
		if _, err := netip.ParseAddr(parts[1]); err != nil {
			return nil, fmt.Errorf("node.id %q: %q is not an IP address", c.ID, parts[1])
		}
		c.IPs = []string{parts[1]}
		c.Name = parts[2]
		if i := strings.LastIndexByte(parts[2], '.'); i >= 0 && i < len(parts[2])-1 {
			c.Name, c.Namespace = parts[2][:i], parts[2][i+1:]
		}
	}
	fields := node.GetMetadata().GetFields()
	if ns := fields["NAMESPACE"].GetStringValue(); ns != "" {
		c.Namespace = ns
	}
	c.ServiceAccount = fields["SERVICE_ACCOUNT"].GetStringValue()
	if ips := addresses(fields["INSTANCE_IPS"]); len(ips) > 0 {
		c.IPs = ips
	}
	labels := fields["LABELS"].GetStructValue().GetFields()
	if len(labels) > 0 {
		c.Labels = make(map[string]string, len(labels))
		for k, v := range labels {
			c.Labels[k] = v.GetStringValue()
		}
	}
	c.Locality = placeOf(node.GetLocality(), c.Labels)
	c.class = c.buildClass()
	return c, nil
}

// addresses reads INSTANCE_IPS, which is one string with commas (Istio's agent) or a list.
func addresses(v *structpb.Value) []string {
	var out []string
	for _, ip := range strings.Split(v.GetStringValue(), ",") {
		if ip = strings.TrimSpace(ip); ip != "" {
			out = append(out, ip)
		}
	}
	for _, ip := range v.GetListValue().GetValues() {
		if s := ip.GetStringValue(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// buildClass names the set of clients that get the same routes.
func (c *Client) buildClass() string {
	var b strings.Builder
	b.WriteString(c.place())
	keys := make([]string, 0, len(c.Labels))
	for k := range c.Labels {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "/%q=%q", k, c.Labels[k])
	}
	return b.String()
}

// server names the set of clients that get the same server-side listeners: those
// that translation can not tell apart by anything a listener depends on.
func (c *Client) server() string {
	return fmt.Sprintf("%s sa=%q verified=%q/%q ips=%q", c.class, c.ServiceAccount, c.Verified.Namespace, c.Verified.Name, c.IPs)
}

// spot names the set of clients of one kind in one namespace and locality.
func (c *Client) spot() string {
	if key := localityKey(c.Locality); key != "//" {
		return fmt.Sprintf("%s at %q", c.place(), key)
	}
	return c.place()
}

// place names the set of clients of one kind in one namespace.
func (c *Client) place() string { return c.Agent.String() + "/" + c.Namespace }
