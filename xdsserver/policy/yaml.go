package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxFileSize bounds a file of policy; a larger one is refused whole.
	MaxFileSize = 16 << 20
	// maxDocumentSize bounds one YAML document; etcd, where Kubernetes keeps objects, takes 1.5 MiB.
	maxDocumentSize = 2 << 20
	// maxValues bounds the values of a document once its aliases are expanded, so
	// that aliases of aliases can not blow up.
	maxValues = 100_000
	// maxDepth bounds the nesting of a document; protobuf's own limit is 10,000.
	maxDepth = 64
)

type valueKind int

const (
	scalarValue valueKind = iota
	mapValue
	listValue
)

var kindNames = [...]string{"a single value", "a mapping", "a list"}

// value is a YAML value with aliases and merge keys expanded and duplicates refused.
type value struct {
	kind  valueKind
	node  *yaml.Node // of a scalar
	line  int
	items []*value
	keys  []entry
}

type entry struct {
	key  string
	line int
	val  *value
}

func (v *value) get(key string) *value {
	if v == nil {
		return nil
	}
	for _, e := range v.keys {
		if e.key == key {
			return e.val
		}
	}
	return nil
}

func (v *value) isNull() bool {
	return v == nil || v.kind == scalarValue && v.node.ShortTag() == "!!null"
}

// str returns the text of a string scalar.
func (v *value) str() (string, bool) {
	if v == nil || v.kind != scalarValue {
		return "", false
	}
	switch v.node.ShortTag() {
	case "!!str", "!!timestamp":
		return v.node.Value, true
	}
	return "", false
}

// chunk is one document's text and the number of lines before it.
type chunk struct {
	text   []byte
	before int
}

// splitDocuments cuts a YAML file at its document markers, so that a syntax error in
// one document does not take the following ones with it.
func splitDocuments(data []byte) []chunk {
	var out []chunk
	start, startLine, line := 0, 0, 0
	directives := false // the text so far holds directives, which belong to the next document
	flush := func(end int) {
		if text := data[start:end]; len(bytes.TrimSpace(text)) > 0 {
			out = append(out, chunk{text, startLine})
		}
		start, startLine = end, line
	}
	for at := 0; at < len(data); {
		end := bytes.IndexByte(data[at:], '\n')
		if end < 0 {
			end = len(data)
		} else {
			end += at + 1
		}
		text := data[at:end]
		switch {
		case bytes.HasPrefix(text, []byte("---")) && (len(bytes.TrimRight(text, "\r\n")) == 3 || text[3] == ' ' || text[3] == '\t'):
			if !directives {
				flush(at)
			}
			directives = false
		case text[0] == '%' && len(bytes.TrimSpace(data[start:at])) == 0:
			directives = true
		}
		at = end
		line++
	}
	flush(len(data))
	return out
}

var yamlLine = regexp.MustCompile(`\bline (\d+)\b`)

// syntaxError is what the YAML parser says, with the line in the file.
type syntaxError struct {
	line int
	text string
}

// readDocuments parses the documents of one chunk; there is more than one only where
// a document ends with "...".
func readDocuments(c chunk) (docs []*value, bad *syntaxError) {
	if len(c.text) > maxDocumentSize {
		return nil, &syntaxError{c.before + 1, fmt.Sprintf("document has %d bytes; at most %d are read", len(c.text), maxDocumentSize)}
	}
	defer func() {
		// The parser panics on some malformed input.
		if r := recover(); r != nil {
			docs, bad = nil, &syntaxError{c.before + 1, fmt.Sprintf("document can not be parsed: %v", r)}
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(c.text))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			text := strings.TrimPrefix(err.Error(), "yaml: ")
			line := c.before + 1
			if m := yamlLine.FindStringSubmatchIndex(text); m != nil {
				if k, err := strconv.Atoi(text[m[2]:m[3]]); err == nil {
					line = c.before + k
					text = strings.TrimPrefix(strings.TrimPrefix(text[:m[0]]+text[m[1]:], ": "), " ")
				}
			}
			return docs, &syntaxError{line, text}
		}
		b := builder{before: c.before}
		root := &n
		if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
			root = n.Content[0]
		}
		v := b.build(root, 0)
		if b.bad != nil {
			return docs, b.bad
		}
		if !v.isNull() {
			docs = append(docs, v)
		}
	}
}

type builder struct {
	before int
	count  int
	bad    *syntaxError
}

func (b *builder) fail(n *yaml.Node, format string, args ...any) *value {
	if b.bad == nil {
		b.bad = &syntaxError{b.before + n.Line, fmt.Sprintf(format, args...)}
	}
	return &value{node: n, line: b.before + n.Line}
}

func (b *builder) build(n *yaml.Node, depth int) *value {
	b.count++
	switch {
	case b.bad != nil:
		return &value{node: n}
	case b.count > maxValues:
		return b.fail(n, "document has more than %d values once its aliases are expanded", maxValues)
	case depth > maxDepth:
		return b.fail(n, "document is nested deeper than %d levels", maxDepth)
	}
	v := &value{line: b.before + n.Line}
	switch n.Kind {
	case yaml.AliasNode:
		return b.build(n.Alias, depth+1)
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp":
		default:
			return b.fail(n, "tag %s is not supported", n.ShortTag())
		}
		v.node = n
	case yaml.SequenceNode:
		if tag := n.ShortTag(); tag != "!!seq" {
			return b.fail(n, "tag %s is not supported", tag)
		}
		v.kind = listValue
		for _, item := range n.Content {
			v.items = append(v.items, b.build(item, depth+1))
		}
	case yaml.MappingNode:
		if tag := n.ShortTag(); tag != "!!map" {
			return b.fail(n, "tag %s is not supported", tag)
		}
		v.kind = mapValue
		b.mapping(n, v, depth)
	default:
		return b.fail(n, "document can not be read")
	}
	return v
}

func (b *builder) mapping(n *yaml.Node, v *value, depth int) {
	seen := make(map[string]int)
	var merged []*value
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		if k.Kind != yaml.ScalarNode {
			b.fail(k, "a key must be a single value")
			return
		}
		if k.ShortTag() == "!!merge" {
			m := b.build(val, depth+1)
			if m.kind == listValue {
				merged = append(merged, m.items...)
			} else {
				merged = append(merged, m)
			}
			continue
		}
		line := b.before + n.Content[i].Line
		if first, dup := seen[k.Value]; dup {
			b.fail(n.Content[i], "key %q is given twice, first on line %d", k.Value, first)
			return
		}
		seen[k.Value] = line
		v.keys = append(v.keys, entry{k.Value, line, b.build(val, depth+1)})
	}
	// A merge key gives what the mapping itself, or an earlier merged one, does not.
	for _, m := range merged {
		if m.kind != mapValue {
			b.fail(n, "a merge key takes a mapping or a list of mappings")
			return
		}
		for _, e := range m.keys {
			if _, given := seen[e.key]; !given {
				seen[e.key] = e.line
				v.keys = append(v.keys, e)
			}
		}
	}
}
