package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sinew-mesh/sinew/xdsserver/ads"
)

func reportCommand() *cobra.Command {
	var addr, workload string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show whom STRICT mutual TLS would break",
		Long: `Show, for each workload's port, who has called it in plaintext since the server
started, from what both ends have reported: the one that serves gives addresses, and
a caller in the mesh gives its own plaintext calls. Those callers would be refused
under STRICT. A caller that has not called yet, and a workload that does not report,
can not be here.`,
		Args: noArguments("a workload goes into --workload, the server's address into --http"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r ads.Report
			if err := fetch(cmd.Context(), addr, "/report", &r); err != nil {
				return err
			}
			return printReport(cmd.OutOrStdout(), &r, workload, time.Now())
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:15014", "address that the server was given as --http")
	cmd.Flags().StringVar(&workload, "workload", "", "show only this one: NAME or NAMESPACE/NAME")
	return cmd
}

// fetch reads a JSON page of the server at --http. What answers otherwise than it does
// is most likely another port of it.
func fetch(ctx context.Context, addr, path string, into any) error {
	other := func(why error) error {
		return fmt.Errorf("--http %s is not the address that \"serve\" has for status and prints as \"http\": %w", addr, why)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		op, isNet := errors.AsType[*net.OpError](err)
		if wire, ok := errors.AsType[*url.Error](err); isNet && op.Op == "dial" || ctx.Err() != nil || ok && wire.Timeout() {
			return err
		}
		return other(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return other(fmt.Errorf("%s answers %s", path, resp.Status))
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return other(fmt.Errorf("%s: %w", path, err))
	}
	return nil
}

// verdict is what is known of one port of a workload.
type verdict struct {
	ads.Target
	reports []ads.InboundReport  // its own, one for each process
	callers []ads.OutboundReport // of those that call it in plaintext
}

// verdicts brings together what both ends have reported.
func verdicts(r *ads.Report) []*verdict {
	byTarget := make(map[ads.Target]*verdict)
	at := func(t ads.Target) *verdict {
		if byTarget[t] == nil {
			byTarget[t] = &verdict{Target: t}
		}
		return byTarget[t]
	}
	for _, in := range r.Inbound {
		v := at(ads.Target{WorkloadName: in.WorkloadName, Port: in.Port})
		v.reports = append(v.reports, in)
	}
	for _, o := range r.Outbound {
		if o.Plaintext == 0 {
			continue
		}
		for _, t := range o.Targets {
			v := at(t)
			v.callers = append(v.callers, o)
		}
	}
	out := make([]*verdict, 0, len(byTarget))
	for _, v := range byTarget {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *verdict) int {
		return cmp.Or(cmp.Compare(a.String(), b.String()), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func printReport(w io.Writer, r *ads.Report, workload string, now time.Time) error {
	wanted := func(n ads.WorkloadName) bool {
		return workload == "" || n.Name == workload || n.String() == workload
	}
	out := &strings.Builder{}
	ago := func(t time.Time) string { return now.Sub(t).Round(time.Second).String() + " ago" }
	shown := false
	for _, v := range verdicts(r) {
		if !wanted(v.WorkloadName) {
			continue
		}
		shown = true
		v.print(out, ago)
	}
	for _, n := range r.Silent {
		if wanted(n) {
			shown = true
			fmt.Fprintf(out, "%s: nothing is known: it does not report\n", n)
		}
	}
	switch {
	case shown:
	case workload != "":
		fmt.Fprintf(out, "nothing is known of %s: no request from or to it has been reported\n", workload)
	case len(r.Outbound) > 0:
		fmt.Fprintln(out, "no plaintext request has been reported")
	default:
		fmt.Fprintln(out, "nothing has been reported yet: a workload does so some seconds after it has served or sent a request")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (v *verdict) print(out io.Writer, ago func(time.Time) string) {
	fmt.Fprintf(out, "%s port %d", v.WorkloadName, v.Port)
	var mtls, plaintext, unnamed uint64
	var since time.Time
	for _, in := range v.reports {
		mtls, plaintext, unnamed = mtls+in.MTLS, plaintext+in.Plaintext, unnamed+in.Unnamed
		if since.IsZero() || in.Since.Before(since) {
			since = in.Since
		}
	}
	strict := false
	if len(v.reports) > 0 {
		in := v.reports[0]
		strict = in.Mode == "STRICT"
		decided := ""
		if in.DecidedBy != "" {
			decided = " by " + in.DecidedBy
		}
		fmt.Fprintf(out, " (%s%s): %d requests over mutual TLS, %d in plaintext, since %s\n", in.Mode, decided, mtls, plaintext, ago(since))
	} else {
		fmt.Fprintln(out, ": it does not report itself")
	}
	named := false
	say := func(format string, args ...any) {
		if !named {
			named = true
			if strict {
				fmt.Fprintln(out, "  STRICT is in force; these have called in plaintext:")
			} else {
				fmt.Fprintln(out, "  STRICT would break:")
			}
		}
		fmt.Fprintf(out, "    "+format+"\n", args...)
	}
	for _, o := range v.callers {
		say("%s, which reports %d plaintext requests to %s, last %s", o.WorkloadName, o.Plaintext, o.Cluster, ago(o.LastSeen))
	}
	for _, in := range v.reports {
		for _, c := range in.Callers {
			if len(c.Workloads) == 1 && slices.ContainsFunc(v.callers, func(o ads.OutboundReport) bool { return o.WorkloadName == c.Workloads[0] }) {
				continue // it has said so itself
			}
			say("%s, %d plaintext requests, last %s", callerName(&c), max(c.Plaintext, c.WouldRefuseStrict), ago(c.LastSeen))
		}
	}
	if unnamed > 0 {
		say("callers whose addresses are not kept, %d plaintext requests", unnamed)
	}
	switch {
	case named || strict:
	case len(v.reports) > 0:
		fmt.Fprintln(out, "  STRICT would break nobody who has called so far")
	}
	for _, in := range v.reports {
		for _, rule := range in.WouldRefuseAuthorization {
			fmt.Fprintf(out, "  the dry run of %s would have refused %d requests, last %s\n", rule.Rule, rule.Count, ago(rule.LastSeen))
		}
	}
}

// callerName names a caller as well as it is known.
func callerName(c *ads.CallerReport) string {
	switch len(c.Workloads) {
	case 0:
		return c.IP + " (not a workload that is known)"
	case 1:
		return fmt.Sprintf("%s (%s)", c.Workloads[0], c.IP)
	}
	names := make([]string, len(c.Workloads))
	for i, n := range c.Workloads {
		names[i] = n.String()
	}
	return fmt.Sprintf("%s, the address of %s", c.IP, strings.Join(names, ", "))
}
