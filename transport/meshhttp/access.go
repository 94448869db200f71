package meshhttp

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/sinew-mesh/sinew/transport/inbound"
)

// Refusal is the body of an answer that the mesh gives in the handler's place,
// in JSON. Where an external authorizer refuses, its own body takes this one's place.
type Refusal struct {
	// Code says why, in a word that does not change:
	//
	//	not_ready          503: there is no policy for the listener
	//	plaintext_refused  403: the listener takes mutual TLS only
	//	peer_refused       403: the connection's certificate is not accepted any more
	//	path_refused       400: the path has no safe reading
	//	redirect           307: the path has another spelling, at Location
	//	external           403 or what policy says: the external authorizer refuses, or does not answer
	//	token              401 or 403: a token is missing or bad; see WWW-Authenticate
	//	denied             403: the rules of access refuse
	//	rate_limited       429 or what policy says: there are too many requests
	//	deadline           504: the deadline that the caller has sent along has passed
	//	overload           503 or what policy says: more requests than can be answered in time
	Code string `json:"code"`
	// Message says it in Envoy's words, where it has some.
	Message string `json:"message,omitempty"`
	// Listener is the address that the request came in on.
	Listener string `json:"listener,omitempty"`
}

var refusalCodes = map[inbound.Reason]string{
	inbound.ReasonPlaintext:     "plaintext_refused",
	inbound.ReasonPeer:          "peer_refused",
	inbound.ReasonPath:          "path_refused",
	inbound.ReasonRedirect:      "redirect",
	inbound.ReasonExternal:      "external",
	inbound.ReasonToken:         "token",
	inbound.ReasonAuthorization: "denied",
	inbound.ReasonRateLimit:     "rate_limited",
	inbound.ReasonDeadline:      "deadline",
	inbound.ReasonOverload:      "overload",
}

// refuse answers in the handler's place. The caller learns the kind of the
// error; the rule, and what the control plane said, go to the log.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error, principal string) {
	status, body := http.StatusServiceUnavailable, Refusal{Code: "not_ready"}
	level := slog.LevelWarn
	var rule string
	var own []byte
	var notReady *inbound.NotReadyError
	var denied *inbound.DeniedError
	switch {
	case errors.As(err, &denied):
		status, rule, own, level = denied.HTTPStatus, denied.Rule, denied.Body, slog.LevelInfo
		body = Refusal{Code: refusalCodes[denied.Reason], Message: denied.Message, Listener: denied.Listener}
		switch {
		case errors.As(denied.Err, &notReady):
			level = slog.LevelWarn
		case denied.Reason == inbound.ReasonRateLimit, denied.Reason == inbound.ReasonDeadline, denied.Reason == inbound.ReasonOverload:
			level = slog.LevelDebug // there are many of them by nature
		}
		for _, line := range denied.Header {
			w.Header().Add(line.Name, line.Value)
		}
	case errors.As(err, &notReady):
		body.Listener = notReady.Address
	}
	if h.log.Enabled(r.Context(), level) {
		h.log.Log(r.Context(), level, "request refused", "code", body.Code, "listener", body.Listener, "rule", rule, "principal", principal, "peer", r.RemoteAddr, "error", err)
	}
	if own == nil {
		own, _ = json.Marshal(body) // of texts only, which can not fail
		own = append(own, '\n')
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
	} else if w.Header().Get("Content-Type") == "" {
		w.Header()["Content-Type"] = nil // net/http does not guess
	}
	w.WriteHeader(status)
	_, _ = w.Write(own)
}
