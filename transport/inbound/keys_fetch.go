package inbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// fetchRules say where keys may be fetched from. A URI comes with policy, and
// whoever may write a RequestAuthentication for their own namespace must not
// make every process call addresses that only it can reach: services on the same
// host, the cloud's metadata service, the inside of a private network.
type fetchRules struct {
	// Allowed are ranges of addresses that are fetched from though they are not public.
	Allowed []netip.Prefix
}

const maxRedirects = 3

// client returns a client that follows the rules on every connection, and so on
// redirects too. It uses no proxy, which would connect for it unchecked.
func (f fetchRules) client() *http.Client {
	dialer := &net.Dialer{Timeout: 30 * time.Second, ControlContext: f.control}
	transport := &http.Transport{
		DialContext: dialer.DialContext,
		// Fetches are minutes apart, and a connection's address was checked when it was made.
		DisableKeepAlives:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		// The URI that redirects is none of the next server's business.
		req.Header.Del("Referer")
		return allowedURL(req.URL)
	}}
}

// allowedURL says what is wrong with a URL, whatever its host's addresses are.
func allowedURL(u *url.URL) error {
	switch {
	case u.Scheme != "https":
		return fmt.Errorf("keys are not fetched by scheme %q", u.Scheme)
	case u.Hostname() == "":
		return errors.New("the URI has no host")
	case u.User != nil:
		return errors.New("the URI has a user name")
	}
	return nil
}

// control runs after names were resolved and before a connection is made, so
// that a name can not mean one address when it is checked and another when it is dialled.
func (f fetchRules) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s is not an address", address)
	}
	if !f.allowedAddress(at.Addr()) {
		return fmt.Errorf("keys are not fetched from %s, which is not a public address", at.Addr())
	}
	return nil
}

// special are addresses that are not public though net/netip takes them for
// global unicast (IANA's special-purpose registries), and one that a cloud
// answers on inside its machines only.
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4", "168.63.129.16/32",
	"::/96", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10", "64:ff9b:1::/48",
)

// nat64 and sixToFour carry IPv4 addresses: at byte 12 and at byte 2.
var nat64, sixToFour = netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("2002::/16")

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func (f *fetchRules) allowedAddress(at netip.Addr) bool {
	at = at.Unmap().WithZone("")
	for _, p := range f.Allowed {
		if p.Contains(at) {
			return true
		}
	}
	if !at.IsGlobalUnicast() || at.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(at) {
			return false
		}
	}
	raw := at.As16()
	switch {
	case nat64.Contains(at):
		return f.allowedAddress(netip.AddrFrom4([4]byte(raw[12:16])))
	case sixToFour.Contains(at):
		return f.allowedAddress(netip.AddrFrom4([4]byte(raw[2:6])))
	}
	return true
}
