package source

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// createCertificate is the one method of istio.v1.auth.IstioCertificateService
// (istio.io/api security/v1alpha1/ca.proto).
const createCertificate = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// certificateRequest is istio.v1.auth.IstioCertificateRequest. Two messages of
// four fields are encoded here by hand, so that the library does not carry
// Istio's API module, whose generated packages it has no other use for.
type certificateRequest struct {
	csr              string           // field 1: PKCS #10 in PEM
	validityDuration int64            // field 3: seconds
	metadata         *structpb.Struct // field 4: opaque to the protocol
}

// certificateResponse is istio.v1.auth.IstioCertificateResponse.
type certificateResponse struct {
	certChain []string // field 1: PEM, leaf first, root last
}

// certificateCodec encodes the two messages. It names itself as protobuf's
// codec does, since what it writes is protobuf.
type certificateCodec struct{}

func (certificateCodec) Name() string { return "proto" }

func (certificateCodec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case *certificateRequest:
		return m.marshal()
	case *certificateResponse:
		return m.marshal(), nil
	default:
		return nil, fmt.Errorf("certificate service: a message of type %T", v)
	}
}

func (certificateCodec) Unmarshal(b []byte, v any) error {
	switch m := v.(type) {
	case *certificateRequest:
		return m.unmarshal(b)
	case *certificateResponse:
		return m.unmarshal(b)
	default:
		return fmt.Errorf("certificate service: a message of type %T", v)
	}
}

func (m *certificateRequest) marshal() ([]byte, error) {
	var b []byte
	if m.csr != "" {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendString(b, m.csr)
	}
	if m.validityDuration != 0 {
		b = protowire.AppendTag(b, 3, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(m.validityDuration))
	}
	if m.metadata != nil {
		inner, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.metadata)
		if err != nil {
			return nil, err
		}
		b = protowire.AppendTag(b, 4, protowire.BytesType)
		b = protowire.AppendBytes(b, inner)
	}
	return b, nil
}

func (m *certificateRequest) unmarshal(b []byte) error {
	*m = certificateRequest{}
	return eachField(b, func(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
		switch {
		case num == 1 && typ == protowire.BytesType:
			v, n := protowire.ConsumeString(b)
			m.csr = v
			return n, nil
		case num == 3 && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			m.validityDuration = int64(v)
			return n, nil
		case num == 4 && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return n, nil
			}
			if m.metadata == nil {
				m.metadata = &structpb.Struct{}
			}
			return n, proto.UnmarshalOptions{Merge: true}.Unmarshal(v, m.metadata)
		default:
			return protowire.ConsumeFieldValue(num, typ, b), nil
		}
	})
}

func (m *certificateResponse) marshal() []byte {
	var b []byte
	for _, s := range m.certChain {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendString(b, s)
	}
	return b
}

func (m *certificateResponse) unmarshal(b []byte) error {
	*m = certificateResponse{}
	return eachField(b, func(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
		if num == 1 && typ == protowire.BytesType {
			v, n := protowire.ConsumeString(b)
			if n >= 0 {
				m.certChain = append(m.certChain, v)
			}
			return n, nil
		}
		return protowire.ConsumeFieldValue(num, typ, b), nil
	})
}

// eachField walks the fields of a message; field returns how many bytes the
// value takes, negative for a malformed one.
func eachField(b []byte, field func(protowire.Number, protowire.Type, []byte) (int, error)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errors.New("certificate service: a malformed field")
		}
		b = b[n:]
		n, err := field(num, typ, b)
		if err != nil {
			return fmt.Errorf("certificate service: field %d: %w", num, err)
		}
		if n < 0 {
			return fmt.Errorf("certificate service: field %d is malformed", num)
		}
		b = b[n:]
	}
	return nil
}
