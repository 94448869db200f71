package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Finding is what a pass of validation has to say of one field.
type Finding struct {
	Field    string // path, such as spec.http[0].route
	Message  string
	Severity Severity
}

// findings collects what one pass finds.
type findings []Finding

func (f *findings) errorf(field, format string, args ...any) {
	*f = append(*f, Finding{field, fmt.Sprintf(format, args...), Error})
}

func (f *findings) warnf(field, format string, args ...any) {
	*f = append(*f, Finding{field, fmt.Sprintf(format, args...), Warning})
}

// err adds an error where there is one.
func (f *findings) err(field string, err error) {
	if err != nil {
		f.errorf(field, "%v", err)
	}
}

// Validate checks an object by the rules by which Istio accepts or refuses it
// (https://istio.io/latest/docs/reference/config/networking/ and .../security/). It knows nothing of
// what the mesh enforces: that is Unenforced.
func Validate(meta Meta, spec proto.Message) []Finding {
	var f findings
	switch spec := spec.(type) {
	case *networking.VirtualService:
		f.virtualService(meta, spec)
	case *networking.DestinationRule:
		f.destinationRule(meta, spec)
	case *networking.ServiceEntry:
		f.serviceEntry(meta, spec)
	case *networking.WorkloadEntry:
		f.workloadEntry("spec", spec, nil, true)
	case *security.PeerAuthentication:
		f.peerAuthentication(spec)
	case *security.AuthorizationPolicy:
		f.authorizationPolicy(spec)
	case *security.RequestAuthentication:
		f.requestAuthentication(spec)
	case *mesh.MeshConfig:
		f.meshConfig(spec)
	}
	switch spec.(type) {
	case *networking.DestinationRule, *networking.ServiceEntry:
		f.balancerAnnotation(&meta)
	}
	if _, ok := spec.(*networking.ServiceEntry); ok {
		f.placement(&meta)
	}
	f.dryRun(meta, spec)
	return f
}

// Names, by RFC 1123 and as Istio takes them: letters of either case.
var (
	labelPattern         = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`)
	wildcardLabelPattern = regexp.MustCompile(`^(\*|(\*|\*-)?[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)$`)
	labelValuePattern    = regexp.MustCompile(`^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`)
	labelNamePattern     = regexp.MustCompile(`^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$`)
	subdomainPattern     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	headerNamePattern    = regexp.MustCompile("^[!#$%&'*+\\-.^_`|~A-Za-z0-9]+$")
)

// isLabel reports whether s is one label of a domain name.
func isLabel(s string) bool { return len(s) <= 63 && labelPattern.MatchString(s) }

func isSubdomain(s string) bool { return len(s) <= 253 && subdomainPattern.MatchString(s) }

func checkDomainLength(s string) error {
	switch {
	case s == "":
		return errors.New("a host name is required")
	case len(s) > 255:
		return fmt.Errorf("host name %q is longer than 255 characters", s)
	}
	return nil
}

func checkDomainLabels(s string) error {
	labels := strings.Split(s, ".")
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil {
		return fmt.Errorf("host name %q is invalid: its last label is a number", s)
	}
	for i, label := range labels {
		if i == len(labels)-1 && label == "" {
			break // "istio.io." is a full name
		}
		if !isLabel(label) {
			return fmt.Errorf("host name %q is invalid: its label %q is not a DNS label", s, label)
		}
	}
	return nil
}

// checkDomain accepts a host name without a wildcard.
func checkDomain(s string) error {
	if err := checkDomainLength(s); err != nil {
		return err
	}
	return checkDomainLabels(s)
}

// checkHost accepts a host name whose first label may be or begin with a wildcard.
func checkHost(s string) error {
	if err := checkDomainLength(s); err != nil {
		return err
	}
	first, rest, more := strings.Cut(s, ".")
	if len(first) > 63 || !wildcardLabelPattern.MatchString(first) {
		return fmt.Errorf("host name %q is invalid: its label %q is not a DNS label", s, first)
	}
	if more {
		return checkDomainLabels(rest)
	}
	return nil
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func checkSubnet(s string) error {
	if strings.Contains(s, "/") {
		if _, err := netip.ParsePrefix(s); err != nil {
			return fmt.Errorf("%q is not a block of IP addresses", s)
		}
		return nil
	}
	if !isIP(s) {
		return fmt.Errorf("%q is not an IP address", s)
	}
	return nil
}

func checkUnixPath(s string) error {
	switch {
	case s == "":
		return errors.New("the path of a unix socket is required")
	case strings.HasPrefix(s, "@"): // Linux's abstract names
		return nil
	case !path.IsAbs(s) || strings.HasSuffix(s, "/"):
		return fmt.Errorf("%q is not an absolute path of a file", s)
	}
	return nil
}

func checkPort(n uint32) error {
	if n < 1 || n > 65535 {
		return fmt.Errorf("port %d is not between 1 and 65535", n)
	}
	return nil
}

func checkDuration(d *durationpb.Duration) error {
	if d == nil {
		return nil
	}
	if err := d.CheckValid(); err != nil {
		return errors.New("duration is out of range")
	}
	switch t := d.AsDuration(); {
	case t < time.Millisecond:
		return fmt.Errorf("duration %v is shorter than 1ms", t)
	case t%time.Millisecond != 0:
		return fmt.Errorf("duration %v is finer than a millisecond", t)
	}
	return nil
}

// labels checks a map of Kubernetes labels.
func (f *findings) labels(field string, m map[string]string) {
	for _, k := range sortedKeys(m) {
		in := field + "[" + k + "]"
		prefix, name, qualified := strings.Cut(k, "/")
		if !qualified {
			prefix, name = "", k
		}
		if qualified && checkDomain(prefix) != nil || len(name) > 63 || !labelNamePattern.MatchString(name) {
			f.errorf(in, "%q is not the name of a label", k)
		}
		if v := m[k]; len(v) > 63 || !labelValuePattern.MatchString(v) {
			f.errorf(in, "%q is not the value of a label", v)
		}
	}
}

// exportTo checks a visibility list: "*", "." (this namespace) or names of namespaces.
func (f *findings) exportTo(field, namespace string, list []string, serviceEntry bool) {
	seen := make(map[string]bool)
	for i, e := range list {
		in := fmt.Sprintf("%s[%d]", field, i)
		key := e
		if e == "." {
			key = namespace
		}
		if seen[key] {
			f.errorf(in, "%q is given twice", e)
			continue
		}
		seen[key] = true
		// "~" hides a service from everyone.
		if e != "." && e != "*" && !(serviceEntry && e == "~") && !isLabel(e) {
			f.errorf(in, "%q is not a namespace, \".\" or \"*\"", e)
		}
	}
	if seen["*"] && len(list) > 1 {
		f.errorf(field, "nothing may stand beside \"*\"")
	}
	if seen["~"] && len(list) > 1 {
		f.errorf(field, "nothing may stand beside \"~\"")
	}
}

// selectorLabels checks the labels of a workload selector.
func (f *findings) selectorLabels(field string, m map[string]string) {
	for _, k := range sortedKeys(m) {
		in := field + "[" + k + "]"
		switch {
		case k == "":
			f.errorf(in, "a label needs a name")
		case strings.Contains(k, "*") || strings.Contains(m[k], "*"):
			f.errorf(in, "a selector takes no wildcard: %s=%s", k, m[k])
		}
	}
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
