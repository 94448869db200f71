package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/xdsserver/ca"
	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

type bootstrapOptions struct {
	server, workload, namespace, serviceAccount string
	ips                                         []string
	labels                                      map[string]string

	caDir, tokenFile, certState string
	kubernetesToken             string
	tokenTTL                    time.Duration
	files                       tlsFiles
	trustDomain                 string
}

// provider is the name under which TLS contexts ask for a workload's certificate and
// for the roots to trust, as in Istio.
const provider = "default"

func bootstrapCommand() *cobra.Command {
	var o bootstrapOptions
	cmd := &cobra.Command{
		Use:   "bootstrap --server ADDR --workload NAME",
		Short: "Print the bootstrap document of a workload",
		Long: `Print the document that tells a process where its xDS server is and who it is.
Its schema is gRPC's, so the same document serves this project's library and
xds:/// targets: put it in a file and the file's path in GRPC_XDS_BOOTSTRAP, or
the document itself in GRPC_XDS_BOOTSTRAP_CONFIG.

With --ca-dir, that of a certificate authority that "serve" has founded and may be
running, it also makes a join token: whoever sends it first, within --token-ttl, gets
a certificate for the workload's namespace and service account. The token is written
to --token-file (mode 0600) and nowhere else. The document has no secret: it names
the file, the server's identity and the authority's roots. With --cert-state-file
the workload keeps its certificate and key there (mode 0600), so that it can start
again when its token is used up.

With --kubernetes-token-file beside --ca-dir there is no join token: the workload is a
pod, and proves itself with the token of its service account that it finds in that
file, which a projected volume puts there. "serve" must have --kubernetes-audience.

With --cert-file, --key-file and --ca-file the workload's certificate comes from
elsewhere, as from cert-manager, and the files are read again when they change.
Without either the channel to the server is plaintext, which "serve" offers on
loopback only, and the workload has no identity.`,
		Args: noArguments("the workload's name goes into --workload, the server's address into --server"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, id, err := o.document()
			if err != nil {
				return err
			}
			if o.tokenFile != "" {
				token, err := o.writeToken(id)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "%s for %s is in %s, to be used once until %s\n", token, id, o.tokenFile, token.Expires.Format(time.RFC3339))
			}
			_, err = cmd.OutOrStdout().Write(doc)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.server, "server", "", "xDS server, host:port; required")
	f.StringVar(&o.workload, "workload", "", "name of the workload; required")
	f.StringVar(&o.namespace, "namespace", "default", "namespace of the workload")
	f.StringVar(&o.serviceAccount, "service-account", "default", "service account of the workload")
	f.StringSliceVar(&o.ips, "ip", []string{"127.0.0.1"}, "address that the workload serves on; may be repeated")
	f.StringToStringVar(&o.labels, "label", nil, "label of the workload, key=value; may be repeated")
	f.StringVar(&o.caDir, "ca-dir", "", "folder of the certificate authority, as \"serve\" has it")
	f.StringVar(&o.tokenFile, "token-file", "", "file for the join token; this or --kubernetes-token-file is required with --ca-dir")
	f.StringVar(&o.kubernetesToken, "kubernetes-token-file", "", "file in the pod that has the token of its service account")
	f.DurationVar(&o.tokenTTL, "token-ttl", ca.DefaultTokenTTL, "life of the join token, at most 24h")
	f.StringVar(&o.certState, "cert-state-file", "", "file in which the workload keeps its certificate and key")
	o.files.flags(f, "the workload's certificate, from elsewhere")
	f.StringVar(&o.trustDomain, "trust-domain", policy.DefaultTrustDomain, "trust domain of the server's identity, with --cert-file")
	_ = cmd.MarkFlagRequired("server") // fails only for a flag that does not exist
	_ = cmd.MarkFlagRequired("workload")
	return cmd
}

// document makes the document, and the identity that a join token is to be for.
func (o *bootstrapOptions) document() ([]byte, identity.ID, error) {
	var none identity.ID
	if _, port, err := net.SplitHostPort(o.server); err != nil || port == "" {
		return nil, none, fmt.Errorf("--server %q is not host:port", o.server)
	}
	for _, name := range []struct{ flag, value string }{{"--workload", o.workload}, {"--namespace", o.namespace}, {"--service-account", o.serviceAccount}} {
		if name.value == "" || strings.ContainsAny(name.value, "~/ ") {
			return nil, none, fmt.Errorf("%s %q is not a name", name.flag, name.value)
		}
	}
	if strings.Contains(o.namespace, ".") {
		return nil, none, fmt.Errorf("--namespace %q is not a name", o.namespace)
	}
	if len(o.ips) == 0 {
		return nil, none, fmt.Errorf("--ip is empty")
	}
	for _, ip := range o.ips {
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, none, fmt.Errorf("--ip %q is not an IP address", ip)
		}
	}
	labels := make(map[string]any, len(o.labels))
	for k, v := range o.labels {
		labels[k] = v
	}
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE":       o.namespace,
		"SERVICE_ACCOUNT": o.serviceAccount,
		"INSTANCE_IPS":    strings.Join(o.ips, ","),
		"LABELS":          labels,
	})
	if err != nil {
		return nil, none, err
	}
	c := &bootstrap.Config{
		Servers: []bootstrap.Server{{URI: o.server, ChannelCreds: []bootstrap.ChannelCreds{{Type: bootstrap.Insecure}}}},
		Node: &corev3.Node{
			Id:       fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", o.ips[0], o.workload, o.namespace, o.namespace),
			Metadata: metadata,
		},
		ListenerTemplate: "%s",
		InboundTemplate:  translate.InboundPrefix + "%s",
	}
	id, err := o.credentials(c)
	if err != nil {
		return nil, none, err
	}
	doc, err := bootstrap.Document(c)
	return doc, id, err
}

// credentials puts the workload's certificate provider into the document, and has the
// channel to the server use it.
func (o *bootstrapOptions) credentials(c *bootstrap.Config) (id identity.ID, err error) {
	if err := o.files.check(o.caDir); err != nil {
		return id, err
	}
	switch {
	case o.caDir == "" && (o.tokenFile != "" || o.certState != "" || o.kubernetesToken != ""):
		return id, errors.New("--token-file, --kubernetes-token-file and --cert-state-file need --ca-dir")
	case o.caDir != "" && (o.tokenFile == "") == (o.kubernetesToken == ""):
		return id, errors.New("--ca-dir needs either --token-file or --kubernetes-token-file")
	}
	var p bootstrap.ProviderCreds
	trustDomain := o.trustDomain
	switch {
	case o.caDir != "":
		p.Plugin = source.CAPlugin
		b, err := ca.ReadBundle(o.caDir)
		if err != nil {
			return id, authorityError(o.caDir, err)
		}
		trustDomain = b.TrustDomain
		if id, err = identity.IstioID(trustDomain, o.namespace, o.serviceAccount); err != nil {
			return id, err
		}
		if id.Path() == ownPath {
			return id, fmt.Errorf("%s is the server's own identity", id)
		}
		for _, file := range []*string{&o.tokenFile, &o.kubernetesToken, &o.certState} {
			if *file == "" {
				continue
			}
			if *file, err = filepath.Abs(*file); err != nil {
				return id, err
			}
		}
		p.Config, err = json.Marshal(struct {
			Address   string `json:"address"`
			Roots     string `json:"ca_certificates"`
			ServerID  string `json:"server_id"`
			JoinToken string `json:"join_token_file,omitempty"`
			Token     string `json:"token_file,omitempty"`
			ID        string `json:"id"`
			StateFile string `json:"state_file,omitempty"`
		}{o.server, string(b.PEM()), serverID(trustDomain), o.tokenFile, o.kubernetesToken, id.String(), o.certState})
		if err != nil {
			return id, err
		}
	case o.files.set():
		p.Plugin = source.FilesPlugin
		p.Config, err = json.Marshal(map[string]string{
			"certificate_file": o.files.cert, "private_key_file": o.files.key, "ca_certificate_file": o.files.ca, "refresh_interval": "60s",
		})
		if err != nil {
			return id, err
		}
	default:
		return id, nil
	}
	if p.ServerID, err = identity.ParseID(serverID(trustDomain)); err != nil {
		return id, fmt.Errorf("--trust-domain: %w", err)
	}
	creds, err := p.ChannelCreds()
	if err != nil {
		return id, err
	}
	c.CertificateProviders = map[string]bootstrap.CertificateProvider{provider: p.CertificateProvider}
	c.Servers[0].ChannelCreds = []bootstrap.ChannelCreds{creds}
	return id, nil
}

func serverID(trustDomain string) string { return "spiffe://" + trustDomain + ownPath }

// writeToken makes a join token and writes it to its file, which is replaced as a whole.
func (o *bootstrapOptions) writeToken(id identity.ID) (ca.JoinToken, error) {
	tokens, err := ca.OpenTokens(o.caDir, ca.TokenOptions{TrustDomain: id.TrustDomain().String()})
	if err != nil {
		return ca.JoinToken{}, err
	}
	f, err := os.CreateTemp(filepath.Dir(o.tokenFile), ".join-token-*") // mode 0600
	if err != nil {
		return ca.JoinToken{}, fmt.Errorf("--token-file: %w", err)
	}
	token, err := tokens.Create(id.String(), o.tokenTTL)
	if err == nil {
		_, err = f.WriteString(token.Reveal() + "\n")
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), o.tokenFile)
	}
	if err != nil {
		os.Remove(f.Name())
		if token.ID != "" {
			err = errors.Join(err, tokens.Revoke(token.ID))
		}
	}
	return token, err
}
