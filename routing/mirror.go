package routing

// Mirror sends copies of a share of the requests to another cluster, whose
// answers nobody sees (envoy.config.route.v3.RouteAction.RequestMirrorPolicy).
type Mirror struct {
	Cluster       string     // the cluster, unless ClusterHeader names it
	ClusterHeader HeaderName // of the request; absent sends no copy
	Fraction      Fraction
	// KeepHost leaves the authority as it is; else "-shadow" is appended to its host (Envoy).
	KeepHost bool
	Host     string // replaces the authority; "" does not
	Changes  HeaderChanges
}
