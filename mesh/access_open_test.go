package mesh_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	rpc "google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/internal/leak"
)

const upgradeHTTP2 = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payment}
spec:
  host: payment
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
`

// exchange is an answer, with the connection that it came over.
type exchange struct {
	status int
	proto  string
	peer   string // whom the server takes the caller for, or an error
	local  string // the client's end of the connection
	remote string
	closes bool // the answer ends the connection
}

func askOn(t *testing.T, c *http.Client, url string) exchange {
	t.Helper()
	var a exchange
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		a.local, a.remote = i.Conn.LocalAddr().String(), i.Conn.RemoteAddr().String()
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		a.peer = err.Error()
		return a
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a.status, a.proto, a.peer, a.closes = resp.StatusCode, resp.Proto, string(b), resp.Close
	return a
}

// keepOpen returns what asks a server again and again on one connection, in plaintext.
func keepOpen(t *testing.T, address string) func() exchange {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	answers := bufio.NewReader(conn)
	return func() exchange {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", address); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return exchange{status: resp.StatusCode, proto: resp.Proto, peer: string(b), closes: resp.Close}
	}
}

// TestAccessOverTime runs side by side what mostly waits: for the grace of a
// connection, and for the report of a member.
func TestAccessOverTime(t *testing.T) {
	leak.Check(t)
	t.Run("open connections", func(t *testing.T) {
		t.Parallel()
		testOpenConnections(t)
	})
	t.Run("dry run and report", func(t *testing.T) {
		t.Parallel()
		testDryRunAndReport(t)
	})
}

// testOpenConnections: a change takes effect on the next request of a connection
// that was open before it.
func testOpenConnections(t *testing.T) {
	s := newSite(t, map[string]string{"rules.yaml": upgradeHTTP2 + "---" + fmt.Sprintf(allowCheckout, "payment") + fmt.Sprintf(allowCheckout, "ledger")})
	payment := s.serveHTTP(s.join("payment"), peerName)
	ledger := s.serveGRPC(s.join("ledger"))
	plain := s.serveGRPC(s.join("plain"))
	open := s.serveHTTP(s.join("open"), peerName)
	s.declare(instance{app: "payment", protocol: "http", at: payment, label: true}, instance{app: "ledger", protocol: "grpc", at: ledger, label: true},
		instance{app: "plain", protocol: "grpc", at: plain}, instance{app: "open", protocol: "http", at: open})
	checkout := s.join("checkout")

	// Connections are opened, and used.
	web := checkout.Client()
	settles(t, "HTTP/2 over mutual TLS", func() (bool, string) {
		a := askOn(t, web, "http://payment/")
		return a.status == 200 && a.proto == "HTTP/2.0" && a.peer == callerID("checkout"), fmt.Sprint(a)
	})
	before := askOn(t, web, "http://payment/")
	outside := outsider(t)
	settles(t, "plaintext HTTP", answers(outside, "http://"+open.String()+"/", 200, "plaintext"))
	// net/http's own client leaves a connection now and then.
	kept := keepOpen(t, open.String())
	if a := kept(); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	named, _ := dialHealth(t, "xds:///ledger:80", checkout.DialOptions()...)
	settles(t, "gRPC over mutual TLS", codeIs(named, codes.OK))
	unnamed, _ := dialHealth(t, plain.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	settles(t, "plaintext gRPC", codeIs(unnamed, codes.OK))
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	streams := map[string]healthpb.Health_WatchClient{}
	for name, c := range map[string]healthpb.HealthClient{"named": named, "unnamed": unnamed} {
		stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		streams[name] = stream
	}
	var connection peer.Peer
	if err := check(named, grpc.Peer(&connection)); err != nil {
		t.Fatal(err)
	}
	address := connection.LocalAddr.String()

	// The principal is revoked.
	s.write("rules.yaml", upgradeHTTP2+"---"+`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/checkout]}}]}]}
`)
	settles(t, "the principal is refused over HTTP/2", func() (bool, string) {
		a := askOn(t, web, "http://payment/")
		if a.local != before.local {
			t.Fatalf("the connection was replaced: %+v, before %+v", a, before)
		}
		return a.status == 403, fmt.Sprint(a)
	})
	settles(t, "the principal is refused over gRPC", func() (bool, string) {
		err := check(named, grpc.Peer(&connection))
		if got := connection.LocalAddr.String(); got != address {
			t.Fatalf("the connection was replaced: %s, before %s", got, address)
		}
		return rpc.Code(err) == codes.PermissionDenied, fmt.Sprint(err)
	})

	// Plaintext is refused.
	s.write("strict.yaml", strictMesh)
	refused := kept()
	for deadline := time.Now().Add(patience); refused.status == 200 && time.Now().Before(deadline); {
		refused = kept()
	}
	if refused.status != 403 || !refused.closes {
		t.Errorf("%+v: want a refusal that closes the connection", refused)
	}
	settles(t, "plaintext is refused over gRPC", codeIs(unnamed, codes.PermissionDenied))

	// The stream of a peer that may no longer connect ends after a grace period.
	if _, err := streams["unnamed"].Recv(); err == nil || ctx.Err() != nil {
		t.Errorf("the stream in plaintext: %v; want it ended by the server", err)
	}
	// That of one that may connect goes on: rules are asked when a call begins.
	ended := make(chan error, 1)
	go func() {
		_, err := streams["named"].Recv()
		ended <- err
	}()
	if code := checkCode(named); code != codes.PermissionDenied {
		t.Errorf("%v", code)
	}
	select {
	case err := <-ended:
		t.Errorf("the stream over mutual TLS ended: %v", err)
	default:
	}
	cancel()
	<-ended
}
