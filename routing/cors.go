package routing

// CORS is cross-origin resource sharing
// (envoy.extensions.filters.http.cors.v3.CorsPolicy). It is for routes that
// send to a cluster. The zero value allows no origin.
type CORS struct {
	// Origins are those that are allowed; one that matches "*" allows every origin.
	Origins []StringMatch
	// Methods, Headers, Expose and MaxAge are the values of the headers as they are; "" leaves the header out.
	// Methods and Headers "*" repeat what a preflight asks for.
	Methods, Headers, Expose, MaxAge string
	Credentials                      bool
	PrivateNetwork                   bool
	// RefuseUnmatched answers a preflight from an origin that is not allowed
	// (forward_not_matching_preflights: false); else it goes on as any request.
	RefuseUnmatched bool
	// Enabled is the share of requests that the rules apply to; nil means all.
	Enabled *Fraction
}

var (
	originHeader    = NewHeaderName("origin")
	requestMethod   = NewHeaderName("access-control-request-method")
	requestHeaders  = NewHeaderName("access-control-request-headers")
	requestPrivate  = NewHeaderName("access-control-request-private-network")
	allowOrigin     = NewHeaderName("access-control-allow-origin")
	allowCredential = NewHeaderName("access-control-allow-credentials")
	allowMethods    = NewHeaderName("access-control-allow-methods")
	allowHeaders    = NewHeaderName("access-control-allow-headers")
	allowPrivate    = NewHeaderName("access-control-allow-private-network")
	exposeHeaders   = NewHeaderName("access-control-expose-headers")
	maxAge          = NewHeaderName("access-control-max-age")
)

// Applies reports whether the rules are for a request at all. draw is 64 random
// bits. Ask once, before Preflight and Apply, which both take it for granted.
func (c *CORS) Applies(draw uint64) bool { return c.Enabled == nil || c.Enabled.Matches(draw) }

// allowed returns the request's origin and whether it is allowed. "" means that
// the request has none, so that nothing here concerns it.
func (c *CORS) allowed(r *Request) (origin string, ok bool) {
	origin, _ = originHeader.first(r)
	if origin == "" {
		return "", false
	}
	for i := range c.Origins {
		if c.Origins[i].Matches("*") || c.Origins[i].Matches(origin) {
			return origin, true
		}
	}
	return origin, false
}

// Preflight answers a preflight: OPTIONS with Origin and
// Access-Control-Request-Method. The status is 200; what is not allowed shows by
// the headers that are missing. Requests that are no preflight, and those of
// other origins unless RefuseUnmatched, are not answered; that allocates nothing.
func (c *CORS) Preflight(r *Request) (header map[string][]string, status int, answered bool) {
	if r.Method != "OPTIONS" {
		return nil, 0, false
	}
	origin, allowed := c.allowed(r)
	method, _ := requestMethod.first(r)
	if origin == "" || method == "" || !allowed && !c.RefuseUnmatched {
		return nil, 0, false
	}
	header = make(map[string][]string, 6)
	if allowed {
		header[allowOrigin.canonical] = []string{origin}
	}
	if c.Credentials {
		header[allowCredential.canonical] = []string{"true"}
	}
	wanted, _ := requestHeaders.first(r)
	setCORS(header, &allowMethods, c.Methods, method)
	setCORS(header, &allowHeaders, c.Headers, wanted)
	if c.MaxAge != "" {
		header[maxAge.canonical] = []string{c.MaxAge}
	}
	if c.PrivateNetwork {
		if v, _ := requestPrivate.first(r); v == "true" {
			header[allowPrivate.canonical] = []string{"true"}
		}
	}
	return header, 200, true
}

func setCORS(header map[string][]string, name *HeaderName, value, asked string) {
	switch value {
	case "":
	case "*":
		header[name.canonical] = []string{asked}
	default:
		header[name.canonical] = []string{value}
	}
}

// Apply adds the headers to the response to an actual request of an allowed
// origin, in place of those that the destination has set. form is that of response.
// It allocates only there.
func (c *CORS) Apply(r *Request, response map[string][]string, form HeaderForm) {
	origin, allowed := c.allowed(r)
	if !allowed {
		return
	}
	response[allowOrigin.key(form)] = []string{origin}
	if c.Credentials {
		response[allowCredential.key(form)] = []string{"true"}
	}
	if c.Expose != "" {
		response[exposeHeaders.key(form)] = []string{c.Expose}
	}
}
