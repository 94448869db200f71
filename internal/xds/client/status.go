package client

import (
	"cmp"
	"slices"
)

// Status says what the client knows and how it stands with its servers. It is
// made to be shown as JSON.
type Status struct {
	NodeID    string           `json:"node_id"`
	Cluster   string           `json:"cluster,omitempty"`
	Servers   []ServerStatus   `json:"servers"`
	Hosts     []HostStatus     `json:"hosts"`
	Inbound   []HostStatus     `json:"inbound"`
	Resources []ResourceStatus `json:"resources"`
}

// ServerStatus is one server of the bootstrap.
type ServerStatus struct {
	URI string `json:"uri"`
	// State is "connected", "connecting", "unreachable", or "unused" for a
	// fallback server that is not needed.
	State string `json:"state"`
	// Protocol is "delta" or "sotw" while connected.
	Protocol string `json:"protocol,omitempty"`
	// LastError is why the last stream ended.
	LastError string `json:"last_error,omitempty"`
}

// HostStatus is one subscribed host or inbound address.
type HostStatus struct {
	Name string `json:"name"`
	// State is "ready", "absent", "error" or "waiting".
	State string `json:"state"`
	// Routes is the route configuration in force.
	Routes string `json:"routes,omitempty"`
	Error  string `json:"error,omitempty"`
}

// ResourceStatus is one subscribed resource.
type ResourceStatus struct {
	Type  string `json:"type"` // "Listener", "RouteConfiguration", "Cluster" or "ClusterLoadAssignment"
	Name  string `json:"name"`
	State State  `json:"state"`
	// Version is that of the resource in force; empty if there is none.
	Version string `json:"version,omitempty"`
	// Deleted reports that the server deleted the resource and the last one stays in force.
	Deleted bool   `json:"deleted,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Status returns the present state, or the zero Status after Close. It must
// not be called from a callback.
func (c *Client) Status() Status {
	reply := make(chan Status, 1)
	c.mail.post(func() { reply <- c.status() })
	select {
	case s := <-reply:
		return s
	case <-c.done:
		return Status{}
	}
}

func (c *Client) status() Status {
	s := Status{
		NodeID: c.node.GetId(), Cluster: c.node.GetCluster(),
		Servers: []ServerStatus{}, Hosts: []HostStatus{}, Inbound: []HostStatus{}, Resources: []ResourceStatus{},
	}
	for i, sv := range c.servers {
		t := ServerStatus{URI: sv.config.URI, State: "connecting", LastError: text(sv.err)}
		switch {
		case i >= c.open:
			t.State = "unused"
		case sv.stream != nil:
			t.State, t.Protocol = "connected", sv.stream.protocol()
		case sv.failed:
			t.State = "unreachable"
		}
		s.Servers = append(s.Servers, t)
	}
	for name, h := range c.hosts {
		t := HostStatus{Name: name, State: "waiting"}
		if p := h.published; p != nil {
			t.State, t.Error = condition(p.Absent, p.Err), text(p.Err)
			if p.Routes != nil {
				t.Routes = p.Routes.Name
			}
		}
		s.Hosts = append(s.Hosts, t)
	}
	for name, h := range c.refused {
		s.Hosts = append(s.Hosts, HostStatus{Name: name, State: "error", Error: text(h.Err)})
	}
	for addr, in := range c.inbounds {
		t := HostStatus{Name: addr, State: "waiting"}
		if p := in.published; p != nil {
			t.State, t.Error = condition(p.Absent, p.Err), text(p.Err)
		}
		s.Inbound = append(s.Inbound, t)
	}
	for k, m := range c.resources {
		for name, r := range m {
			if len(r.users) == 0 {
				continue
			}
			s.Resources = append(s.Resources, ResourceStatus{
				Type: kind(k).String(), Name: name, State: r.state, Version: r.version, Deleted: r.gone, Error: text(r.err),
			})
		}
	}
	byName := func(a, b HostStatus) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(s.Hosts, byName)
	slices.SortFunc(s.Inbound, byName)
	slices.SortFunc(s.Resources, func(a, b ResourceStatus) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	return s
}

func condition(absent bool, err error) string {
	switch {
	case err != nil:
		return "error"
	case absent:
		return "absent"
	default:
		return "ready"
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
