package inbound

//lint:file-ignore SA1019 authorizers still set HeaderValueOption.append.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const checkMethod = "/envoy.service.auth.v3.Authorization/Check"

var errNoChannel = errors.New("there is no way to call it")

// askGRPC asks in the gRPC protocol (envoy.service.auth.v3.Authorization).
func askGRPC(ctx context.Context, x *snapshot.ExternalAuthorizer, conn grpc.ClientConnInterface, q *externalQuestion, body *externalBody) externalAnswer {
	if conn == nil {
		return externalAnswer{err: errNoChannel}
	}
	var response authv3.CheckResponse
	err := conn.Invoke(ctx, checkMethod, checkRequest(x, q, body), &response, grpc.MaxCallRecvMsgSize(maxExternalAnswer))
	if err != nil {
		if ctx.Err() != nil {
			return externalAnswer{err: ctx.Err()}
		}
		// Its message may repeat what the request has, so only the code is kept.
		return externalAnswer{err: fmt.Errorf("gRPC status %s", status.Code(err))}
	}
	return readCheck(&response)
}

// checkRequest describes a request as Envoy does (envoy.service.auth.v3.AttributeContext).
func checkRequest(x *snapshot.ExternalAuthorizer, q *externalQuestion, body *externalBody) *authv3.CheckRequest {
	a := q.Access
	headers := q.headers(x.Headers, len(x.Headers) == 0)
	for name, value := range map[string]string{":method": a.Method, ":authority": a.Authority, ":scheme": a.Scheme, ":path": q.target()} {
		if value != "" && (len(x.Headers) == 0 || matchesAny(x.Headers, name)) {
			headers[name] = plainText(value)
		}
	}
	h := &authv3.AttributeContext_HttpRequest{
		Id: plainText(q.ID), Method: plainText(a.Method), Headers: headers, Path: plainText(q.target()),
		Host: plainText(a.Authority), Scheme: plainText(a.Scheme), Size: q.Size, Protocol: q.Protocol,
	}
	if body.sent {
		h.Headers[partialBody] = fmt.Sprint(body.partial)
		if x.RawBody {
			h.RawBody = body.data
		} else {
			h.Body = plainText(string(body.data))
		}
	}
	out := &authv3.AttributeContext{
		Source:            peerOf(q.Source, a.Principal),
		Destination:       peerOf(q.Destination, q.DestinationPrincipal),
		Request:           &authv3.AttributeContext_Request{Http: h},
		ContextExtensions: x.ContextExtensions,
	}
	if !q.Time.IsZero() {
		out.Request.Time = timestamppb.New(q.Time)
	}
	if a.ServerName != "" {
		out.TlsSession = &authv3.AttributeContext_TLSSession{Sni: plainText(a.ServerName)}
	}
	return &authv3.CheckRequest{Attributes: out}
}

func peerOf(at netip.AddrPort, principal string) *authv3.AttributeContext_Peer {
	p := &authv3.AttributeContext_Peer{Principal: plainText(principal)}
	if at.Addr().IsValid() {
		p.Address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: at.Addr().Unmap().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(at.Port())},
		}}}
	}
	return p
}

// readCheck reads an answer. One that does not say clearly that the request may
// go on never lets it: an empty message, as any other service may answer, is no answer.
func readCheck(r *authv3.CheckResponse) externalAnswer {
	ok, denied, failed := r.GetOkResponse(), r.GetDeniedResponse(), r.GetErrorResponse()
	switch {
	case r.Status == nil && ok == nil && denied == nil && failed == nil:
		return externalAnswer{err: errors.New("the answer is empty")}
	case codes.Code(r.Status.GetCode()) == codes.OK && failed == nil && denied == nil:
		return readAllowed(ok)
	case failed != nil:
		a := readDenied(failed)
		a.err = errors.New("the authorizer reports an error")
		if failed.GetStatus().GetCode() == 0 {
			a.status = 0 // policy's own
		}
		return a
	default:
		// A refusal with status OK contradicts itself, and is a refusal.
		return readDenied(denied)
	}
}

func readAllowed(r *authv3.OkHttpResponse) externalAnswer {
	a := externalAnswer{allow: true}
	var request, response collect
	err := errors.Join(request.options(r.GetHeaders(), false), response.options(r.GetResponseHeadersToAdd(), true))
	if err != nil {
		return externalAnswer{err: err}
	}
	a.request, a.response = request.changes, response.changes
	parameters := len(r.GetQueryParametersToSet()) + len(r.GetQueryParametersToRemove())
	if len(r.GetHeadersToRemove()) > maxExternalChanges || parameters > maxExternalChanges {
		return externalAnswer{err: errExternalSize}
	}
	for _, name := range r.GetHeadersToRemove() {
		// Envoy ignores those that a request can not be without.
		if lower := strings.ToLower(name); takable(lower) {
			a.remove = append(a.remove, lower)
		}
	}
	size := 0
	for _, p := range r.GetQueryParametersToSet() {
		if p.GetKey() == "" {
			return externalAnswer{err: errors.New("the answer sets a query parameter without a name")}
		}
		size += len(p.GetKey()) + len(p.GetValue())
		a.setQuery = append(a.setQuery, queryParameter{p.GetKey(), p.GetValue()})
	}
	if size > maxExternalHeader {
		return externalAnswer{err: errExternalSize}
	}
	a.removeQuery = r.GetQueryParametersToRemove()
	return a
}

func readDenied(r *authv3.DeniedHttpResponse) externalAnswer {
	a := externalAnswer{status: refusalStatus(int(r.GetStatus().GetCode()))}
	header := collect{lenient: true}
	_ = header.options(r.GetHeaders(), true)
	a.header = lines(header.changes)
	if body := r.GetBody(); body != "" {
		a.body = []byte(body[:min(len(body), maxExternalBody)])
	}
	return a
}

// options adds headers of an answer. Where the authorizer does not say how, a
// header takes the place of the request's own, as the messages document: what a
// caller made up must not stay beside what the authorizer says. Several of one
// name in a response are all kept, as a browser's cookies need.
func (c *collect) options(list []*corev3.HeaderValueOption, response bool) error {
	for i, o := range list {
		action := headerSet
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD: // the value that stands for none
			switch {
			case o.GetAppend().GetValue():
				action = headerAdd
			case o.GetAppend() == nil && response && repeated(list[:i], o):
				action = headerAdd
			}
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			action = headerAddIfAbsent
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			action = headerSetIfThere
		default:
			if !c.lenient {
				return fmt.Errorf("the answer has the unknown append action %d", o.GetAppendAction())
			}
		}
		value := o.GetHeader().GetValue()
		if value == "" {
			value = string(o.GetHeader().GetRawValue())
		}
		if err := c.add(o.GetHeader().GetKey(), value, action); err != nil {
			return err
		}
	}
	return nil
}

func repeated(before []*corev3.HeaderValueOption, o *corev3.HeaderValueOption) bool {
	for _, b := range before[:min(len(before), maxExternalChanges)] {
		if strings.EqualFold(b.GetHeader().GetKey(), o.GetHeader().GetKey()) {
			return true
		}
	}
	return false
}
