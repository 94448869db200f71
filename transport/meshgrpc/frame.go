package meshgrpc

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	// The codec of RPCs without any other.
	_ "google.golang.org/grpc/encoding/proto"
)

// A request that is sent several times at once is encoded once, and only the
// reply that counts is decoded: the caller's messages are never touched by two
// goroutines. gRPC is given frames and a codec that passes them through;
// interceptors behind these see the frames.

// frame is an encoded message.
type frame struct{ data []byte }

// frameCodec passes frames through.
type frameCodec struct{ name string }

// Marshal implements encoding.CodecV2.
func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(*frame).data)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	v.(*frame).data = data.Materialize()
	return nil
}

// Name implements encoding.CodecV2. It is what stands after "application/grpc+"; nothing by default.
func (c frameCodec) Name() string { return c.name }

// codecV1 is a codec of the older interface.
type codecV1 struct{ encoding.Codec }

// Marshal implements encoding.CodecV2.
func (c codecV1) Marshal(v any) (mem.BufferSlice, error) {
	b, err := c.Codec.Marshal(v)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codecV1) Unmarshal(data mem.BufferSlice, v any) error {
	return c.Codec.Unmarshal(data.Materialize(), v)
}

// encoded is a request that can be sent several times at once.
type encoded struct {
	codec   encoding.CodecV2
	request *frame
	options []grpc.CallOption
}

// encode returns the request encoded; nil where that can not be done here.
func (o *callOptions) encode(request any) *encoded {
	codec, name := o.codec, o.subtype
	switch {
	case o.opaque:
		return nil
	case codec != nil:
		if name == "" {
			name = codec.Name()
		}
	case name != "":
		if codec = encoding.GetCodecV2(name); codec == nil {
			if old := encoding.GetCodec(name); old != nil {
				codec = codecV1{old}
			}
		}
	default:
		codec = encoding.GetCodecV2("proto")
	}
	if codec == nil {
		return nil
	}
	data, err := codec.Marshal(request)
	if err != nil {
		return nil // gRPC says so when it encodes it
	}
	e := &encoded{codec: codec, request: &frame{data.Materialize()}}
	data.Free()
	e.options = append(append(e.options, o.rest...), grpc.ForceCodecV2(frameCodec{name}))
	e.options = e.options[:len(e.options):len(e.options)]
	return e
}

// decode fills in the caller's reply.
func (e *encoded) decode(f *frame, reply any) error {
	return e.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(f.data)}, reply)
}
