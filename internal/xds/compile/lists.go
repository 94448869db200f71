package compile

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Every field of every message that is read is in one of three lists.
//
// enforced: read by the code of this package, which puts the value in force
// or refuses it.
//
// harmless: skipped with all that is in it. It is about statistics, logs and
// traces, about sockets and proxies that do not exist here, or has an effect
// only together with a field that is refused. A field that changes who may
// call, where a request goes or whether it is tried again is never harmless.
//
// refused: an error wherever it is set.
//
// A field in none of the lists, of a newer version of the protos, is refused.
// A test walks the descriptors and fails where one is forgotten.
type lists struct{ enforced, harmless, refused string }

type verdict uint8

const (
	isRefused verdict = iota
	isEnforced
	isHarmless
)

// allLists are the lists of all messages.
var allLists = []map[protoreflect.FullName]lists{listenerLists, routeLists, filterLists, clusterLists, endpointLists, balancingLists, discoveryLists, healthLists, coreLists, tlsLists, accessLists, tokenLists, authorizerLists, limitLists}

// verdicts are the lists by message and field.
var verdicts = func() map[protoreflect.FullName]map[protoreflect.Name]verdict {
	all := make(map[protoreflect.FullName]map[protoreflect.Name]verdict)
	for _, messages := range allLists {
		for message, l := range messages {
			fields := make(map[protoreflect.Name]verdict)
			for _, name := range strings.Fields(l.enforced) {
				fields[protoreflect.Name(name)] = isEnforced
			}
			for _, name := range strings.Fields(l.harmless) {
				fields[protoreflect.Name(name)] = isHarmless
			}
			all[message] = fields
		}
	}
	return all
}()

const notSupported = "not supported"

// unlisted returns the first field, in the order of the message's definition,
// that is set in m or in an enforced field of it and is neither enforced nor harmless.
func unlisted(m protoreflect.Message) *fault {
	fields, ok := verdicts[m.Descriptor().FullName()]
	if !ok {
		return faultf("", "%s is not supported", m.Descriptor().FullName())
	}
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		number, _, _ := protowire.ConsumeField(unknown)
		return faultf("", "field number %d of %s is not known", number, m.Descriptor().FullName())
	}
	first, at := (*fault)(nil), 0
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if first != nil && fd.Index() > at {
			return true
		}
		if f := field(fields[fd.Name()], fd, v); f != nil {
			first, at = f, fd.Index()
		}
		return true
	})
	return first
}

func field(verdict verdict, fd protoreflect.FieldDescriptor, v protoreflect.Value) *fault {
	name := string(fd.Name())
	switch {
	case verdict == isHarmless:
		return nil
	case verdict == isRefused:
		return &fault{path: name, why: notSupported}
	case fd.IsMap():
		return values(name, fd, v.Map())
	case fd.Message() == nil || isLeaf(fd.Message()):
		return nil
	case fd.IsList():
		list := v.List()
		for i := range list.Len() {
			if f := unlisted(list.Get(i).Message()); f != nil {
				return f.under(name + "[" + strconv.Itoa(i) + "]")
			}
		}
		return nil
	default:
		return unlisted(v.Message()).under(name)
	}
}

// values looks into the values of a map, in the order of its keys.
func values(name string, fd protoreflect.FieldDescriptor, m protoreflect.Map) *fault {
	if fd.MapValue().Message() == nil || isLeaf(fd.MapValue().Message()) {
		return nil
	}
	first, at := (*fault)(nil), ""
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if key := k.String(); first == nil || key < at {
			if f := unlisted(v.Message()).underKey(name, key); f != nil {
				first, at = f, key
			}
		}
		return true
	})
	return first
}

// isLeaf reports whether a message is a plain value to the code that reads it:
// durations, wrapped numbers, structs, and extensions, which are decoded and
// checked where they are read.
func isLeaf(md protoreflect.MessageDescriptor) bool {
	return md.FullName().Parent() == "google.protobuf"
}
