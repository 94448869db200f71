package identity

import (
	"fmt"
	"strconv"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/sinew-mesh/sinew/routing"
)

type valueKind uint8

const (
	valueUnset valueKind = iota
	valueNull
	valueNumber
	valueText
	valueBool
	valuePresent
	valueList
	valueOneOf
)

// ValueMatch is a condition on one value of a token's claims
// (envoy.type.matcher.v3.ValueMatcher). The zero value is not a condition and
// is refused where it is used. A value of another type than the condition asks
// for does not fulfil it: the number 1 is not the text "1".
type ValueMatch struct {
	kind      valueKind
	want      bool
	text      routing.StringMatch
	low, high float64
	among     []ValueMatch
}

// ValueNull is fulfilled by null.
func ValueNull() ValueMatch { return ValueMatch{kind: valueNull} }

// ValueNumber is fulfilled by a number that is at least low and less than high;
// by exactly low where both are equal.
func ValueNumber(low, high float64) ValueMatch {
	return ValueMatch{kind: valueNumber, low: low, high: high}
}

// ValueText is fulfilled by a text that matches.
func ValueText(m routing.StringMatch) ValueMatch { return ValueMatch{kind: valueText, text: m} }

// ValueBool is fulfilled by that truth value.
func ValueBool(want bool) ValueMatch { return ValueMatch{kind: valueBool, want: want} }

// ValuePresent is fulfilled by any value that is there. With false it is never fulfilled, as in Envoy.
func ValuePresent(want bool) ValueMatch { return ValueMatch{kind: valuePresent, want: want} }

// ValueInList is fulfilled by a list with an element that fulfils element.
func ValueInList(element ValueMatch) ValueMatch {
	return ValueMatch{kind: valueList, among: []ValueMatch{element}}
}

// ValueOneOf is fulfilled by a value that fulfils one of the alternatives.
func ValueOneOf(alternatives ...ValueMatch) ValueMatch {
	return ValueMatch{kind: valueOneOf, among: alternatives}
}

// check says what is missing from the condition.
func (m *ValueMatch) check(depth int) error {
	switch {
	case m.kind == valueUnset:
		return fmt.Errorf("a condition on a value is not set")
	case depth > maxConditionDepth:
		return fmt.Errorf("a condition on a value is nested more than %d deep", maxConditionDepth)
	case m.kind == valueOneOf && len(m.among) == 0:
		return fmt.Errorf("a condition on a value has no alternatives")
	}
	for i := range m.among {
		if err := m.among[i].check(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

// matches reports whether v, which is there if found, fulfils the condition.
func (m *ValueMatch) matches(v any, found bool) bool {
	switch m.kind {
	case valueNull:
		return found && v == nil
	case valueNumber:
		n, ok := v.(json.Number)
		if !ok {
			return false
		}
		f, err := strconv.ParseFloat(string(n), 64)
		return err == nil && (m.low <= f && f < m.high || m.low == m.high && f == m.low)
	case valueText:
		s, ok := v.(string)
		return ok && m.text.Matches(s)
	case valueBool:
		b, ok := v.(bool)
		return ok && b == m.want
	case valuePresent:
		return found && m.want
	case valueList:
		list, _ := v.([]any)
		for _, e := range list {
			if m.among[0].matches(e, true) {
				return true
			}
		}
	case valueOneOf:
		for i := range m.among {
			if m.among[i].matches(v, found) {
				return true
			}
		}
	}
	return false
}
