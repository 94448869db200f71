package routing

import (
	"fmt"
	"slices"
	"strings"
)

// Domains finds the virtual host of an authority
// (envoy.config.route.v3.VirtualHost.domains). Make it with NewDomains; the
// zero value finds nothing.
type Domains struct {
	exact    map[string]int32
	suffix   wildcards // "*.example.org", without the "*"
	prefix   wildcards // "example.*", without the "*"
	any      int32     // "*"
	anyKnown bool
}

// wildcards are the fixed parts of patterns of one kind. A lookup asks the map
// once for each length that occurs, which is few.
type wildcards struct {
	index   map[string]int32
	lengths []int // longest first
}

func (w *wildcards) add(fixed string, host int32) bool {
	if _, ok := w.index[fixed]; ok {
		return false
	}
	if w.index == nil {
		w.index = make(map[string]int32)
	}
	w.index[fixed] = host
	if !slices.Contains(w.lengths, len(fixed)) {
		w.lengths = append(w.lengths, len(fixed))
		slices.SortFunc(w.lengths, func(a, b int) int { return b - a })
	}
	return true
}

// NewDomains indexes the domains of each virtual host. A domain is a host (with
// a port, if the authority is to have one), "*suffix", "prefix*" or "*". It is
// an error if a virtual host has no domain, or a domain is empty, has a "*"
// elsewhere, or occurs twice (in any letter case).
func NewDomains(perVirtualHost [][]string) (Domains, error) {
	d := Domains{exact: make(map[string]int32)}
	for i, domains := range perVirtualHost {
		if len(domains) == 0 {
			return Domains{}, fmt.Errorf("virtual_hosts[%d].domains: there is none", i)
		}
		for j, domain := range domains {
			if err := d.add(domain, int32(i)); err != nil {
				return Domains{}, fmt.Errorf("virtual_hosts[%d].domains[%d]: %q %w", i, j, domain, err)
			}
		}
	}
	return d, nil
}

func (d *Domains) add(domain string, host int32) error {
	domain = lowerASCII(domain)
	fresh := true
	switch star := strings.Count(domain, "*"); {
	case domain == "":
		return fmt.Errorf("is empty")
	case domain == "*":
		fresh = !d.anyKnown
		d.any, d.anyKnown = host, true
	case star == 0:
		_, known := d.exact[domain]
		d.exact[domain] = host
		fresh = !known
	case star == 1 && domain[0] == '*':
		fresh = d.suffix.add(domain[1:], host)
	case star == 1 && domain[len(domain)-1] == '*':
		fresh = d.prefix.add(domain[:len(domain)-1], host)
	default:
		return fmt.Errorf(`has a "*" that is neither its first nor its last character`)
	}
	if !fresh {
		return fmt.Errorf("occurs twice")
	}
	return nil
}

// Lookup returns the index of the virtual host for the authority, or -1. The
// order is an equal domain, the longest suffix wildcard, the longest prefix
// wildcard, "*"; letter case does not count. A wildcard stands for at least one
// character. It allocates only if the authority has an upper-case letter.
func (d *Domains) Lookup(authority string) int {
	host := lowerASCII(authority)
	if i, ok := d.exact[host]; ok {
		return int(i)
	}
	for _, n := range d.suffix.lengths {
		if n < len(host) {
			if i, ok := d.suffix.index[host[len(host)-n:]]; ok {
				return int(i)
			}
		}
	}
	for _, n := range d.prefix.lengths {
		if n < len(host) {
			if i, ok := d.prefix.index[host[:n]]; ok {
				return int(i)
			}
		}
	}
	if d.anyKnown {
		return int(d.any)
	}
	return -1
}
