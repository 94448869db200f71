package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// VerifyRule names a rule of certificate verification. The names are stable,
// so that they can label metrics.
type VerifyRule string

const (
	// RuleParse: every certificate of the chain can be parsed and there is at least one.
	RuleParse VerifyRule = "parse"
	// RuleNameText: no subject alternative name holds a NUL, another control
	// character, a space or a byte beyond ASCII.
	RuleNameText VerifyRule = "name-text"
	// RuleOneURI: the leaf has exactly one URI SAN (X509-SVID section 2).
	RuleOneURI VerifyRule = "one-uri-san"
	// RuleID: the URI SAN is a SPIFFE ID (SPIFFE-ID section 2).
	RuleID VerifyRule = "spiffe-id"
	// RuleRootPath: the leaf's ID has a path (X509-SVID section 5.2).
	RuleRootPath VerifyRule = "root-path"
	// RuleLeafCA: the leaf is no CA (X509-SVID sections 4.1 and 5.2).
	RuleLeafCA VerifyRule = "leaf-ca"
	// RuleKeyUsage: the leaf may sign and may sign neither certificates nor
	// revocation lists (X509-SVID sections 4.3 and 5.2).
	RuleKeyUsage VerifyRule = "key-usage"
	// RuleExtendedKeyUsage: where there is an extended key usage it is for
	// servers and clients (X509-SVID section 4.4), along the whole chain for
	// the part that the peer plays.
	RuleExtendedKeyUsage VerifyRule = "extended-key-usage"
	// RuleTrustDomain: there is an X.509 bundle for the ID's trust domain.
	RuleTrustDomain VerifyRule = "trust-domain"
	// RuleNotYetValid and RuleExpired: the time is within the validity of
	// every certificate of the chain.
	RuleNotYetValid VerifyRule = "not-yet-valid"
	RuleExpired     VerifyRule = "expired"
	// RuleChain: signatures lead from the leaf to a root of the bundle.
	RuleChain VerifyRule = "chain"
	// RuleIssuer: whoever signed is a CA that may sign, and carries no
	// workload's ID (X509-SVID sections 4.1 and 4.3).
	RuleIssuer VerifyRule = "issuer"
	// RulePathLength: the path length constraints hold.
	RulePathLength VerifyRule = "path-length"
	// RuleNameConstraints: the name constraints hold.
	RuleNameConstraints VerifyRule = "name-constraints"
	// RuleCriticalExtension: no critical extension is unknown.
	RuleCriticalExtension VerifyRule = "critical-extension"
	// RulePeerID: the identity is one that the caller expects.
	RulePeerID VerifyRule = "peer-id"
	// RulePeerSAN: a subject alternative name is one that the caller expects.
	RulePeerSAN VerifyRule = "peer-san"
	// RulePresent: the peer presented a certificate.
	RulePresent VerifyRule = "certificate-present"
)

// VerifyError says why a certificate was refused.
type VerifyError struct {
	Rule    VerifyRule
	Subject string // the SPIFFE ID or another name in the certificate, as far as one could be read
	Detail  string
	Err     error // the cause where there is one, of crypto/x509 for instance
}

func (e *VerifyError) Error() string {
	subject := e.Subject
	if len(subject) > 200 {
		subject = subject[:200] + "..."
	}
	if subject == "" {
		return fmt.Sprintf("certificate refused by rule %s: %s", e.Rule, e.Detail)
	}
	return fmt.Sprintf("certificate of %q refused by rule %s: %s", subject, e.Rule, e.Detail)
}

func (e *VerifyError) Unwrap() error { return e.Err }

// Usage is the part that the holder of a certificate plays.
type Usage uint8

const (
	UsageAny    Usage = iota // either part
	UsageServer              // the peer is the server
	UsageClient              // the peer is the client
)

func (u Usage) keyUsages() []x509.ExtKeyUsage {
	switch u {
	case UsageServer:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case UsageClient:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	default:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
}

// maxChain bounds the certificates of a chain: no sound hierarchy is as deep,
// and every one of them costs work before the peer is known.
const maxChain = 16

// VerifySVID decides whether the chain, leaf first, proves a SPIFFE ID at the
// time now, by X509-SVID section 5 and SPIFFE-ID section 2, and returns the ID.
// The roots are those of the trust domain that the ID names and no others, so
// that one trust domain's authority can not vouch for another's workloads.
//
// A key usage that is not marked critical is accepted: the mark tells issuers
// what readers without knowledge of the extension must do, and X509-SVID
// section 5 does not ask for it. The error is a *VerifyError.
func VerifySVID(chain []*x509.Certificate, bundles BundleSet, now time.Time, usage Usage) (ID, error) {
	id, err := SVIDID(chain)
	if err != nil {
		return ID{}, err
	}
	fail := func(rule VerifyRule, cause error, format string, args ...any) (ID, error) {
		return ID{}, &VerifyError{Rule: rule, Subject: id.String(), Detail: fmt.Sprintf(format, args...), Err: cause}
	}
	bundle := bundles[id.TrustDomain()]
	if bundle == nil || len(bundle.roots) == 0 {
		return fail(RuleTrustDomain, nil, "there is no X.509 bundle for trust domain %q", id.TrustDomain())
	}
	leaf := chain[0]
	if now.Before(leaf.NotBefore) {
		return fail(RuleNotYetValid, nil, "valid from %s, it is %s", stamp(leaf.NotBefore), stamp(now))
	}
	if now.After(leaf.NotAfter) {
		return fail(RuleExpired, nil, "valid until %s, it is %s", stamp(leaf.NotAfter), stamp(now))
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         bundle.pool,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     usage.keyUsages(),
	})
	if err != nil {
		rule, detail := chainRule(err, now)
		return fail(rule, err, "%s", detail)
	}
	// One good path is enough (RFC 5280 section 6).
	var refused *VerifyError
	for _, path := range chains {
		if refused = checkIssuers(id, path); refused == nil {
			return id, nil
		}
	}
	return ID{}, refused
}

// SVIDID reads the ID of an X509-SVID, leaf first, and checks every rule that
// the leaf can be held to by itself: all of VerifySVID's but the trust domain,
// the validity and the chain. The error is a *VerifyError.
func SVIDID(chain []*x509.Certificate) (ID, error) {
	if len(chain) == 0 || slices.Contains(chain, nil) {
		return ID{}, &VerifyError{Rule: RulePresent, Detail: "there is no certificate"}
	}
	if len(chain) > maxChain {
		return ID{}, &VerifyError{Rule: RuleParse, Detail: fmt.Sprintf("a chain of %d certificates, the limit is %d", len(chain), maxChain)}
	}
	leaf := chain[0]
	n, err := alternativeNames(leaf)
	if err != nil {
		return ID{}, &VerifyError{Rule: RuleParse, Detail: err.Error()}
	}
	fail := func(rule VerifyRule, format string, args ...any) (ID, error) {
		return ID{}, &VerifyError{Rule: rule, Subject: n.summary(), Detail: fmt.Sprintf(format, args...)}
	}
	if s, bad := n.badText(); bad {
		return fail(RuleNameText, "the name %.120q holds a character that no name has", s)
	}
	if len(n.uris) != 1 {
		return fail(RuleOneURI, "%d URI SANs, there must be exactly one", len(n.uris))
	}
	id, err := ParseID(n.uris[0])
	if err != nil {
		var bad *IDError
		errors.As(err, &bad)
		return ID{}, &VerifyError{Rule: RuleID, Subject: n.summary(), Detail: bad.Reason, Err: err}
	}
	if id.Path() == "" {
		return fail(RuleRootPath, "the ID names a trust domain, not a workload: it has no path")
	}
	if leaf.IsCA {
		return fail(RuleLeafCA, "the leaf is a CA")
	}
	switch {
	case leaf.KeyUsage&x509.KeyUsageCertSign != 0:
		return fail(RuleKeyUsage, "the leaf has keyCertSign")
	case leaf.KeyUsage&x509.KeyUsageCRLSign != 0:
		return fail(RuleKeyUsage, "the leaf has cRLSign")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fail(RuleKeyUsage, "the leaf does not have digitalSignature")
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 {
		server, client := false, false
		for _, u := range leaf.ExtKeyUsage {
			server = server || u == x509.ExtKeyUsageServerAuth
			client = client || u == x509.ExtKeyUsageClientAuth
		}
		if !server || !client {
			return fail(RuleExtendedKeyUsage, "serverAuth is %s and clientAuth is %s, both must be set", set(server), set(client))
		}
	}
	return id, nil
}

func set(b bool) string {
	if b {
		return "set"
	}
	return "not set"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkIssuers holds a verified path, leaf first, to the rules that
// crypto/x509 does not know or reads more widely.
func checkIssuers(id ID, path []*x509.Certificate) *VerifyError {
	fail := func(rule VerifyRule, format string, args ...any) *VerifyError {
		return &VerifyError{Rule: rule, Subject: id.String(), Detail: fmt.Sprintf(format, args...)}
	}
	if len(path) < 2 {
		// A bundle that lists the leaf itself would make it its own authority.
		return fail(RuleIssuer, "the leaf stands in the bundle itself, no authority signed it")
	}
	for i, ca := range path[1:] {
		if !ca.IsCA || ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0 {
			return fail(RuleIssuer, "certificate %d of the chain, %q, may not sign certificates", i+1, ca.Subject)
		}
		n, err := alternativeNames(ca)
		if err != nil {
			return fail(RuleParse, "certificate %d of the chain, %q: %v", i+1, ca.Subject, err)
		}
		for _, uri := range n.uris {
			if signer, err := ParseID(uri); err == nil && signer.Path() != "" {
				return fail(RuleIssuer, "certificate %d of the chain carries the workload ID %q", i+1, signer)
			}
		}
		if detail := uriConstraint(ca, id.TrustDomain().String()); detail != "" {
			return fail(RuleNameConstraints, "certificate %d of the chain, %q: %s", i+1, ca.Subject, detail)
		}
	}
	return nil
}

// uriConstraint checks the URI name constraints by RFC 5280 section
// 4.2.1.10: a host without a leading period is that host alone, one with a
// leading period stands for the hosts below it and not for itself.
// crypto/x509 lets the first kind stand for the hosts below it too, which
// would let a CA for "td.example" vouch for "evil.td.example".
func uriConstraint(ca *x509.Certificate, trustDomain string) string {
	if len(ca.PermittedURIDomains) == 0 && len(ca.ExcludedURIDomains) == 0 {
		return ""
	}
	if _, err := netip.ParseAddr(trustDomain); err == nil {
		return fmt.Sprintf("the URI constraints can not be applied to the address %q", trustDomain)
	}
	within := func(constraint string) bool {
		constraint = strings.ToLower(constraint)
		if strings.HasPrefix(constraint, ".") {
			return len(trustDomain) > len(constraint) && strings.HasSuffix(trustDomain, constraint)
		}
		return trustDomain == constraint
	}
	for _, c := range ca.ExcludedURIDomains {
		if within(c) {
			return fmt.Sprintf("trust domain %q is excluded by %q", trustDomain, c)
		}
	}
	for _, c := range ca.PermittedURIDomains {
		if within(c) {
			return ""
		}
	}
	if len(ca.PermittedURIDomains) == 0 {
		return ""
	}
	return fmt.Sprintf("trust domain %q is not among the permitted %q", trustDomain, ca.PermittedURIDomains)
}

// chainRule names the rule that an error of x509.Certificate.Verify is about.
func chainRule(err error, now time.Time) (VerifyRule, string) {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid):
		switch invalid.Reason {
		case x509.Expired:
			if invalid.Cert != nil && now.Before(invalid.Cert.NotBefore) {
				return RuleNotYetValid, fmt.Sprintf("the authority %q is valid from %s, it is %s", invalid.Cert.Subject, stamp(invalid.Cert.NotBefore), stamp(now))
			}
			return RuleExpired, "an authority of the chain has expired: " + err.Error()
		case x509.NotAuthorizedToSign:
			return RuleIssuer, err.Error()
		case x509.TooManyIntermediates:
			return RulePathLength, err.Error()
		case x509.CANotAuthorizedForThisName, x509.TooManyConstraints, x509.NameConstraintsWithoutSANs, x509.UnconstrainedName:
			return RuleNameConstraints, err.Error()
		case x509.IncompatibleUsage, x509.CANotAuthorizedForExtKeyUsage:
			return RuleExtendedKeyUsage, err.Error()
		default:
			return RuleChain, err.Error()
		}
	case errors.As(err, &unknown):
		return RuleChain, err.Error()
	case errors.As(err, new(x509.UnhandledCriticalExtension)):
		return RuleCriticalExtension, err.Error()
	default:
		return RuleChain, err.Error()
	}
}
