package meshhttp

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/sinew-mesh/sinew/transport/outbound"
)

// localResponse is the answer that policy itself gives to a request, as a server
// would have sent it: to a gRPC client in headers alone
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
func localResponse(req *http.Request, l *outbound.Local) *http.Response {
	header := http.Header(l.Header)
	if header == nil {
		header = make(http.Header)
	}
	status, body := l.Status, l.Body
	if l.GRPC >= 0 {
		header.Set("Content-Type", "application/grpc")
		header.Set("Grpc-Status", strconv.Itoa(l.GRPC))
		if body != "" {
			header.Set("Grpc-Message", escapeMessage(body))
		}
		status, body = http.StatusOK, ""
	}
	resp := &http.Response{
		StatusCode: status, Status: strconv.Itoa(status) + " " + http.StatusText(status),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: http.NoBody, Request: req,
	}
	if status == http.StatusNoContent || status == http.StatusNotModified {
		return resp
	}
	resp.ContentLength = int64(len(body))
	header.Set("Content-Length", strconv.Itoa(len(body)))
	if body == "" {
		return resp
	}
	if header["Content-Type"] == nil {
		header.Set("Content-Type", "text/plain")
	}
	if req.Method != http.MethodHead {
		resp.Body = io.NopCloser(strings.NewReader(body))
	}
	return resp
}

// escapeMessage escapes a grpc-message as the protocol asks.
func escapeMessage(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			writeEscaped(&b, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
