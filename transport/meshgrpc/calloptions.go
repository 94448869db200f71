package meshgrpc

//lint:file-ignore SA1019 callers may still use CustomCodec, which has no successor under its name.

import (
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// callOptions are the caller's options of an RPC. Those that tell the caller of
// the RPC's end are kept here, because gRPC would tell of each attempt.
type callOptions struct {
	rest []grpc.CallOption // what each attempt is given
	tell *tell             // nil where the caller wants to be told nothing

	authority string // "" for the channel's
	subtype   string
	codec     encoding.CodecV2 // nil for that of subtype
	opaque    bool             // a codec that can not be used here
	waits     bool             // for readiness
}

// tell is what the caller wants to be told of the RPC's end.
type tell struct {
	headers []*metadata.MD
	trailer []*metadata.MD
	peers   []*peer.Peer
	finish  []func(error)
}

func (o *callOptions) asked() *tell {
	if o.tell == nil {
		o.tell = new(tell)
	}
	return o.tell
}

// readOptions sorts the options. The slice that it is given stays as it is.
func readOptions(all []grpc.CallOption) (o callOptions) {
	o.rest = all
	kept := true // rest is all
	for i, option := range all {
		keep := true
		switch option := option.(type) {
		case grpc.HeaderCallOption:
			o.asked().headers, keep = append(o.asked().headers, option.HeaderAddr), false
		case grpc.TrailerCallOption:
			o.asked().trailer, keep = append(o.asked().trailer, option.TrailerAddr), false
		case grpc.PeerCallOption:
			o.asked().peers, keep = append(o.asked().peers, option.PeerAddr), false
		case grpc.OnFinishCallOption:
			o.asked().finish, keep = append(o.asked().finish, option.OnFinish), false
		case grpc.AuthorityOverrideCallOption:
			o.authority = option.Authority
		case grpc.FailFastCallOption:
			o.waits = !option.FailFast
		case grpc.ContentSubtypeCallOption:
			o.subtype = option.ContentSubtype
		case grpc.ForceCodecV2CallOption:
			o.codec = option.CodecV2
		case grpc.ForceCodecCallOption:
			o.codec = codecV1{option.Codec}
		case grpc.CustomCodecCallOption:
			o.opaque = true
		}
		switch {
		case kept && !keep:
			o.rest, kept = append(make([]grpc.CallOption, 0, len(all)+4), all[:i]...), false
		case !kept && keep:
			o.rest = append(o.rest, option)
		}
	}
	o.rest = o.rest[:len(o.rest):len(o.rest)]
	return o
}

// contentType is the content-type that gRPC sends.
func (o *callOptions) contentType() []string {
	subtype := o.subtype
	if subtype == "" && o.codec != nil {
		subtype = strings.ToLower(o.codec.Name())
	}
	if subtype == "" {
		return bareContentType
	}
	return []string{"application/grpc+" + subtype}
}

// finished tells the caller that the RPC has ended.
func (o *callOptions) finished(err error) {
	if o.tell == nil {
		return
	}
	for _, f := range o.tell.finish {
		f(err)
	}
}

// response gives the caller what it asked to know of the response.
func (o *callOptions) response(header, trailer metadata.MD, p *peer.Peer) {
	if o.tell == nil {
		return
	}
	for _, at := range o.tell.headers {
		*at = header
	}
	for _, at := range o.tell.trailer {
		*at = trailer
	}
	if p == nil || p.Addr == nil {
		return
	}
	for _, at := range o.tell.peers {
		*at = *p
		// As gRPC's own credentials describe it.
		if info, ok := p.AuthInfo.(meshTLSInfo); ok {
			at.AuthInfo = info.TLSInfo
		}
	}
}
