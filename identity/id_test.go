package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/sinew-mesh/sinew/internal/conformance"
)

func TestIDConformance(t *testing.T) {
	var f struct {
		IDs []struct {
			ID, Path    string
			TrustDomain string `json:"trust_domain"`
			Valid       bool
		}
		Characters map[string]struct {
			Template string
			Chars    [][2]any
		}
		TrustDomainFromString []struct {
			In          string
			Valid       bool
			TrustDomain string `json:"trust_domain"`
		} `json:"trust_domain_from_string"`
		PathFromSegments []struct {
			Segments []string
			Path     string
			Valid    bool
		} `json:"path_from_segments"`
		Path []struct {
			Path  string
			Valid bool
		}
		Match []struct {
			Matcher struct {
				ID       string
				OneOf    []string `json:"one_of"`
				MemberOf string   `json:"member_of"`
			}
			IDs   []string
			Match []bool
		}
	}
	conformance.Load(t, "spiffe/spiffe_ids.json", &f)
	tally := conformance.Deciding(t, "spiffe/spiffe_ids.json")
	for i, c := range f.IDs {
		id, err := ParseID(c.ID)
		if td, _, _ := strings.Cut(strings.TrimPrefix(c.ID, scheme), "/"); c.Valid && (len(c.ID) > MaxIDLength || len(td) > MaxTrustDomainLength) {
			if err == nil {
				t.Errorf("an ID of %d bytes and a trust domain of %d is accepted", len(c.ID), len(td))
			}
			tally.Differs(t, fmt.Sprintf("ids [%d]", i))
			continue
		}
		if (err == nil) != c.Valid || id.TrustDomain().String() != c.TrustDomain || id.Path() != c.Path {
			tally.Fail(t, "ParseID(%q) = %q, %q, %v; want valid %v, %q, %q", c.ID, id.TrustDomain(), id.Path(), err, c.Valid, c.TrustDomain, c.Path)
			continue
		}
		tally.Pass()
	}
	for name, c := range f.Characters {
		for _, row := range c.Chars {
			char, valid := rune(row[0].(float64)), row[1].(bool)
			in := strings.ReplaceAll(c.Template, "{char}", string(char))
			_, err := ParseID(in)
			if name == "bare_trust_domain" {
				_, err = ParseTrustDomain(in)
			}
			if (err == nil) != valid {
				tally.Fail(t, "%s: %q: %v, want valid %v", name, in, err, valid)
				continue
			}
			tally.Pass()
		}
	}
	for _, c := range f.TrustDomainFromString {
		// An ID or a bare name.
		td, err := ParseTrustDomain(c.In)
		if strings.Contains(c.In, ":/") {
			var id ID
			id, err = ParseID(c.In)
			td = id.TrustDomain()
		}
		if (err == nil) != c.Valid || td.String() != c.TrustDomain {
			tally.Fail(t, "trust domain of %q: %q, %v", c.In, td, err)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.PathFromSegments {
		id, err := NewID(TrustDomain{"td"}, c.Segments...)
		if (err == nil) != c.Valid || id.Path() != c.Path {
			tally.Fail(t, "NewID(%q) = %q, %v", c.Segments, id, err)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.Path {
		if reason := badPath(c.Path); (reason == "") != c.Valid {
			tally.Fail(t, "path %q: %q", c.Path, reason)
			continue
		}
		tally.Pass()
	}
	parse := func(s string) ID {
		if s == "" {
			return ID{}
		}
		id, err := ParseID(s)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	for _, c := range f.Match {
		var rule IDRule
		switch {
		case c.Matcher.ID != "":
			rule = OneOf(parse(c.Matcher.ID))
		case c.Matcher.MemberOf != "":
			rule = MemberOf(TrustDomain{c.Matcher.MemberOf})
		default:
			var ids []ID
			for _, s := range c.Matcher.OneOf {
				ids = append(ids, parse(s))
			}
			rule = OneOf(ids...)
		}
		for i, s := range c.IDs {
			if err := rule(parse(s)); (err == nil) != c.Match[i] {
				tally.Fail(t, "%+v on %q: %v, want %v", c.Matcher, s, err, c.Match[i])
				continue
			}
			tally.Pass()
		}
	}
	tally.Check(t, "spiffe/spiffe_ids.json", 829, 2)
}

func TestIstioIdentityConformance(t *testing.T) {
	var f struct {
		ParseIdentity []struct {
			In       string
			Identity []string
		} `json:"parse_identity"`
		Generate []struct {
			TrustDomain    string `json:"trust_domain"`
			Namespace      string
			ServiceAccount string `json:"service_account"`
			URI            string
			Error          bool
		}
		Expand []struct {
			Name         string
			URIs         []string
			TrustDomains []string `json:"trust_domains"`
			Result       []string
		} `json:"expand_trust_domain_aliases"`
		PeerVerification struct {
			TrustDomain string `json:"server_id_trust_domain"`
			Cases       []struct {
				Name    string
				Bundles map[string][]string
				Accept  bool
			}
		} `json:"peer_verification"`
		BundleDocuments []struct {
			File, Why string
			Valid     bool
		} `json:"bundle_documents"`
	}
	conformance.Load(t, "spiffe/istio_identity.json", &f)
	tally := conformance.Deciding(t, "spiffe/istio_identity.json")
	for _, c := range f.ParseIdentity {
		var got []string
		if id, err := ParseID(c.In); err == nil {
			if ns, sa, ok := id.Istio(); ok {
				got = []string{id.TrustDomain().String(), ns, sa}
			}
		}
		if !reflect.DeepEqual(got, c.Identity) {
			tally.Fail(t, "%q: %q, want %q", c.In, got, c.Identity)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.Generate {
		id, err := IstioID(c.TrustDomain, c.Namespace, c.ServiceAccount)
		if (err != nil) != c.Error || id.String() != c.URI {
			tally.Fail(t, "%+v: %q, %v", c, id, err)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.Expand {
		if got := ExpandTrustDomains(c.URIs, c.TrustDomains); !reflect.DeepEqual(got, c.Result) {
			tally.Fail(t, "%s: %q, want %q", c.Name, got, c.Result)
			continue
		}
		tally.Pass()
	}
	// The certificates that these cases name are not in the collection: as there, the
	// first root has signed the intermediate that signed the server, and the second has not.
	roots := map[string]*authority{}
	for _, c := range f.PeerVerification.Cases {
		for _, files := range c.Bundles {
			for _, file := range files {
				roots[file] = (*authority)(nil).issue(t, caTemplate(file))
			}
		}
	}
	between := roots["certs/istio/spiffe-root-cert-1.pem"].issue(t, caTemplate("intermediate"))
	server := between.issue(t, leafTemplate([]string{"spiffe://" + f.PeerVerification.TrustDomain + "/ns/foo/sa/bar"}))
	for _, c := range f.PeerVerification.Cases {
		set := BundleSet{}
		for td, files := range c.Bundles {
			var certs []*x509.Certificate
			for _, file := range files {
				certs = append(certs, roots[file].cert)
			}
			set[TrustDomain{td}] = mustBundle(t, certs...)
		}
		if _, err := VerifySVID([]*x509.Certificate{server.cert, between.cert}, set, hostileNow, UsageServer); (err == nil) != c.Accept {
			tally.Fail(t, "peer_verification %s: %v, want accepted %v", c.Name, err, c.Accept)
			continue
		}
		tally.Pass()
	}
	for _, c := range f.BundleDocuments {
		b, err := ParseBundle(conformanceFile(t, c.File))
		if strings.Contains(c.Why, "go-spiffe rejects; X509-SVID.md 6.2") {
			if err != nil || len(b.Roots()) != 1 {
				t.Errorf("%s: %v, %v; the first certificate of the entry must count", c.File, b, err)
			}
			tally.Differs(t, c.File)
			continue
		}
		if (err == nil) != c.Valid {
			tally.Fail(t, "%s: %v, want valid %v (%s)", c.File, err, c.Valid, c.Why)
			continue
		}
		tally.Pass()
	}
	tally.Check(t, "spiffe/istio_identity.json", 20, 1)
}

func TestIDRefusalsNameTheReason(t *testing.T) {
	for in, reason := range map[string]string{
		"":                       "scheme",
		"SPIFFE://td/x":          "scheme",
		"spiffe://":              "trust domain is missing",
		"spiffe://TD/x":          "upper case",
		"spiffe://u@td/x":        "user information",
		"spiffe://td:80/x":       "port",
		"spiffe://td/x?":         "query",
		"spiffe://td/x#":         "fragment",
		"spiffe://td/%78":        "percent-encoding",
		"spiffe://td//x":         "empty segment",
		"spiffe://td/./x":        "dot segment",
		"spiffe://td/x/..":       "dot segment",
		"spiffe://td/x/":         "ends with a slash",
		"spiffe://td/x\x00":      `'\x00'`,
		"spiffe://td\x00.evil/x": `'\x00'`,
		"spiffe://td/" + strings.Repeat("x", MaxIDLength):         "limit is 2048",
		"spiffe://" + strings.Repeat("x", MaxTrustDomainLength+1): "limit is 255",
	} {
		_, err := ParseID(in)
		var bad *IDError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), reason) {
			t.Errorf("ParseID(%.40q): %v, want a reason with %q", in, err, reason)
		}
	}
	if id, err := ParseID("spiffe://td/" + strings.Repeat("x", MaxIDLength-len("spiffe://td/"))); err != nil {
		t.Errorf("an ID of the greatest length is refused: %v (%d)", err, len(id.String()))
	}
}

func TestIDIsAKey(t *testing.T) {
	a, _ := ParseID("spiffe://td/ns/a/sa/b")
	b, _ := IstioID("td", "a", "b")
	if a != b || a.Principal() != "td/ns/a/sa/b" {
		t.Errorf("%v and %v must be equal", a, b)
	}
	alias, err := a.WithTrustDomain(TrustDomain{"old"})
	if err != nil || alias.String() != "spiffe://old/ns/a/sa/b" {
		t.Errorf("under another trust domain: %v, %v", alias, err)
	}
	if _, err := a.WithTrustDomain(TrustDomain{}); err == nil {
		t.Error("the zero trust domain is accepted")
	}
	var back ID
	text, _ := a.MarshalText()
	if err := back.UnmarshalText(text); err != nil || back != a {
		t.Errorf("through text: %v, %v", back, err)
	}
	if AnyID()(ID{}) == nil || MemberOf(TrustDomain{})(ID{}) == nil || OneOf(ID{})(ID{}) == nil || OneOf()(a) == nil {
		t.Error("no identity must never fulfil a rule")
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = ParseID("spiffe://td/ns/a/sa/b") }); n != 0 {
		t.Errorf("ParseID allocates %v times", n)
	}
}

// idOracle is SPIFFE-ID section 2 as one reads it, without regard to cost.
func idOracle(s string) bool {
	const lower, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
	all := func(s, chars string) bool {
		return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(chars, r) })
	}
	parts := strings.Split(s, "/")
	if len(s) > 2048 || len(parts) < 3 || parts[0] != "spiffe:" || parts[1] != "" {
		return false
	}
	if parts[2] == "" || len(parts[2]) > 255 || !all(parts[2], lower+digits+"._-") {
		return false
	}
	for _, p := range parts[3:] {
		if p == "" || p == "." || p == ".." || !all(p, lower+strings.ToUpper(lower)+digits+"._-") {
			return false
		}
	}
	return true
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://td/ns/a/sa/b", "spiffe://td", "spiffe://td/", "SPIFFE://td/x", "spiffe://td/../x", "spiffe://td/x#", "spiffe://td:1/x", "spiffe://td/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if (err == nil) != idOracle(s) {
			t.Fatalf("ParseID(%q): %v, the oracle says %v", s, err, idOracle(s))
		}
		if err != nil {
			return
		}
		if id.String() != s || scheme+id.TrustDomain().String()+id.Path() != s {
			t.Fatalf("%q falls into %q and %q", s, id.TrustDomain(), id.Path())
		}
		if ns, sa, ok := id.Istio(); ok {
			if back, err := IstioID(id.TrustDomain().String(), ns, sa); err != nil || back != id {
				t.Fatalf("%q is not rebuilt from %q and %q: %v", s, ns, sa, err)
			}
		}
	})
}
