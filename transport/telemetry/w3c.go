package telemetry

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/trace"
)

// This file reads and writes W3C Trace Context (Level 2, with the key grammar
// of 2026). OpenTelemetry's own reader refuses some tracestate that the
// specification allows, and all of a tracestate with a key that comes twice,
// so what its type can not hold is carried beside it.

const (
	traceparentSize = 55 // version 00
	// flagsKnown are the flags that have a meaning: sampled and random.
	flagsKnown = trace.TraceFlags(0x03)
	// maxMembers is the number of list members above which a tracestate is invalid.
	maxMembers = 32
	maxKey     = 256
	maxValue   = 256
)

// parseTraceparent reads a traceparent; ok is false if it is invalid. A version
// above 00 is read as far as 00 goes.
func parseTraceparent(s string) (c trace.SpanContextConfig, ok bool) {
	s = strings.Trim(s, " \t")
	if len(s) < traceparentSize || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return c, false
	}
	var version, flags [1]byte
	if !unhex(version[:], s[:2]) || version[0] == 0xff {
		return c, false
	}
	if len(s) > traceparentSize && (version[0] == 0 || s[traceparentSize] != '-') {
		return c, false
	}
	if !unhex(c.TraceID[:], s[3:35]) || !unhex(c.SpanID[:], s[36:52]) || !unhex(flags[:], s[53:55]) {
		return c, false
	}
	c.TraceFlags = trace.TraceFlags(flags[0]) & flagsKnown
	return c, c.TraceID.IsValid() && c.SpanID.IsValid()
}

// hexDigits is the value of each lower-case hexadecimal digit, and 0xff for
// every other byte.
var hexDigits = func() (table [256]byte) {
	for i := range table {
		table[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		table[c] = byte(i)
	}
	return table
}()

// unhex reads lower-case hexadecimal digits, two for each byte of to.
func unhex(to []byte, s string) bool {
	if len(s) < 2*len(to) {
		return false
	}
	var bad byte
	for i := range to {
		high, low := hexDigits[s[2*i]], hexDigits[s[2*i+1]]
		bad |= high | low
		to[i] = high<<4 | low
	}
	return bad <= 15
}

// formatTraceparent writes version 00.
func formatTraceparent(sc trace.SpanContext) string {
	const digits = "0123456789abcdef"
	var b [traceparentSize]byte
	copy(b[:], "00-")
	traceID, spanID := sc.TraceID(), sc.SpanID()
	for i, v := range traceID {
		b[3+2*i], b[4+2*i] = digits[v>>4], digits[v&15]
	}
	b[35] = '-'
	for i, v := range spanID {
		b[36+2*i], b[37+2*i] = digits[v>>4], digits[v&15]
	}
	b[52] = '-'
	flags := sc.TraceFlags() & flagsKnown
	b[53], b[54] = '0', digits[flags]
	return string(b[:])
}

// member is one entry of a tracestate.
type member struct{ key, value string }

// carried is the tracestate of an incoming request where OpenTelemetry's type
// can not hold all of it. It belongs to one trace.
type carried struct {
	trace   trace.TraceID
	members []member // all of it, in order
	held    string   // what OpenTelemetry's type holds of it
}

type carriedKey struct{}

// parseTracestate reads the fields of a tracestate. held is what
// OpenTelemetry's type can hold; all is nil where that is everything. An
// invalid tracestate is empty.
func parseTracestate(fields []string) (held trace.TraceState, all []member) {
	joined := ""
	switch len(fields) {
	case 0:
		return held, nil
	case 1:
		joined = fields[0]
	default:
		joined = strings.Join(fields, ",")
	}
	held, err := trace.ParseTraceState(joined)
	if err == nil {
		return held, nil
	}
	all, ok := splitTracestate(joined)
	if !ok {
		return trace.TraceState{}, nil
	}
	var fit []string
	for _, m := range all {
		if _, err := trace.ParseTraceState(m.key + "=" + m.value); err == nil {
			fit = append(fit, m.key+"="+m.value)
		}
	}
	held, _ = trace.ParseTraceState(strings.Join(fit, ","))
	return held, all
}

// splitTracestate returns the members of a tracestate. The first of several
// with one key is kept: it is the most recent. ok is false if it is invalid.
func splitTracestate(joined string) (all []member, ok bool) {
	for part := range strings.SplitSeq(joined, ",") {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue
		}
		key, value, ok := strings.Cut(part, "=")
		if !ok || !validKey(key) || !validValue(value) {
			return nil, false
		}
		if indexMember(all, key) >= 0 {
			continue
		}
		if len(all) == maxMembers {
			return nil, false
		}
		all = append(all, member{key, value})
	}
	return all, true
}

func indexMember(all []member, key string) int {
	for i := range all {
		if all[i].key == key {
			return i
		}
	}
	return -1
}

func validKey(s string) bool {
	if s == "" || len(s) > maxKey {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && strings.IndexByte("_-*/@", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func validValue(s string) bool {
	if s == "" || len(s) > maxValue || s[len(s)-1] == ' ' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '=' || c == ',' {
			return false
		}
	}
	return true
}

// formatTracestate writes a span context's tracestate with what is carried
// beside it: members that were added or changed here come first, as the
// specification asks, and the others keep their order.
func formatTracestate(ctx context.Context, sc trace.SpanContext) string {
	state := sc.TraceState()
	c, _ := ctx.Value(carriedKey{}).(*carried)
	if c == nil || c.trace != sc.TraceID() {
		return state.String()
	}
	now := state.String()
	old, _ := splitTracestate(c.held)
	var out []string
	state.Walk(func(key, value string) bool {
		if i := indexMember(c.members, key); i < 0 || c.members[i].value != value {
			out = append(out, key+"="+value)
		}
		return true
	})
	for _, m := range c.members {
		kept := indexMember(old, m.key) < 0 // carried beside: nothing here could change it
		if !kept {
			kept = now == c.held || state.Get(m.key) == m.value
		}
		if kept {
			out = append(out, m.key+"="+m.value)
		}
	}
	if len(out) > maxMembers {
		out = out[:maxMembers]
	}
	return strings.Join(out, ",")
}
