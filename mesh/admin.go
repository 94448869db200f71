package mesh

import (
	"encoding/json"
	"net/http"

	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/xds/client"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// AdminStatus is the document that Admin serves.
type AdminStatus struct {
	// XDS is how things stand with the control plane; nil without one.
	XDS *client.Status `json:"xds,omitempty"`
	// Identity is the health of the sources of certificates; nothing of it is secret.
	Identity []source.Status `json:"identity,omitempty"`
	// Outbound is the policy in force for what this process calls, with the
	// live state of clusters and endpoints.
	Outbound outbound.Status `json:"outbound"`
}

// Admin returns a handler that shows the policy in force, the clusters and
// endpoints with their live state, and the state of every xDS resource, as
// JSON (an AdminStatus). It answers GET under any path, and changes nothing. It
// names services and addresses: serve it where only operators reach it.
func (m *Mesh) Admin() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(m.status())
	})
}

func (m *Mesh) status() AdminStatus {
	s := AdminStatus{Identity: m.identity.status(), Outbound: m.outbound.Status()}
	if m.xds != nil {
		status := m.xds.Status()
		s.XDS = &status
	}
	return s
}
