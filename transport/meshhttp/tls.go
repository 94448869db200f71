package meshhttp

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// clientTLS is the configuration for a URL of the caller's with the https
// scheme: the service's own TLS, verified against the URL's host name.
func clientTLS(serverName string) *tls.Config {
	return &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
}

// dialTLS dials and shakes hands within the limit. net/http would do the
// latter as well, but its errors do not say that nothing of a request was sent.
func dialTLS(dial dialFunc, config *tls.Config, limit time.Duration) dialFunc {
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
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secure, nil
	}
}
