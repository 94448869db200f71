// Package identity holds the rules of who a peer is and what it may do.
//
// An ID is a SPIFFE ID. VerifySVID decides whether a certificate chain proves
// one, against the trust bundle of the trust domain that the ID names and of
// no other. A Peer is what is known of the other end of a connection. A
// SANMatch compares a certificate's subject alternative names with what policy
// asks for. Beside them stand the rules of what a request may do: authorization
// (allow, deny, audit, dry run), the claims of its tokens, and the path that
// both are asked about.
//
// The package is pure: it does no I/O, starts no goroutine and reads no clock;
// the time is an argument. Package identity/source obtains certificates and
// bundles, and package identity/tlsconfig puts both together into a
// *tls.Config.
package identity
