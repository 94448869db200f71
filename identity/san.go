package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/sinew-mesh/sinew/routing"
)

var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// names are the subject alternative names as they stand in the certificate.
// crypto/x509 offers URIs only after parsing, which lowers the case of the
// scheme and drops an empty fragment, so that another ID would be read than
// was signed.
type names struct {
	uris, dns, emails []string
	ips               []netip.Addr
}

// alternativeNames reads the subject alternative names (RFC 5280 section 4.2.1.6).
func alternativeNames(cert *x509.Certificate) (names, error) {
	var n names
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(subjectAltName) {
			continue
		}
		var list asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &list)
		if err != nil || len(rest) != 0 || !list.IsCompound || list.Tag != asn1.TagSequence || list.Class != asn1.ClassUniversal {
			return names{}, errors.New("the subject alternative names are malformed")
		}
		for rest = list.Bytes; len(rest) > 0; {
			var v asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &v); err != nil {
				return names{}, errors.New("the subject alternative names are malformed")
			}
			if v.Class != asn1.ClassContextSpecific {
				return names{}, errors.New("the subject alternative names are malformed")
			}
			switch v.Tag {
			case 1:
				n.emails = append(n.emails, string(v.Bytes))
			case 2:
				n.dns = append(n.dns, string(v.Bytes))
			case 6:
				n.uris = append(n.uris, string(v.Bytes))
			case 7:
				ip, ok := netip.AddrFromSlice(v.Bytes)
				if !ok {
					return names{}, fmt.Errorf("an IP address of %d bytes among the subject alternative names", len(v.Bytes))
				}
				n.ips = append(n.ips, ip)
			}
		}
	}
	return n, nil
}

// badText finds a name with a byte that no name has: a NUL or another control
// character, a space or anything beyond ASCII. Such a name is a trick on
// whoever compares prefixes or stops at NUL.
func (n *names) badText() (string, bool) {
	for _, list := range [][]string{n.uris, n.dns, n.emails} {
		for _, s := range list {
			if !printable(s) {
				return s, true
			}
		}
	}
	return "", false
}

func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// SANType says which subject alternative names a SANMatch looks at.
type SANType uint8

const (
	// SANAny looks at DNS names, URIs, e-mail addresses and IP addresses, as
	// DestinationRule's subjectAltNames and Envoy's match_subject_alt_names do.
	SANAny SANType = iota
	SANDNS
	SANURI
	SANEmail
	SANIP
)

func (t SANType) String() string {
	switch t {
	case SANDNS:
		return "DNS"
	case SANURI:
		return "URI"
	case SANEmail:
		return "EMAIL"
	case SANIP:
		return "IP_ADDRESS"
	default:
		return "any"
	}
}

// SANMatch is one subject alternative name that policy accepts
// (envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher). The zero
// value matches nothing that a certificate holds.
type SANMatch struct {
	kind  SANType
	text  string // what is looked for, for messages
	exact bool
	match routing.StringMatch
}

// SANExact accepts a name that is equal to v. A DNS name in the certificate
// may be a wildcard, which stands for exactly one label, and is compared
// without regard to case or a trailing dot.
func SANExact(kind SANType, v string) SANMatch {
	return SANMatch{kind: kind, text: v, exact: true, match: routing.Exact(v, false)}
}

// SANText accepts a name that m matches; text describes m in messages. Unlike
// SANExact it compares the text of the name, so that a wildcard is only a star.
func SANText(kind SANType, text string, m routing.StringMatch) SANMatch {
	return SANMatch{kind: kind, text: text, match: m}
}

// String describes the match for messages.
func (m *SANMatch) String() string { return fmt.Sprintf("%s %q", m.kind, m.text) }

func (m *SANMatch) matches(n *names) bool {
	if m.kind == SANAny || m.kind == SANURI {
		for _, s := range n.uris {
			if printable(s) && m.match.Matches(s) {
				return true
			}
		}
	}
	if m.kind == SANAny || m.kind == SANDNS {
		for _, s := range n.dns {
			if !printable(s) {
				continue
			}
			if m.exact && wildcardMatches(s, m.text) || !m.exact && m.match.Matches(s) {
				return true
			}
		}
	}
	if m.kind == SANAny || m.kind == SANEmail {
		for _, s := range n.emails {
			if printable(s) && m.match.Matches(s) {
				return true
			}
		}
	}
	if m.kind == SANAny || m.kind == SANIP {
		for _, ip := range n.ips {
			if m.match.Matches(ip.String()) {
				return true
			}
		}
	}
	return false
}

// MatchSANs says why none of the certificate's subject alternative names is
// among the accepted ones; nil if one is, or if accepted is empty, which asks
// for nothing. The error is a *VerifyError.
func MatchSANs(cert *x509.Certificate, accepted []SANMatch) error {
	if len(accepted) == 0 {
		return nil
	}
	n, err := alternativeNames(cert)
	if err != nil {
		return &VerifyError{Rule: RuleParse, Detail: err.Error()}
	}
	for i := range accepted {
		if accepted[i].matches(&n) {
			return nil
		}
	}
	return &VerifyError{Rule: RulePeerSAN, Subject: n.summary(), Detail: "no subject alternative name matches " + describe(accepted)}
}

func describe(accepted []SANMatch) string {
	var parts []string
	for i := range accepted {
		if i == 4 {
			parts = append(parts, fmt.Sprintf("%d more", len(accepted)-i))
			break
		}
		parts = append(parts, accepted[i].String())
	}
	return strings.Join(parts, ", ")
}

// summary names the certificate in a message, by its first name.
func (n *names) summary() string {
	for _, list := range [][]string{n.uris, n.dns, n.emails} {
		if len(list) > 0 {
			return list[0]
		}
	}
	return ""
}

// wildcardMatches compares a DNS name in a certificate with a host, RFC 6125
// section 6.4: a wildcard is the whole leftmost label and stands for one label.
func wildcardMatches(pattern, host string) bool {
	pattern, host = strings.TrimSuffix(pattern, "."), strings.TrimSuffix(host, ".")
	if pattern == "" || host == "" {
		return false
	}
	if !strings.Contains(pattern, "*") {
		return strings.EqualFold(pattern, host)
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	if !ok || !strings.HasPrefix(suffix, ".") || strings.Contains(suffix, "*") || len(host) <= len(suffix) {
		return false
	}
	label := host[:len(host)-len(suffix)]
	return strings.EqualFold(host[len(label):], suffix) && !strings.ContainsAny(label, ".*")
}
