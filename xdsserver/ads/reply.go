package ads

import (
	"context"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

// deltaReply is a reply in the incremental protocol. Resources are shared by all who get them; the envelope is not, because the stream writes its nonce there.
type deltaReply struct {
	request  *discoveryv3.DeltaDiscoveryRequest
	response *discoveryv3.DeltaDiscoveryResponse
	known    map[string]string
}

func newDeltaReply(req *discoveryv3.DeltaDiscoveryRequest, r *reply) *deltaReply {
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), SystemVersionInfo: r.version, RemovedResources: r.removed}
	for _, e := range r.changed {
		resp.Resources = append(resp.Resources, e.wire)
	}
	for _, name := range r.withheld {
		resp.ResourceErrors = append(resp.ResourceErrors, &discoveryv3.ResourceError{
			ResourceName: &discoveryv3.ResourceName{Name: name},
			// This code says that the client may not keep what it has (gRFC A88). Why
			// is for the server's status page: it may quote policy of others.
			ErrorDetail: &rpcstatus.Status{Code: int32(codes.PermissionDenied), Message: "withheld: the policy can not be put in force; the xDS server's status says why"},
		})
	}
	return &deltaReply{request: req, response: resp, known: r.known}
}

func (d *deltaReply) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	return d.response, nil
}
func (d *deltaReply) GetDeltaRequest() *discoveryv3.DeltaDiscoveryRequest { return d.request }
func (d *deltaReply) GetSystemVersion() (string, error)                   { return d.response.SystemVersionInfo, nil }
func (d *deltaReply) GetResponseVersion() string                          { return d.response.SystemVersionInfo }
func (d *deltaReply) GetNextVersionMap() map[string]string                { return d.known }
func (d *deltaReply) GetReturnedResources() map[string]string             { return d.known }
func (d *deltaReply) GetContext() context.Context                         { return context.Background() }

// stateReply is a reply in the state-of-the-world protocol.
type stateReply struct {
	request  *discoveryv3.DiscoveryRequest
	response *discoveryv3.DiscoveryResponse
	known    map[string]string
}

// newStateReply builds a response. For listeners and clusters it holds
// everything the client watches, because there what is absent is deleted; for
// the others it holds what changed, and absence means nothing.
func newStateReply(req *discoveryv3.DiscoveryRequest, w *watch, r *reply) *stateReply {
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl(), VersionInfo: r.version}
	add := func(wire *discoveryv3.Resource) {
		resp.Resources = append(resp.Resources, wire.Resource)
	}
	if fullState(req.GetTypeUrl()) {
		for _, e := range w.entries {
			if e.wire != nil {
				add(e.wire)
			}
		}
	} else {
		for _, e := range r.changed {
			add(e.wire)
		}
	}
	return &stateReply{request: req, response: resp, known: r.known}
}

func fullState(typeURL string) bool {
	return typeURL == translate.ListenerType || typeURL == translate.ClusterType
}

func (d *stateReply) GetDiscoveryResponse() (*discoveryv3.DiscoveryResponse, error) {
	return d.response, nil
}
func (d *stateReply) GetRequest() *discoveryv3.DiscoveryRequest { return d.request }
func (d *stateReply) GetVersion() (string, error)               { return d.response.VersionInfo, nil }
func (d *stateReply) GetResponseVersion() string                { return d.response.VersionInfo }
func (d *stateReply) GetReturnedResources() map[string]string   { return d.known }
func (d *stateReply) GetContext() context.Context               { return context.Background() }

// short is a type URL's last word: "Cluster".
func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
