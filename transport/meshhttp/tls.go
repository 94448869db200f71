package meshhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"time"

	"github.com/sinew-mesh/sinew/identity/tlsconfig"
)

// clientTLS is the configuration for a URL of the caller's with the https
// scheme: the service's own TLS, verified against the URL's host name.
func clientTLS(serverName string) *tls.Config {
	return &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12, NextProtos: []string{tlsconfig.ProtocolHTTP2, tlsconfig.ProtocolHTTP1}}
}

// tlsError marks an error of TLS before any byte of a request was sent.
type tlsError struct{ err error }

func (e *tlsError) Error() string   { return e.err.Error() }
func (e *tlsError) Unwrap() error   { return e.err }
func (e *tlsError) Timeout() bool   { var t net.Error; return errors.As(e.err, &t) && t.Timeout() }
func (e *tlsError) Temporary() bool { return true }

// dialTLS dials and shakes hands within the limit. net/http would do the
// latter as well, but its errors do not say that nothing of a request was
// sent. http2 refuses a server that has not agreed to speak it.
func dialTLS(dial dialFunc, config *tls.Config, limit time.Duration, http2 bool) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		secure := tls.Client(conn, config)
		err = secure.HandshakeContext(ctx)
		if negotiated := secure.ConnectionState().NegotiatedProtocol; err == nil && http2 && negotiated != tlsconfig.ProtocolHTTP2 {
			err = fmt.Errorf("the server agreed to %q, and policy asks for HTTP/2", negotiated)
		}
		if err != nil {
			conn.Close()
			return nil, &tlsError{err}
		}
		return secure, nil
	}
}

// handshakeAlerts are the alerts of RFC 8446 section 6.2 that only a handshake
// ends with.
var handshakeAlerts = []uint64{
	40,  // handshake_failure
	42,  // bad_certificate
	43,  // unsupported_certificate
	44,  // certificate_revoked
	45,  // certificate_expired
	46,  // certificate_unknown
	48,  // unknown_ca
	49,  // access_denied
	51,  // decrypt_error
	70,  // protocol_version
	71,  // insufficient_security
	112, // unrecognized_name
	116, // certificate_required
	120, // no_application_protocol
}

// refusedHandshake reports whether the peer ended the handshake. With TLS 1.3
// a client learns that its certificate was refused only when it first reads,
// after it has sent a request; the server has not looked at that, because its
// handshake was never complete. crypto/tls does not export its type of alerts.
func refusedHandshake(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return false
	}
	v := reflect.ValueOf(op.Err)
	return v.Kind() == reflect.Uint8 && slices.Contains(handshakeAlerts, v.Uint())
}
