package inbound

import "context"

// Observer is told of what policy decided. Its methods run on the request's
// or the connection's goroutine and must not block. Telemetry implements it.
type Observer interface {
	// Decided is called once for each request that Admit was asked about and
	// whose listener has policy, or for which none could be had; without a
	// control plane for those that are refused. o is only good until it returns.
	Decided(ctx context.Context, o *Outcome)
	// HandshakeFailed is called for each TLS handshake that failed. rule is one
	// of identity's VerifyRules where the client's certificate was refused, or
	// one of the Handshake words.
	HandshakeFailed(listener, rule string)
}

// Words for handshakes that fail before a certificate is looked at.
const (
	// HandshakeNotReady: there is no policy for the listener, or no certificate to present.
	HandshakeNotReady = "not-ready"
	// HandshakeTimeout: the client was too slow.
	HandshakeTimeout = "timeout"
	// HandshakeClosed: the client, or the server while it shut down, closed the connection.
	HandshakeClosed = "closed"
	// HandshakeCrowded: too many handshakes were under way.
	HandshakeCrowded = "crowded"
	// HandshakeProtocol: the two have no version, cipher or protocol in common, or the client does not speak TLS.
	HandshakeProtocol = "protocol"
)

// Outcome is what policy decided on one request. It has names of rules and
// kinds of connections only, nothing of the request.
type Outcome struct {
	// Listener is the address of the listener.
	Listener string
	// MutualTLS says that the peer has a verified identity.
	MutualTLS bool
	// Reason is why the request was refused; "" where it was let in.
	Reason Reason
	// Rule is what DeniedError.Rule says, or the rule that let the request in.
	Rule string
	// Audited names the AUDIT rule that matches; "" if none does.
	Audited string
	// ExternalFailed says that an external authorizer was asked and gave no answer.
	ExternalFailed bool
	// DryRun reports that rules which are not in force would have refused the
	// request, and DryRunRule names the one that would, if it is one.
	DryRun     bool
	DryRunRule string
	// StrictDryRun names the policy that is not in force and under which the
	// request would have been refused because it came in plaintext.
	StrictDryRun string
}
