package client

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/internal/xds/bootstrap"
)

// TestCredentials: who makes the credentials of an identity source is asked
// once for each server that wants them, and without him there is no client.
func TestCredentials(t *testing.T) {
	b, err := bootstrap.Parse([]byte(`{"node": {"id": "x"}, "xds_servers": [
		{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "certificate_provider", "config": {"plugin_name": "csr"}}, {"type": "insecure"}]},
		{"server_uri": "127.0.0.1:2", "channel_creds": [{"type": "insecure"}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	open := func(f bootstrap.CredentialsFunc) error {
		c, err := New(Options{Bootstrap: b, OnSnapshot: func(*snapshot.Snapshot) {}, Credentials: f})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := open(nil); err == nil || !strings.Contains(err.Error(), "channel_creds[0]") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("without a maker of credentials: %v", err)
	}
	if err := open(func(bootstrap.ChannelCreds) (credentials.TransportCredentials, error) {
		return nil, errors.New("no such plugin")
	}); err == nil || !strings.Contains(err.Error(), "no such plugin") {
		t.Error(err)
	}
	var asked []bootstrap.ChannelCreds
	if err := open(func(cc bootstrap.ChannelCreds) (credentials.TransportCredentials, error) {
		asked = append(asked, cc)
		return insecure.NewCredentials(), nil
	}); err != nil || len(asked) != 1 || string(asked[0].Config) != `{"plugin_name": "csr"}` {
		t.Errorf("%v, %v", asked, err)
	}
}
