package routing

import (
	"fmt"
	"regexp"
	"strings"
)

// RegexRewrite replaces what an expression matches
// (envoy.type.matcher.v3.RegexMatchAndSubstitute). Make it with NewRegexRewrite.
type RegexRewrite struct {
	pattern, substitution string
	re                    *regexp.Regexp
	template              string // substitution in package regexp's spelling
}

// NewRegexRewrite returns the rewrite that replaces every match of the pattern
// (RE2's syntax, not anchored, within the limits of Regex). In the
// substitution, \1 to \9 are the groups, \0 the match, \\ a backslash; another
// backslash, or a group that the pattern does not have, is an error.
func NewRegexRewrite(pattern, substitution string) (*RegexRewrite, error) {
	re, err := compileRegex(pattern)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for i := 0; i < len(substitution); i++ {
		c := substitution[i]
		switch {
		case c == '$':
			b.WriteString("$$")
		case c != '\\':
			b.WriteByte(c)
		default:
			i++
			switch {
			case i == len(substitution):
				return nil, fmt.Errorf("substitution %q ends with a backslash", substitution)
			case substitution[i] == '\\':
				b.WriteByte('\\')
			case substitution[i] < '0' || substitution[i] > '9':
				return nil, fmt.Errorf("substitution %q: \\%c is neither a group nor a backslash", substitution, substitution[i])
			case int(substitution[i]-'0') > re.NumSubexp():
				return nil, fmt.Errorf("substitution %q: %q has no group %c", substitution, pattern, substitution[i])
			default:
				fmt.Fprintf(&b, "${%c}", substitution[i])
			}
		}
	}
	return &RegexRewrite{pattern: pattern, substitution: substitution, re: re, template: b.String()}, nil
}

// Replace returns s with every match replaced. It allocates only if there is one.
func (r *RegexRewrite) Replace(s string) string {
	if !r.re.MatchString(s) {
		return s
	}
	return r.re.ReplaceAllString(s, r.template)
}

// Rewrite changes the path and authority of a request on its way to its
// cluster (the rewrites of envoy.config.route.v3.RouteAction). The zero value
// changes nothing.
type Rewrite struct {
	// At most one of these changes the path.
	HasPrefix bool // Prefix replaces what the route's path condition matched
	Prefix    string
	Regex     *RegexRewrite
	Template  *TemplateRewrite
	// PathFormat is the whole path without query (path_rewrite), and HostFormat
	// the authority (host_rewrite). Their commands see the request only.
	PathFormat *Format

	// At most one of these changes the authority.
	Host          string
	HostAuto      bool          // the endpoint's hostname (auto_host_rewrite)
	HostHeader    HeaderName    // the value of a header of the request
	HostPathRegex *RegexRewrite // what the expression makes of the path
	HostFormat    *Format
	// AppendForwardedHost keeps the original authority in X-Forwarded-Host.
	AppendForwardedHost bool
}

// Changes reports whether the rewrite changes anything.
func (w *Rewrite) Changes() bool { return w.changesPath() || w.ChangesAuthority() }

func (w *Rewrite) changesPath() bool {
	return w.HasPrefix || w.Regex != nil || w.Template != nil || w.PathFormat != nil
}

// ChangesAuthority reports whether Authority may return another authority.
func (w *Rewrite) ChangesAuthority() bool {
	return w.Host != "" || w.HostAuto || w.HostHeader != (HeaderName{}) || w.HostPathRegex != nil || w.HostFormat != nil
}

// Check reports a rewrite that can not be followed for requests that m
// matches: two changes of the path or of the authority, a template rewrite
// without its template, or text that can not be in a request line.
func (w *Rewrite) Check(m *Match) error {
	paths, hosts := 0, 0
	for _, is := range []bool{w.HasPrefix, w.Regex != nil, w.Template != nil, w.PathFormat != nil} {
		if is {
			paths++
		}
	}
	for _, is := range []bool{w.Host != "", w.HostAuto, w.HostHeader != (HeaderName{}), w.HostPathRegex != nil, w.HostFormat != nil} {
		if is {
			hosts++
		}
	}
	switch {
	case paths > 1:
		return fmt.Errorf("the path is changed in two ways")
	case hosts > 1:
		return fmt.Errorf("the authority is changed in two ways")
	case w.Template != nil && (m.Path.Kind != PathTemplate || m.Path.Template == nil || m.Path.Template.pattern != w.Template.template.pattern):
		return fmt.Errorf("a template rewrite needs the path template that the route matches by")
	case w.HasPrefix && m.Path.Kind == PathTemplate:
		return fmt.Errorf("there is no prefix to replace where a path template matches")
	}
	for _, f := range []*Format{w.PathFormat, w.HostFormat} {
		if err := f.requestOnly(); err != nil {
			return err
		}
	}
	for _, s := range []string{w.Prefix, w.Host} {
		if i := strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f }); i >= 0 {
			return fmt.Errorf("%q has the character %q, which can not be in a request", s, s[i])
		}
	}
	return nil
}

// Path returns the path and query that are to be sent for a request that m
// matches. The query is kept; a "?" that a rewrite puts into the path begins
// the query, as it would on the wire. Expressions, templates and formats make
// the path without query. What comes out empty changes nothing. It allocates
// only if it changes something.
func (w *Rewrite) Path(m *Match, r *Request) (path, rawQuery string) {
	switch {
	case w.HasPrefix:
		path = w.Prefix + r.Path[m.Path.matched(r.Path):]
	case w.Regex != nil:
		path = w.Regex.Replace(r.Path)
	case w.Template != nil:
		path = w.Template.Replace(r.Path)
	case w.PathFormat != nil:
		path = w.PathFormat.string(&Values{Request: r})
	}
	if path == "" {
		return r.Path, r.RawQuery
	}
	path, rawQuery, more := strings.Cut(path, "?")
	switch {
	case !more:
		rawQuery = r.RawQuery
	case r.RawQuery != "":
		rawQuery += "?" + r.RawQuery
	}
	return path, rawQuery
}

// matched returns how much of a path that matches a prefix rewrite replaces:
// what the condition spells out, or the whole path for an expression.
func (m *PathMatch) matched(path string) int {
	if m.Kind == PathRegex || m.Kind == PathTemplate {
		return len(path)
	}
	return min(len(m.Value), len(path))
}

// Authority returns the authority that is to be sent, or "" to leave it as it
// is. r has the path as it came; its headers are looked at as they are, so
// after header changes it is the changed ones that count (Envoy's order).
// An empty header or hostname changes nothing.
func (w *Rewrite) Authority(r *Request, endpointHostname string) string {
	switch {
	case w.Host != "":
		return w.Host
	case w.HostAuto:
		return endpointHostname
	case w.HostPathRegex != nil:
		return w.HostPathRegex.Replace(r.Path)
	case w.HostHeader != (HeaderName{}):
		v, _ := w.HostHeader.first(r)
		return v
	case w.HostFormat != nil:
		// A host has "-" for what is not known; other formats leave it out (Envoy).
		return string(w.HostFormat.append(nil, &Values{Request: r}, "-"))
	}
	return ""
}

var forwardedHost = NewHeaderName("x-forwarded-host")

// AppendForwardedHost appends the authority to X-Forwarded-Host in h, in place,
// unless it is the last one there (append_x_forwarded_host). h is the caller's own.
func AppendForwardedHost(h map[string][]string, form HeaderForm, authority string) {
	values := forwardedHost.In(h, form)
	switch {
	case authority == "":
	case len(values) == 0 || len(values) == 1 && values[0] == "":
		h[forwardedHost.key(form)] = []string{authority}
	default:
		there := strings.Join(values, ",")
		last := strings.TrimRight(there, ",")
		if last[strings.LastIndexByte(last, ',')+1:] != authority {
			h[forwardedHost.key(form)] = []string{there + "," + authority}
		}
	}
}
