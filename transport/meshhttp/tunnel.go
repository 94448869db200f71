package meshhttp

import (
	"context"
	"io"
	"net/http"
)

// tunnels reports whether the answer makes the connection one of another protocol.
func tunnels(req *http.Request, resp *http.Response) bool {
	return resp.StatusCode == http.StatusSwitchingProtocols || req.Method == http.MethodConnect && resp.StatusCode/100 == 2
}

// tunnel ends the limits that are for an answer: as in Envoy these are a route's
// timeout and those of an attempt. The longest duration of a stream stays, and
// the idle limit of the call. The request's context was for the answer, as
// net/http has it; so what ends a tunnel is a context apart, which closes it.
func (x *exchange) tunnel(tunnel io.Closer) {
	if l := x.winner().limit; l != nil {
		l.idle.stop()
	}
	if x.limit.Context == nil {
		return
	}
	x.limit.alarm.remove()
	ends := new(deadline)
	if longest := x.call.StreamTimeout(); longest > 0 {
		ends.begin(&x.rt.clock, context.Background(), x.call.Ready(), longest)
	} else {
		ends.under(context.Background())
	}
	ends.AfterFunc(func() {
		x.limit.finish(ends.Err()) // says why, where nothing else has ended it
		_ = tunnel.Close()
	})
	x.limit.tunnel = ends
	x.idle.end(ends)
}
