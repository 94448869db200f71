package compile

import (
	"math"
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rewritev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/rewrite/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sinew-mesh/sinew/routing"
)

func redirect(m *routev3.RedirectAction) (*routing.Redirect, *fault) {
	r := &routing.Redirect{Host: m.GetHostRedirect(), Port: m.GetPortRedirect(), StripQuery: m.GetStripQuery()}
	if r.Port > math.MaxUint16 {
		return nil, faultf("port_redirect", "%d is not a port", r.Port)
	}
	switch scheme := m.GetSchemeRewriteSpecifier().(type) {
	case *routev3.RedirectAction_HttpsRedirect:
		r.HTTPS = scheme.HttpsRedirect
	case *routev3.RedirectAction_SchemeRedirect:
		r.Scheme = scheme.SchemeRedirect
	}
	switch path := m.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		r.Path = path.PathRedirect
	case *routev3.RedirectAction_PrefixRewrite:
		r.Prefix, r.HasPrefix = path.PrefixRewrite, path.PrefixRewrite != ""
	case *routev3.RedirectAction_RegexRewrite:
		var f *fault
		if r.Regex, f = regexRewrite(path.RegexRewrite); f != nil {
			return nil, f.under("regex_rewrite")
		}
	case *routev3.RedirectAction_PathRewrite:
		var f *fault
		if r.Format, f = format("path_rewrite", path.PathRewrite); f != nil {
			return nil, f
		}
	}
	switch m.GetResponseCode() {
	case routev3.RedirectAction_MOVED_PERMANENTLY:
		r.Status = http.StatusMovedPermanently
	case routev3.RedirectAction_FOUND:
		r.Status = http.StatusFound
	case routev3.RedirectAction_SEE_OTHER:
		r.Status = http.StatusSeeOther
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		r.Status = http.StatusTemporaryRedirect
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		r.Status = http.StatusPermanentRedirect
	default:
		return nil, faultf("response_code", "value %d is not known", m.GetResponseCode())
	}
	if err := r.Check(); err != nil {
		return nil, faultf("", "%v", err)
	}
	return r, nil
}

// format reads a text with substitution commands; an empty one is none.
func format(field, text string) (*routing.Format, *fault) {
	if text == "" {
		return nil, nil
	}
	out, err := routing.ParseFormat(text)
	if err != nil {
		return nil, faultf(field, "%v", err)
	}
	return &out, nil
}

// defaultBodyLimit is the longest body of a direct response where the routes
// say nothing (envoy.config.route.v3.RouteConfiguration.max_direct_response_body_size_bytes).
const defaultBodyLimit = 4096

func directResponse(m *routev3.DirectResponseAction, limit uint32) (*routing.DirectResponse, *fault) {
	if m.GetStatus() < 200 || m.GetStatus() > 599 {
		return nil, faultf("status", "%d is not from 200 to 599", m.GetStatus())
	}
	d := &routing.DirectResponse{Status: int(m.GetStatus())}
	if m.GetBody() == nil {
		return d, nil
	}
	switch body := m.GetBody().GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		d.Body = body.InlineString
	case *corev3.DataSource_InlineBytes:
		d.Body = string(body.InlineBytes)
	default:
		return nil, faultf("body", "must be inline_string or inline_bytes: other sources are not supported")
	}
	if uint64(len(d.Body)) > uint64(limit) {
		return nil, faultf("body", "has %d bytes, the limit is %d (max_direct_response_body_size_bytes)", len(d.Body), limit)
	}
	return d, nil
}

func regexRewrite(m *matcherv3.RegexMatchAndSubstitute) (*routing.RegexRewrite, *fault) {
	if m.GetPattern().GetRegex() == "" {
		return nil, faultf("pattern.regex", "is empty")
	}
	if strings.ContainsAny(m.GetSubstitution(), "\r\n\x00") {
		return nil, faultf("substitution", "has a control character")
	}
	r, err := routing.NewRegexRewrite(m.GetPattern().GetRegex(), m.GetSubstitution())
	if err != nil {
		return nil, faultf("", "%v", err)
	}
	return r, nil
}

// rewrite reads what a route changes of the path and the authority.
func rewrite(m *routev3.RouteAction, match *routing.Match, w *routing.Rewrite) (f *fault) {
	w.Prefix, w.HasPrefix = m.GetPrefixRewrite(), m.GetPrefixRewrite() != ""
	w.AppendForwardedHost = m.GetAppendXForwardedHost()
	if m.GetRegexRewrite() != nil {
		if w.Regex, f = regexRewrite(m.GetRegexRewrite()); f != nil {
			return f.under("regex_rewrite")
		}
	}
	if m.GetPathRewritePolicy() != nil {
		if w.Template, f = templateRewrite(m.GetPathRewritePolicy(), &match.Path); f != nil {
			return f.under("path_rewrite_policy")
		}
	}
	if w.PathFormat, f = format("path_rewrite", m.GetPathRewrite()); f != nil {
		return f
	}
	switch host := m.GetHostRewriteSpecifier().(type) {
	case *routev3.RouteAction_HostRewriteLiteral:
		w.Host, f = authority("host_rewrite_literal", host.HostRewriteLiteral)
	case *routev3.RouteAction_AutoHostRewrite:
		w.HostAuto = host.AutoHostRewrite.GetValue()
	case *routev3.RouteAction_HostRewriteHeader:
		if host.HostRewriteHeader != "" { // as if it were not there, in Envoy too
			w.HostHeader, f = headerName("host_rewrite_header", host.HostRewriteHeader)
		}
	case *routev3.RouteAction_HostRewritePathRegex:
		w.HostPathRegex, f = regexRewrite(host.HostRewritePathRegex)
		f = f.under("host_rewrite_path_regex")
	case *routev3.RouteAction_HostRewrite:
		w.HostFormat, f = format("host_rewrite", host.HostRewrite)
	}
	if f != nil {
		return f
	}
	if err := w.Check(match); err != nil {
		return faultf("", "%v", err)
	}
	return nil
}

func templateRewrite(m *corev3.TypedExtensionConfig, path *routing.PathMatch) (*routing.TemplateRewrite, *fault) {
	var config rewritev3.UriTemplateRewriteConfig
	if f := extension(m.GetTypedConfig(), &config); f != nil {
		return nil, f.under("typed_config")
	}
	if path.Template == nil {
		return nil, faultf("", "has no meaning without match.path_match_policy, whose variables it uses")
	}
	w, err := routing.NewTemplateRewrite(path.Template, config.GetPathTemplateRewrite())
	if err != nil {
		return nil, faultf("typed_config.path_template_rewrite", "%v", err)
	}
	return w, nil
}

// authority is a text that takes the place of the authority.
func authority(field, value string) (string, *fault) {
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", faultf(field, "%q can not be a host", value)
	}
	return value, nil
}

// headerName is the name of a header, or pseudo-header, that is read.
func headerName(field, name string) (routing.HeaderName, *fault) {
	if !isToken(strings.TrimPrefix(name, ":")) {
		return routing.HeaderName{}, faultf(field, "%q is not the name of a header", name)
	}
	return routing.NewHeaderName(name), nil
}
