package policy

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/sinew-mesh/sinew/routing"
)

var headerValuePattern = regexp.MustCompile("^[^\u0000-\u0008\u000A-\u001F\u007F]*$")

func (f *findings) headerOperations(in string, h *networking.Headers) {
	if h == nil {
		return
	}
	for _, set := range []struct {
		field string
		m     map[string]string
	}{{".request.set", h.GetRequest().GetSet()}, {".request.add", h.GetRequest().GetAdd()}} {
		for _, k := range sortedKeys(set.m) {
			at := in + set.field + "[" + k + "]"
			switch {
			case k == "":
				f.errorf(at, "a header needs a name")
			case strings.HasPrefix(k, ":") && !isAuthority(k):
				f.errorf(at, "the pseudo header %q can not be changed", k)
			}
			f.headerValue(at, set.m[k])
		}
	}
	for _, set := range []struct {
		field string
		m     map[string]string
	}{{".response.set", h.GetResponse().GetSet()}, {".response.add", h.GetResponse().GetAdd()}} {
		for _, k := range sortedKeys(set.m) {
			f.changedHeader(in+set.field+"["+k+"]", k)
			f.headerValue(in+set.field+"["+k+"]", set.m[k])
		}
	}
	for i, k := range h.GetRequest().GetRemove() {
		f.changedHeader(fmt.Sprintf("%s.request.remove[%d]", in, i), k)
	}
	for i, k := range h.GetResponse().GetRemove() {
		f.changedHeader(fmt.Sprintf("%s.response.remove[%d]", in, i), k)
	}
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

func (f *findings) changedHeader(field, name string) {
	switch {
	case name == "":
		f.errorf(field, "a header needs a name")
	case strings.EqualFold(name, "host") || strings.HasPrefix(name, ":"):
		f.errorf(field, "%q can not be changed here", name)
	}
}

// headerValue checks a value as Envoy takes it: "%" starts a command such as
// %HOSTNAME% and is written twice to stand for itself
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers).
func (f *findings) headerValue(field, v string) {
	if !headerValuePattern.MatchString(v) {
		f.errorf(field, "%q has a control character", v)
	}
	for rest := v; ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			return
		}
		if strings.HasPrefix(after, "%") {
			rest = after[1:]
			continue
		}
		name, tail, closed := strings.Cut(after, "%")
		if !closed || name == "" {
			f.errorf(field, "%q has a single %%: write it twice, or close the command with another", v)
			return
		}
		rest = tail
	}
}

func (f *findings) cors(in string, c *networking.CorsPolicy) {
	if c == nil {
		return
	}
	for i, o := range c.AllowOrigins {
		at := fmt.Sprintf("%s.allowOrigins[%d]", in, i)
		if o.GetExact() == "" && o.GetPrefix() == "" && o.GetRegex() == "" {
			f.errorf(at, "must not be empty")
			continue
		}
		f.stringMatch(at, o, false)
	}
	methods := []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace, "*",
	}
	for i, m := range c.AllowMethods {
		if !slices.Contains(methods, m) {
			f.errorf(fmt.Sprintf("%s.allowMethods[%d]", in, i), "%q is not an HTTP method", m)
		}
	}
	for _, set := range []struct {
		field string
		names []string
	}{{"allowHeaders", c.AllowHeaders}, {"exposeHeaders", c.ExposeHeaders}} {
		for i, name := range set.names {
			if name != "*" && !headerNamePattern.MatchString(name) {
				f.errorf(fmt.Sprintf("%s.%s[%d]", in, set.field, i), "%q is not the name of a header", name)
			}
		}
	}
	if c.MaxAge != nil {
		f.err(in+".maxAge", checkDuration(c.MaxAge))
		if c.MaxAge.GetNanos() > 0 {
			f.errorf(in+".maxAge", "must be whole seconds")
		}
	}
}

func (f *findings) fault(in string, ft *networking.HTTPFaultInjection) {
	if ft == nil {
		return
	}
	if ft.Abort == nil && ft.Delay == nil {
		f.errorf(in, "needs an abort or a delay")
	}
	if a := ft.Abort; a != nil {
		f.faultPercentage(in+".abort.percentage", a.Percentage)
		switch t := a.ErrorType.(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			f.httpStatus(in+".abort.httpStatus", int64(t.HttpStatus))
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			var c codes.Code
			if c.UnmarshalJSON(fmt.Appendf(nil, "%q", t.GrpcStatus)) != nil {
				f.errorf(in+".abort.grpcStatus", "%q is not the name of a gRPC status, such as NOT_FOUND", t.GrpcStatus)
			}
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			f.errorf(in+".abort.http2Error", "is not supported by Istio")
		default:
			f.warnf(in+".abort", "names no status")
		}
	}
	if d := ft.Delay; d != nil {
		f.faultPercentage(in+".delay.percentage", d.Percentage)
		switch t := d.HttpDelayType.(type) {
		case *networking.HTTPFaultInjection_Delay_FixedDelay:
			f.err(in+".delay.fixedDelay", checkDuration(t.FixedDelay))
		case *networking.HTTPFaultInjection_Delay_ExponentialDelay:
			f.errorf(in+".delay.exponentialDelay", "is not supported by Istio")
		}
	}
}

func (f *findings) faultPercentage(field string, p *networking.Percent) {
	if v := p.GetValue(); v < 0 || v > 100 || v > 0 && v < 0.0001 {
		f.errorf(field+".value", "%v is neither 0 nor between 0.0001 and 100", v)
	}
}

func (f *findings) mirrorPercentage(field string, p *networking.Percent) {
	if v := p.GetValue(); v < 0 || v > 100 {
		f.errorf(field+".value", "%v is not between 0 and 100", v)
	}
}

func (f *findings) httpStatus(field string, code int64) {
	if code < 200 || code > 600 {
		f.errorf(field, "%d is not an HTTP status between 200 and 599", code)
	}
}

func (f *findings) redirect(in string, r *networking.HTTPRedirect) {
	if r == nil {
		return
	}
	if r.Uri == "" && r.Authority == "" && r.RedirectPort == nil && r.Scheme == "" && r.PrefixRewrite == "" {
		f.errorf(in, "changes nothing: give a uri, authority, scheme or port")
	}
	if r.RedirectCode != 0 && (r.RedirectCode < 300 || r.RedirectCode > 399) {
		f.errorf(in+".redirectCode", "%d is not a status of redirection", r.RedirectCode)
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		f.errorf(in+".scheme", "%q is neither http nor https", r.Scheme)
	}
	f.optionalPort(in+".port", r.GetPort())
}

func (f *findings) directResponse(in string, r *networking.HTTPDirectResponse) {
	if r == nil {
		return
	}
	size := len(r.GetBody().GetString_()) + len(r.GetBody().GetBytes())
	if size > 1<<20 {
		f.errorf(in+".body", "has %d bytes; at most 1 MiB is accepted", size)
	} else if size > 100<<10 {
		f.warnf(in+".body", "has %d bytes, which every client of the host receives", size)
	}
	f.httpStatus(in+".status", int64(r.Status))
}

func (f *findings) rewrite(in string, r *networking.HTTPRoute) {
	authority := r.GetRewrite().GetAuthority()
	for _, set := range []map[string]string{r.GetHeaders().GetRequest().GetSet(), r.GetHeaders().GetRequest().GetAdd()} {
		for _, k := range sortedKeys(set) {
			if !isAuthority(k) {
				continue
			}
			if authority != "" {
				f.errorf(in+".headers.request", "the authority is set twice, to %q and to %q", authority, set[k])
			}
			authority = set[k]
		}
	}
	rw := r.Rewrite
	if rw == nil {
		return
	}
	at := in + ".rewrite"
	re := rw.UriRegexRewrite
	if rw.Uri != "" && re != nil {
		f.errorf(at+".uriRegexRewrite", "can not be set together with uri")
	}
	if rw.Uri == "" && re == nil && rw.Authority == "" {
		f.errorf(at, "changes nothing: give a uri, uriRegexRewrite or authority")
	}
	if re != nil {
		if re.Match == "" || re.Rewrite == "" {
			f.errorf(at+".uriRegexRewrite", "needs both match and rewrite")
		} else {
			f.regex(at+".uriRegexRewrite.match", re.Match)
			if _, err := regexp.Compile(re.Match); err == nil {
				if _, err := routing.NewRegexRewrite(re.Match, re.Rewrite); err != nil {
					f.errorf(at+".uriRegexRewrite.rewrite", "%v", err)
				}
			}
		}
	}
}
