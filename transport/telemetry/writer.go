package telemetry

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// writer notes the status of a response. It hands ReadFrom through, so that
// net/http can use sendfile, and Unwrap, for http.ResponseController.
type writer struct {
	http.ResponseWriter
	began    time.Time
	status   int // 0 until there is one
	hijacked bool
}

// traced is the writer of a request with a span, and the attributes that the
// span starts with: one object.
type traced struct {
	writer
	start [3]attribute.KeyValue
}

// as returns w with those of the optional interfaces that the writer below
// has. Each of the types is one pointer, which an interface holds without an allocation.
func (w *writer) as() http.ResponseWriter {
	_, f := w.ResponseWriter.(http.Flusher)
	_, h := w.ResponseWriter.(http.Hijacker)
	_, p := w.ResponseWriter.(http.Pusher)
	switch {
	case f && h && p:
		return writerFHP{w}
	case f && h:
		return writerFH{w}
	case f && p:
		return writerFP{w}
	case h && p:
		return writerHP{w}
	case f:
		return writerF{w}
	case h:
		return writerH{w}
	case p:
		return writerP{w}
	default:
		return w
	}
}

// Unwrap lets http.ResponseController find the writer below.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter. Informational responses come
// before the one that counts; 101 is the last of its request.
func (w *writer) WriteHeader(status int) {
	// First, because it panics on a status that does not exist.
	w.ResponseWriter.WriteHeader(status)
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
}

func (w *writer) implicit() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	w.implicit()
	return w.ResponseWriter.Write(p)
}

// WriteString implements io.StringWriter.
func (w *writer) WriteString(s string) (int, error) {
	w.implicit()
	return io.WriteString(w.ResponseWriter, s)
}

// ReadFrom implements io.ReaderFrom, by the writer below if it can.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	w.implicit()
	return io.Copy(w.ResponseWriter, r)
}

func (w *writer) flush() {
	w.implicit()
	w.ResponseWriter.(http.Flusher).Flush()
}

func (w *writer) flushError() error {
	w.implicit()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *writer) hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.ResponseWriter.(http.Hijacker).Hijack()
	w.hijacked = w.hijacked || err == nil
	return conn, rw, err
}

func (w *writer) push(target string, o *http.PushOptions) error {
	return w.ResponseWriter.(http.Pusher).Push(target, o)
}

type (
	writerF   struct{ *writer }
	writerH   struct{ *writer }
	writerP   struct{ *writer }
	writerFH  struct{ *writer }
	writerFP  struct{ *writer }
	writerHP  struct{ *writer }
	writerFHP struct{ *writer }
)

func (w writerF) Flush()              { w.flush() }
func (w writerF) FlushError() error   { return w.flushError() }
func (w writerFH) Flush()             { w.flush() }
func (w writerFH) FlushError() error  { return w.flushError() }
func (w writerFP) Flush()             { w.flush() }
func (w writerFP) FlushError() error  { return w.flushError() }
func (w writerFHP) Flush()            { w.flush() }
func (w writerFHP) FlushError() error { return w.flushError() }

func (w writerH) Hijack() (net.Conn, *bufio.ReadWriter, error)   { return w.hijack() }
func (w writerFH) Hijack() (net.Conn, *bufio.ReadWriter, error)  { return w.hijack() }
func (w writerHP) Hijack() (net.Conn, *bufio.ReadWriter, error)  { return w.hijack() }
func (w writerFHP) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.hijack() }

func (w writerP) Push(target string, o *http.PushOptions) error   { return w.push(target, o) }
func (w writerFP) Push(target string, o *http.PushOptions) error  { return w.push(target, o) }
func (w writerHP) Push(target string, o *http.PushOptions) error  { return w.push(target, o) }
func (w writerFHP) Push(target string, o *http.PushOptions) error { return w.push(target, o) }
