package routing

import (
	"fmt"
	"slices"
	"strings"
)

const (
	maxTemplateVariables    = 5
	maxTemplateVariableName = 16
)

// templateKind says what an element of a template stands for.
type templateKind uint8

const (
	templateText  templateKind = iota
	templateStar               // "*": one segment, at least one character
	templateStars              // "**": any number of segments, perhaps none
)

type templateElement struct {
	kind templateKind
	text string // for templateText; neighbours and the slashes between segments are one text
	// last says that only text follows, and tail how long that is together.
	last bool
	tail int
}

// templateVariable is a name for the elements from begin up to end.
type templateVariable struct {
	name       string
	begin, end int
}

// Template is a path pattern with wildcards and named variables, "/api/{version}/**"
// (envoy.extensions.path.match.uri_template.v3). Make it with ParseTemplate.
//
// A wildcard stands for the characters that RFC 3986 allows in a path segment:
// a path with others, such as "|" or a control character, matches no wildcard.
type Template struct {
	pattern   string
	elements  []templateElement
	variables []templateVariable
}

// ParseTemplate reads a pattern: "*" and "{name}" stand for one segment, "**"
// and "{name=**}" for any number of segments, "{name=videos/*}" for several,
// and a text after the last wildcard for the end of the path ("/**.mpd"). It is
// an error if the pattern does not begin with "/", a segment mixes text and
// wildcards otherwise, "*" or "**" follows a "**", a name occurs twice, or there
// are more than 5 variables or a name has more than 16 characters.
func ParseTemplate(pattern string) (*Template, error) {
	t := &Template{pattern: pattern}
	if err := t.parse(pattern); err != nil {
		return nil, fmt.Errorf("path template %q: %w", pattern, err)
	}
	return t, nil
}

// String returns the pattern.
func (t *Template) String() string { return t.pattern }

func (t *Template) parse(pattern string) error {
	rest, ok := strings.CutPrefix(pattern, "/")
	if !ok {
		return fmt.Errorf(`does not begin with "/"`)
	}
	t.text("/")
	for rest != "" {
		var err error
		switch rest[0] {
		case '*':
			rest, err = t.wildcard(rest)
		case '{':
			rest, err = t.variable(rest)
		default:
			rest, err = t.segment(rest)
		}
		switch {
		case err != nil:
			return err
		case rest == "":
		case rest[0] == '/':
			t.text("/")
			rest = rest[1:]
		case strings.Contains(rest, "/"):
			return fmt.Errorf("%q: a wildcard has to end its segment, except in the last one", rest)
		default:
			rest, err = t.segment(rest)
			if err != nil {
				return err
			}
		}
	}
	last, tail := true, 0
	for i := len(t.elements) - 1; i >= 0; i-- {
		e := &t.elements[i]
		e.last, e.tail = last, tail
		tail += len(e.text)
		last = last && e.kind == templateText
	}
	return nil
}

// text appends to the text that the elements end with. A variable's elements
// stay apart from those around it, because its end is an index.
func (t *Template) text(s string) {
	if last := len(t.elements) - 1; last >= 0 && t.elements[last].kind == templateText {
		t.elements[last].text += s
		return
	}
	t.elements = append(t.elements, templateElement{kind: templateText, text: s})
}

func (t *Template) segment(rest string) (string, error) {
	n := strings.IndexByte(rest, '/')
	if n < 0 {
		n = len(rest)
	}
	for i := 0; i < n; i++ {
		if !templateCharacter[rest[i]] || rest[i] == '*' {
			return "", fmt.Errorf("%q: the character %q can not be in a segment", rest[:n], rest[i:i+1])
		}
	}
	if n == 0 {
		return "", fmt.Errorf("has an empty segment")
	}
	t.text(rest[:n])
	return rest[n:], nil
}

func (t *Template) wildcard(rest string) (string, error) {
	for _, e := range t.elements {
		if e.kind == templateStars {
			return "", fmt.Errorf(`a wildcard follows "**"`)
		}
	}
	if strings.HasPrefix(rest, "**") {
		t.elements = append(t.elements, templateElement{kind: templateStars})
		return rest[2:], nil
	}
	t.elements = append(t.elements, templateElement{kind: templateStar})
	return rest[1:], nil
}

func (t *Template) variable(rest string) (string, error) {
	inner, rest, ok := strings.Cut(rest[1:], "}")
	if !ok {
		return "", fmt.Errorf(`a "{" has no "}"`)
	}
	name, match, explicit := strings.Cut(inner, "=")
	if err := checkVariableName(name); err != nil {
		return "", err
	}
	if len(t.variables) == maxTemplateVariables {
		return "", fmt.Errorf("has more than %d variables", maxTemplateVariables)
	}
	if slices.ContainsFunc(t.variables, func(v templateVariable) bool { return v.name == name }) {
		return "", fmt.Errorf("the variable %q occurs twice", name)
	}
	if !explicit {
		match = "*"
	}
	if match == "" {
		return "", fmt.Errorf("the variable %q stands for nothing", name)
	}
	// An empty text keeps what comes from being joined to the text before.
	begin := len(t.elements)
	t.elements = append(t.elements, templateElement{kind: templateText})
	for match != "" {
		var err error
		if match[0] == '*' {
			match, err = t.wildcard(match)
		} else {
			match, err = t.segment(match)
		}
		if err != nil {
			return "", fmt.Errorf("the variable %q: %w", name, err)
		}
		if match != "" {
			if match[0] != '/' || match == "/" {
				return "", fmt.Errorf("the variable %q: a wildcard has to be a whole segment", name)
			}
			t.text("/")
			match = match[1:]
		}
	}
	t.variables = append(t.variables, templateVariable{name: name, begin: begin, end: len(t.elements)})
	if rest != "" {
		t.elements = append(t.elements, templateElement{kind: templateText})
	}
	return rest, nil
}

func checkVariableName(name string) error {
	if name == "" || len(name) > maxTemplateVariableName {
		return fmt.Errorf("a variable's name has 1 to %d characters, not %d", maxTemplateVariableName, len(name))
	}
	for i := 0; i < len(name); i++ {
		c := toLower(name[i])
		if 'a' <= c && c <= 'z' || i > 0 && (c == '_' || '0' <= c && c <= '9') {
			continue
		}
		return fmt.Errorf("%q is not a variable's name: a letter, then letters, digits and \"_\"", name)
	}
	return nil
}

// templateCharacter holds what may be in a segment of a path: RFC 3986's pchar.
var templateCharacter = func() (ok [256]bool) {
	for c := range 128 {
		ok[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("-._~%!$&'()*+,;:@=", byte(c)) >= 0
	}
	return ok
}()

// Matches reports whether the whole path, without query, has the template's form. It does not allocate.
func (t *Template) Matches(path string) bool { return t.match(path, nil, false) }

// Fits is Matches with wildcards that stand for any characters but "/". Rules of
// access go by it: an odd character must not lead around what refuses a form of path.
func (t *Template) Fits(path string) bool { return t.match(path, nil, true) }

// spans are where the variables of a template are in a path.
type spans [maxTemplateVariables]struct{ begin, end int }

// match also notes where the variables are, if at is not nil. A path can be
// split in one way only: a wildcard ends at the next slash, or, with only text
// to come, where that text has to begin. With odd it takes every character.
func (t *Template) match(path string, at *spans, odd bool) bool {
	pos := 0
	for i := range t.elements {
		t.note(at, i, pos)
		e := &t.elements[i]
		if e.kind == templateText {
			if !strings.HasPrefix(path[pos:], e.text) {
				return false
			}
			pos += len(e.text)
			continue
		}
		end, limit := pos, len(path)
		if e.last {
			limit -= e.tail
		}
		for end < limit {
			if slash := path[end] == '/'; slash && e.kind == templateStar || !slash && !odd && !templateCharacter[path[end]] {
				break
			}
			end++
		}
		if end == pos && e.kind == templateStar || e.last && end != limit {
			return false
		}
		pos = end
	}
	t.note(at, len(t.elements), pos)
	return pos == len(path)
}

func (t *Template) note(at *spans, element, pos int) {
	if at == nil {
		return
	}
	for i, v := range t.variables {
		if v.begin == element {
			at[i].begin = pos
		}
		if v.end == element {
			at[i].end = pos
		}
	}
}

// TemplateRewrite makes a path from the variables of a Template
// (envoy.extensions.path.rewrite.uri_template.v3). Make it with NewTemplateRewrite.
type TemplateRewrite struct {
	template *Template
	pieces   []templatePiece
}

// templatePiece is a text, or the variable with the index where text is "".
type templatePiece struct {
	text     string
	variable int
}

// NewTemplateRewrite returns the rewrite of paths that t matches: text with the
// variables of t in braces, "/{version}/{rest}". It is an error if the text does
// not begin with "/", has "//" or a character that can not be in a path, or
// names a variable that t does not have.
func NewTemplateRewrite(t *Template, rewrite string) (*TemplateRewrite, error) {
	w := &TemplateRewrite{template: t}
	if err := w.parse(rewrite); err != nil {
		return nil, fmt.Errorf("path template rewrite %q: %w", rewrite, err)
	}
	return w, nil
}

func (w *TemplateRewrite) parse(rewrite string) error {
	if w.template == nil {
		return fmt.Errorf("the route has no path template")
	}
	if !strings.HasPrefix(rewrite, "/") {
		return fmt.Errorf(`does not begin with "/"`)
	}
	if strings.Contains(rewrite, "//") {
		return fmt.Errorf("has an empty segment")
	}
	for rewrite != "" {
		text, rest, variable := strings.Cut(rewrite, "{")
		for i := 0; i < len(text); i++ {
			if !templateCharacter[text[i]] && text[i] != '/' {
				return fmt.Errorf("the character %q can not be in a path", text[i:i+1])
			}
		}
		if text != "" {
			w.pieces = append(w.pieces, templatePiece{text: text})
		}
		if !variable {
			return nil
		}
		name, rest, ok := strings.Cut(rest, "}")
		if !ok {
			return fmt.Errorf(`a "{" has no "}"`)
		}
		if err := checkVariableName(name); err != nil {
			return err
		}
		i := slices.IndexFunc(w.template.variables, func(v templateVariable) bool { return v.name == name })
		if i < 0 {
			return fmt.Errorf("the path template %q has no variable %q", w.template.pattern, name)
		}
		w.pieces = append(w.pieces, templatePiece{variable: i})
		rewrite = rest
	}
	return nil
}

// Replace returns the new path, or the path as it is if the template does not match it.
func (w *TemplateRewrite) Replace(path string) string {
	var at spans
	if !w.template.match(path, &at, false) {
		return path
	}
	var b strings.Builder
	for _, p := range w.pieces {
		if p.text != "" {
			b.WriteString(p.text)
		} else {
			b.WriteString(path[at[p.variable].begin:at[p.variable].end])
		}
	}
	return b.String()
}
