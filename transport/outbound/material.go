package outbound

import (
	"context"
	"errors"
	"time"

	"github.com/sinew-mesh/sinew/identity/source"
)

var errTrustOnly = errors.New("the identity source has trust bundles but no certificate")

// Material returns what the source has in force. Where nothing has come yet, it
// waits as Decide does for policy: until it comes, the context ends or
// Options.PolicyWait has passed. So a process whose first certificate is still
// on its way sends nothing in plaintext and fails nothing. A certificate that
// has expired or was withdrawn is an error at once. certificate asks for a certificate, beside trust. The
// error is *NotReadyError.
func (c *Call) Material(ctx context.Context, src source.Source, certificate bool) (*source.Material, error) {
	m, err := usable(src, certificate)
	if err == nil {
		return m, nil
	}
	began := time.Now()
	timer := time.NewTimer(c.engine.options.PolicyWait)
	defer timer.Stop()
	failed := func(cause error) error {
		return &NotReadyError{Place: c.Place(), Missing: "certificate", Waited: time.Since(began), Err: errors.Join(cause, err)}
	}
	for {
		// The channel first: a change after this line closes it.
		changed := src.Changed()
		if m, err = usable(src, certificate); err == nil {
			return m, nil
		}
		var notReady *source.NotReadyError
		if !errors.As(err, &notReady) || notReady.Revoked || !notReady.Expired.IsZero() {
			return nil, failed(nil)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, failed(ctx.Err())
		case <-timer.C:
			return nil, failed(nil)
		case <-c.engine.closed:
			return nil, failed(ErrClosed)
		}
	}
}

func usable(src source.Source, certificate bool) (*source.Material, error) {
	m, err := src.Current()
	if err == nil && certificate && m.Certificate == nil {
		return nil, errTrustOnly
	}
	return m, err
}
