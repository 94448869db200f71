package routing

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// timePart is a text, a layout of package time, or a part that this has no layout for.
type timePart struct {
	text   string
	layout string
	verb   byte // 0 for text and layout
	digits int  // of fractions of a second
}

// defaultTime is what START_TIME stands for by itself, "2006-01-02T15:04:05.000Z".
var defaultTime = []timePart{{layout: "2006-01-02T15:04:05.000Z"}}

// timeLayouts are the verbs of strftime that package time has a layout for.
var timeLayouts = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05",
	'p': "PM", 'b': "Jan", 'h': "Jan", 'B': "January", 'a': "Mon", 'A': "Monday", 'j': "002",
	'z': "-0700", 'Z': "MST", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06",
}

// parseTime reads a format of START_TIME: strftime's verbs, with %f for
// fractions of a second (%3f for milliseconds), %E3S and %E*S for seconds with
// fractions, and %s for seconds since 1970. Empty means the default. Times are
// in UTC.
func parseTime(format string) ([]timePart, error) {
	if format == "" {
		return defaultTime, nil
	}
	var parts []timePart
	for rest := format; rest != ""; {
		text, after, found := strings.Cut(rest, "%")
		if text != "" {
			parts = append(parts, timePart{text: text})
		}
		if !found {
			break
		}
		p, left, err := parseTimeVerb(after)
		if err != nil {
			return nil, fmt.Errorf("time format %q: %w", format, err)
		}
		parts = append(parts, p)
		rest = left
	}
	return parts, nil
}

func parseTimeVerb(s string) (timePart, string, error) {
	if s == "" {
		return timePart{}, "", fmt.Errorf(`ends with "%%"`)
	}
	c := s[0]
	if layout, ok := timeLayouts[c]; ok {
		return timePart{layout: layout}, s[1:], nil
	}
	switch {
	case c == '%':
		return timePart{text: "%"}, s[1:], nil
	case c == 's':
		return timePart{verb: 's'}, s[1:], nil
	case c == 'f':
		return timePart{verb: 'f', digits: 9}, s[1:], nil
	case '1' <= c && c <= '9' && len(s) > 1 && s[1] == 'f':
		return timePart{verb: 'f', digits: int(c - '0')}, s[2:], nil
	case strings.HasPrefix(s, "E*S"):
		return timePart{layout: "05.999999999"}, s[3:], nil
	case c == 'E' && len(s) > 2 && '0' <= s[1] && s[1] <= '9' && s[2] == 'S':
		if s[1] == '0' {
			return timePart{layout: "05"}, s[3:], nil
		}
		return timePart{layout: "05." + strings.Repeat("0", int(s[1]-'0'))}, s[3:], nil
	}
	return timePart{}, "", fmt.Errorf("%%%c is not supported", c)
}

func appendTime(dst []byte, parts []timePart, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	t = t.UTC()
	for _, p := range parts {
		switch {
		case p.layout != "":
			dst = t.AppendFormat(dst, p.layout)
		case p.verb == 's':
			dst = strconv.AppendInt(dst, t.Unix(), 10)
		case p.verb == 'f':
			// Nine digits with the leading zeros, then as many as are asked for.
			from := len(dst)
			dst = strconv.AppendInt(dst, 1_000_000_000+int64(t.Nanosecond()), 10)
			dst = append(dst[:from], dst[from+1:from+1+p.digits]...)
		default:
			dst = append(dst, p.text...)
		}
	}
	return dst
}

// hostOf and portOf take "ip:port", "[ip]:port" or an IP apart; the port is "" if there is none.
func hostOf(address string) string {
	if rest, ok := strings.CutPrefix(address, "["); ok {
		host, _, _ := strings.Cut(rest, "]")
		return host
	}
	if i := strings.LastIndexByte(address, ':'); i >= 0 && strings.IndexByte(address, ':') == i {
		return address[:i]
	}
	return address
}

func portOf(address string) string {
	if i := strings.LastIndex(address, "]:"); i >= 0 {
		return address[i+2:]
	}
	if i := strings.LastIndexByte(address, ':'); i >= 0 && strings.IndexByte(address, ':') == i && !strings.HasPrefix(address, "[") {
		return address[i+1:]
	}
	return ""
}
