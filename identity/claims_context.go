package identity

import "context"

type claimsKey struct{}

// ContextWithClaims returns a context that carries the claims of the token that
// the request came with.
func ContextWithClaims(ctx context.Context, c *Claims) context.Context {
	return context.WithValue(ctx, claimsKey{}, c)
}

// ClaimsFromContext returns what the verified token of the request says that the
// context belongs to. ok is false where policy asked for no token
// (RequestAuthentication), or where the request brought none. Requests that a
// handler makes with its own request's context are routed by these claims where
// a VirtualService says so.
func ClaimsFromContext(ctx context.Context) (c *Claims, ok bool) {
	c, ok = ctx.Value(claimsKey{}).(*Claims)
	return c, ok && c != nil
}

// Values returns the claims as Lookup sees them, by name. The map must not be changed.
func (c *Claims) Values() map[string]any {
	if c == nil {
		return nil
	}
	return c.values
}
