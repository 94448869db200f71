package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Severity tells what a problem means for the object it is found in.
type Severity int

const (
	// Error: the object is refused. Its last good state, if there is one, stays in force.
	Error Severity = iota
	// Warning: the object is in force, but probably not as its author meant.
	Warning
	// Notice: something is left out on purpose or kept from before.
	Notice
)

func (s Severity) String() string {
	switch s {
	case Error:
		return "error"
	case Warning:
		return "warning"
	}
	return "notice"
}

// Ref names an object. Kinds that this package reads are unique without their group.
type Ref struct {
	Kind, Namespace, Name string
}

func (r Ref) String() string {
	if r.Kind == "" {
		return ""
	}
	name := r.Name
	if name == "" {
		name = "(no name)"
	}
	return r.Kind + " " + r.Namespace + "/" + name
}

// Ref returns the name of the object.
func (m *Meta) Ref() Ref { return Ref{m.Kind, m.Namespace, m.Name} }

// Problem is something wrong with, or worth saying of, a file or an object in it.
type Problem struct {
	At       Position
	Object   Ref    // zero where the problem belongs to a file or a document that names no object
	Field    string // path of the field, such as spec.http[0].route; "" for the object itself
	Message  string
	Severity Severity
}

// String is "file:line: Kind namespace/name: field: message", with "warning: " or
// "notice: " before the message where it is not an error.
func (p Problem) String() string {
	var b strings.Builder
	for _, part := range []string{p.At.String(), p.Object.String(), p.Field} {
		if part != "" {
			b.WriteString(part)
			b.WriteString(": ")
		}
	}
	if p.Severity != Error {
		b.WriteString(p.Severity.String())
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// sortProblems puts problems in the order of files and lines.
func sortProblems(ps []Problem) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.At.File, b.At.File), cmp.Compare(a.At.Line, b.At.Line))
	})
}
