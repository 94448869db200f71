package source

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	istioca "istio.io/api/security/v1alpha1"
)

// TestCertificateServiceCodec holds the hand-written messages against Istio's own.
func TestCertificateServiceCodec(t *testing.T) {
	md, err := structpb.NewStruct(map[string]any{"ClusterID": "Kubernetes", "n": 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*certificateRequest{{}, {csr: "x"}, {csr: "x", validityDuration: -1}, {csr: "x", validityDuration: 3600, metadata: md}} {
		theirs := &istioca.IstioCertificateRequest{}
		b, err := r.marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(b, theirs); err != nil {
			t.Fatal(err)
		}
		if theirs.Csr != r.csr || theirs.ValidityDuration != r.validityDuration || !proto.Equal(theirs.Metadata, r.metadata) {
			t.Errorf("%+v became %v", r, theirs)
		}
		b, err = proto.Marshal(theirs)
		if err != nil {
			t.Fatal(err)
		}
		back := &certificateRequest{}
		if err := back.unmarshal(b); err != nil || back.csr != r.csr || back.validityDuration != r.validityDuration || !proto.Equal(back.metadata, r.metadata) {
			t.Errorf("%+v, %v", back, err)
		}
	}
	b, err := proto.Marshal(&istioca.IstioCertificateResponse{CertChain: []string{"a", "", "c"}})
	if err != nil {
		t.Fatal(err)
	}
	r := &certificateResponse{}
	if err := r.unmarshal(b); err != nil || strings.Join(r.certChain, "|") != "a||c" {
		t.Errorf("%q, %v", r.certChain, err)
	}
	if !bytes.Equal(r.marshal(), b) {
		t.Error("the response is written in another way")
	}
	if istioca.IstioCertificateService_CreateCertificate_FullMethodName != createCertificate {
		t.Error(istioca.IstioCertificateService_CreateCertificate_FullMethodName)
	}
}

func FuzzCertificateService(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x0a\x01x\x18\x90\x1c\x22\x00"))
	f.Add([]byte("\x0a\x01a\x0a\x00\x0a\x01c"))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &certificateResponse{}
		theirs := &istioca.IstioCertificateResponse{}
		ours, err := r.unmarshal(b), proto.Unmarshal(b, theirs)
		if err == nil && (ours != nil || strings.Join(r.certChain, "\x00") != strings.Join(theirs.CertChain, "\x00")) {
			t.Fatalf("%v: %q, protobuf reads %q", ours, r.certChain, theirs.CertChain)
		}
		q := &certificateRequest{}
		if err := proto.Unmarshal(b, &istioca.IstioCertificateRequest{}); err == nil {
			if err := q.unmarshal(b); err != nil {
				t.Fatalf("protobuf reads %x: %v", b, err)
			}
		}
		_ = q.unmarshal(b)
	})
}
