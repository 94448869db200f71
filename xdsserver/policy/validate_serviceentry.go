package policy

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func (f *findings) serviceEntry(meta Meta, se *networking.ServiceEntry) {
	if sel := se.WorkloadSelector; sel != nil {
		f.selectorLabels("spec.workloadSelector.labels", sel.GetLabels())
		if len(sel.GetLabels()) == 0 {
			f.warnf("spec.workloadSelector", "has no labels and selects every workload of the namespace")
		}
		if len(se.Endpoints) > 0 {
			f.errorf("spec.endpoints", "can not be set together with workloadSelector")
		}
	}
	if len(se.Hosts) == 0 {
		f.errorf("spec.hosts", "required")
	}
	for i, h := range se.Hosts {
		in := fmt.Sprintf("spec.hosts[%d]", i)
		if h == "*" {
			f.errorf(in, "\"*\" is no host of a ServiceEntry")
			continue
		}
		f.err(in, checkHost(h))
		if strings.HasPrefix(h, "*") && !strings.HasPrefix(h, "*.") {
			f.warnf(in, "%q: a wildcard stands for whole labels, as in \"*.example.com\"", h)
		}
	}
	blocks := false
	for i, a := range se.Addresses {
		blocks = blocks || strings.Contains(a, "/")
		f.err(fmt.Sprintf("spec.addresses[%d]", i), checkSubnet(a))
	}
	if blocks && se.Resolution != networking.ServiceEntry_NONE && se.Resolution != networking.ServiceEntry_STATIC {
		f.errorf("spec.addresses", "a block of addresses needs resolution NONE or STATIC")
	}
	names := f.serviceEntryPorts(se)
	f.resolution(meta, se, names)

	// Plain TCP gives no way to tell one host from another.
	if se.Resolution != networking.ServiceEntry_NONE && len(se.Hosts) > 1 {
		for i, p := range se.Ports {
			if !isHTTPProtocol(p.GetProtocol()) && !isTLSProtocol(p.GetProtocol()) {
				f.errorf(fmt.Sprintf("spec.ports[%d].protocol", i), "a ServiceEntry of several hosts takes HTTP and TLS ports only")
				break
			}
		}
	}
	f.exportTo("spec.exportTo", meta.Namespace, se.ExportTo, true)
}

func isHTTPProtocol(p string) bool {
	return slices.Contains([]string{"HTTP", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB"}, strings.ToUpper(p))
}

func isTLSProtocol(p string) bool {
	return slices.Contains([]string{"HTTPS", "TLS"}, strings.ToUpper(p))
}

// serviceEntryPorts checks the ports and returns their names.
func (f *findings) serviceEntryPorts(se *networking.ServiceEntry) []string {
	var names []string
	numbers := make(map[uint32]bool)
	for i, p := range se.Ports {
		in := fmt.Sprintf("spec.ports[%d]", i)
		if slices.Contains(names, p.GetName()) {
			f.errorf(in+".name", "%q is given twice", p.GetName())
		}
		if numbers[p.GetNumber()] {
			f.errorf(in+".number", "%d is given twice", p.GetNumber())
		}
		names, numbers[p.GetNumber()] = append(names, p.GetName()), true
		f.optionalPort(in+".targetPort", p.GetTargetPort())
		f.err(in+".number", checkPort(p.GetNumber()))
		f.portName(in+".name", p.GetName())
		protocol := strings.ToUpper(p.GetProtocol())
		if protocol != "" && !slices.Contains(protocols, protocol) {
			f.errorf(in+".protocol", "%q is not one of %s", p.GetProtocol(), strings.Join(protocols, ", "))
		}
		if len(se.Addresses) == 0 && (protocol == "" || protocol == "TCP") && !allocatesAddress(se) {
			f.warnf(in+".protocol", "a TCP port, or one without a protocol, needs addresses to be told apart")
		}
	}
	return names
}

// allocatesAddress reports whether Istio would give the entry virtual addresses by
// itself: not where it has wildcard hosts or passes connections through.
func allocatesAddress(se *networking.ServiceEntry) bool {
	if se.Resolution == networking.ServiceEntry_NONE {
		return false
	}
	return slices.ContainsFunc(se.Hosts, func(h string) bool { return !strings.HasPrefix(h, "*") })
}

func (f *findings) portName(field, name string) {
	switch {
	case name == "":
		f.errorf(field, "required")
	case !isLabel(name):
		f.errorf(field, "%q is not the name of a port", name)
	}
}

func (f *findings) resolution(meta Meta, se *networking.ServiceEntry, portNames []string) {
	switch se.Resolution {
	case networking.ServiceEntry_NONE:
		if len(se.Endpoints) > 0 {
			f.errorf("spec.endpoints", "resolution NONE takes no endpoints")
		}
		if se.WorkloadSelector != nil {
			f.warnf("spec.workloadSelector", "has no effect with resolution NONE")
		}
	case networking.ServiceEntry_STATIC:
		for i, e := range se.Endpoints {
			f.workloadEntry(fmt.Sprintf("spec.endpoints[%d]", i), e, portNames, false)
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		f.dnsResolution(se, portNames)
	case networking.ServiceEntry_DYNAMIC_DNS:
		for i, h := range se.Hosts {
			if !strings.HasPrefix(h, "*") {
				f.errorf(fmt.Sprintf("spec.hosts[%d]", i), "resolution DYNAMIC_DNS takes wildcard hosts only")
			}
		}
		for i, p := range se.Ports {
			if !slices.Contains([]string{"HTTP", "HTTP2", "GRPC", "TLS", "HTTPS"}, strings.ToUpper(p.GetProtocol())) {
				f.errorf(fmt.Sprintf("spec.ports[%d].protocol", i), "resolution DYNAMIC_DNS takes HTTP, HTTP2, GRPC and TLS ports only")
			}
		}
		if len(se.Addresses) > 0 {
			f.errorf("spec.addresses", "resolution DYNAMIC_DNS takes no addresses")
		}
		if len(se.Endpoints) > 0 {
			f.errorf("spec.endpoints", "resolution DYNAMIC_DNS takes no endpoints")
		}
		if se.Location == networking.ServiceEntry_MESH_INTERNAL && meta.Labels["istio.io/use-waypoint"] != "" {
			f.errorf("spec.location", "resolution DYNAMIC_DNS with a waypoint needs location MESH_EXTERNAL")
		}
	default:
		f.errorf("spec.resolution", "%d is not a kind of resolution", se.Resolution)
	}
}

func (f *findings) dnsResolution(se *networking.ServiceEntry, portNames []string) {
	if len(se.Endpoints) == 0 {
		for i, h := range se.Hosts {
			if checkDomain(h) != nil {
				f.errorf(fmt.Sprintf("spec.hosts[%d]", i), "resolution %s without endpoints needs a host name that DNS can resolve", se.Resolution)
			}
		}
	}
	if se.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN && len(se.Endpoints) > 1 {
		f.errorf("spec.endpoints", "resolution DNS_ROUND_ROBIN takes one endpoint at most")
	}
	for i, e := range se.Endpoints {
		in := fmt.Sprintf("spec.endpoints[%d]", i)
		if !isIP(e.GetAddress()) && checkDomain(e.GetAddress()) != nil {
			f.errorf(in+".address", "%q is neither a host name nor an IP address", e.GetAddress())
		}
		f.labels(in+".labels", e.GetLabels())
		f.endpointPorts(in, e, portNames)
	}
	if len(se.Addresses) > 0 && len(se.Hosts) > 1 {
		for i, p := range se.Ports {
			if !isHTTPProtocol(p.GetProtocol()) && !strings.EqualFold(p.GetProtocol(), "UDP") {
				f.warnf(fmt.Sprintf("spec.ports[%d]", i), "a TCP port with addresses can not tell several hosts apart")
				break
			}
		}
	}
}

// workloadEntry checks a workload by itself, or as an endpoint of a ServiceEntry that
// has ports of these names.
func (f *findings) workloadEntry(in string, w *networking.WorkloadEntry, portNames []string, domains bool) {
	const unix = "unix://"
	addr := w.GetAddress()
	standalone := in == "spec"
	socket, isUnix := strings.CutPrefix(addr, unix)
	switch {
	case addr == "" && w.GetNetwork() == "":
		f.errorf(in+".address", "required")
		return
	case addr == "":
		f.warnf(in+".address", "is not set: the workload is reached through the gateway of network %q", w.GetNetwork())
	case isUnix:
		f.err(in+".address", checkUnixPath(socket))
		if len(w.GetPorts()) > 0 {
			f.errorf(in+".ports", "a unix socket has no ports")
		}
		if !standalone && len(portNames) != 1 {
			f.errorf(in+".address", "a unix socket needs exactly one port in the ServiceEntry")
		}
	case isIP(addr):
	case !domains:
		f.errorf(in+".address", "%q is not an IP address", addr)
	case checkDomain(addr) != nil:
		f.errorf(in+".address", "%q is neither a host name nor an IP address", addr)
	}
	f.endpointPorts(in, w, portNames)
	f.labels(in+".labels", w.GetLabels())
}

func (f *findings) endpointPorts(in string, w *networking.WorkloadEntry, portNames []string) {
	for _, name := range sortedKeys(w.GetPorts()) {
		at := in + ".ports[" + name + "]"
		if in != "spec" && !slices.Contains(portNames, name) {
			f.errorf(at, "the ServiceEntry has no port of this name")
		}
		f.portName(at, name)
		f.err(at, checkPort(w.Ports[name]))
	}
}
