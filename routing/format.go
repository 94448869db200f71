package routing

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Values are what the commands of a Format stand for. Empty fields stand for nothing.
type Values struct {
	// Request is the request as it goes out; its Header is what REQ looks at.
	Request *Request
	// Status and ResponseHeader are those of the response; 0 and nil before there is one.
	Status         int
	ResponseHeader map[string][]string
	ResponseForm   HeaderForm

	Cluster, Route, VirtualHost string
	Upstream                    string // the endpoint's address, "ip:port"
	Hostname                    string // this machine's
	Protocol                    string // "HTTP/1.1" or "HTTP/2"
	Local, Remote               string // the two ends of the connection that the request came by, "ip:port" or an IP
	Start                       time.Time
	Attempt                     int // 1 for the first
}

// Format is a header's value with Envoy's substitution commands, such as
// "%REQ(x-user)%". Make it with ParseFormat; the zero value is the empty text.
type Format struct {
	text  string // the whole value if there are no commands
	parts []formatPart
}

type formatPart struct {
	command     command
	called      string // as it is written
	text        string // for commandText
	name, other HeaderName
	query       string
	original    bool // for commandPath: x-envoy-original-path, if it is there
	rewritten   bool // for commandPath: the path as it is, unless original has one
	noQuery     bool // for commandPath
	limit       int  // bytes; negative for none
	time        []timePart
}

type command uint8

const (
	commandText command = iota
	commandRequest
	commandRequestPath // REQ_WITHOUT_QUERY
	commandResponse
	commandStatus
	commandProtocol
	commandStart
	commandHostname
	commandRemote
	commandRemoteAddress
	commandRemotePort
	commandLocal
	commandLocalAddress
	commandLocalPort
	commandUpstream
	commandUpstreamAddress
	commandUpstreamPort
	commandCluster
	commandRoute
	commandVirtualHost
	commandAttempt
	commandParameter
	commandQuery
	commandPath
)

// commands are those that mean something for requests that a process sends.
// "Downstream" is the process itself, whose address in the mesh Values has.
var commands = map[string]struct {
	command  command
	argument argument
}{
	"REQ":                                    {commandRequest, headerArgument},
	"REQUEST_HEADER":                         {commandRequest, headerArgument},
	"REQ_WITHOUT_QUERY":                      {commandRequestPath, headerArgument},
	"RESP":                                   {commandResponse, headerArgument},
	"RESPONSE_HEADER":                        {commandResponse, headerArgument},
	"QUERY_PARAM":                            {commandParameter, nameArgument},
	"QUERY_PARAMS":                           {commandQuery, queryArgument},
	"PATH":                                   {commandPath, pathArgument},
	"START_TIME":                             {commandStart, timeArgument},
	"RESPONSE_CODE":                          {commandStatus, noArgument},
	"PROTOCOL":                               {commandProtocol, noArgument},
	"HOSTNAME":                               {commandHostname, noArgument},
	"DOWNSTREAM_REMOTE_ADDRESS":              {commandRemote, noArgument},
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": {commandRemoteAddress, noArgument},
	"DOWNSTREAM_REMOTE_PORT":                 {commandRemotePort, noArgument},
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":       {commandRemote, noArgument},
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": {commandRemoteAddress, noArgument},
	"DOWNSTREAM_DIRECT_REMOTE_PORT":                 {commandRemotePort, noArgument},
	"DOWNSTREAM_LOCAL_ADDRESS":                      {commandLocal, noArgument},
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         {commandLocalAddress, noArgument},
	"DOWNSTREAM_LOCAL_PORT":                         {commandLocalPort, noArgument},
	"UPSTREAM_HOST":                                 {commandUpstream, noArgument},
	"UPSTREAM_REMOTE_ADDRESS":                       {commandUpstream, noArgument},
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":          {commandUpstreamAddress, noArgument},
	"UPSTREAM_REMOTE_PORT":                          {commandUpstreamPort, noArgument},
	"UPSTREAM_CLUSTER":                              {commandCluster, noArgument},
	"UPSTREAM_CLUSTER_RAW":                          {commandCluster, noArgument},
	"ROUTE_NAME":                                    {commandRoute, noArgument},
	"VIRTUAL_HOST_NAME":                             {commandVirtualHost, noArgument},
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":                {commandAttempt, noArgument},
}

type argument uint8

const (
	noArgument argument = iota
	headerArgument
	nameArgument
	timeArgument
	queryArgument
	pathArgument
)

// ParseFormat reads text with commands, "%COMMAND%", "%COMMAND(argument)%" or
// "%COMMAND(argument):length%", where "%%" is a percent sign (Envoy's access log
// and header formats). It is an error if a percent sign belongs to no command, or
// the command is unknown or has no meaning for requests that a process sends;
// the error names it.
func ParseFormat(s string) (Format, error) {
	var parts []formatPart
	var text strings.Builder
	for rest := s; rest != ""; {
		before, after, found := strings.Cut(rest, "%")
		text.WriteString(before)
		if !found {
			break
		}
		if strings.HasPrefix(after, "%") {
			text.WriteByte('%')
			rest = after[1:]
			continue
		}
		if text.Len() > 0 {
			parts = append(parts, formatPart{text: text.String()})
			text.Reset()
		}
		p, left, err := parseCommand(after)
		if err != nil {
			return Format{}, fmt.Errorf("%q at byte %d: %w", s, len(s)-len(after)-1, err)
		}
		parts = append(parts, p)
		rest = left
	}
	if len(parts) == 0 {
		return Format{text: text.String()}, nil
	}
	if text.Len() > 0 {
		parts = append(parts, formatPart{text: text.String()})
	}
	return Format{parts: parts}, nil
}

// parseCommand reads what follows a percent sign, and the one that ends it.
func parseCommand(s string) (p formatPart, rest string, err error) {
	n := 0
	for n < len(s) && ('A' <= s[n] && s[n] <= 'Z' || '0' <= s[n] && s[n] <= '9' || s[n] == '_') {
		n++
	}
	name := s[:n]
	if name == "" {
		return p, "", fmt.Errorf(`a "%%" begins no command ("%%%%" is a percent sign)`)
	}
	rest = s[n:]
	var given string
	if strings.HasPrefix(rest, "(") {
		var ok bool
		if given, rest, ok = strings.Cut(rest[1:], ")"); !ok {
			return p, "", fmt.Errorf("the argument of %s has no end", name)
		}
	}
	p.limit = -1
	if after, ok := strings.CutPrefix(rest, ":"); ok {
		digits, _, _ := strings.Cut(after, "%")
		length, err := strconv.ParseUint(digits, 10, 31)
		if err != nil {
			return p, "", fmt.Errorf("the length of %s is not a number", name)
		}
		p.limit, rest = int(length), after[len(digits):]
	}
	rest, ok := strings.CutPrefix(rest, "%")
	if !ok {
		return p, "", fmt.Errorf(`the command %s does not end with "%%"`, name)
	}
	known, ok := commands[name]
	if !ok {
		return p, "", fmt.Errorf("the command %s is unknown, or has no meaning here", name)
	}
	p.command, p.called = known.command, name
	if p.limit >= 0 && (known.argument == noArgument || known.argument == timeArgument) {
		return p, "", fmt.Errorf("the command %s has no length", name)
	}
	if err := p.takes(known.argument, given); err != nil {
		return p, "", fmt.Errorf("the command %s: %w", name, err)
	}
	return p, rest, nil
}

// takes reads the argument of a command.
func (p *formatPart) takes(kind argument, given string) (err error) {
	switch kind {
	case noArgument:
		if given != "" {
			return fmt.Errorf("takes no argument, not %q", given)
		}
	case headerArgument:
		first, other, _ := strings.Cut(given, "?")
		if strings.Contains(other, "?") {
			return fmt.Errorf("has more than one alternative")
		}
		if first == "" && other == "" {
			return fmt.Errorf("has no header")
		}
		for _, name := range []string{first, other} {
			if name != "" && !isToken(strings.TrimPrefix(name, ":")) {
				return fmt.Errorf("%q is not a header's name", name)
			}
		}
		// Without a first name there is nothing that it could find.
		p.name, p.other = NewHeaderName(first), NewHeaderName(other)
	case nameArgument:
		if p.query = given; given == "" {
			return fmt.Errorf("has no name")
		}
	case timeArgument:
		p.time, err = parseTime(given)
	case queryArgument:
		if given != "" && given != "ORIG" {
			return fmt.Errorf("%q is not supported: only ORIG is", given)
		}
	case pathArgument:
		query, which, _ := strings.Cut(given, ":")
		p.noQuery = query == "NQ"
		p.original = which == "" || which == "ORIG" || which == "ORIG_OR_PATH"
		p.rewritten = which != "ORIG"
		if query != "" && query != "NQ" && query != "WQ" || !p.original && which != "PATH" {
			return fmt.Errorf("%q is not WQ or NQ, and ORIG, PATH or ORIG_OR_PATH", given)
		}
	}
	return err
}

// requestOnly reports a command that needs more than the request. f may be nil.
func (f *Format) requestOnly() error {
	if f == nil {
		return nil
	}
	for i := range f.parts {
		switch f.parts[i].command {
		case commandText, commandRequest, commandRequestPath, commandParameter, commandQuery, commandPath:
		default:
			return fmt.Errorf("a path or authority can be made of the request's headers and parameters only, not of %s", f.parts[i].called)
		}
	}
	return nil
}

// Constant returns the text, and whether it is the same for every request.
func (f Format) Constant() (string, bool) { return f.text, f.parts == nil }

// string returns the text for a request. It allocates only if there are commands.
func (f *Format) string(v *Values) string {
	if f.parts == nil {
		return f.text
	}
	if len(f.parts) == 1 && f.parts[0].command == commandRequest && f.parts[0].limit < 0 && v.Request != nil {
		// The commonest command has its text already, unless it has to be made safe.
		p := &f.parts[0]
		if s, ok := p.header(v.Request); ok && safeValue(s) {
			return s
		}
	}
	var room [128]byte
	return string(f.Append(room[:0], v))
}

// Append appends the text for a request to dst. What is not known, such as a
// header that is not there, is nothing. Of a header with several values the
// first counts. Control characters that come from the request are spaces
// (RFC 9110, section 5.5). It allocates only to make dst longer.
func (f *Format) Append(dst []byte, v *Values) []byte { return f.append(dst, v, "") }

// append is Append with a text for what is not known.
func (f *Format) append(dst []byte, v *Values, unknown string) []byte {
	if f.parts == nil {
		return append(dst, f.text...)
	}
	for i := range f.parts {
		p := &f.parts[i]
		if p.command == commandText {
			dst = append(dst, p.text...)
			continue
		}
		from := len(dst)
		dst = p.append(dst, v)
		if len(dst) == from && unknown != "" && !p.known(v) {
			dst = append(dst, unknown...)
		}
		if p.limit >= 0 && len(dst) > from+p.limit {
			dst = dst[:from+p.limit]
		}
		for j := from; j < len(dst); j++ {
			if dst[j] < ' ' && dst[j] != '\t' || dst[j] == 0x7f {
				dst[j] = ' '
			}
		}
	}
	return dst
}

func safeValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// known reports whether what has come out empty is there, and empty.
func (p *formatPart) known(v *Values) bool {
	if p.command != commandRequest || v.Request == nil {
		return false
	}
	_, ok := p.header(v.Request)
	return ok
}

func (p *formatPart) append(dst []byte, v *Values) []byte {
	switch p.command {
	case commandRequest, commandRequestPath:
		if v.Request == nil {
			return dst
		}
		s, _ := p.header(v.Request)
		if p.command == commandRequestPath {
			s, _, _ = strings.Cut(s, "?")
		}
		return append(dst, s...)
	case commandResponse:
		values := p.name.In(v.ResponseHeader, v.ResponseForm)
		if p.name.lower == ":status" && v.Status != 0 {
			return strconv.AppendInt(dst, int64(v.Status), 10)
		}
		if len(values) == 0 && p.other.lower != "" {
			values = p.other.In(v.ResponseHeader, v.ResponseForm)
		}
		if len(values) > 0 {
			return append(dst, values[0]...)
		}
		return dst
	case commandStatus:
		return strconv.AppendInt(dst, int64(v.Status), 10)
	case commandParameter, commandQuery, commandPath:
		if v.Request == nil {
			return dst
		}
		return p.appendTarget(dst, v.Request)
	case commandStart:
		return appendTime(dst, p.time, v.Start)
	case commandProtocol:
		return append(dst, v.Protocol...)
	case commandHostname:
		return append(dst, v.Hostname...)
	case commandRemote:
		return append(dst, v.Remote...)
	case commandRemoteAddress:
		return append(dst, hostOf(v.Remote)...)
	case commandRemotePort:
		return append(dst, portOf(v.Remote)...)
	case commandLocal:
		return append(dst, v.Local...)
	case commandLocalAddress:
		return append(dst, hostOf(v.Local)...)
	case commandLocalPort:
		return append(dst, portOf(v.Local)...)
	case commandUpstream:
		return append(dst, v.Upstream...)
	case commandUpstreamAddress:
		return append(dst, hostOf(v.Upstream)...)
	case commandUpstreamPort:
		return append(dst, portOf(v.Upstream)...)
	case commandCluster:
		return append(dst, v.Cluster...)
	case commandRoute:
		return append(dst, v.Route...)
	case commandVirtualHost:
		return append(dst, v.VirtualHost...)
	case commandAttempt:
		return strconv.AppendInt(dst, int64(v.Attempt), 10)
	}
	return dst
}

// header returns the value of the first of the two names that is there.
func (p *formatPart) header(r *Request) (string, bool) {
	if s, ok := p.name.first(r); ok || p.other.lower == "" {
		return s, ok
	}
	return p.other.first(r)
}

var originalPath = NewHeaderName("x-envoy-original-path")

// appendTarget appends what a command asks of the request's path and query.
func (p *formatPart) appendTarget(dst []byte, r *Request) []byte {
	switch p.command {
	case commandQuery:
		return append(dst, r.RawQuery...)
	case commandParameter:
		// Here, unlike in conditions, names and values are decoded (Envoy).
		for query := r.RawQuery; query != ""; {
			var pair string
			pair, query, _ = strings.Cut(query, "&")
			name, value, _ := strings.Cut(pair, "=")
			from := len(dst)
			if dst = appendDecoded(dst, name); string(dst[from:]) == p.query {
				return appendDecoded(dst[:from], value)
			}
			dst = dst[:from]
		}
		return dst
	}
	if p.original {
		if s, ok := originalPath.first(r); ok {
			if p.noQuery {
				s, _, _ = strings.Cut(s, "?")
			}
			return append(dst, s...)
		}
	}
	if p.rewritten {
		dst = append(dst, r.Path...)
		if !p.noQuery && r.RawQuery != "" {
			dst = append(append(dst, '?'), r.RawQuery...)
		}
	}
	return dst
}

// appendDecoded appends s with its percent-encoded bytes decoded. What is no
// encoding stays as it is, and so does "+".
func appendDecoded(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if high, low := hexDigit(s[i+1]), hexDigit(s[i+2]); high < 16 && low < 16 {
				dst = append(dst, high<<4|low)
				i += 2
				continue
			}
		}
		dst = append(dst, s[i])
	}
	return dst
}

// hexDigit returns the value of a hexadecimal digit, or 16.
func hexDigit(c byte) byte {
	switch c = toLower(c); {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 16
}
