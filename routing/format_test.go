package routing

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func everything() *Values {
	return &Values{
		Request: &Request{
			Method: "POST", Scheme: "https", Authority: "a.test:80", Path: "/p/q", RawQuery: "x=1&y=&x=2&z%20=%41%2f+%zz%4&n=%c3%a9x",
			Header: map[string][]string{"X-A": {"first", "second"}, "X-Empty": {""}, "X-Bad": {"a\r\nb\x00c\td"}, "X-Url": {"http://b.test/p?q=1"}},
		},
		Status: 418, ResponseForm: LowerHeaders, ResponseHeader: map[string][]string{"x-r": {"teapot", "pot"}},
		Cluster: "outbound|80||a.test", Route: "canary", VirtualHost: "a.test:80", Upstream: "[fd00::1]:8080", Hostname: "machine",
		Protocol: "HTTP/2", Local: "10.0.0.1:1234", Remote: "10.0.0.2:4321", Attempt: 2,
		Start: time.Date(2026, 3, 4, 5, 6, 7, 89_012_345, time.FixedZone("east", 3600)),
	}
}

func TestFormat(t *testing.T) {
	for format, want := range map[string]string{
		"":                                    "",
		"plain text":                          "plain text",
		"100%%":                               "100%",
		"%%REQ(x-a)%%":                        "%REQ(x-a)%",
		"%%%%":                                "%%",
		"%REQ(x-a)%":                          "first",
		"%REQ(X-A)%%REQ(x-a)%":                "firstfirst",
		"a%REQ(x-a)%b%%c":                     "afirstb%c",
		"%REQUEST_HEADER(x-a)%":               "first",
		"%REQ(x-none)%":                       "",
		"%REQ(x-none?x-a)%":                   "first",
		"%REQ(x-empty?x-a)%":                  "",
		"%REQ(x-a?x-none)%":                   "first",
		"%REQ(x-a):3%":                        "fir",
		"%REQ(x-a):300%":                      "first",
		"%REQ(x-a):0%":                        "",
		"%REQ(x-bad)%":                        "a  b c\td",
		"%REQ(:method)% %REQ(:scheme)%":       "POST https",
		"%REQ(:path)%":                        "/p/q?x=1&y=&x=2&z%20=%41%2f+%zz%4&n=%c3%a9x",
		"%REQ(:authority)%":                   "a.test:80",
		"%REQ(host)%":                         "a.test:80",
		"%REQ_WITHOUT_QUERY(:path)%":          "/p/q",
		"%REQ_WITHOUT_QUERY(x-url)%":          "http://b.test/p",
		"%REQ_WITHOUT_QUERY(x-none?:path):2%": "/p",
		"%QUERY_PARAM(x)%%QUERY_PARAM(y)%":    "1",
		"%REQ(?x-a)%":                         "first",
		"%REQ(x-a?)%":                         "first",
		"%ROUTE_NAME()%":                      "canary",
		"%QUERY_PARAM(z )%":                   "A/+%zz%4",
		"%QUERY_PARAM(n):2%":                  "\u00e9",
		"%QUERY_PARAM(none)%":                 "",
		"%QUERY_PARAMS%":                      "x=1&y=&x=2&z%20=%41%2f+%zz%4&n=%c3%a9x",
		"%QUERY_PARAMS(ORIG):3%":              "x=1",
		"%PATH%":                              "/p/q?x=1&y=&x=2&z%20=%41%2f+%zz%4&n=%c3%a9x",
		"%PATH(NQ)%":                          "/p/q",
		"%PATH(WQ):6%":                        "/p/q?x",
		"%PATH(NQ:PATH)%":                     "/p/q",
		"%PATH(NQ:ORIG)%":                     "",
		"%PATH(NQ:ORIG_OR_PATH)%":             "/p/q",
		"%PATH(:PATH):2%":                     "/p",
		"%START_TIME(%E*S)%":                  "07.089012345",
		"%RESP(x-r)%":                         "teapot",
		"%RESP(x-none?X-R):3%":                "tea",
		"%RESPONSE_HEADER(x-none)%":           "",
		"%RESP(:status)%":                     "418",
		"%RESPONSE_CODE%":                     "418",
		"%PROTOCOL%":                          "HTTP/2",
		"%HOSTNAME%":                          "machine",
		"%DOWNSTREAM_REMOTE_ADDRESS%":         "10.0.0.2:4321",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%": "10.0.0.2",
		"%DOWNSTREAM_REMOTE_PORT%":                 "4321",
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%":       "10.0.0.2:4321",
		"%DOWNSTREAM_LOCAL_ADDRESS%":               "10.0.0.1:1234",
		"%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%":  "10.0.0.1",
		"%DOWNSTREAM_LOCAL_PORT%":                  "1234",
		"%UPSTREAM_HOST%":                          "[fd00::1]:8080",
		"%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":   "fd00::1",
		"%UPSTREAM_REMOTE_PORT%":                   "8080",
		"%UPSTREAM_CLUSTER%":                       "outbound|80||a.test",
		"%ROUTE_NAME% of %VIRTUAL_HOST_NAME%":      "canary of a.test:80",
		"%UPSTREAM_REQUEST_ATTEMPT_COUNT%":         "2",
		"%START_TIME%":                             "2026-03-04T04:06:07.089Z",
		"%START_TIME(%s.%3f)%":                     "1772597167.089",
		"%START_TIME(%f %1f %9f)%":                 "089012345 0 089012345",
		"%START_TIME(%Y/%m/%dT%H:%M:%S%z %Z)%":     "2026/03/04T04:06:07+0000 UTC",
		"%START_TIME(%E3S|%E0S|%%|%j|%e|%b %a)%":   "07.089|07|%|063| 4|Mar Wed",
		"%START_TIME(nothing)%":                    "nothing",
	} {
		f, err := ParseFormat(format)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		v := everything()
		if got := string(f.Append([]byte("> "), v)); got != "> "+want {
			t.Errorf("%s: %q, want %q", format, got, "> "+want)
		}
		if got := f.string(v); got != want {
			t.Errorf("%s as a string: %q, want %q", format, got, want)
		}
		text, constant := f.Constant()
		if isConstant := !strings.Contains(strings.ReplaceAll(format, "%%", ""), "%"); constant != isConstant || constant && text != want {
			t.Errorf("%s: the constant is %q, %v", format, text, constant)
		}
		f.Append(nil, &Values{}) // nothing is known: nothing panics
	}
}

// TestFormatOriginalPath: after a rewrite the path as it came is in a header.
func TestFormatOriginalPath(t *testing.T) {
	r := &Request{Path: "/new", RawQuery: "q", Header: map[string][]string{"X-Envoy-Original-Path": {"/old?q"}}}
	for format, want := range map[string]string{
		"%PATH%": "/old?q", "%PATH(NQ)%": "/old", "%PATH(WQ:ORIG)%": "/old?q", "%PATH(WQ:PATH)%": "/new?q", "%PATH(NQ:PATH)%": "/new", "%PATH(NQ:ORIG_OR_PATH)%": "/old",
	} {
		if got := mustFormat(t, format).string(&Values{Request: r}); got != want {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}

func TestFormatRefused(t *testing.T) {
	for format, says := range map[string]string{
		"%":                         "begins no command",
		"50% off":                   "begins no command",
		"a%b":                       "begins no command",
		"%REQ(x-a)":                 `REQ does not end with "%"`,
		"%REQ(x-a":                  "argument of REQ has no end",
		"%REQ%":                     "REQ",
		"%REQ()%":                   "REQ",
		"%REQ(?)%":                  "REQ: has no header",
		"%REQ(a b)%":                "not a header's name",
		"%REQ(a?b:)%":               "not a header's name",
		"%START_TIME:5%":            "START_TIME has no length",
		"%QUERY_PARAM%":             "QUERY_PARAM: has no name",
		"%QUERY_PARAMS(DECODED)%":   "only ORIG is",
		"%PATH(X)%":                 "is not WQ or NQ",
		"%PATH(WQ:X)%":              "is not WQ or NQ",
		"%REQ(a?b?c)%":              "REQ: has more than one alternative",
		"%REQ(a):x%":                "length of REQ is not a number",
		"%REQ(a):-1%":               "length of REQ is not a number",
		"%REQ(a):99999999999%":      "length of REQ is not a number",
		"%PROTOCOL(a)%":             "PROTOCOL",
		"%PROTOCOL:3%":              "PROTOCOL has no length",
		"%START_TIME(%Q)%":          "%Q is not supported",
		"%START_TIME(%)%":           `ends with "%"`,
		"%UNKNOWN%":                 "UNKNOWN is unknown",
		"%UNIQUE_ID%":               "UNIQUE_ID is unknown, or has no meaning here",
		"%ENVIRONMENT(HOME)%":       "ENVIRONMENT is unknown",
		"%DOWNSTREAM_PEER_URI_SAN%": "DOWNSTREAM_PEER_URI_SAN",
		"%DYNAMIC_METADATA(a:b)%":   "DYNAMIC_METADATA",
		"%RESPONSE_FLAGS%":          "RESPONSE_FLAGS",
		"ok %REQ(a)% %BYTES_SENT%":  "at byte 12",
		"%req(a)%":                  "begins no command",
	} {
		if _, err := ParseFormat(format); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), fmt.Sprintf("%q", format)) {
			t.Errorf("%s: the error is %v, want one that says %q", format, err, says)
		}
	}
}

func TestAddressParts(t *testing.T) {
	for address, want := range map[string][2]string{
		"1.2.3.4:5": {"1.2.3.4", "5"}, "1.2.3.4": {"1.2.3.4", ""}, "[::1]:5": {"::1", "5"}, "::1": {"::1", ""}, "[::1]": {"::1", ""},
		"": {"", ""}, "host:http": {"host", "http"}, "/run/socket": {"/run/socket", ""},
	} {
		if got := [2]string{hostOf(address), portOf(address)}; got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}

// FuzzFormat asks that no format and no request puts a second line into a
// header, and that text and commands are told apart as they are written.
func FuzzFormat(f *testing.F) {
	f.Add("a%%%REQ(x-a?:path):3%b%START_TIME(%s)%", "value", "q=1")
	f.Fuzz(func(t *testing.T, format, value, query string) {
		parsed, err := ParseFormat(format)
		if err != nil {
			if !strings.Contains(err.Error(), fmt.Sprintf("%q", format)) {
				t.Fatalf("%v does not name %q", err, format)
			}
			return
		}
		v := everything()
		v.Request.Header["X-A"] = []string{value}
		v.Request.RawQuery = query
		got := string(parsed.Append(nil, v))
		if got != parsed.string(v) {
			t.Fatalf("%q: %q and %q", format, got, parsed.string(v))
		}
		text, constant := parsed.Constant()
		if constant {
			if want := strings.ReplaceAll(format, "%%", "%"); text != want || got != want {
				t.Fatalf("%q: %q and %q, want %q", format, text, got, want)
			}
			return
		}
		if strings.ContainsAny(got, "\r\n\x00") && !strings.ContainsAny(format, "\r\n\x00") {
			t.Fatalf("%q with %q: %q", format, value, got)
		}
	})
}
