package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/xdsserver/ads"
)

// TestReport holds the text against what both ends have reported.
func TestReport(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	seen := now.Add(-3 * time.Second)
	name := func(n string) ads.WorkloadName { return ads.WorkloadName{Namespace: "shop", Name: n} }
	target := func(n string) ads.Target { return ads.Target{WorkloadName: name(n), Port: 80} }
	r := &ads.Report{
		Inbound: []ads.InboundReport{
			{WorkloadName: name("a"), Port: 80, Mode: "PERMISSIVE", Since: now.Add(-time.Hour), MTLS: 9, Plaintext: 8, Unnamed: 1, Callers: []ads.CallerReport{
				{IP: "10.0.0.2", Workloads: []ads.WorkloadName{name("web")}, Plaintext: 3, LastSeen: seen},
				{IP: "10.0.0.3", Workloads: []ads.WorkloadName{name("cron")}, Plaintext: 2, LastSeen: seen},
				{IP: "127.0.0.1", Workloads: []ads.WorkloadName{name("x"), name("y")}, Plaintext: 1, LastSeen: seen},
				{IP: "192.0.2.1", WouldRefuseStrict: 1, LastSeen: seen},
			}},
			{WorkloadName: name("a"), Port: 80, Mode: "PERMISSIVE", Since: now.Add(-2 * time.Hour), MTLS: 1},
			{WorkloadName: name("b"), Port: 80, Mode: "STRICT", DecidedBy: "PeerAuthentication shop/b", Since: now, MTLS: 1},
			{WorkloadName: name("c"), Port: 80, Mode: "PERMISSIVE", Since: now, MTLS: 1, WouldRefuseAuthorization: []ads.RuleReport{{Rule: "ns[shop]-policy[p]-rule[0]", Count: 4, LastSeen: seen}}},
		},
		Outbound: []ads.OutboundReport{
			{WorkloadName: name("web"), Cluster: "outbound|80||a", Plaintext: 3, LastSeen: seen, Targets: []ads.Target{target("a"), target("d")}},
			{WorkloadName: name("safe"), Cluster: "outbound|80||a", MTLS: 3, LastSeen: seen, Targets: []ads.Target{target("a")}},
		},
		Silent: []ads.WorkloadName{name("e")},
	}
	const all = `shop/a port 80 (PERMISSIVE): 10 requests over mutual TLS, 8 in plaintext, since 2h0m0s ago
  STRICT would break:
    shop/web, which reports 3 plaintext requests to outbound|80||a, last 3s ago
    shop/cron (10.0.0.3), 2 plaintext requests, last 3s ago
    127.0.0.1, the address of shop/x, shop/y, 1 plaintext requests, last 3s ago
    192.0.2.1 (not a workload that is known), 1 plaintext requests, last 3s ago
    callers whose addresses are not kept, 1 plaintext requests
shop/b port 80 (STRICT by PeerAuthentication shop/b): 1 requests over mutual TLS, 0 in plaintext, since 0s ago
shop/c port 80 (PERMISSIVE): 1 requests over mutual TLS, 0 in plaintext, since 0s ago
  STRICT would break nobody who has called so far
  the dry run of ns[shop]-policy[p]-rule[0] would have refused 4 requests, last 3s ago
shop/d port 80: it does not report itself
  STRICT would break:
    shop/web, which reports 3 plaintext requests to outbound|80||a, last 3s ago
shop/e: nothing is known: it does not report
`
	lines := strings.SplitAfter(all, "\n")
	for workload, want := range map[string]string{
		"": all, "a": strings.Join(lines[:7], ""), "shop/d": strings.Join(lines[11:14], ""), "shop/e": lines[14],
		"bank/a": "nothing is known of bank/a: no request from or to it has been reported\n",
	} {
		var out strings.Builder
		if err := printReport(&out, r, workload, now); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("of %q:\n%s\nwant\n%s", workload, out.String(), want)
		}
	}
}

// TestReportOfNothing tells apart what nobody has reported.
func TestReportOfNothing(t *testing.T) {
	safe := ads.OutboundReport{WorkloadName: ads.WorkloadName{Namespace: "shop", Name: "web"}, Cluster: "outbound|80||a", MTLS: 3, Targets: []ads.Target{{Port: 80}}}
	for name, test := range map[string]struct {
		report   ads.Report
		workload string
		want     string
	}{
		"before anybody has reported": {ads.Report{}, "", "nothing has been reported yet: a workload does so some seconds after it has served or sent a request\n"},
		"of one, before anybody has":  {ads.Report{}, "web", "nothing is known of web: no request from or to it has been reported\n"},
		"of one that is not there":    {ads.Report{Outbound: []ads.OutboundReport{safe}}, "b", "nothing is known of b: no request from or to it has been reported\n"},
		"nothing in plaintext":        {ads.Report{Outbound: []ads.OutboundReport{safe}}, "", "no plaintext request has been reported\n"},
		"of one that is silent":       {ads.Report{Silent: []ads.WorkloadName{{Namespace: "shop", Name: "e"}}}, "", "shop/e: nothing is known: it does not report\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := printReport(&out, &test.report, test.workload, time.Now()); err != nil {
				t.Fatal(err)
			}
			if out.String() != test.want {
				t.Errorf("%q, want %q", out.String(), test.want)
			}
		})
	}
}
