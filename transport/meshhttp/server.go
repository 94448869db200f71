package meshhttp

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// Serve runs an HTTP server on the listener until the context ends, then
// drains: it accepts no more, lets requests in flight finish for up to drain,
// and closes what is left. HTTP/1.1 and HTTP/2 without TLS (h2c, with prior
// knowledge) share the port. It returns nil after a full drain, and
// context.DeadlineExceeded where requests were cut off.
func Serve(ctx context.Context, lis net.Listener, handler http.Handler, drain time.Duration) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:   handler,
		Protocols: protocols,
		// A client that never finishes its header would hold a connection for ever.
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := server.Shutdown(limit)
	if err != nil {
		server.Close()
	}
	if e := <-served; err == nil && !errors.Is(e, http.ErrServerClosed) {
		err = e
	}
	return err
}
