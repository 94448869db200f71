package tlsconfig

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/hostile"
)

func TestMutual(t *testing.T) {
	root := newRoot(t, "root")
	cs, ss := holder(t, pair(sign(t, leafTemplate(t, clientID), root)), root), holder(t, pair(sign(t, leafTemplate(t, serverID), root)), root)
	client := Client(cs, ClientOptions{Peer: Peer{ID: identity.OneOf(id(t, serverID))}})
	server := Server(ss, ServerOptions{})
	c, s, cerr, serr := meet(client, server)
	if cerr != nil || serr != nil {
		t.Fatal(cerr, serr)
	}
	if p := PeerOf(&c); p.ID.String() != serverID || !p.TLS {
		t.Errorf("the client sees %+v", p)
	}
	if p := PeerOf(&s); p.ID.String() != clientID {
		t.Errorf("the server sees %+v", p)
	}
	if c.Version != tls.VersionTLS13 || c.CurveID != tls.X25519MLKEM768 || c.NegotiatedProtocol != ProtocolHTTP2 {
		t.Errorf("version %x, key exchange %v, protocol %q", c.Version, c.CurveID, c.NegotiatedProtocol)
	}
	if p := PeerOf(&tls.ConnectionState{PeerCertificates: c.PeerCertificates}); p.Authenticated() {
		t.Error("a handshake that is not complete proves an identity")
	}
}

// TestHostileHandshakes: what identity refuses is refused on a connection, as
// client and as server, and the error there names the rule.
func TestHostileHandshakes(t *testing.T) {
	m := hostile.New(t, time.Now())
	victim, err := source.NewStatic(&source.Material{Certificate: m.Victim, Bundles: m.Bundles})
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, c := range m.Cases {
		if c.Good() {
			good++
		}
		t.Run(c.Name, func(t *testing.T) {
			want := c.Rule
			if c.ByTLS {
				want = "" // crypto/tls has refused it with an error of its own
			}
			_, _, cerr, serr := meet(c.Attacker(), Server(victim, ServerOptions{}))
			if ruleOf(serr) != want || (serr == nil) != c.Good() || (cerr == nil) != c.Good() {
				t.Errorf("as client: the server says %v and the client %v, want rule %q", serr, cerr, c.Rule)
			}
			_, _, cerr, _ = meet(Client(victim, ClientOptions{}), c.Attacker())
			if ruleOf(cerr) != want || (cerr == nil) != c.Good() {
				t.Errorf("as server: the client says %v, want rule %q", cerr, c.Rule)
			}
			if want != "" && !strings.Contains(cerr.Error(), string(want)) {
				t.Errorf("%q does not name the rule %s", cerr, want)
			}
			_, s, _, serr := meet(c.Attacker(), Server(victim, ServerOptions{Client: CertificateOptional}))
			if ruleOf(serr) != want || (serr == nil) != c.Good() {
				t.Errorf("where certificates are optional a bad one must be refused all the same: %v", serr)
			}
			if p := PeerOf(&s); c.Good() && p.ID.String() != hostile.PeerID || !c.Good() && !p.ID.IsZero() {
				t.Errorf("the server takes it for %q", p.ID)
			}
		})
	}
	if good < 4 || len(m.Cases)-good < 45 {
		t.Errorf("%d good and %d hostile certificates", good, len(m.Cases)-good)
	}
}

func TestPeerRules(t *testing.T) {
	root := newRoot(t, "root")
	cs, ss := holder(t, pair(sign(t, leafTemplate(t, clientID), root)), root), holder(t, pair(sign(t, leafTemplate(t, serverID), root)), root)
	san := func(s string) Peer { return Peer{SANs: []identity.SANMatch{identity.SANExact(identity.SANAny, s)}} }
	for name, c := range map[string]struct {
		client ClientOptions
		server ServerOptions
		crule  identity.VerifyRule
		srule  identity.VerifyRule
	}{
		"any":               {},
		"the right server":  {client: ClientOptions{Peer: san(serverID)}},
		"another server":    {client: ClientOptions{Peer: san(serverID + "x")}, crule: identity.RulePeerSAN},
		"another server ID": {client: ClientOptions{Peer: Peer{ID: identity.OneOf(id(t, clientID))}}, crule: identity.RulePeerID},
		"the right client":  {server: ServerOptions{Peer: san(clientID)}},
		"another client":    {server: ServerOptions{Peer: Peer{ID: identity.MemberOf(mustTD(t, "else"))}}, srule: identity.RulePeerID},
	} {
		_, _, cerr, serr := meet(Client(cs, c.client), Server(ss, c.server))
		if ruleOf(cerr) != c.crule || ruleOf(serr) != c.srule || (cerr == nil) != (c.crule == "" && c.srule == "") {
			t.Errorf("%s: %v, %v", name, cerr, serr)
		}
	}
}

func TestNoCertificate(t *testing.T) {
	root := newRoot(t, "root")
	ss := holder(t, pair(sign(t, leafTemplate(t, serverID), root)), root)
	trust := holder(t, nil, root)
	anonymous := Client(trust, ClientOptions{WithoutCertificate: true})
	if _, _, cerr, serr := meet(anonymous, Server(ss, ServerOptions{})); cerr == nil || serr == nil {
		t.Errorf("a client without a certificate is let in: %v, %v", cerr, serr)
	}
	for _, o := range []ClientCertificate{CertificateOptional, CertificateNone} {
		_, s, cerr, serr := meet(anonymous, Server(ss, ServerOptions{Client: o}))
		if cerr != nil || serr != nil || PeerOf(&s).Authenticated() {
			t.Errorf("%d: %v, %v, %+v", o, cerr, serr, PeerOf(&s))
		}
	}
	if _, _, cerr, _ := meet(Client(trust, ClientOptions{}), Server(ss, ServerOptions{})); !errors.Is(cerr, errNoCertificate) {
		t.Errorf("without a certificate to present: %v", cerr)
	}
	empty, err := source.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, serr := meet(anonymous, Server(empty, ServerOptions{Client: CertificateNone})); !errors.Is(serr, source.ErrNotReady) {
		t.Errorf("a server without a certificate: %v", serr)
	}
	if _, _, cerr, _ := meet(Client(empty, ClientOptions{WithoutCertificate: true}), Server(ss, ServerOptions{Client: CertificateNone})); !errors.Is(cerr, source.ErrNotReady) {
		t.Errorf("a client without trust: %v", cerr)
	}
}

// TestResumptionCanNotSkipVerification: an attacker with a session cache of
// its own comes back after it has been denied.
func TestResumptionCanNotSkipVerification(t *testing.T) {
	root := newRoot(t, "root")
	ss := holder(t, pair(sign(t, leafTemplate(t, serverID), root)), root)
	attackerCert := pair(sign(t, leafTemplate(t, clientID), root))
	var denied bool
	server := Server(ss, ServerOptions{Peer: Peer{ID: func(identity.ID) error {
		if denied {
			return errors.New("denied by policy")
		}
		return nil
	}}})
	attacker := func() *tls.Config {
		return &tls.Config{
			InsecureSkipVerify: true, ServerName: "server", NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*attackerCert},
			ClientSessionCache: tls.NewLRUClientSessionCache(8),
		}
	}
	t.Run("no tickets", func(t *testing.T) {
		denied = false
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			server := Server(ss, ServerOptions{MinVersion: tls.VersionTLS12})
			a := attacker()
			a.MaxVersion = version
			for i := range 3 {
				c, s, cerr, serr := meet(a, server)
				if cerr != nil || serr != nil || c.DidResume || s.DidResume {
					t.Fatalf("TLS %x, connection %d: resumed %v, %v, %v", version, i, c.DidResume, cerr, serr)
				}
			}
		}
	})
	t.Run("verification runs for a resumed session", func(t *testing.T) {
		// A caller switches tickets back on: the second line of defence.
		with := server.Clone()
		with.SessionTicketsDisabled = false
		denied = false
		a := attacker()
		if _, _, cerr, serr := meet(a, with); cerr != nil || serr != nil {
			t.Fatal(cerr, serr)
		}
		if c, _, cerr, _ := meet(a, with); cerr != nil || !c.DidResume {
			t.Fatalf("the attack needs a resumed session: %v, %v", c.DidResume, cerr)
		}
		denied = true
		if _, _, cerr, serr := meet(a, with); cerr == nil || ruleOf(serr) != identity.RulePeerID {
			t.Errorf("denied, and back on an old session: %v, %v", cerr, serr)
		}
		denied = false
		if err := ss.Set(material(t, pair(sign(t, leafTemplate(t, serverID), root)))); err != nil {
			t.Fatal(err)
		}
		if _, _, cerr, serr := meet(a, with); cerr == nil || ruleOf(serr) != identity.RuleTrustDomain {
			t.Errorf("its root withdrawn, and back on an old session: %v, %v", cerr, serr)
		}
	})
	t.Run("the client keeps no session", func(t *testing.T) {
		peer := holder(t, attackerCert, root)
		tickets := Server(peer, ServerOptions{})
		tickets.SessionTicketsDisabled = false
		client := Client(peer, ClientOptions{ServerName: "server"})
		for range 3 {
			c, _, cerr, serr := meet(client, tickets)
			if cerr != nil || serr != nil || c.DidResume {
				t.Fatal(c.DidResume, cerr, serr)
			}
		}
	})
}

// TestRootRotation: a root is replaced in the order that Istio and SPIRE
// prescribe: both sides learn the new root, both get certificates of it, both
// forget the old one. In each step the sides may be a step apart. None of the
// handshakes fails, and no connection is closed for it.
func TestRootRotation(t *testing.T) {
	old, fresh := newRoot(t, "old"), newRoot(t, "new")
	step := func(uri string, n int) *source.Material {
		switch n {
		case 0:
			return material(t, pair(sign(t, leafTemplate(t, uri), old)), old)
		case 1:
			return material(t, pair(sign(t, leafTemplate(t, uri), old)), old, fresh)
		case 2:
			return material(t, pair(sign(t, leafTemplate(t, uri), fresh)), old, fresh)
		default:
			return material(t, pair(sign(t, leafTemplate(t, uri), fresh)), fresh)
		}
	}
	cs, err := source.NewStatic(step(clientID, 0))
	if err != nil {
		t.Fatal(err)
	}
	ss, err := source.NewStatic(step(serverID, 0))
	if err != nil {
		t.Fatal(err)
	}
	client, server := Client(cs, ClientOptions{}), Server(ss, ServerOptions{})
	set := func(c, s int) {
		if err := errors.Join(cs.Set(step(clientID, c)), ss.Set(step(serverID, s))); err != nil {
			t.Fatal(err)
		}
	}
	// The four pairings of old and new certificates under both roots, and the steps around them.
	for _, p := range [][2]int{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 1}, {1, 2}, {2, 2}, {3, 2}, {2, 3}, {3, 3}} {
		set(p[0], p[1])
		if _, _, cerr, serr := meet(client, server); cerr != nil || serr != nil {
			t.Errorf("client in step %d, server in step %d: %v, %v", p[0], p[1], cerr, serr)
		}
	}
	// Without the overlap it would fail, so that the test can.
	for _, p := range [][2]int{{0, 3}, {3, 0}, {0, 2}, {2, 0}} {
		set(p[0], p[1])
		if _, _, cerr, serr := meet(client, server); cerr == nil && serr == nil {
			t.Errorf("client in step %d and server in step %d have no common root", p[0], p[1])
		}
	}
}

// TestDayOfHandshakes: 24 virtual hours of rotation every hour with a
// handshake every ten minutes and one connection that stays open all day.
func TestDayOfHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newRoot(t, "root")
		issue := func(uri string) *source.Material {
			template := leafTemplate(t, uri)
			template.NotAfter = time.Now().Add(2 * time.Hour)
			return material(t, pair(sign(t, template, root)), root)
		}
		cs, err := source.NewStatic(issue(clientID))
		if err != nil {
			t.Fatal(err)
		}
		ss, err := source.NewStatic(issue(serverID))
		if err != nil {
			t.Fatal(err)
		}
		client, server := Client(cs, ClientOptions{}), Server(ss, ServerOptions{})
		cp, sp := pipe()
		long := tls.Client(cp, client)
		go func() {
			conn := tls.Server(sp, server)
			_, _ = io.Copy(conn, conn)
		}()
		defer cp.Close()
		handshakes := 0
		for minute := 0; minute < 24*60; minute += 10 {
			if minute%60 == 30 {
				if err := cs.Set(issue(clientID)); err != nil {
					t.Fatal(err)
				}
			}
			if minute%60 == 50 {
				if err := ss.Set(issue(serverID)); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, cerr, serr := meet(client, server); cerr != nil || serr != nil {
				t.Fatalf("minute %d: %v, %v", minute, cerr, serr)
			}
			handshakes++
			var b [1]byte
			if _, err := long.Write([]byte("x")); err != nil {
				t.Fatalf("minute %d: %v", minute, err)
			}
			if _, err := io.ReadFull(long, b[:]); err != nil {
				t.Fatalf("minute %d: %v", minute, err)
			}
			time.Sleep(10 * time.Minute)
		}
		// Nothing is renewed any more: after expiry both sides refuse.
		time.Sleep(2 * time.Hour)
		if _, _, cerr, _ := meet(client, server); !errors.Is(cerr, source.ErrNotReady) && cerr == nil {
			t.Error("an expired certificate is in force")
		}
		t.Logf("%d handshakes", handshakes)
	})
}

func TestVersions(t *testing.T) {
	root := newRoot(t, "root")
	h := holder(t, pair(sign(t, leafTemplate(t, clientID), root)), root)
	for _, c := range []struct {
		client, server, want uint16
	}{{0, 0, tls.VersionTLS13}, {tls.VersionTLS12, 0, tls.VersionTLS13}, {tls.VersionTLS12, tls.VersionTLS12, tls.VersionTLS13}, {tls.VersionTLS10, tls.VersionTLS10, tls.VersionTLS13}} {
		got, _, cerr, serr := meet(Client(h, ClientOptions{MinVersion: c.client}), Server(h, ServerOptions{MinVersion: c.server}))
		if cerr != nil || serr != nil || got.Version != c.want {
			t.Errorf("%+v: %x, %v, %v", c, got.Version, cerr, serr)
		}
	}
	old := Client(h, ClientOptions{MinVersion: tls.VersionTLS12})
	old.MaxVersion = tls.VersionTLS12
	if _, _, _, serr := meet(old, Server(h, ServerOptions{})); serr == nil {
		t.Error("TLS 1.2 is accepted where policy does not allow it")
	}
	if got, _, cerr, serr := meet(old, Server(h, ServerOptions{MinVersion: tls.VersionTLS12})); cerr != nil || serr != nil || got.Version != tls.VersionTLS12 {
		t.Errorf("%x, %v, %v", got.Version, cerr, serr)
	}
	if Client(h, ClientOptions{MinVersion: tls.VersionTLS10}).MinVersion != tls.VersionTLS12 {
		t.Error("older than TLS 1.2")
	}
}

func TestProtocols(t *testing.T) {
	root := newRoot(t, "root")
	h := holder(t, pair(sign(t, leafTemplate(t, clientID), root)), root)
	for _, c := range []struct {
		offered []string
		want    string
		http    string
		mesh    bool // by "istio" in its hello others tell mutual TLS of the mesh from TLS of an application
	}{
		{nil, "h2", "h2", true}, // our own client
		{[]string{"h2"}, "h2", "h2", false},
		{[]string{"http/1.1"}, "http/1.1", "http/1.1", false},
		{[]string{"istio"}, "istio", "http/1.1", true},
		{[]string{"istio-h2", "istio"}, "istio-h2", "h2", true},
		{[]string{"istio-http/1.1", "istio", "http/1.1"}, "http/1.1", "http/1.1", true},
		{[]string{"istio-peer-exchange", "istio"}, "istio", "http/1.1", true},
		{[]string{}, "", "http/1.1", false},
	} {
		var hello []string
		server := Server(h, ServerOptions{})
		server.GetConfigForClient = func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = i.SupportedProtos
			return nil, nil
		}
		got, _, cerr, serr := meet(Client(h, ClientOptions{Protocols: c.offered}), server)
		if cerr != nil || serr != nil || got.NegotiatedProtocol != c.want || HTTPProtocol(got.NegotiatedProtocol) != c.http || slices.Contains(hello, "istio") != c.mesh {
			t.Errorf("%q: %q, the hello offers %q, %v, %v", c.offered, got.NegotiatedProtocol, hello, cerr, serr)
		}
	}
}

func TestVerifyByName(t *testing.T) {
	root, other := newRoot(t, "root"), newRoot(t, "other")
	web := leafTemplate(t)
	web.DNSNames, web.IPAddresses = []string{"db.example", "*.w.example"}, []net.IP{{192, 0, 2, 1}}
	server := Server(holder(t, pair(sign(t, web, root)), root), ServerOptions{Client: CertificateNone})
	trust, wrong := holder(t, nil, root), holder(t, nil, other)
	none, err := source.NewStatic(&source.Material{})
	if err != nil {
		t.Fatal(err)
	}
	san := Peer{SANs: []identity.SANMatch{identity.SANExact(identity.SANAny, "db.example")}}
	for name, c := range map[string]struct {
		src  source.Source
		o    ClientOptions
		rule identity.VerifyRule
	}{
		"name":                 {trust, ClientOptions{Verification: VerifyName, ServerName: "db.example"}, ""},
		"wildcard":             {trust, ClientOptions{Verification: VerifyName, ServerName: "a.w.example"}, ""},
		"address":              {trust, ClientOptions{Verification: VerifyName, ServerName: "192.0.2.1"}, ""},
		"another address":      {trust, ClientOptions{Verification: VerifyName, ServerName: "192.0.2.2"}, identity.RulePeerSAN},
		"another name":         {trust, ClientOptions{Verification: VerifyName, ServerName: "evil.example"}, identity.RulePeerSAN},
		"no name":              {trust, ClientOptions{Verification: VerifyName}, identity.RulePeerSAN},
		"name and SAN":         {trust, ClientOptions{Verification: VerifyName, ServerName: "a.w.example", Peer: san}, ""},
		"name without its SAN": {trust, ClientOptions{Verification: VerifyName, ServerName: "db.example", Peer: Peer{SANs: []identity.SANMatch{identity.SANExact(identity.SANAny, "x.example")}}}, identity.RulePeerSAN},
		"SAN":                  {trust, ClientOptions{Verification: VerifySANs, Peer: san}, ""},
		"SAN, another SNI":     {trust, ClientOptions{Verification: VerifySANs, ServerName: "x.example", Peer: san}, ""},
		"no SAN":               {trust, ClientOptions{Verification: VerifySANs, ServerName: "db.example"}, identity.RulePeerSAN},
		"another root":         {wrong, ClientOptions{Verification: VerifyName, ServerName: "db.example"}, identity.RuleChain},
		"no roots":             {none, ClientOptions{Verification: VerifyName, ServerName: "db.example"}, identity.RuleTrustDomain},
		"a name is no SVID":    {trust, ClientOptions{ServerName: "db.example"}, identity.RuleOneURI},
		"an ID where none is":  {trust, ClientOptions{Verification: VerifyName, ServerName: "db.example", Peer: Peer{ID: identity.AnyID()}}, identity.RulePeerID},
	} {
		c.o.WithoutCertificate = true
		_, _, cerr, _ := meet(Client(c.src, c.o), server)
		if ruleOf(cerr) != c.rule || cerr != nil && c.rule == "" {
			t.Errorf("%s: %v, want rule %q", name, cerr, c.rule)
		}
		if cerr != nil && !strings.Contains(cerr.Error(), string(c.rule)) {
			t.Errorf("%s: %v does not name the rule", name, cerr)
		}
	}
}
