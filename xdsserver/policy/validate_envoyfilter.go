package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/internal/xds/compile"
)

const (
	envoyFilterKind    = "EnvoyFilter"
	envoyFilterVersion = "v1alpha3"

	limitFilter   = "envoy.filters.http.local_ratelimit"
	limitMessage  = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
	managerFilter = "envoy.filters.network.http_connection_manager"
	routerFilter  = "envoy.filters.http.router"

	// onlyLimits ends every error about what an EnvoyFilter could be in Istio.
	onlyLimits = "is not supported: of EnvoyFilter the mesh takes only Istio's form of an inbound local rate limit"
)

var inboundHost = regexp.MustCompile(`^inbound\|http\|([1-9][0-9]{0,4})$`)

// envoyFilter reads an EnvoyFilter.
func (d *decoder) envoyFilter(v *value, o *Object, version string) {
	if version != envoyFilterVersion {
		d.errorf(v.get("apiVersion").line, "apiVersion", "version %s of %s %s is not known: use %s", version, istioNetworking, o.Kind, envoyFilterVersion)
	}
	spec := new(networking.EnvoyFilter)
	o.Spec = spec
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata", "status":
		case "spec":
			d.lines["spec"] = e.line
			if !e.val.isNull() {
				d.message(e.val, spec.ProtoReflect(), "spec")
			}
		default:
			d.errorf(e.line, e.key, "unknown field%s", suggest(e.key, []string{"metadata", "spec", "status"}))
		}
	}
	for _, h := range d.hollow {
		d.errorf(d.lineOf(h.field), h.field, "must not be empty")
	}
	// What is inside a value is free text to Istio's message, so its lines are not known yet.
	patches := v.get("spec").get("configPatches")
	if patches == nil {
		patches = v.get("spec").get("config_patches")
	}
	if patches != nil {
		for i, p := range patches.items {
			d.linesIn(p.get("patch").get("value"), fmt.Sprintf("spec.configPatches[%d].patch.value", i))
		}
	}
	wrong := make(map[string]bool)
	for _, p := range d.problems {
		wrong[p.Field] = true
	}
	for _, finding := range envoyFilterFindings(o.Meta, spec) {
		if !wrong[finding.Field] {
			d.problems = append(d.problems, Problem{
				At: Position{d.file, d.lineOf(finding.Field)}, Object: d.ref,
				Field: finding.Field, Message: finding.Message, Severity: finding.Severity,
			})
		}
	}
}

// linesIn notes the lines of everything in a value, under the paths that errors have.
func (d *decoder) linesIn(v *value, at string) {
	if v == nil {
		return
	}
	for i, item := range v.items {
		in := at + "[" + strconv.Itoa(i) + "]"
		d.lines[in] = item.line
		d.linesIn(item, in)
	}
	for _, e := range v.keys {
		in := join(at, camelPath(e.key))
		if strings.Contains(e.key, ".") {
			in = at + "[" + e.key + "]"
		}
		d.lines[in] = e.line
		d.linesIn(e.val, in)
	}
}

// camelPath writes a path of Envoy's field names as the rest of a path is written; what
// stands in brackets stays.
func camelPath(path string) string {
	var b strings.Builder
	depth, upper := 0, false
	for _, r := range path {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case depth == 0 && r == '_':
			upper = true
			continue
		case upper && r >= 'a' && r <= 'z':
			r -= 'a' - 'A'
		}
		upper = false
		b.WriteRune(r)
	}
	return b.String()
}

// envoyFilterFindings has all that is to be said of an EnvoyFilter.
func envoyFilterFindings(meta Meta, spec *networking.EnvoyFilter) []Finding {
	_, f := readEnvoyFilter(spec)
	f.dryRun(meta, spec)
	return f
}

func (f findings) has(severity Severity) bool {
	return slices.ContainsFunc(f, func(x Finding) bool { return x.Severity == severity })
}

func (f findings) firstError(ref Ref) error {
	for _, x := range f {
		if x.Severity == Error {
			return fmt.Errorf("%s: %s: %s", ref, x.Field, x.Message)
		}
	}
	return nil
}

// patchReader reads the patches of one EnvoyFilter.
type patchReader struct {
	f        *findings
	out      *portLimits
	filterAt string // path of the filter's configuration; "" where there is none yet
	routes   []routePatch
}

// routePatch is what a patch gives to the route of a port.
type routePatch struct {
	at        string // of the patch
	port      uint32
	limit     *limitv3.LocalRateLimit
	limitAt   string
	actions   []*routev3.RateLimit
	actionsAt string
}

// readEnvoyFilter reads the limits of an EnvoyFilter. It accepts nothing that it does
// not read, so that there is nothing left to be unenforced. Where it finds an error, what
// it returns is not to be used.
func readEnvoyFilter(spec *networking.EnvoyFilter) (*portLimits, findings) {
	var f findings
	r := &patchReader{f: &f, out: &portLimits{}}
	// The limits of one workload do not depend on the order of patches: each must let through.
	r.only("spec", spec, onlyLimits, "workloadSelector", "configPatches", "priority")
	f.selectorLabels("spec.workloadSelector.labels", spec.GetWorkloadSelector().GetLabels())
	if len(spec.GetConfigPatches()) == 0 {
		f.errorf("spec.configPatches", "required")
		return r.out, f
	}
	for i, p := range spec.GetConfigPatches() {
		at := fmt.Sprintf("spec.configPatches[%d]", i)
		if c := p.GetMatch().GetContext(); c != networking.EnvoyFilter_SIDECAR_INBOUND {
			f.errorf(at+".match.context", "%v %s, which has SIDECAR_INBOUND", c, onlyLimits)
			continue
		}
		switch p.GetApplyTo() {
		case networking.EnvoyFilter_HTTP_FILTER:
			r.filterPatch(at, p)
		case networking.EnvoyFilter_HTTP_ROUTE:
			r.routePatch(at, p)
		default:
			f.errorf(at+".applyTo", "%v %s, with HTTP_FILTER and HTTP_ROUTE", p.GetApplyTo(), onlyLimits)
		}
	}
	if !f.has(Error) {
		r.combine()
	}
	return r.out, f
}

// only refuses the fields of a message other than those named.
func (r *patchReader) only(at string, m proto.Message, why string, fields ...string) {
	var bad []string
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(fields, fd.JSONName()) {
			bad = append(bad, fd.JSONName())
		}
		return true
	})
	slices.Sort(bad)
	for _, name := range bad {
		r.f.errorf(join(at, name), "%s", why)
	}
}

// is refuses a value other than the one that is supported.
func (r *patchReader) is(at, got string, want ...string) {
	if !slices.Contains(want, got) {
		if got == "" {
			r.f.errorf(at, "required: %s", want[0])
			return
		}
		r.f.errorf(at, "%q %s, with %s", got, onlyLimits, want[0])
	}
}

// filterPatch reads the patch that inserts the filter. Istio puts one without a
// subFilter in front of all filters; here limits always come after the rules of
// access, so that who is not allowed does not use up the limit of those who are.
func (r *patchReader) filterPatch(at string, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	in := at + ".match.listener"
	r.only(at+".match", p.GetMatch(), onlyLimits, "context", "listener")
	listener := p.GetMatch().GetListener()
	r.only(in, listener, "is not supported for a rate limit: a patch of the route of one port is applied to HTTP_ROUTE", "filterChain")
	r.only(in+".filterChain", listener.GetFilterChain(), "is not supported for a rate limit: a patch of the route of one port is applied to HTTP_ROUTE", "filter")
	filter := listener.GetFilterChain().GetFilter()
	in += ".filterChain.filter"
	r.is(in+".name", filter.GetName(), managerFilter)
	if sub := filter.GetSubFilter(); sub != nil {
		r.only(in+".subFilter", sub, onlyLimits, "name")
		r.is(in+".subFilter.name", sub.GetName(), routerFilter)
	}
	in = at + ".patch"
	r.only(in, p.GetPatch(), onlyLimits, "operation", "value")
	r.is(in+".operation", p.GetPatch().GetOperation().String(), networking.EnvoyFilter_Patch_INSERT_BEFORE.String())
	in += ".value"
	if r.filterAt != "" {
		r.f.errorf(in, "the filter is inserted already at %s: use another EnvoyFilter for a second limit", r.filterAt)
		return
	}
	var name string
	r.decode(p.GetPatch().GetValue(), in, func(d *decoder, v *value) {
		config := func(v *value, at string) {
			r.out.filter = d.limit(v, at)
			r.filterAt = limitPath(v, at)
		}
		d.fields(v, in, map[string]func(*value, string){"name": d.into(&name), "typedConfig": config, "typed_config": config})
	})
	if name != limitFilter {
		r.is(in+".name", name, limitFilter)
	} else if r.filterAt == "" {
		r.f.errorf(in+".typedConfig", "required")
	}
}

// routePatch reads a patch of the route of a port.
func (r *patchReader) routePatch(at string, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	out := routePatch{at: at}
	in := at + ".match.routeConfiguration"
	r.only(at+".match", p.GetMatch(), onlyLimits, "context", "routeConfiguration")
	config := p.GetMatch().GetRouteConfiguration()
	r.only(in, config, onlyLimits, "vhost")
	in += ".vhost"
	host := config.GetVhost()
	r.only(in, host, onlyLimits, "name", "route")
	if name := host.GetName(); name != "" {
		out.port = inboundPort(name)
		if out.port == 0 {
			r.f.errorf(in+".name", `%q is not the virtual host of an inbound port, such as "inbound|http|9080"`, name)
		}
	}
	if name := host.GetRoute().GetName(); name != "" && name != "default" {
		r.f.errorf(in+".route.name", `%q is not a route: a port has one, "default", for all requests; give a path in a descriptor of the limit`, name)
	}
	if a := host.GetRoute().GetAction(); a != networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ANY &&
		a != networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ROUTE {
		r.f.errorf(in+".route.action", "%v %s", a, onlyLimits)
	}
	in = at + ".patch"
	r.only(in, p.GetPatch(), onlyLimits, "operation", "value")
	r.is(in+".operation", p.GetPatch().GetOperation().String(), networking.EnvoyFilter_Patch_MERGE.String())
	in += ".value"
	r.decode(p.GetPatch().GetValue(), in, func(d *decoder, v *value) {
		actions := func(v *value, at string) {
			out.actionsAt = at
			d.list(v, at, func(v *value, at string) {
				m := new(routev3.RateLimit)
				d.message(v, m.ProtoReflect(), at)
				out.actions = append(out.actions, m)
			})
		}
		route := func(v *value, at string) {
			d.fields(v, at, map[string]func(*value, string){"rateLimits": actions, "rate_limits": actions})
		}
		configs := func(v *value, at string) {
			if !d.expect(v, mapValue, at) {
				return
			}
			for _, e := range v.keys {
				in := at + "[" + e.key + "]"
				if e.key != limitFilter {
					d.errorf(e.line, in, "%s, with %s", onlyLimits, limitFilter)
					continue
				}
				out.limit, out.limitAt = d.limit(e.val, in), limitPath(e.val, in)
			}
		}
		d.fields(v, in, map[string]func(*value, string){
			"route": route, "typedPerFilterConfig": configs, "typed_per_filter_config": configs,
		})
	})
	if out.limit == nil && len(out.actions) == 0 {
		r.f.errorf(in, "must have route.rate_limits or typed_per_filter_config for %s", limitFilter)
	}
	r.routes = append(r.routes, out)
}

// inboundPort is the port of Istio's name for a virtual host of requests that come in.
func inboundPort(name string) uint32 {
	m := inboundHost.FindStringSubmatch(name)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseUint(m[1], 10, 16)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// decode reads the value of a patch. What is given without a value is refused: a limit
// that has lost it would be none.
func (r *patchReader) decode(v *structpb.Struct, at string, read func(*decoder, *value)) {
	if len(v.GetFields()) == 0 {
		r.f.errorf(at, "required")
		return
	}
	text, err := protojson.Marshal(v)
	if err != nil {
		r.f.errorf(at, "%v", err)
		return
	}
	docs, bad := readDocuments(chunk{text: text})
	if bad != nil || len(docs) != 1 {
		r.f.errorf(at, "can not be read")
		return
	}
	d := &decoder{lines: make(map[string]int)}
	nulls(docs[0], at, func(in string) { d.errorf(0, in, "must have a value") })
	read(d, docs[0])
	for _, p := range d.problems {
		r.f.errorf(camelPath(p.Field), "%s", p.Message)
	}
}

// nulls calls found for everything that is given as null.
func nulls(v *value, at string, found func(at string)) {
	if v.isNull() {
		found(at)
		return
	}
	for i, item := range v.items {
		nulls(item, at+"["+strconv.Itoa(i)+"]", found)
	}
	for _, e := range v.keys {
		if strings.Contains(e.key, ".") {
			nulls(e.val, at+"["+e.key+"]", found)
			continue
		}
		nulls(e.val, join(at, e.key), found)
	}
}

const typeKey = "@type"

var typedStructs = []string{"udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"}

func messageOf(v *value, key string) string {
	text, _ := v.get(key).str()
	return text[strings.LastIndexByte(text, '/')+1:]
}

// limitPath is where the fields of a limit stand that limit reads at a path.
func limitPath(v *value, at string) string {
	if slices.Contains(typedStructs, messageOf(v, typeKey)) {
		at += ".value"
	}
	return camelPath(at)
}

// limit reads the configuration of a filter, which is a LocalRateLimit by its type or in
// a TypedStruct. It returns nil with an error.
func (d *decoder) limit(v *value, at string) *limitv3.LocalRateLimit {
	if !d.expect(v, mapValue, at) {
		return nil
	}
	name := messageOf(v, typeKey)
	switch {
	case slices.Contains(typedStructs, name):
		var url string
		var inner *value
		d.fields(v, at, map[string]func(*value, string){
			typeKey: func(*value, string) {}, "typeUrl": d.into(&url), "type_url": d.into(&url),
			"value": func(v *value, _ string) { inner = v },
		})
		if got := url[strings.LastIndexByte(url, '/')+1:]; got != limitMessage {
			d.errorf(0, at+".typeUrl", "%q %s, of type %s", url, onlyLimits, limitMessage)
			return nil
		}
		if inner == nil {
			d.errorf(0, at+".value", "required")
			return nil
		}
		v, at = inner, at+".value"
	case name == limitMessage:
		without := &value{kind: mapValue, line: v.line}
		for _, e := range v.keys {
			if e.key != typeKey {
				without.keys = append(without.keys, e)
			}
		}
		v = without
	default:
		d.errorf(0, at+"."+typeKey, "%q %s, of type %s", name, onlyLimits, limitMessage)
		return nil
	}
	m := new(limitv3.LocalRateLimit)
	d.message(v, m.ProtoReflect(), at)
	return m
}

// combine makes the limits of the patches, and checks them as they are enforced. In Envoy
// the configuration of a route takes the place of the filter's as a whole, and a
// configuration's own rate_limits take the place of the route's.
func (r *patchReader) combine() {
	f := r.f
	if r.filterAt == "" {
		f.errorf("spec.configPatches", "has no patch that inserts %s, without which a route has no limit: put both into one EnvoyFilter", limitFilter)
		return
	}
	r.check(r.out.filter, r.filterAt, "")
	if len(r.routes) == 0 && !limits(r.out.filter) {
		f.warnf(r.filterAt, "limits nothing: it has no token_bucket")
	}
	seen := make(map[uint32]string)
	for _, p := range r.routes {
		const host = ".match.routeConfiguration.vhost.name"
		other, twice := seen[p.port]
		if !twice && (p.port == 0 || seen[0] != "") && len(seen) > 0 {
			other, twice = seen[0], true
			if other == "" {
				other = r.routes[0].at
			}
		}
		if twice {
			f.errorf(p.at+host, "the port is that of %s too: use one patch for each port", other)
			continue
		}
		seen[p.port] = p.at
		limit, at := p.limit, p.limitAt
		if limit == nil {
			limit, at = proto.CloneOf(r.out.filter), r.filterAt
		}
		if limit.GetTokenBucket() == nil {
			f.errorf(join(at, "tokenBucket"), "required: a route must have one in Envoy")
			continue
		}
		actionsAt := ""
		if len(p.actions) > 0 {
			if actionsAt = camelPath(p.actionsAt); len(limit.GetRateLimits()) > 0 {
				f.errorf(actionsAt, "has no effect: rate_limits of the filter's configuration take its place")
				continue
			}
			if limit.GetStage() != 0 {
				f.errorf(join(at, "stage"), "is not supported: rate_limits of the route have stage 0")
				continue
			}
			limit.RateLimits = p.actions
		}
		r.check(limit, at, actionsAt)
		r.out.routes = append(r.out.routes, portLimit{at: p.at, port: p.port, limit: limit})
	}
}

// check holds a limit against what is enforced and what Envoy accepts. actionsAt is where its rate_limits stand if not in it.
func (r *patchReader) check(m *limitv3.LocalRateLimit, at, actionsAt string) {
	var refused *compile.Error
	if err := compile.CheckRateLimit(m); errors.As(err, &refused) {
		in := at
		if refused.Path != "" {
			in = join(at, camelPath(refused.Path))
		}
		if rest, ok := strings.CutPrefix(refused.Path, "rate_limits"); ok && actionsAt != "" {
			in = actionsAt + camelPath(rest)
		}
		r.f.errorf(in, "%s", refused.Why)
		return
	}
	if err := m.Validate(); err != nil {
		r.f.errorf(at, "%v", err)
		return
	}
	if !limits(m) {
		return
	}
	for _, share := range []struct {
		field string
		zero  bool
	}{
		{"filterEnabled", m.GetFilterEnabled().GetDefaultValue().GetNumerator() == 0},
		{"filterEnforced", m.GetFilterEnforced().GetDefaultValue().GetNumerator() == 0},
	} {
		if share.zero {
			r.f.warnf(join(at, share.field), "is 0, as by default: nothing is refused")
			return
		}
	}
}
