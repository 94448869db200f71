package identity

import (
	"fmt"
	"strings"
)

const (
	maxTemplateVariables    = 5  // as Envoy
	maxTemplateVariableName = 16 // bytes, as Envoy
	maxTemplateLength       = 1024
)

// PathTemplate is a pattern for paths (envoy.extensions.path.match.uri_template.v3;
// Istio's {*} and {**} are its * and **):
//
//	/api/*/users/{id}     * and {id} are one segment that is not empty
//	/static/**            ** is any rest, which may be empty
//	/media/{name=**}.mp4  a text may follow the last of them
//	/{v=api/*}/x          a variable may hold several segments
//
// After ** there are only fixed segments. There are at most five variables. A
// segment matches any bytes but "/"; the names of variables play no part.
type PathTemplate struct {
	text string
	// before are the segments up to "**", or all of them; "*" is the empty string.
	before []string
	rest   bool   // there is a "**" behind them
	tail   string // what the path ends with: behind "**" with its slashes, or the text behind a last "*"
}

// String returns the template as it was written.
func (t *PathTemplate) String() string { return t.text }

type templateParser struct {
	t         PathTemplate
	fixed     []string // segments behind "**"
	slash     bool     // the template ends with a slash
	variables map[string]bool
}

// ParsePathTemplate reads a template. The error says what is wrong and where.
func ParsePathTemplate(text string) (PathTemplate, error) {
	if len(text) > maxTemplateLength {
		return PathTemplate{}, fmt.Errorf("path template has %d bytes, the limit is %d", len(text), maxTemplateLength)
	}
	p := templateParser{t: PathTemplate{text: text}, variables: make(map[string]bool)}
	if err := p.parse(text); err != nil {
		return PathTemplate{}, fmt.Errorf("path template %q: %w", text, err)
	}
	return p.t, nil
}

func (p *templateParser) parse(text string) error {
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		return fmt.Errorf("does not begin with a slash")
	}
	suffix := ""
	for rest != "" {
		var err error
		switch rest[0] {
		case '*':
			rest, err = p.operator(rest)
		case '{':
			rest, err = p.variable(rest)
		default:
			rest, err = p.literal(rest)
		}
		if err != nil {
			return err
		}
		if rest == "" {
			break
		}
		if rest[0] == '/' {
			rest = rest[1:]
			p.slash = rest == ""
			continue
		}
		if suffix, rest = cutLiteral(rest); suffix == "" || rest != "" {
			return fmt.Errorf("only fixed text may follow a wildcard within a segment, and only at the end of the template")
		}
	}
	switch {
	case p.t.rest:
		for _, segment := range p.fixed {
			p.t.tail += "/" + segment
		}
		if p.slash {
			p.t.tail += "/"
		}
		p.t.tail += suffix
	case p.slash:
		p.t.tail = "/"
	default:
		p.t.tail = suffix
	}
	return nil
}

func (p *templateParser) segment(s string) {
	if p.t.rest {
		p.fixed = append(p.fixed, s)
		return
	}
	p.t.before = append(p.t.before, s)
}

func (p *templateParser) operator(s string) (string, error) {
	if p.t.rest {
		return "", fmt.Errorf("a wildcard follows **")
	}
	if rest, ok := strings.CutPrefix(s, "**"); ok {
		p.t.rest = true
		return rest, nil
	}
	p.segment("")
	return s[1:], nil
}

func (p *templateParser) literal(s string) (string, error) {
	text, rest := cutLiteral(s)
	if text == "" {
		if s[0] == '/' {
			return "", fmt.Errorf("has an empty segment")
		}
		return "", fmt.Errorf("has a character %q, which is not allowed in a path", s[0])
	}
	p.segment(text)
	return rest, nil
}

func (p *templateParser) variable(s string) (string, error) {
	inside, rest, ok := strings.Cut(s[1:], "}")
	if !ok {
		return "", fmt.Errorf("has a { without a }")
	}
	name, pattern, given := strings.Cut(inside, "=")
	switch {
	case !templateName(name):
		return "", fmt.Errorf("variable %q is not a letter followed by letters, digits and _, %d bytes at most", name, maxTemplateVariableName)
	case p.variables[name]:
		return "", fmt.Errorf("has two variables %q", name)
	case len(p.variables) == maxTemplateVariables:
		return "", fmt.Errorf("has more than %d variables", maxTemplateVariables)
	}
	p.variables[name] = true
	if !given {
		pattern = "*"
	}
	if pattern == "" {
		return "", fmt.Errorf("variable %q has an empty pattern", name)
	}
	for more := true; more; {
		var err error
		if strings.HasPrefix(pattern, "*") {
			pattern, err = p.operator(pattern)
		} else if pattern != "" {
			pattern, err = p.literal(pattern)
		} else {
			err = fmt.Errorf("the pattern of variable %q ends with a slash", name)
		}
		if err != nil {
			return "", err
		}
		if pattern, more = strings.CutPrefix(pattern, "/"); !more && pattern != "" {
			return "", fmt.Errorf("the pattern of variable %q mixes a wildcard and text in one segment", name)
		}
	}
	return rest, nil
}

func templateName(s string) bool {
	if s == "" || len(s) > maxTemplateVariableName {
		return false
	}
	for i := 0; i < len(s); i++ {
		letter := 'a' <= s[i]|0x20 && s[i]|0x20 <= 'z'
		if !letter && (i == 0 || s[i] != '_' && (s[i] < '0' || s[i] > '9')) {
			return false
		}
	}
	return true
}

// cutLiteral cuts off the path characters that s begins with (pchar of RFC 3986
// without "*").
func cutLiteral(s string) (text, rest string) {
	i := 0
	for i < len(s) && (pathBytes[s[i]] == pathUnreserved || strings.IndexByte("%!$&'()+,;:@=", s[i]) >= 0) {
		i++
	}
	return s[:i], s[i:]
}

// Matches reports whether the path, without its query, has the template's form. It does not allocate.
func (t *PathTemplate) Matches(path string) bool {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return false
	}
	for i, segment := range t.before {
		last := i == len(t.before)-1 && !t.rest
		if last {
			if rest, ok = strings.CutSuffix(rest, t.tail); !ok {
				return false
			}
		}
		end := strings.IndexByte(rest, '/')
		if end < 0 {
			end = len(rest)
		}
		if segment == "" && end == 0 || segment != "" && rest[:end] != segment {
			return false
		}
		if last {
			return end == len(rest)
		}
		if end == len(rest) {
			return false
		}
		rest = rest[end+1:]
	}
	if t.rest {
		return strings.HasSuffix(rest, t.tail)
	}
	return rest == ""
}
