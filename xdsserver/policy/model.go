// Package policy reads and checks what a mesh is told: Istio's traffic and access
// objects and MeshConfig, SMI TrafficSplits, Kubernetes Services and Linkerd's rate limits.
//
// Parse turns a file into objects and problems, each with its line. Build puts the
// objects of all files together into a Set, which is what the translation reads, and
// keeps the last good state of everything that is refused. Two passes check an object:
// Validate has Istio's own rules, Unenforced refuses what the mesh does not enforce.
package policy

import (
	"fmt"
	"sync"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Position is a place in a policy file.
type Position struct {
	File string
	Line int // 1-based; 0 where only the file is known
}

func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Meta is what every policy object has.
type Meta struct {
	APIVersion, Kind string
	Namespace, Name  string // namespace "default" where the document gives none
	Labels           map[string]string
	Annotations      map[string]string
	Created          time.Time // zero in files that give no creationTimestamp
	At               Position  // of the document's first line
}

// VirtualService is an Istio VirtualService, or an SMI TrafficSplit as one.
type VirtualService struct {
	Meta
	Spec *networking.VirtualService
}

// DestinationRule is an Istio DestinationRule.
type DestinationRule struct {
	Meta
	Spec *networking.DestinationRule
}

// Service is a destination: a Kubernetes Service, or one host of an Istio ServiceEntry.
type Service struct {
	Meta
	Host  string // fully qualified: "reviews.default.svc.cluster.local"
	Ports []Port
	// Selector has the labels of the workloads behind it, in the same namespace; nil
	// where Static is used. An empty one that is not nil selects the whole namespace.
	Selector map[string]string
	Static   []*Workload // endpoints of a ServiceEntry without a selector
	External bool        // ServiceEntry with location MESH_EXTERNAL
	// Resolution of a ServiceEntry; STATIC for Kubernetes services.
	Resolution networking.ServiceEntry_Resolution
	ExportTo   []string
	// SubjectAltNames of a ServiceEntry are the identities of its endpoints, beside those
	// of their service accounts.
	SubjectAltNames []string
	// Accrual is the breaker of each endpoint that Linkerd's annotations ask for; nil where there is none.
	Accrual *FailureAccrual
	// Default has the timeout and the retries by Linkerd's annotations, for requests that
	// no VirtualService decides on; nil where they say nothing.
	Default *networking.HTTPRoute
}

// PeakEWMA reports whether the annotations of a Service or DestinationRule ask for it.
func (m *Meta) PeakEWMA() bool { return m.Annotations[BalancerAnnotation] == PeakEWMA }

// Port is a port of a service.
type Port struct {
	Name   string
	Number uint32
	Target uint32 // port at the workload; Number where the object gives none
	// TargetName is a named targetPort, looked up in Workload.Ports; "" where Target decides.
	TargetName string
	// Protocol in upper case: HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, UDP, ...
	// HTTP where neither the object nor the port's name says one.
	Protocol string
}

// Workload is one running instance: an Istio WorkloadEntry or an endpoint of a ServiceEntry.
// Its Labels are those of the spec and of the metadata together; where both name a
// key the metadata decides, as in Istio.
type Workload struct {
	Meta
	Address        string
	Ports          map[string]uint32 // by port name
	Weight         uint32            // at least 1
	Locality       string            // region/zone/subzone
	ServiceAccount string
}

// PeerAuthentication is an Istio PeerAuthentication: which connections a workload takes.
type PeerAuthentication struct {
	Meta
	Spec *security.PeerAuthentication
}

// AuthorizationPolicy is an Istio AuthorizationPolicy: which requests a workload takes.
type AuthorizationPolicy struct {
	Meta
	Spec *security.AuthorizationPolicy
}

// RequestAuthentication is an Istio RequestAuthentication: whose tokens a workload takes.
type RequestAuthentication struct {
	Meta
	Spec *security.RequestAuthentication
}

// Set is all policy in force. It is immutable: its methods build an index on first
// use and are safe for concurrent use; a Set must not be copied after that.
type Set struct {
	// VirtualServices that apply to the mesh, by precedence: the first that names a
	// host wins it. Those bound to gateways only are not here.
	VirtualServices  []*VirtualService
	DestinationRules []*DestinationRule // by precedence: oldest first, then name, then namespace
	Services         []*Service         // no two have the same host
	Workloads        []*Workload        // without the endpoints listed in a ServiceEntry

	// Access objects, by precedence: oldest first, then name, then namespace.
	PeerAuthentications    []*PeerAuthentication
	AuthorizationPolicies  []*AuthorizationPolicy
	RequestAuthentications []*RequestAuthentication
	Servers                []*Server
	RateLimits             []*RateLimitPolicy
	EnvoyFilters           []*EnvoyFilter
	// MeshConfig is nil where there is none; its methods take that.
	MeshConfig *MeshConfig
	// Broken has what restricts access but can not be put in force: see Withheld.
	Broken []Broken

	once  sync.Once
	index *index
}
