package source

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sinew-mesh/sinew/identity"
)

// CAConfig says where a certificate authority is, how it is recognised and how
// this process proves itself to it. In JSON the members are written as the
// comments name them.
type CAConfig struct {
	// Address is the authority's gRPC target (address), such as
	// "xds.example.com:15012".
	Address string
	// ServerName is the DNS name or address that the authority's certificate
	// must be for (server_name). Default: the host of Address.
	ServerName string
	// ServerID is asked for instead of a name where the authority has a SPIFFE
	// ID (server_id). Default none.
	ServerID identity.ID
	// RootsPEM and RootsFile hold the roots that the authority's certificate
	// must lead to (ca_certificates, ca_certificate_file). The file is read
	// again every minute, so that a root can be added while processes run.
	RootsPEM  []byte
	RootsFile string
	// RootFingerprint is the SHA-256 of the root's DER in hexadecimal, which
	// the authority must present at the end of its chain (ca_fingerprint).
	// One of the three is needed: nothing is sent to an authority that is not
	// recognised.
	RootFingerprint string
	// JoinTokenFile holds a token for the first certificate (join_token_file).
	// It must be readable by its owner only. Later certificates are asked for
	// with the current one over mutual TLS.
	JoinTokenFile string
	// TokenFile holds a Kubernetes service account token (token_file), which
	// is read again for every request, since the kubelet renews it.
	TokenFile string
	// ID is the identity that is expected (id). It is written into the request,
	// and a certificate for another is refused. Default: whatever the
	// authority grants first, and the same from then on.
	ID identity.ID
	// TrustDomains are further ones that the authority's roots vouch for
	// (trust_domains): the former names of a mesh that has been renamed.
	TrustDomains []identity.TrustDomain
	// TTL is the validity that is asked for (ttl). Default 1 h. The authority
	// may grant another.
	TTL time.Duration
	// StateFile keeps the certificate and its key, mode 0600, so that a
	// process that starts again renews with them where its join token is used
	// up (state_file). Default none: they live in memory only.
	StateFile string
	// Metadata is sent along in the request, and its ClusterID, which istiod
	// wants, as the call's metadata too (metadata).
	Metadata map[string]string
	// Dial replaces the network; nil dials Address. It is not part of the JSON form.
	Dial Dialer
}

const (
	defaultTTL = time.Hour
	// A certificate that is not valid yet by our clock is taken where the
	// difference can be the clocks' (Istio backdates by 2 min, SPIRE by 10 s).
	maxSkew = 10 * time.Minute
)

// ParseCAConfig reads the JSON form. An unknown member is an error: the
// members decide whom the process trusts.
func ParseCAConfig(config json.RawMessage) (CAConfig, error) {
	var j struct {
		Address         string                 `json:"address"`
		ServerName      string                 `json:"server_name"`
		ServerID        identity.ID            `json:"server_id"`
		RootsPEM        string                 `json:"ca_certificates"`
		RootsFile       string                 `json:"ca_certificate_file"`
		RootFingerprint string                 `json:"ca_fingerprint"`
		JoinTokenFile   string                 `json:"join_token_file"`
		TokenFile       string                 `json:"token_file"`
		ID              identity.ID            `json:"id"`
		TrustDomains    []identity.TrustDomain `json:"trust_domains"`
		TTL             json.RawMessage        `json:"ttl"`
		StateFile       string                 `json:"state_file"`
		Metadata        map[string]string      `json:"metadata"`
	}
	dec := json.NewDecoder(strings.NewReader(string(config)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return CAConfig{}, fmt.Errorf("csr: %w", err)
	}
	c := CAConfig{
		Address: j.Address, ServerName: j.ServerName, ServerID: j.ServerID, RootsPEM: []byte(j.RootsPEM), RootsFile: j.RootsFile,
		RootFingerprint: j.RootFingerprint, JoinTokenFile: j.JoinTokenFile, TokenFile: j.TokenFile, ID: j.ID,
		TrustDomains: j.TrustDomains, StateFile: j.StateFile, Metadata: j.Metadata,
	}
	if len(j.TTL) > 0 && string(j.TTL) != "null" {
		var d durationpb.Duration
		if err := protojson.Unmarshal(j.TTL, &d); err != nil || d.AsDuration() <= 0 {
			return CAConfig{}, fmt.Errorf("csr: ttl: %s is no positive duration such as \"3600s\"", j.TTL)
		}
		c.TTL = d.AsDuration()
	}
	return c, c.validate()
}

// validate fills in the defaults and checks what can be checked without I/O.
func (c *CAConfig) validate() error {
	if c.Address == "" {
		return errors.New("csr: address is missing")
	}
	if len(c.RootsPEM) == 0 && c.RootsFile == "" && c.RootFingerprint == "" {
		return errors.New("csr: one of ca_certificates, ca_certificate_file and ca_fingerprint must say how the authority is recognised")
	}
	if len(c.RootsPEM) > 0 {
		if _, err := parseRoots(c.RootsPEM); err != nil {
			return fmt.Errorf("csr: ca_certificates: %w", err)
		}
	}
	if c.RootFingerprint != "" {
		if b, err := hex.DecodeString(strings.ReplaceAll(c.RootFingerprint, ":", "")); err != nil || len(b) != sha256.Size {
			return errors.New("csr: ca_fingerprint: not the 64 hexadecimal digits of a SHA-256")
		}
	}
	if c.JoinTokenFile == "" && c.TokenFile == "" && c.StateFile == "" {
		return errors.New("csr: one of join_token_file, token_file and state_file must say how this process proves itself")
	}
	if c.TTL < 0 {
		return errors.New("csr: ttl is negative")
	}
	if c.TTL == 0 {
		c.TTL = defaultTTL
	}
	if c.ServerName == "" && c.ServerID.IsZero() {
		host, _, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(c.Address, "dns:"), "///"))
		if err != nil || host == "" {
			return fmt.Errorf("csr: address %q has no host and port: server_name or server_id must say for whom the authority's certificate is", c.Address)
		}
		c.ServerName = host
	}
	return nil
}

// fingerprint returns the pinned SHA-256, nil where none is.
func (c *CAConfig) fingerprint() []byte {
	b, _ := hex.DecodeString(strings.ReplaceAll(c.RootFingerprint, ":", ""))
	return b
}
