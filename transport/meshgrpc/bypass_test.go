package meshgrpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/inbound"
)

// A bypass is an RPC that runs a handler which the rules keep from it. The
// tests send many spellings of a forbidden RPC, generated from a seed, to a
// server with the mesh's options, where none may get through, and to one with a
// known mistake in how it shows RPCs to the rules, where some must: else the
// spellings would prove nothing.

// call is an RPC as it is on the wire.
type call struct {
	path    string
	headers [][2]string
}

const protected = pb.TestService_UnaryCall_FullMethodName

// deny makes a policy that refuses what the condition holds for.
func deny(t testing.TB, c identity.Condition, err error) *snapshot.Inbound {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return access(t, identity.Deny, c)
}

func access(t testing.TB, action identity.Action, c identity.Condition) *snapshot.Inbound {
	t.Helper()
	set, err := identity.NewRuleSet(action, false, []identity.Rule{{Name: "rule", Permissions: []identity.Condition{c}, Principals: []identity.Condition{identity.Any()}}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := identity.NewAuthorizer(set)
	if err != nil {
		t.Fatal(err)
	}
	return &snapshot.Inbound{Plain: &snapshot.FilterChain{Authorizer: a}}
}

func header(name, value string) (identity.Condition, error) {
	return identity.HeaderIs(routing.HeaderMatch{Name: routing.NewHeaderName(name), Kind: routing.HeaderString, String: routing.Exact(value, false)})
}

// naive admits RPCs with a mistake: change spoils what the rules are shown.
func naive(e *inbound.Engine, change func(*inbound.Request, metadata.MD)) grpc.ServerOption {
	return grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		r := inbound.Request{Local: localOf(ctx), Access: identity.AccessRequest{Request: routing.Request{
			Method: "POST", Path: info.FullMethod, Form: routing.LowerHeaders, Header: md,
		}}}
		change(&r, md)
		if err := e.Admit(ctx, &r, &inbound.Admission{}); err != nil {
			return nil, Refusal(err).Err()
		}
		return next(ctx, req)
	})
}

// wire serves and returns how to call and what ran: the handler sees whether a
// call that got to it should not have.
func wire(t *testing.T, in *snapshot.Inbound, wrong func(*inbound.Request, metadata.MD), forbidden func(context.Context) bool) (send func(call) codes.Code, bypassed *atomic.Int64) {
	t.Helper()
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	t.Cleanup(e.Close)
	bypassed = new(atomic.Int64)
	options := ServerOptions(ServerConfig{Inbound: e, Log: slog.New(slog.DiscardHandler)})
	if wrong != nil {
		options = []grpc.ServerOption{naive(e, wrong)}
	}
	b := newBackend(t, "b", func(ctx context.Context, _ int64) error {
		if forbidden(ctx) {
			bypassed.Add(1)
		}
		return nil
	}, options...)
	e.Install(policy(b.address, in))
	return rawClient(t, b.address), bypassed
}

// rawClient sends RPCs header by header, which gRPC's own client would not do.
func rawClient(t *testing.T, address string) func(call) codes.Code {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	stream := uint32(1)
	message := make([]byte, 5) // an empty message
	binary.BigEndian.PutUint32(message[1:], 0)
	return func(c call) codes.Code {
		t.Helper()
		block.Reset()
		for _, h := range append([][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", c.path}, {":authority", "svc"}, {"content-type", "application/grpc"}, {"te", "trailers"}}, c.headers...) {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := stream
		stream += 2
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteData(id, true, message); err != nil {
			t.Fatal(err)
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *http2.PingFrame:
				if !frame.IsAck() {
					_ = f.WritePing(true, frame.Data)
				}
			case *http2.MetaHeadersFrame:
				for _, h := range frame.Fields {
					if h.Name == "grpc-status" && frame.StreamID == id {
						var code int
						_, _ = fmt.Sscan(h.Value, &code)
						return codes.Code(code)
					}
				}
			case *http2.RSTStreamFrame:
				if frame.StreamID == id {
					return codes.Internal
				}
			case *http2.GoAwayFrame:
				t.Fatalf("GOAWAY %v", frame)
			}
		}
	}
}

// pick returns one of the values.
func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// randomCase changes the case of letters.
func randomCase(r *rand.Rand, s string) string {
	b := []byte(s)
	for i := range b {
		if r.IntN(4) == 0 {
			b[i] = bytes.ToUpper(b[i : i+1])[0]
		} else if r.IntN(4) == 0 {
			b[i] = bytes.ToLower(b[i : i+1])[0]
		}
	}
	return string(b)
}

const generated = 400 // calls of each class

func TestBypass(t *testing.T) {
	always := func(context.Context) bool { return true }
	incoming := func(ctx context.Context, name, value string) bool {
		md, _ := metadata.FromIncomingContext(ctx)
		return slices.Contains(md[name], value)
	}
	admin, errAdmin := header("x-role", "admin")
	adminBin, errBin := header("x-role-bin", "YWRtaW4")
	noise := func(r *rand.Rand) string { return pick(r, "user", "", "ADMIN", "admin2", "guest") }
	for _, c := range []struct {
		name      string
		in        *snapshot.Inbound
		forbidden func(context.Context) bool
		generate  func(*rand.Rand) call
		mistakes  map[string]func(*inbound.Request, metadata.MD)
	}{
		{
			name: "the method's spelling", in: deny(t, identity.PathIs(protected), nil), forbidden: always,
			generate: func(r *rand.Rand) call {
				path := pick(r, protected, randomCase(r, protected))
				for range r.IntN(3) {
					i := r.IntN(len(path) + 1)
					path = path[:i] + pick(r, "/", "//", "/.", "/./", "/../", "%2F", "%2f", "?", "?x=1", "#", ";x", "%55", "\\", " ") + path[i:]
				}
				return call{path: pick(r, path, path, strings.TrimPrefix(path, "/"), protected)}
			},
			mistakes: map[string]func(*inbound.Request, metadata.MD){
				"in lower case": func(q *inbound.Request, _ metadata.MD) { q.Access.Path = strings.ToLower(q.Access.Path) },
			},
		},
		{
			name: "metadata twice", in: deny(t, admin, errAdmin),
			forbidden: func(ctx context.Context) bool { return incoming(ctx, "x-role", "admin") },
			generate: func(r *rand.Rand) call {
				q := call{path: protected}
				for range r.IntN(4) {
					q.headers = append(q.headers, [2]string{"x-role", noise(r)})
				}
				q.headers = slices.Insert(q.headers, r.IntN(len(q.headers)+1), [2]string{"x-role", "admin"})
				for range r.IntN(3) {
					q.headers = slices.Insert(q.headers, r.IntN(len(q.headers)+1), [2]string{pick(r, "x-other", "x-rol", "x-role2"), noise(r)})
				}
				return q
			},
			mistakes: map[string]func(*inbound.Request, metadata.MD){
				"the first only": func(q *inbound.Request, md metadata.MD) { md["x-role"] = md["x-role"][:1] },
				"the last only":  func(q *inbound.Request, md metadata.MD) { md["x-role"] = md["x-role"][len(md["x-role"])-1:] },
				"joined":         func(q *inbound.Request, md metadata.MD) { md["x-role"] = []string{strings.Join(md["x-role"], ",")} },
				"as in HTTP":     func(q *inbound.Request, md metadata.MD) { q.Access.Form = routing.CanonicalHeaders },
			},
		},
		{
			name: "binary metadata", in: deny(t, adminBin, errBin),
			forbidden: func(ctx context.Context) bool { return incoming(ctx, "x-role-bin", "admin") },
			generate: func(r *rand.Rand) call {
				q := call{path: protected}
				for range r.IntN(3) {
					q.headers = append(q.headers, [2]string{"x-role-bin", base64.RawStdEncoding.EncodeToString([]byte(noise(r)))})
				}
				// The last two bits of the last letter are no part of the value.
				spelling := pick(r, "YWRtaW4", "YWRtaW5", "YWRtaW6", "YWRtaW7", "YWRtaW4=", "YWRtaW5=", "YWRtaW7=")
				q.headers = slices.Insert(q.headers, r.IntN(len(q.headers)+1), [2]string{"x-role-bin", spelling})
				return q
			},
			mistakes: map[string]func(*inbound.Request, metadata.MD){
				"decoded": func(*inbound.Request, metadata.MD) {},
				"padded": func(_ *inbound.Request, md metadata.MD) {
					for i, v := range md["x-role-bin"] {
						md["x-role-bin"][i] = base64.StdEncoding.EncodeToString([]byte(v))
					}
				},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			run := func(t *testing.T, wrong func(*inbound.Request, metadata.MD)) (bypassed int64, denied int) {
				send, count := wire(t, c.in, wrong, c.forbidden)
				r := rand.New(rand.NewPCG(1, 2))
				for range generated {
					q := c.generate(r)
					before := count.Load()
					code := send(q)
					if code == codes.PermissionDenied {
						denied++
					}
					if wrong == nil && (count.Load() != before || code == codes.OK) {
						t.Errorf("%q %q: got through with %v", q.path, q.headers, code)
					}
				}
				return count.Load(), denied
			}
			if _, denied := run(t, nil); denied < generated/20 {
				t.Errorf("only %d of %d calls were refused by the rule", denied, generated)
			}
			for name, wrong := range c.mistakes {
				t.Run(name, func(t *testing.T) {
					if n, _ := run(t, wrong); n == 0 {
						t.Error("the mistake is not noticed")
					}
				})
			}
		})
	}
}

// TestBypassOfAllow: what is allowed by its name is that name alone.
func TestBypassOfAllow(t *testing.T) {
	leak.Check(t)
	send, bypassed := wire(t, access(t, identity.Allow, identity.PathIs("/grpc.testing.TestService/EmptyCall")), nil, func(context.Context) bool { return true })
	r := rand.New(rand.NewPCG(3, 4))
	for range generated {
		path := pick(r, protected, "/grpc.testing.TestService/EmptyCall/../UnaryCall", "grpc.testing.TestService/EmptyCall", "/grpc.testing.TestService/"+randomCase(r, "UnaryCall"),
			"/grpc.testing.TestService/UnaryCall?/grpc.testing.TestService/EmptyCall", "/grpc.testing.TestService/EmptyCall#/UnaryCall", randomCase(r, "/grpc.testing.TestService/EmptyCall")+"x")
		if code := send(call{path: path}); code == codes.OK || bypassed.Load() != 0 {
			t.Fatalf("%q: %v", path, code)
		}
	}
	if code := send(call{path: "/grpc.testing.TestService/EmptyCall"}); code != codes.Unimplemented {
		t.Errorf("the method that is allowed: %v", code)
	}
}

// TestAdmissionByName: whoever calls admission, a name without its slash, or
// one that policy reads in another way than gRPC has, is refused.
func TestAdmissionByName(t *testing.T) {
	e := inbound.New(inbound.Options{Subscribe: func(string) {}})
	t.Cleanup(e.Close)
	in := deny(t, identity.PathIs(protected), nil)
	in.Plain.Paths = identity.PathOptions{Normalize: true, MergeSlashes: true}
	at := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}
	e.Install(policy(at.String(), in))
	a := &admission{engine: e, log: slog.New(slog.DiscardHandler)}
	r := rand.New(rand.NewPCG(5, 6))
	missed := 0
	for range generated {
		path := protected
		for range r.IntN(3) {
			i := 1 + r.IntN(len(path)-1)
			path = path[:i] + pick(r, "/", "//", "/./", "/x/..", "%2F", "%55") + path[i:]
		}
		name := pick(r, path, path[1:])
		// What a dispatcher would run that forgives a missing slash and repeated ones.
		dispatched := "/" + strings.TrimLeft(strings.ReplaceAll(name, "//", "/"), "/")
		_, _, err := a.admit(withLocal(at), name)
		if dispatched == protected && status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
		if !strings.HasPrefix(name, "/") && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
		// A rule that compares the names as they come.
		if dispatched == protected && name != protected {
			missed++
		}
	}
	if missed < generated/20 {
		t.Errorf("only %d of %d names would get past a rule that compares them as they come", missed, generated)
	}
}

// localOf is the address that an RPC came in at.
func localOf(ctx context.Context) net.Addr {
	p, _ := peer.FromContext(ctx)
	return p.LocalAddr
}

// withLocal is the context of an RPC that came in at the address.
func withLocal(at net.Addr) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{LocalAddr: at})
}
