package compile

//lint:file-ignore SA1019 servers still send Envoy's deprecated fields.

import (
	"slices"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sinew-mesh/sinew/routing"
)

// changer is a level of policy that changes headers.
type changer interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

// changes are the header changes of one level.
type changes struct{ request, response routing.HeaderChanges }

func headerChanges(m changer) (c changes, f *fault) {
	if c.request, f = changesOf("request_headers", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()); f != nil {
		return c, f
	}
	c.response, f = changesOf("response_headers", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove())
	return c, f
}

func changesOf(field string, add []*corev3.HeaderValueOption, remove []string) (c routing.HeaderChanges, f *fault) {
	if c.Set, f = each(field+"_to_add", add, headerChange); f != nil {
		return c, f
	}
	c.Remove, f = each(field+"_to_remove", remove, removable)
	return c, f
}

// headerChange reads a header to set. Without append_action or the older
// append a value is added beside those that are there.
func headerChange(m *corev3.HeaderValueOption) (h routing.HeaderChange, f *fault) {
	action := m.GetAppendAction()
	if m.GetAppend() != nil {
		if action != corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			return h, faultf("append_action", "can not be set beside append")
		}
		if !m.GetAppend().GetValue() {
			action = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		}
	}
	var to routing.HeaderAction
	switch action {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		to = routing.AppendOrAdd
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		to = routing.AddIfAbsent
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		to = routing.OverwriteOrAdd
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		to = routing.OverwriteIfExists
	default:
		return h, faultf("append_action", "value %d is not known", action)
	}
	if _, f := removable(m.GetHeader().GetKey()); f != nil {
		return h, f.under("key").under("header")
	}
	h, err := routing.NewHeaderChange(m.GetHeader().GetKey(), m.GetHeader().GetValue(), to, m.GetKeepEmptyValue())
	if err != nil {
		return h, faultf("header.value", "%v", err)
	}
	return h, nil
}

// removable is the name of a header that policy may change: pseudo-headers and
// the authority are changed by rewrites only, as in Envoy.
func removable(name string) (routing.HeaderName, *fault) {
	h, err := routing.NewHeaderRemoval(name)
	if err != nil {
		return h, faultf("", "%v", err)
	}
	return h, nil
}

// inOrder lists the changes of levels, given from the route up, in the order
// in which Envoy makes them. Levels without changes are left out.
func inOrder(specificLast bool, levels ...*routing.HeaderChanges) []routing.HeaderChanges {
	var out []routing.HeaderChanges
	for _, level := range levels {
		if !level.Empty() {
			out = append(out, *level)
		}
	}
	if specificLast {
		slices.Reverse(out)
	}
	return out
}

// mutations reads changes that are made one after the other.
func mutations(list []*mutationv3.HeaderMutation) (c routing.HeaderChanges, f *fault) {
	c.Set, f = each("request_headers_mutations", list, mutation)
	c.InOrder = len(c.Set) > 0
	return c, f
}

func mutation(m *mutationv3.HeaderMutation) (h routing.HeaderChange, f *fault) {
	switch action := m.GetAction().(type) {
	case *mutationv3.HeaderMutation_Remove:
		h.Action = routing.RemoveHeader
		h.Name, f = removable(action.Remove)
		return h, f.under("remove")
	case *mutationv3.HeaderMutation_Append:
		h, f = headerChange(action.Append)
		return h, f.under("append")
	default:
		return h, faultf("", "neither remove nor append is set")
	}
}
