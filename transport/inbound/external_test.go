package inbound

//lint:file-ignore SA1019 authorizers still set HeaderValueOption.append.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sinew-mesh/sinew/identity"
	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
)

// grpcAuthorizer is an authorizer that answers as it is told to.
type grpcAuthorizer struct {
	authv3.UnimplementedAuthorizationServer
	answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
}

func (g *grpcAuthorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return g.answer(ctx, r)
}

// serveAuthorizer runs an authorizer of the gRPC protocol and returns a connection to it.
func serveAuthorizer(t testing.TB, answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)) grpc.ClientConnInterface {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, &grpcAuthorizer{answer: answer})
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///authorizer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); server.Stop(); <-done })
	return conn
}

// serveHTTPAuthorizer runs one of the HTTP protocol and returns its address and a transport.
func serveHTTPAuthorizer(t testing.TB, answer http.HandlerFunc) (string, http.RoundTripper) {
	t.Helper()
	server := httptest.NewServer(answer)
	transport := &http.Transport{}
	t.Cleanup(func() { transport.CloseIdleConnections(); server.Close() })
	return strings.TrimPrefix(server.URL, "http://"), transport
}

func question() *externalQuestion {
	return &externalQuestion{
		Access: &identity.AccessRequest{
			Request: routing.Request{
				Method: "POST", Scheme: "https", Authority: "reviews:9080", Path: "/a%2Fb", RawQuery: "q=1",
				Header: map[string][]string{
					"Authorization": {"Bearer canary"}, "X-Many": {"a", "b"}, "Cookie": {"c=1", "d=2"}, "X-Raw": {"\xff\xfea"},
					"Content-Length": {"5"}, "Connection": {"x-many"}, "X-Envoy-Auth-Partial-Body": {"forged"},
				},
			},
			Principal: "spiffe://td/ns/a/sa/caller", ServerName: "outbound_.9080_._.reviews",
		},
		Source: netip.MustParseAddrPort("10.0.0.1:4000"), Destination: netip.MustParseAddrPort("[::ffff:10.0.0.2]:9080"),
		DestinationPrincipal: "spiffe://td/ns/a/sa/reviews", ID: "id-1", Protocol: "HTTP/2", Size: 5, Time: time.Unix(1e9, 0),
		Body: func(limit int) ([]byte, bool, error) { return []byte("hello")[:min(limit, 5)], limit >= 5, nil },
	}
}

func okStatus() *statuspb.Status { return &statuspb.Status{Code: int32(codes.OK)} }

func forbidden() *statuspb.Status { return &statuspb.Status{Code: int32(codes.PermissionDenied)} }

func option(name, value string, action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: action}
}

func plainOption(name, value string) *corev3.HeaderValueOption { return option(name, value, 0) }

func TestQuestionOfGRPC(t *testing.T) {
	leak.Check(t)
	var got *authv3.AttributeContext
	conn := serveAuthorizer(t, func(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		got = r.GetAttributes()
		return &authv3.CheckResponse{Status: okStatus()}, nil
	})
	x := &snapshot.ExternalAuthorizer{Timeout: 10 * time.Second, MaxBody: 3, PartialBody: true, ContextExtensions: map[string]string{"k": "v"}}
	if a := askExternal(t.Context(), x, conn, nil, question()); a.err != nil || !a.allow {
		t.Fatalf("%+v", a)
	}
	h := got.GetRequest().GetHttp()
	want := map[string]string{
		":method": "POST", ":scheme": "https", ":authority": "reviews:9080", ":path": "/a%2Fb?q=1", "authorization": "Bearer canary",
		"x-many": "a,b", "cookie": "c=1; d=2", "x-raw": "!!a", "content-length": "5", "connection": "x-many", partialBody: "true",
	}
	if !maps.Equal(h.GetHeaders(), want) {
		t.Errorf("headers %q", h.GetHeaders())
	}
	if h.GetId() != "id-1" || h.GetMethod() != "POST" || h.GetPath() != "/a%2Fb?q=1" || h.GetHost() != "reviews:9080" || h.GetScheme() != "https" || h.GetSize() != 5 || h.GetProtocol() != "HTTP/2" || h.GetBody() != "hel" || h.GetQuery() != "" {
		t.Errorf("request %v", h)
	}
	source, destination := got.GetSource(), got.GetDestination()
	if source.GetPrincipal() != "spiffe://td/ns/a/sa/caller" || source.GetAddress().GetSocketAddress().GetAddress() != "10.0.0.1" || source.GetAddress().GetSocketAddress().GetPortValue() != 4000 {
		t.Errorf("source %v", source)
	}
	if destination.GetPrincipal() != "spiffe://td/ns/a/sa/reviews" || destination.GetAddress().GetSocketAddress().GetAddress() != "10.0.0.2" || destination.GetAddress().GetSocketAddress().GetPortValue() != 9080 {
		t.Errorf("destination %v", destination)
	}
	if got.GetContextExtensions()["k"] != "v" || got.GetTlsSession().GetSni() != "outbound_.9080_._.reviews" || got.GetRequest().GetTime().AsTime().Unix() != 1e9 {
		t.Errorf("context %v", got)
	}

	x.Headers, x.RawBody, x.MaxBody = []routing.StringMatch{routing.Prefix("x-", false), routing.Exact(":path", false)}, true, 10
	if a := askExternal(t.Context(), x, conn, nil, question()); !a.allow {
		t.Fatalf("%+v", a)
	}
	h = got.GetRequest().GetHttp()
	if want := map[string]string{"x-many": "a,b", "x-raw": "!!a", ":path": "/a%2Fb?q=1", partialBody: "false"}; !maps.Equal(h.GetHeaders(), want) {
		t.Errorf("headers %q", h.GetHeaders())
	}
	if string(h.GetRawBody()) != "hello" || h.GetBody() != "" {
		t.Errorf("body %q, raw %q", h.GetBody(), h.GetRawBody())
	}
}

func TestAnswerOfGRPC(t *testing.T) {
	allowed := func(ok *authv3.OkHttpResponse) *authv3.CheckResponse {
		return &authv3.CheckResponse{Status: okStatus(), HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}
	}
	denied := func(s *statuspb.Status, d *authv3.DeniedHttpResponse) *authv3.CheckResponse {
		return &authv3.CheckResponse{Status: s, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: d}}
	}
	code := func(n int32) *typev3.HttpStatus { return &typev3.HttpStatus{Code: typev3.StatusCode(n)} }
	many := func(n int) (out []*corev3.HeaderValueOption) {
		for i := range n {
			out = append(out, plainOption(fmt.Sprint("x-", i), "v"))
		}
		return out
	}
	for _, c := range []struct {
		name   string
		r      *authv3.CheckResponse
		status int    // 0: allowed; -1: no answer
		more   string // of a refusal: headers and body
	}{
		{"status OK", &authv3.CheckResponse{Status: okStatus()}, 0, ""},
		{"OK response without a status", &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}, 0, ""},
		{"empty", &authv3.CheckResponse{}, -1, ""},
		{"refused", &authv3.CheckResponse{Status: forbidden()}, 403, ""},
		{"refused with an OK response", &authv3.CheckResponse{Status: forbidden(), HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}, 403, ""},
		{"refused with status OK", denied(okStatus(), &authv3.DeniedHttpResponse{Status: code(401)}), 401, ""},
		{"refused without a status", denied(nil, &authv3.DeniedHttpResponse{}), 403, ""},
		{"status, headers and body", denied(forbidden(), &authv3.DeniedHttpResponse{Status: code(302), Headers: []*corev3.HeaderValueOption{plainOption("Location", "/login"), plainOption("set-cookie", "a=1"), plainOption("Set-Cookie", "b=2")}, Body: "go"}), 302, "location=/login set-cookie=a=1 set-cookie=b=2 go"},
		{"a status that can not be sent", denied(forbidden(), &authv3.DeniedHttpResponse{Status: code(101)}), 403, ""},
		{"a status beyond all", denied(forbidden(), &authv3.DeniedHttpResponse{Status: code(1000)}), 403, ""},
		{"bad headers of a refusal are left out", denied(forbidden(), &authv3.DeniedHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("a", "b\r\nc: d"), plainOption("a b", "c"), plainOption("content-length", "9"), plainOption(":status", "200"), plainOption("", ""), plainOption("x", "y"), option("z", "v", 77), nil}}), 403, "x=y z=v "},
		{"overwrite and absent", denied(forbidden(), &authv3.DeniedHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("a", "1"), option("a", "2", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS), option("b", "3", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS), option("a", "4", corev3.HeaderValueOption_ADD_IF_ABSENT), option("c", "5", corev3.HeaderValueOption_ADD_IF_ABSENT)}}), 403, "a=2 c=5 "},
		{"error of the authorizer", &authv3.CheckResponse{Status: forbidden(), HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{}}}, -1, ""},
		{"error with status OK", &authv3.CheckResponse{Status: okStatus(), HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{}}}, -1, ""},
		{"CR LF in a header", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("a", "b\r\nc: d")}}), -1, ""},
		{"NUL in a header of the answer", allowed(&authv3.OkHttpResponse{ResponseHeadersToAdd: []*corev3.HeaderValueOption{plainOption("a", "b\x00")}}), -1, ""},
		{"bad name", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("a:b", "c")}}), -1, ""},
		{"no name", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("", "c")}}), -1, ""},
		{"sets the path", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption(":path", "/admin")}}), -1, ""},
		{"sets the host", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("Host", "admin")}}), -1, ""},
		{"sets the length", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("Content-Length", "0")}}), -1, ""},
		{"sets the encoding", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("Transfer-Encoding", "chunked")}}), -1, ""},
		{"unknown action", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{option("a", "b", 77)}}), -1, ""},
		{"as many headers as may be", allowed(&authv3.OkHttpResponse{Headers: many(maxExternalChanges)}), 0, ""},
		{"too many headers", allowed(&authv3.OkHttpResponse{Headers: many(maxExternalChanges + 1)}), -1, ""},
		{"too large headers", allowed(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("a", strings.Repeat("b", maxExternalHeader))}}), -1, ""},
		{"too many removals", allowed(&authv3.OkHttpResponse{HeadersToRemove: make([]string, maxExternalChanges+1)}), -1, ""},
		{"too many parameters", allowed(&authv3.OkHttpResponse{QueryParametersToRemove: make([]string, maxExternalChanges+1)}), -1, ""},
		{"too large parameters", allowed(&authv3.OkHttpResponse{QueryParametersToSet: []*corev3.QueryParameter{{Key: "a", Value: strings.Repeat("b", maxExternalHeader)}}}), -1, ""},
		{"parameter without a name", allowed(&authv3.OkHttpResponse{QueryParametersToSet: []*corev3.QueryParameter{{}}}), -1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := readCheck(c.r)
			if a.allow && (a.err != nil || a.status != 0) || !a.allow && a.err == nil && a.status == 0 {
				t.Fatalf("neither: %+v", a)
			}
			got := a.status
			if a.err != nil {
				got = -1
			}
			more := ""
			for _, h := range a.header {
				more += h.Name + "=" + h.Value + " "
			}
			if got != c.status || more+string(a.body) != c.more {
				t.Errorf("status %d (%v), %q", got, a.err, more+string(a.body))
			}
		})
	}
	long := readCheck(denied(forbidden(), &authv3.DeniedHttpResponse{Body: strings.Repeat("b", 2*maxExternalBody)}))
	if len(long.body) != maxExternalBody {
		t.Errorf("a body of %d bytes", len(long.body))
	}
}

// TestChanges: what an authorizer's answer does to the request that goes on.
func TestChanges(t *testing.T) {
	appending := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x-b", Value: "more"}, Append: wrapperspb.Bool(true)}
	a := readCheck(&authv3.CheckResponse{Status: okStatus(), HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{
			plainOption("X-User", "ann"), appending,
			option("x-c", "no", corev3.HeaderValueOption_ADD_IF_ABSENT), option("x-d", "new", corev3.HeaderValueOption_ADD_IF_ABSENT),
			option("x-c", "over", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS), option("x-e", "no", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS),
			{Header: &corev3.HeaderValue{Key: "x-raw", RawValue: []byte("raw")}}, {Header: &corev3.HeaderValue{Key: "x-f", Value: "f"}, Append: wrapperspb.Bool(false)},
		},
		HeadersToRemove:         []string{"Authorization", "host", ":path", "Content-Length", ""},
		ResponseHeadersToAdd:    []*corev3.HeaderValueOption{plainOption("set-cookie", "a=1"), plainOption("set-cookie", "b=2")},
		QueryParametersToSet:    []*corev3.QueryParameter{{Key: "a b", Value: "x&y"}, {Key: "n", Value: "1"}, {Key: "n", Value: "2"}},
		QueryParametersToRemove: []string{"gone"},
	}}})
	if a.err != nil || !a.allow {
		t.Fatalf("%+v", a)
	}
	for form, name := range map[routing.HeaderForm]func(string) string{routing.CanonicalHeaders: http.CanonicalHeaderKey, routing.LowerHeaders: strings.ToLower} {
		shared := []string{"old"}
		header := map[string][]string{name("x-user"): {"forged", "twice"}, name("x-b"): shared[:1:1], name("x-c"): {"c"}, name("x-f"): {"old"}, name("authorization"): {"canary"}, name("host"): {"h"}, name("content-length"): {"5"}}
		a.changeHeaders(header, form)
		want := map[string][]string{name("x-user"): {"ann"}, name("x-b"): {"old", "more"}, name("x-c"): {"over"}, name("x-d"): {"new"}, name("x-f"): {"f"}, name("x-raw"): {"raw"}, name("host"): {"h"}, name("content-length"): {"5"}}
		if !reflect.DeepEqual(header, want) {
			t.Errorf("headers %q, want %q", header, want)
		}
	}
	for query, want := range map[string]string{
		"":                         "a+b=x%26y&n=2",
		"gone=1&k=v&%67one=2&a+b=": "k=v&a+b=x%26y&n=2",
		"a%20b=1&n&K=%zz&":         "K=%zz&a+b=x%26y&n=2",
	} {
		if got := a.changeQuery(query); got != want {
			t.Errorf("%q became %q, want %q", query, got, want)
		}
	}
	if got := (&externalAnswer{}).changeQuery("&a=%"); got != "&a=%" {
		t.Errorf("a query that nobody changes became %q", got)
	}
	if got := lines(a.response); !slices.Equal(got, []Header{{"set-cookie", "a=1"}, {"set-cookie", "b=2"}}) {
		t.Errorf("response %v", got)
	}
}

func TestNoAnswer(t *testing.T) {
	leak.Check(t)
	stop := make(chan struct{})
	conn := serveAuthorizer(t, func(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		switch r.GetAttributes().GetRequest().GetHttp().GetId() {
		case "hang":
			select {
			case <-ctx.Done():
			case <-stop:
			}
			return nil, ctx.Err()
		case "large":
			return &authv3.CheckResponse{Status: okStatus(), HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{plainOption("a", strings.Repeat("b", maxExternalAnswer))}}}}, nil
		case "error":
			return &authv3.CheckResponse{Status: forbidden(), HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 503}, Body: "later"}}}, nil
		}
		return nil, status.Error(codes.Internal, "canary")
	})
	host, transport := serveHTTPAuthorizer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Case") {
		case "hang":
			select {
			case <-r.Context().Done():
			case <-stop:
			}
		case "abort":
			panic(http.ErrAbortHandler)
		case "evil":
			w.Header().Set("X-Evil", "a")
			for i := range maxExternalChanges + 1 {
				w.Header().Add("X-Evil", fmt.Sprint(i))
			}
		default:
			w.WriteHeader(500)
		}
	})
	defer close(stop)
	overHTTP := &snapshot.ExternalHTTP{UpstreamHeaders: []routing.StringMatch{routing.Exact("x-evil", false)}}
	for _, c := range []struct {
		name   string
		x      snapshot.ExternalAuthorizer
		id     string
		change func(*externalQuestion)
		status int
		body   string
		policy bool // says whether FailOpen lets it through
		want   string
	}{
		{"gRPC error", snapshot.ExternalAuthorizer{}, "", nil, 403, "", true, "gRPC status Internal"},
		{"status of policy", snapshot.ExternalAuthorizer{StatusOnError: 503}, "", nil, 503, "", true, "Internal"},
		{"gRPC too late", snapshot.ExternalAuthorizer{Timeout: time.Millisecond}, "hang", nil, 403, "", true, "eadline"}, // the channel may notice it before the context does
		{"gRPC too large", snapshot.ExternalAuthorizer{}, "large", nil, 403, "", true, "ResourceExhausted"},
		{"the authorizer's own error", snapshot.ExternalAuthorizer{}, "error", nil, 503, "later", true, "reports an error"},
		{"HTTP 500", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "", nil, 403, "", true, "HTTP status 500"},
		{"HTTP too late", snapshot.ExternalAuthorizer{HTTP: overHTTP, Timeout: 20 * time.Millisecond}, "hang", nil, 403, "", true, "deadline"},
		{"HTTP breaks off", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "abort", nil, 403, "", true, "EOF"},
		{"HTTP with too many headers", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "evil", nil, 403, "", true, "too many"},
		{"a host that can not be sent", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "", func(q *externalQuestion) { q.Access.Authority = "a b" }, 403, "", true, "host"},
		{"a path that can not be sent", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "", func(q *externalQuestion) { q.Access.Path = "/a b" }, 403, "", true, "path"},
		{"a path that is none", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "", func(q *externalQuestion) { q.Access.Path = "a" }, 403, "", true, "path"},
		{"a query that can not be sent", snapshot.ExternalAuthorizer{HTTP: overHTTP}, "", func(q *externalQuestion) { q.Access.RawQuery = "a HTTP/1.1\r\nX: y" }, 403, "", true, "path"},
		{"the body fails", snapshot.ExternalAuthorizer{MaxBody: 9}, "", func(q *externalQuestion) {
			q.Body = func(int) ([]byte, bool, error) { return nil, false, io.ErrUnexpectedEOF }
		}, 400, "", false, "body"},
		{"the body is too long", snapshot.ExternalAuthorizer{MaxBody: 4}, "", nil, 413, "", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, open := range []bool{false, true} {
				x, q := c.x, question()
				x.Provider, x.Host, x.FailOpen = "opa", host, open
				if x.Timeout == 0 {
					x.Timeout = 10 * time.Second
				}
				x.Headers = []routing.StringMatch{routing.Exact("x-case", false)}
				q.ID = c.id
				q.Access.Header["X-Case"] = []string{c.id}
				if c.change != nil {
					c.change(q)
				}
				a := askExternal(t.Context(), &x, conn, transport, q)
				if want := open && c.policy; a.allow != want {
					t.Fatalf("open %v: allowed %v (%v)", open, a.allow, a.err)
				}
				if a.allow && len(a.request)+len(a.remove)+len(a.response) > 0 {
					t.Errorf("changes without an answer: %+v", a)
				}
				if !a.allow && (a.status != c.status || string(a.body) != c.body) {
					t.Errorf("status %d, body %q", a.status, a.body)
				}
				if (a.err != nil) != (c.want != "") || a.err != nil && (!strings.Contains(a.err.Error(), c.want) || !strings.Contains(a.err.Error(), `"opa"`) || strings.Contains(a.err.Error(), "canary")) {
					t.Errorf("error %v, want %q", a.err, c.want)
				}
			}
		})
	}
	for _, x := range []*snapshot.ExternalAuthorizer{{}, {HTTP: overHTTP}} {
		if a := askExternal(t.Context(), x, nil, nil, question()); a.allow || !errors.Is(a.err, errNoChannel) {
			t.Errorf("without a way to call it: %+v", a)
		}
	}
}

func TestHTTPProtocol(t *testing.T) {
	leak.Check(t)
	var got *http.Request
	var sent string
	answer := func(http.ResponseWriter) {}
	host, transport := serveHTTPAuthorizer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, sent = r, string(b)
		answer(w)
	})
	exact := func(names ...string) (out []routing.StringMatch) {
		for _, n := range names {
			out = append(out, routing.Exact(n, true))
		}
		return out
	}
	x := &snapshot.ExternalAuthorizer{Host: host, Timeout: 10 * time.Second, Headers: exact("x-many", "cookie", "host", "content-length", "connection"), HTTP: &snapshot.ExternalHTTP{
		PathPrefix: "/check", AddHeaders: map[string]string{"X-Fixed": "yes"},
		UpstreamHeaders: exact("x-user", "content-length", "date"), UpstreamHeadersToAppend: exact("x-many"), ClientHeadersOnSuccess: exact("x-hint"),
	}}
	answer = func(w http.ResponseWriter) {
		h := w.Header()
		h.Set("X-User", "ann")
		h["X-Many"] = []string{"c", "d"}
		h.Set("X-Hint", "h")
		h.Set("X-Other", "o")
		h["Date"] = nil
		h.Set(headersToRemove, "Authorization, x-gone,host,:path")
		_, _ = w.Write(make([]byte, 64<<10))
	}
	a := askExternal(t.Context(), x, nil, transport, question())
	if a.err != nil || !a.allow {
		t.Fatalf("%+v", a)
	}
	if got.Method != "POST" || got.RequestURI != "/check/a%2Fb?q=1" || got.Host != "reviews:9080" || sent != "" || got.ContentLength != 0 {
		t.Errorf("%s %s to %s, %d bytes", got.Method, got.RequestURI, got.Host, got.ContentLength)
	}
	got.Header.Del("User-Agent")
	got.Header.Del("Accept-Encoding")
	got.Header.Del("Content-Length")
	if want := (http.Header{"Authorization": {"Bearer canary"}, "X-Many": {"a,b"}, "Cookie": {"c=1; d=2"}, "X-Fixed": {"yes"}}); !reflect.DeepEqual(got.Header, want) {
		t.Errorf("headers %q, want %q", got.Header, want)
	}
	if want := []headerChange{{Header{"x-many", "c"}, headerAdd}, {Header{"x-many", "d"}, headerAdd}, {Header{"x-user", "ann"}, headerSet}}; !slices.Equal(a.request, want) {
		t.Errorf("changes %v", a.request)
	}
	if want := []string{"authorization", "x-gone"}; !slices.Equal(a.remove, want) || !slices.Equal(lines(a.response), []Header{{"x-hint", "h"}}) {
		t.Errorf("removals %v, response %v", a.remove, a.response)
	}

	x.MaxBody, x.PartialBody = 3, true
	if a := askExternal(t.Context(), x, nil, transport, question()); !a.allow || sent != "hel" || got.Header.Get(partialBody) != "true" {
		t.Errorf("%+v: sent %q, %q", a, sent, got.Header)
	}

	for _, c := range []struct {
		status  int
		clients []routing.StringMatch
		want    []Header
	}{
		{401, nil, []Header{{"location", "/l"}, {"www-authenticate", "Basic"}, {"x-a", "1"}, {"x-a", "2"}, {"x-b", "3"}}},
		{403, exact("x-b"), []Header{{"location", "/l"}, {"www-authenticate", "Basic"}, {"x-b", "3"}}},
		{302, exact("x-none"), []Header{{"location", "/l"}, {"www-authenticate", "Basic"}}},
		{204, exact("x-none"), []Header{{"location", "/l"}, {"www-authenticate", "Basic"}}}, // only 200 lets through
	} {
		x.HTTP.ClientHeaders = c.clients
		answer = func(w http.ResponseWriter) {
			h := w.Header()
			h.Set("Location", "/l")
			h.Set("Www-Authenticate", "Basic")
			h["X-A"], h["X-B"], h["Content-Type"] = []string{"1", "2"}, []string{"3"}, nil
			w.WriteHeader(c.status)
			if c.status != 204 {
				_, _ = io.WriteString(w, strings.Repeat("b", 2*maxExternalBody))
			}
		}
		a := askExternal(t.Context(), x, nil, transport, question())
		if a.allow || a.err != nil || a.status != c.status || !slices.Equal(a.header, c.want) || c.status != 204 && len(a.body) != maxExternalBody {
			t.Errorf("%d: %v, status %d, headers %v, %d bytes", c.status, a.err, a.status, a.header, len(a.body))
		}
	}
}

// FuzzCheckResponse: whatever an authorizer answers, only one that clearly
// says so lets a request through, and nothing comes of it that HTTP does not allow.
func FuzzCheckResponse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var r authv3.CheckResponse
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		a := readCheck(&r)
		if a.allow && (r.GetStatus().GetCode() != 0 || r.Status == nil && r.GetOkResponse() == nil || r.GetDeniedResponse() != nil || r.GetErrorResponse() != nil || a.err != nil) {
			t.Fatalf("let through by %v", &r)
		}
		if !a.allow && a.err == nil && (a.status < 200 || a.status > 599) {
			t.Fatalf("status %d", a.status)
		}
		header := map[string][]string{"X-A": {"1"}, "Host": {"h"}}
		a.changeHeaders(header, routing.CanonicalHeaders)
		if header["Host"] == nil || len(a.request) > maxExternalChanges || len(a.body) > maxExternalBody {
			t.Fatalf("%+v", a)
		}
		all := append(lines(a.response), a.header...)
		for name, values := range header {
			for _, v := range values {
				all = append(all, Header{name, v})
			}
		}
		for _, h := range all {
			if strings.ContainsAny(h.Name, "\r\n: \x00") || strings.ContainsAny(h.Value, "\r\n\x00") || h.Name == "" {
				t.Fatalf("header %q", h)
			}
		}
		if q := a.changeQuery("a=1&b=2"); strings.ContainsAny(q, " \r\n#\x00") {
			t.Fatalf("query %q", q)
		}
	})
}
