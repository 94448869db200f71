package meshhttp

import "crypto/tls"

// clientTLS is the configuration for a URL of the caller's with the https
// scheme: the service's own TLS, verified against the URL's host name.
func clientTLS(serverName string) *tls.Config {
	return &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12}
}
