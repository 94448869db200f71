package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/identity/source"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
	"github.com/sinew-mesh/sinew/routing"
)

// full is a value of every field, made anew each time.
func full(t *testing.T) *snapshot.ClientTLS {
	t.Helper()
	re, err := routing.Regex("spiffe://td.example/.*")
	if err != nil {
		t.Fatal(err)
	}
	return &snapshot.ClientTLS{
		Certificate: snapshot.CertificateSource{Instance: "default"}, Trust: snapshot.TrustSource{Instance: "default"},
		Verify: snapshot.VerifySANs, ServerName: "svc", MinVersion: tls.VersionTLS12, Protocols: []string{"h2"},
		SANs: []identity.SANMatch{identity.SANExact(identity.SANURI, "spiffe://td.example/ns/a/sa/b"), identity.SANText(identity.SANURI, "regex", re)},
	}
}

// TestSameWire: connections are kept where nothing that made them changes, and
// a change of any field of their security makes new ones.
func TestSameWire(t *testing.T) {
	config := func(change func(*snapshot.Cluster)) *snapshot.Cluster {
		c := &snapshot.Cluster{TLS: full(t), Sockets: []snapshot.SocketMatch{{Criteria: map[string]string{"tlsMode": "istio"}, TLS: full(t)}, {}}}
		if change != nil {
			change(c)
		}
		return c
	}
	if !sameWire(config(nil), config(nil)) {
		t.Error("equal configurations are not the same")
	}
	check := func(name string, change func(*snapshot.Cluster)) {
		t.Helper()
		if sameWire(config(nil), config(change)) || sameWire(config(change), config(nil)) {
			t.Errorf("%s: connections would be kept", name)
		}
	}
	for _, kind := range []reflect.Type{reflect.TypeFor[snapshot.ClientTLS](), reflect.TypeFor[snapshot.CertificateSource](), reflect.TypeFor[snapshot.TrustSource]()} {
		for i := range kind.NumField() {
			clear := func(p *snapshot.ClientTLS) {
				v := reflect.ValueOf(p).Elem()
				switch kind {
				case reflect.TypeFor[snapshot.CertificateSource]():
					v = v.FieldByName("Certificate")
				case reflect.TypeFor[snapshot.TrustSource]():
					v = v.FieldByName("Trust")
				}
				switch f := v.Field(i); {
				case !f.IsZero():
					f.SetZero()
				case f.Kind() == reflect.String:
					f.SetString("x")
				case f.Kind() == reflect.Bool:
					f.SetBool(true)
				default:
					t.Fatalf("%s.%s: the test has no other value for it", kind, kind.Field(i).Name)
				}
			}
			name := kind.Name() + "." + kind.Field(i).Name
			check("TLS "+name, func(c *snapshot.Cluster) { clear(c.TLS) })
			check("Sockets "+name, func(c *snapshot.Cluster) { clear(c.Sockets[0].TLS) })
		}
	}
	check("TLS gone", func(c *snapshot.Cluster) { c.TLS = nil })
	check("another SAN", func(c *snapshot.Cluster) {
		c.TLS.SANs[0] = identity.SANExact(identity.SANURI, "spiffe://td.example/ns/a/sa/c")
	})
	check("another regex", func(c *snapshot.Cluster) {
		re, err := routing.Regex("spiffe://td.example/ns/.*")
		if err != nil {
			t.Fatal(err)
		}
		c.TLS.SANs[1] = identity.SANText(identity.SANURI, "regex", re)
	})
	check("criteria", func(c *snapshot.Cluster) { c.Sockets[0].Criteria["tlsMode"] = "disabled" })
	check("a socket less", func(c *snapshot.Cluster) { c.Sockets = c.Sockets[:1] })
	check("the other order", func(c *snapshot.Cluster) { c.Sockets[0], c.Sockets[1] = c.Sockets[1], c.Sockets[0] })
}

func TestUsageCounts(t *testing.T) {
	mutual := &snapshot.ClientTLS{Certificate: snapshot.CertificateSource{Instance: "default"}}
	simple := &snapshot.ClientTLS{Trust: snapshot.TrustSource{System: true}}
	for _, c := range []struct {
		name     string
		security *snapshot.ClientTLS
		scheme   string
		want     ClusterUsage
	}{
		{"plaintext", nil, "http", ClusterUsage{Plaintext: 1}},
		{"the caller's TLS", nil, "https", ClusterUsage{TLS: 1}},
		{"simple", simple, "http", ClusterUsage{TLS: 1}},
		{"mutual", mutual, "http", ClusterUsage{MutualTLS: 1}},
		{"mutual around the caller's", mutual, "https", ClusterUsage{MutualTLS: 1}},
	} {
		var u usage
		for _, f := range []resilience.Failure{resilience.NoFailure, resilience.ConnectFailure, resilience.LocalError, resilience.Overflow} {
			u.count(channelOf(c.security, c.scheme), &resilience.Outcome{Failure: f})
		}
		got := ClusterUsage{Plaintext: u[plaintext].Load(), MutualTLS: u[mutualTLS].Load(), TLS: u[ordinaryTLS].Load()}
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestMaterialWaits: for what has not come yet, and not for what has gone.
func TestMaterialWaits(t *testing.T) {
	with := &source.Material{Certificate: &tls.Certificate{Certificate: [][]byte{{0}}, Leaf: &x509.Certificate{NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}}}
	for _, c := range []struct {
		name  string
		first *source.Material
		event func(*Engine, *source.Static)
		limit time.Duration
		took  time.Duration
		want  error // in the chain; nil: there is material
	}{
		{"there", with, nil, 0, 0, nil},
		{"comes", nil, func(_ *Engine, s *source.Static) { _ = s.Set(with) }, 0, 2 * time.Second, nil},
		{"comes without a certificate", nil, func(_ *Engine, s *source.Static) { _ = s.Set(&source.Material{}) }, 0, 2 * time.Second, errTrustOnly},
		{"the caller's deadline", nil, nil, 3 * time.Second, 3 * time.Second, context.DeadlineExceeded},
		{"the policy wait", nil, nil, 0, defaultPolicyWait, source.ErrNotReady},
		{"closed", nil, func(e *Engine, _ *source.Static) { e.Close() }, 0, 2 * time.Second, ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := New(Options{})
				src, err := source.NewStatic(c.first)
				if err != nil {
					t.Fatal(err)
				}
				ctx := t.Context()
				if c.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.limit)
					defer cancel()
				}
				if c.event != nil {
					time.AfterFunc(2*time.Second, func() { c.event(e, src) })
				}
				began := time.Now()
				m, err := (&Call{engine: e}).Material(ctx, src, true)
				if took := time.Since(began); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				if c.want == nil {
					if err != nil || m.Certificate == nil {
						t.Errorf("%v %v", m, err)
					}
					return
				}
				var notReady *NotReadyError
				if !errors.As(err, &notReady) || notReady.Missing != "certificate" || !errors.Is(err, c.want) {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}
