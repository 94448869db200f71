package policy

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// decoder reads one object. It goes on after an error, so that all of them are
// reported at once, and remembers the line of every field it has read.
type decoder struct {
	file     string
	ref      Ref
	lines    map[string]int // field path -> line
	hollow   []hollow
	problems []Problem
	// discreet: values may be secrets, and are not repeated.
	discreet bool
}

// hollow is a field that is given, but holds nothing: null, or a list or mapping
// without entries. Protobuf can not tell it from one that is not given.
type hollow struct {
	field string
	null  bool
}

func (d *decoder) errorf(line int, field, format string, args ...any) {
	d.problems = append(d.problems, Problem{
		At: Position{d.file, line}, Object: d.ref, Field: field, Message: fmt.Sprintf(format, args...),
	})
}

// lineOf returns the line of a field, or of the nearest one around it that is given.
func (d *decoder) lineOf(field string) int { return nearestLine(d.lines, field) }

func nearestLine(lines map[string]int, field string) int {
	for field != "" {
		if line, ok := lines[field]; ok {
			return line
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			break
		}
		field = field[:cut]
	}
	return lines[""]
}

// expect reports whether v is of the kind, and complains if it is not.
func (d *decoder) expect(v *value, kind valueKind, field string) bool {
	if v.kind == kind {
		return true
	}
	d.errorf(v.line, field, "must be %s, is %s", kindNames[kind], kindNames[v.kind])
	return false
}

// message reads a mapping into a protobuf message. A null is as good as nothing.
func (d *decoder) message(v *value, m protoreflect.Message, path string) {
	if !d.expect(v, mapValue, path) {
		return
	}
	fields := m.Descriptor().Fields()
	given := make(map[protoreflect.FullName]string)
	for _, e := range v.keys {
		at := join(path, e.key)
		fd := fields.ByJSONName(e.key)
		if fd == nil {
			fd = fields.ByTextName(e.key)
		}
		if fd == nil {
			d.errorf(e.line, at, "unknown field%s", suggest(e.key, fieldNames(fields)))
			continue
		}
		at = join(path, fd.JSONName())
		d.lines[at] = e.line
		if null := e.val.isNull(); null || e.val.kind != scalarValue && len(e.val.items)+len(e.val.keys) == 0 {
			d.hollow = append(d.hollow, hollow{at, null})
			if null {
				continue
			}
		}
		slot := fd.FullName()
		if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
			slot = oneof.FullName()
		}
		if other, taken := given[slot]; taken {
			d.errorf(e.line, at, "can not be set together with %s", other)
			continue
		}
		given[slot] = e.key
		d.field(e.val, m, fd, at)
	}
}

func (d *decoder) field(v *value, m protoreflect.Message, fd protoreflect.FieldDescriptor, at string) {
	switch {
	case fd.IsMap():
		if !d.expect(v, mapValue, at) {
			return
		}
		out := m.Mutable(fd).Map()
		for _, e := range v.keys {
			in := at + "[" + e.key + "]"
			d.lines[in] = e.line
			key, err := mapKey(fd.MapKey(), e.key)
			if err != nil {
				d.errorf(e.line, in, "%v", err)
				continue
			}
			switch {
			case out.Has(key):
				d.errorf(e.line, in, "%s is given twice", key)
			case e.val.isNull() && fd.MapValue().Message() == nil:
				d.errorf(e.line, in, "must have a value")
			case e.val.isNull():
				// As in Istio, a map of messages may name a key without saying more.
				out.Set(key, out.NewValue())
			case composite(fd.MapValue()):
				elem := out.NewValue()
				d.message(e.val, elem.Message(), in)
				out.Set(key, elem)
			default:
				if elem, ok := d.leaf(e.val, fd.MapValue(), out.NewValue(), in); ok {
					out.Set(key, elem)
				}
			}
		}
	case fd.IsList():
		if !d.expect(v, listValue, at) {
			return
		}
		out := m.Mutable(fd).List()
		for i, item := range v.items {
			in := fmt.Sprintf("%s[%d]", at, i)
			d.lines[in] = item.line
			switch {
			case item.isNull():
				d.errorf(item.line, in, "must have a value")
			case composite(fd):
				elem := out.NewElement()
				d.message(item, elem.Message(), in)
				out.Append(elem)
			default:
				if elem, ok := d.leaf(item, fd, out.NewElement(), in); ok {
					out.Append(elem)
				}
			}
		}
	case composite(fd):
		d.message(v, m.Mutable(fd).Message(), at)
	default:
		if elem, ok := d.leaf(v, fd, m.NewField(fd), at); ok {
			m.Set(fd, elem)
		}
	}
}

// composite reports whether the field holds a message that is written as a mapping:
// the well-known types, such as Duration and the wrappers, are written as one value.
func composite(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().ParentFile().Package() != "google.protobuf"
}

func mapKey(fd protoreflect.FieldDescriptor, key string) (protoreflect.MapKey, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(key).MapKey(), nil
	case protoreflect.Uint32Kind:
		n, err := strconv.ParseUint(key, 10, 32)
		if err != nil {
			return protoreflect.MapKey{}, fmt.Errorf("key must be a number, is %q", key)
		}
		return protoreflect.ValueOfUint32(uint32(n)).MapKey(), nil
	}
	return protoreflect.MapKey{}, fmt.Errorf("keys of type %v are not supported", fd.Kind())
}

// leaf reads one value of a scalar or well-known type by protobuf's JSON rules
// (https://protobuf.dev/programming-guides/json/), except that a duration may also be
// written as "30ms" or "5m", as Istio's documentation does.
func (d *decoder) leaf(v *value, fd protoreflect.FieldDescriptor, zero protoreflect.Value, at string) (protoreflect.Value, bool) {
	if fd.Message() == nil || fd.Message().FullName() != "google.protobuf.Struct" {
		if !d.expect(v, scalarValue, at) {
			return zero, false
		}
	}
	if fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Duration" {
		text, ok := v.str()
		if !ok {
			d.errorf(v.line, at, `must be a duration with a unit, such as "2s" or "250ms", is %s`, v.node.Value)
			return zero, false
		}
		dur, err := time.ParseDuration(text)
		if err != nil {
			d.errorf(v.line, at, `%q is not a duration; write it as "2s", "250ms" or "5m"`, text)
			return zero, false
		}
		return protoreflect.ValueOfMessage(durationpb.New(dur).ProtoReflect()), true
	}
	text, err := toJSON(v)
	if err != nil {
		d.errorf(v.line, at, "%v", err)
		return zero, false
	}
	out, err := unmarshalLeaf(fd, zero, text)
	if err != nil {
		why := leafError(fd, v, err)
		if d.discreet && fd.Kind() == protoreflect.StringKind {
			why = "must be text: put it in quotes"
		}
		d.errorf(v.line, at, "%s", why)
		return zero, false
	}
	if f, isFloat := out.Interface().(float64); isFloat && (math.IsNaN(f) || math.IsInf(f, 0)) {
		d.errorf(v.line, at, "must be a finite number")
		return zero, false
	}
	if fd.Message() != nil && fd.Message().FullName() == "google.protobuf.DoubleValue" {
		f := out.Message().Get(fd.Message().Fields().ByName("value")).Float()
		if math.IsNaN(f) || math.IsInf(f, 0) {
			d.errorf(v.line, at, "must be a finite number")
			return zero, false
		}
	}
	return out, true
}

// unmarshalLeaf has protojson read one value: a well-known message directly, a scalar
// as the only field of its message.
func unmarshalLeaf(fd protoreflect.FieldDescriptor, zero protoreflect.Value, text []byte) (protoreflect.Value, error) {
	if fd.Message() != nil {
		m := zero.Message()
		if !m.IsValid() {
			m = m.New()
		}
		return protoreflect.ValueOfMessage(m), protojson.Unmarshal(text, m.Interface())
	}
	md, name, form := fd.ContainingMessage(), fd.JSONName(), `{%q:%s}`
	switch {
	case md.IsMapEntry():
		// The value of a map entry is read as the map of one entry that holds it.
		mapField := mapFieldOf(fd)
		md, name, form = mapField.ContainingMessage(), mapField.JSONName(), `{%q:{"1":%s}}`
	case fd.IsList():
		form = `{%q:[%s]}`
	}
	holder := dynamicpb.NewMessage(md)
	if err := protojson.Unmarshal(fmt.Appendf(nil, form, name, text), holder); err != nil {
		return zero, err
	}
	read := holder.Get(md.Fields().ByJSONName(name))
	switch {
	case fd.ContainingMessage().IsMapEntry():
		read.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			read = v
			return false
		})
	case fd.IsList():
		read = read.List().Get(0)
	}
	return read, nil
}

// mapFieldOf finds the map field whose entries have fd as their value.
func mapFieldOf(fd protoreflect.FieldDescriptor) protoreflect.FieldDescriptor {
	entry := fd.ContainingMessage()
	fields := entry.Parent().(protoreflect.MessageDescriptor).Fields()
	for i := 0; i < fields.Len(); i++ {
		if fields.Get(i).IsMap() && fields.Get(i).Message() == entry {
			return fields.Get(i)
		}
	}
	return nil
}

var linePrefix = regexp.MustCompile(`^proto:.*?\(line \d+:\d+\): |^proto:.`)

// leafError says what is wrong with a value without the parser's own words about the
// place in the text that was made for it.
func leafError(fd protoreflect.FieldDescriptor, v *value, err error) string {
	if fd.Kind() == protoreflect.StringKind {
		return fmt.Sprintf("must be text, is %s: put it in quotes", v.node.Value)
	}
	if fd.Enum() != nil {
		values := fd.Enum().Values()
		names := make([]string, values.Len())
		for i := range names {
			names[i] = string(values.Get(i).Name())
		}
		return fmt.Sprintf("%q is not one of %s", v.node.Value, strings.Join(names, ", "))
	}
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return linePrefix.ReplaceAllString(text, "")
}

// toJSON writes a value as JSON.
func toJSON(v *value) ([]byte, error) {
	switch v.kind {
	case mapValue:
		out := map[string]json.RawMessage{}
		for _, e := range v.keys {
			b, err := toJSON(e.val)
			if err != nil {
				return nil, err
			}
			out[e.key] = b
		}
		return json.Marshal(out)
	case listValue:
		out := []json.RawMessage{}
		for _, item := range v.items {
			b, err := toJSON(item)
			if err != nil {
				return nil, err
			}
			out = append(out, b)
		}
		return json.Marshal(out)
	}
	switch v.node.ShortTag() {
	case "!!null":
		return []byte("null"), nil
	case "!!bool":
		var b bool
		if err := v.node.Decode(&b); err != nil {
			return nil, err
		}
		return strconv.AppendBool(nil, b), nil
	case "!!int":
		var n int64
		if v.node.Decode(&n) == nil {
			return strconv.AppendInt(nil, n, 10), nil
		}
		var u uint64
		if v.node.Decode(&u) == nil {
			return strconv.AppendUint(nil, u, 10), nil
		}
		return nil, fmt.Errorf("%s is too large a number", v.node.Value)
	case "!!float":
		var f float64
		if err := v.node.Decode(&f); err != nil {
			return nil, fmt.Errorf("%s is not a number", v.node.Value)
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("must be a finite number")
		}
		return strconv.AppendFloat(nil, f, 'g', -1, 64), nil
	}
	return json.Marshal(v.node.Value)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func fieldNames(fields protoreflect.FieldDescriptors) []string {
	out := make([]string, fields.Len())
	for i := range out {
		out[i] = fields.Get(i).JSONName()
	}
	return out
}

// suggest returns the known name nearest to a misspelled one, ready to be appended.
func suggest(name string, known []string) string {
	best, at := "", 3
	for _, k := range known {
		if n := distance(strings.ToLower(name), strings.ToLower(k)); n < at && n < len(k) {
			best, at = k, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is the Levenshtein distance, where two letters in the wrong order count
// as one change.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
