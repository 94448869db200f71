package policy

import (
	"slices"
	"strconv"
	"strings"
)

// KubernetesService is what matters to the mesh of a Kubernetes Service.
type KubernetesService struct {
	Ports    []Port
	Selector map[string]string
	ExportTo []string // annotation networking.istio.io/exportTo

	annotated annotated
}

// exportToAnnotation limits the visibility of a Kubernetes Service
// (https://istio.io/latest/docs/reference/config/annotations/).
const exportToAnnotation = "networking.istio.io/exportTo"

// ignoredService are fields of a Service's spec that concern virtual IPs, node ports
// and cloud load balancers, none of which a request through the mesh passes.
var ignoredService = []string{
	"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "externalIPs", "externalTrafficPolicy",
	"loadBalancerIP", "loadBalancerSourceRanges", "loadBalancerClass", "allocateLoadBalancerNodePorts",
	"healthCheckNodePort", "publishNotReadyAddresses", "sessionAffinityConfig",
}

// service reads a Kubernetes Service
// (https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/).
func (d *decoder) service(v *value, o *Object) {
	out := &KubernetesService{}
	o.Spec = out
	spec := v.get("spec")
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata", "status":
		case "spec":
			d.lines["spec"] = e.line
		default:
			d.errorf(e.line, e.key, "unknown field%s", suggest(e.key, []string{"metadata", "spec", "status"}))
		}
	}
	if list := o.Annotations[exportToAnnotation]; list != "" {
		for _, ns := range strings.Split(list, ",") {
			out.ExportTo = append(out.ExportTo, strings.TrimSpace(ns))
		}
	}
	var found findings
	out.annotated = found.trafficAnnotations(&o.Meta)
	d.add(found)
	if !isLabel(o.Name) && o.Name != "" {
		d.errorf(d.lineOf("metadata.name"), "metadata.name", "%q is not a valid name for a Service: it must be one DNS label", o.Name)
	}
	if spec.isNull() {
		d.errorf(d.lineOf("spec"), "spec.ports", "required")
		return
	}
	if !d.expect(spec, mapValue, "spec") {
		return
	}
	ports := false
	for _, e := range spec.keys {
		at := "spec." + e.key
		d.lines[at] = e.line
		if e.val.isNull() || slices.Contains(ignoredService, e.key) {
			continue
		}
		switch e.key {
		case "ports":
			if d.expect(e.val, listValue, at) {
				ports = len(e.val.items) > 0
				out.Ports = d.servicePorts(e.val, at)
			}
		case "selector":
			if m := d.stringMap(e.val, at); len(m) > 0 {
				out.Selector = m
			}
		case "type":
			switch kind := d.text(e.val, at); kind {
			case "", "ClusterIP", "NodePort", "LoadBalancer":
			case "ExternalName":
				d.errorf(e.line, at, "a Service of type ExternalName is a DNS alias, which the mesh does not route: use a ServiceEntry")
			default:
				d.errorf(e.line, at, "%q is not a type of Service", kind)
			}
		case "externalName":
			d.errorf(e.line, at, "a Service of type ExternalName is a DNS alias, which the mesh does not route: use a ServiceEntry")
		case "sessionAffinity":
			d.only(e, at, "None")
		case "internalTrafficPolicy":
			d.only(e, at, "Cluster")
		case "trafficDistribution":
			d.errorf(e.line, at, "is valid in Kubernetes, but the mesh does not enforce it")
		default:
			d.errorf(e.line, at, "unknown field%s", suggest(e.key, append([]string{"ports", "selector", "type"}, ignoredService...)))
		}
	}
	if !ports {
		d.errorf(d.lineOf("spec.ports"), "spec.ports", "required")
	}
}

// only accepts one value of a field whose other values change where a request goes.
func (d *decoder) only(e entry, at, want string) {
	if got := d.text(e.val, at); got != "" && got != want {
		d.errorf(e.line, at, "%s is valid in Kubernetes, but the mesh enforces only %s", got, want)
	}
}

func (d *decoder) servicePorts(v *value, at string) []Port {
	var out []Port
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, item := range v.items {
		in := at + "[" + strconv.Itoa(i) + "]"
		d.lines[in] = item.line
		if !d.expect(item, mapValue, in) {
			continue
		}
		var p Port
		transport, app := "TCP", ""
		for _, e := range item.keys {
			field := in + "." + e.key
			d.lines[field] = e.line
			if e.val.isNull() {
				continue
			}
			switch e.key {
			case "name":
				p.Name = d.text(e.val, field)
				if p.Name != "" && !isLabel(p.Name) {
					d.errorf(e.line, field, "%q is not a valid port name", p.Name)
				}
			case "port":
				p.Number = d.port(e.val, field)
			case "targetPort":
				if name, ok := e.val.str(); ok {
					p.TargetName = name
					if n, err := strconv.Atoi(name); err == nil {
						d.errorf(e.line, field, "%d must be written without quotes", n)
					}
				} else {
					p.Target = d.port(e.val, field)
				}
			case "protocol":
				transport = d.text(e.val, field)
				if !slices.Contains([]string{"TCP", "UDP", "SCTP"}, transport) {
					d.errorf(e.line, field, "%q is not one of TCP, UDP, SCTP", transport)
				}
			case "appProtocol":
				app = d.text(e.val, field)
			case "nodePort":
			default:
				d.errorf(e.line, field, "unknown field%s", suggest(e.key, []string{"name", "port", "targetPort", "protocol", "appProtocol", "nodePort"}))
			}
		}
		if item.get("port").isNull() {
			d.errorf(item.line, in+".port", "required")
		}
		if p.Name == "" && len(v.items) > 1 {
			d.errorf(item.line, in+".name", "required where a Service has more than one port")
		}
		key := strconv.FormatUint(uint64(p.Number), 10) + "/" + transport
		if names[p.Name] && p.Name != "" || numbers[key] {
			d.errorf(item.line, in, "port %s is given twice", key)
		}
		names[p.Name], numbers[key] = true, true
		if p.Target == 0 {
			p.Target = p.Number
		}
		p.Protocol = protocolOf(app, p.Name)
		if transport != "TCP" {
			p.Protocol = transport
		}
		out = append(out, p)
	}
	return out
}

func (d *decoder) port(v *value, at string) uint32 {
	if !d.expect(v, scalarValue, at) {
		return 0
	}
	n, err := strconv.ParseUint(v.node.Value, 10, 16)
	if err != nil || n == 0 || v.node.ShortTag() != "!!int" {
		d.errorf(v.line, at, "%s is not a port number: it must be between 1 and 65535", v.node.Value)
		return 0
	}
	return uint32(n)
}

// protocols that Istio reads from a port's name or appProtocol
// (https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/).
var protocols = []string{"HTTP", "HTTP2", "HTTPS", "GRPC", "GRPC-WEB", "TCP", "TLS", "UDP", "MONGO", "MYSQL", "REDIS", "HTTP_PROXY"}

// protocolOf tells a port's protocol from its appProtocol, else from its name up to
// the first "-". Nothing known is HTTP, which also carries gRPC.
func protocolOf(app, name string) string {
	switch strings.ToLower(app) {
	case "kubernetes.io/h2c":
		return "HTTP2"
	case "kubernetes.io/ws":
		return "HTTP"
	case "kubernetes.io/wss":
		return "HTTPS"
	}
	if up := strings.ToUpper(app); slices.Contains(protocols, up) {
		return up
	}
	up := strings.ToUpper(name)
	if up == "GRPC-WEB" || strings.HasPrefix(up, "GRPC-WEB-") {
		return "GRPC-WEB"
	}
	up, _, _ = strings.Cut(up, "-")
	if slices.Contains(protocols, up) {
		return up
	}
	return "HTTP"
}
