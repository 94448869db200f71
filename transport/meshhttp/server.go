package meshhttp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/sinew-mesh/sinew/transport/inbound"
)

// Handler lets a request through to next where the policy of the listener that
// it came in on says so. The listener is the connection's local address, which
// net/http keeps under http.LocalAddrContextKey. A request that may not pass is
// answered with a JSON body (see Refusal) and never reaches next.
func Handler(e *inbound.Engine, log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if err := e.Admit(r.Context(), &inbound.Request{Local: local}); err != nil {
			refuse(w, log, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Refusal is the body of an answer that the mesh gives in the handler's place.
type Refusal struct {
	// Code is "not_ready": there is no policy for the listener.
	Code string `json:"code"`
	// Listener is the address that the request came in on.
	Listener string `json:"listener,omitempty"`
}

// refuse answers in the handler's place. The caller learns the kind of the
// error; what the control plane said goes to the log.
func refuse(w http.ResponseWriter, log *slog.Logger, err error) {
	body := Refusal{Code: "not_ready"}
	var notReady *inbound.NotReadyError
	if errors.As(err, &notReady) {
		body.Listener = notReady.Address
	}
	log.Warn("request refused", "code", body.Code, "listener", body.Listener, "error", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(body)
}

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
