package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
	"github.com/sinew-mesh/sinew/xdsserver/translate"
)

type bootstrapOptions struct {
	server, workload, namespace, serviceAccount string
	ips                                         []string
	labels                                      map[string]string
}

func bootstrapCommand() *cobra.Command {
	var o bootstrapOptions
	cmd := &cobra.Command{
		Use:   "bootstrap --server ADDR --workload NAME",
		Short: "Print the bootstrap document of a workload",
		Long: `Print the document that tells a process where its xDS server is and who it is.
Its schema is gRPC's, so the same document serves this project's library and
xds:/// targets: put it in a file and the file's path in GRPC_XDS_BOOTSTRAP, or
the document itself in GRPC_XDS_BOOTSTRAP_CONFIG.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, err := o.document()
			if err != nil {
				return err
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
	_ = cmd.MarkFlagRequired("server") // fails only for a flag that does not exist
	_ = cmd.MarkFlagRequired("workload")
	return cmd
}

func (o *bootstrapOptions) document() ([]byte, error) {
	if _, port, err := net.SplitHostPort(o.server); err != nil || port == "" {
		return nil, fmt.Errorf("--server %q is not host:port", o.server)
	}
	for flag, v := range map[string]string{"--workload": o.workload, "--namespace": o.namespace, "--service-account": o.serviceAccount} {
		if v == "" || strings.ContainsAny(v, "~/ ") {
			return nil, fmt.Errorf("%s %q is not a name", flag, v)
		}
	}
	if strings.Contains(o.namespace, ".") {
		return nil, fmt.Errorf("--namespace %q is not a name", o.namespace)
	}
	if len(o.ips) == 0 {
		return nil, fmt.Errorf("--ip is empty")
	}
	for _, ip := range o.ips {
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, fmt.Errorf("--ip %q is not an IP address", ip)
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
		return nil, err
	}
	return bootstrap.Document(&bootstrap.Config{
		Servers: []bootstrap.Server{{URI: o.server, ChannelCreds: []bootstrap.ChannelCreds{{Type: "insecure"}}}},
		Node: &corev3.Node{
			Id:       fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", o.ips[0], o.workload, o.namespace, o.namespace),
			Metadata: metadata,
		},
		ListenerTemplate: "%s",
		InboundTemplate:  translate.InboundPrefix + "%s",
	})
}
