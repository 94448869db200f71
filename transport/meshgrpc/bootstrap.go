package meshgrpc

import (
	"bytes"
	"os"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/xds"
	xdsbootstrap "google.golang.org/grpc/xds/bootstrap"

	"github.com/sinew-mesh/sinew/identity/tlsconfig"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// gRPC's own xDS client knows the channel credentials "certificate_provider"
// of the mesh's bootstrap from here, and its certificate providers from
// identity/source, which tlsconfig imports. Both registrations are for the
// whole process.
func init() { xdsbootstrap.RegisterChannelCredentials(tlsconfig.ChannelBuilder{}) }

// environment is what gRPC goes by for "xds:///": the variables as they were
// when its packages, and then this one, initialised. Later changes of the
// variables do not reach gRPC.
var environment = variables{file: os.Getenv(bootstrap.FileVariable), content: os.Getenv(bootstrap.ContentVariable)}

// variables are the two that may hold a bootstrap; the file wins (gRFC A27).
type variables struct{ file, content string }

func (v variables) isSet() bool { return v.file != "" || v.content != "" }

// holds reports whether gRPC's own resolver goes by the document.
func (v variables) holds(document []byte) bool {
	if v.file == "" {
		return v.content != "" && v.content == string(document)
	}
	b, err := os.ReadFile(v.file)
	return err == nil && bytes.Equal(b, document)
}

// channelResolver returns the resolver of "xds" for one channel: a new one that
// goes by the document, or gRPC's own where that does, or where there is no document.
// settled is called when an update of policy is in force.
func channelResolver(document []byte, settled func()) resolver.Builder {
	if document == nil || environment.holds(document) {
		return settlingResolver{resolver.Get("xds"), settled}
	}
	b, err := xds.NewXDSResolverWithConfigForTesting(document)
	if err != nil {
		return brokenResolver{err}
	}
	return settlingResolver{b, settled}
}

// brokenResolver fails the channel's calls with the reason why there is no resolver.
type brokenResolver struct{ err error }

func (brokenResolver) Scheme() string { return "xds" }
func (b brokenResolver) Build(resolver.Target, resolver.ClientConn, resolver.BuildOptions) (resolver.Resolver, error) {
	return nil, b.err
}
