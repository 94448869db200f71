package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

func statusCommand() *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who is connected, and what each client accepted or refused",
		Args:  noArguments("the server's address goes into --http"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var p page
			if err := fetch(cmd.Context(), addr, "/status", &p); err != nil {
				return err
			}
			return p.print(cmd.OutOrStdout(), time.Now())
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:15014", "address that the server was given as --http")
	return cmd
}

// joined has those parts that are not empty.
func joined(by string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), by)
}

// print writes the page as tables.
func (p *page) print(out io.Writer, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := "in force"
	if !p.Policy.InForce {
		state = "in force but for this: " + p.Policy.Error
	}
	fmt.Fprintf(w, "policy read %s ago, %s: %d virtual services, %d destination rules, %d services, %d workloads, %d peer authentications, %d authorization policies, %d request authentications\n",
		now.Sub(p.Policy.Read).Round(time.Second), state, p.Policy.VirtualServices, p.Policy.DestinationRules, p.Policy.Services, p.Policy.Workloads,
		p.Policy.PeerAuthentications, p.Policy.AuthorizationPolicies, p.Policy.RequestAuthentications)
	fmt.Fprintf(w, "trust domain %s", p.TrustDomain)
	if c := p.Certificate; c != nil {
		switch {
		case c.Error != "":
			fmt.Fprintf(w, ", no TLS: %s", c.Error)
		default:
			fmt.Fprintf(w, ", the server is %s, its certificate expires %s", c.Identity, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	fmt.Fprintln(w)
	if p.CA != nil {
		if err := w.Flush(); err != nil {
			return err
		}
		if err := printCA(out, p.CA, now); err != nil {
			return err
		}
	}
	for _, x := range p.Policy.Problems {
		at := policy.Position{File: x.File, Line: x.Line}
		fmt.Fprintln(w, joined(": ", x.Severity, at.String(), x.Object, x.Field, x.Message))
	}
	for _, x := range p.Problems {
		fmt.Fprintf(w, "not served: %s %s: %s\n", x.Type, x.Name, x.Error)
	}
	for _, x := range p.Refused {
		fmt.Fprintf(w, "refused %s ago: %s: %s\n", now.Sub(x.At).Round(time.Second), joined(" ", x.Address, x.Identity, x.Node), x.Reason)
	}
	if len(p.Clients) == 0 {
		fmt.Fprintln(w, "\nno client is connected")
		return w.Flush()
	}
	fmt.Fprintln(w, "\nNODE\tIDENTITY\tKIND\tPROTOCOL\tCONNECTED\tTYPE\tRESOURCE\tSTATE\tVERSION\tACCEPTED\tREASON")
	for _, c := range p.Clients {
		who := fmt.Sprintf("%s\t%s\t%s\t%s\t%s", c.Node, cmp.Or(c.Identity, "not proved"), c.Kind, c.Protocol, now.Sub(c.ConnectedSince).Round(time.Second))
		if len(c.Resources) == 0 {
			fmt.Fprintf(w, "%s\t\t\t\t\t\t\n", who)
		}
		for _, r := range c.Resources {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", who, r.Type, r.Name, r.State, r.Version, r.Accepted, joined(" ", r.Withheld, r.Error))
		}
	}
	noted := false
	for _, c := range p.Clients {
		for _, r := range c.Resources {
			for _, n := range r.Notes {
				if !noted {
					fmt.Fprintln(w, "\nwhat clients can not do:")
					noted = true
				}
				fmt.Fprintf(w, "%s (%s): %s: %s\n", c.Node, c.Kind, r.Name, n)
			}
		}
	}
	return w.Flush()
}
