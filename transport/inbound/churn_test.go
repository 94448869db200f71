package inbound

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/resilience"
)

// TestStrangersAreBounded: whatever 100,000 strangers bring along, addresses and
// keys of rate limits, and however many rules there were, so many entries are kept
// and none is lost from the counts.
func TestStrangersAreBounded(t *testing.T) {
	const strangers = 100_000
	entries := func(peers, rules int64) (int, int, uint64) {
		table := new(usageTable)
		for i := range strangers {
			peer := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			table.peers.of(peer, peers, netip.Addr{}).plaintext.Add(1)
			table.rules.of(fmt.Sprint("rule ", i), rules, DryRunOther).Add(1)
		}
		byPeer, byRule, total := map[netip.Addr]*PeerUsage{}, map[string]uint64{}, uint64(0)
		table.takePeers("l", byPeer)
		table.takeRules(byRule)
		for _, n := range byRule {
			total += n
		}
		for _, p := range byPeer {
			total += p.Plaintext
		}
		return len(byPeer), len(byRule), total
	}
	if peers, rules, total := entries(maxUsagePeers, maxUsageRules); peers > maxUsagePeers+1 || rules > maxUsageRules+1 || total != 2*strangers {
		t.Errorf("%d addresses and %d rules are kept; %d are counted", peers, rules, total)
	}
	// The mistake: whoever comes has an entry.
	if peers, rules, _ := entries(math.MaxInt64, math.MaxInt64); peers <= maxUsagePeers+1 || rules <= maxUsageRules+1 {
		t.Errorf("without a bound %d addresses and %d rules are kept", peers, rules)
	}

	keyed := &keyedLevels{}
	limit := limitOf(t, "by key", 1, byUser(1, 0))
	var uses resilience.LimitUses
	bucket := func(i int) (*resilience.LimitUse, []byte) {
		limit.Select(limitView("/", "", fmt.Sprint("user ", i)), &uses)
		return &uses.Uses[0], uses.Key(0)
	}
	for i := range strangers {
		use, key := bucket(i)
		keyed.take(use.Bucket, key, 0, use.Tokens)
	}
	if n := len(keyed.sets) * levelWays; n > 2*minKeyedLevels {
		t.Errorf("%d levels of rate limits are kept", n)
	}
}

// TestChurnLeavesNothing: listeners, issuers, authorizers and limits that come
// and go with policy, and connections that come and go under it, leave no entry,
// no goroutine and no timer.
func TestChurnLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leak.Check(t)
		opened := 0
		e := New(Options{Subscribe: func(string) {}, Log: slog.New(slog.DiscardHandler), PolicyWait: time.Second, HTTP: answerFunc(func(*http.Request) (*http.Response, error) {
			return answerWith(200, ""), nil
		})})
		var fetches atomic.Int64
		e.keys.client.Transport = answerFunc(func(r *http.Request) (*http.Response, error) {
			fetches.Add(1)
			if strings.HasSuffix(r.URL.Path, "1") {
				<-r.Context().Done() // a server that never answers
				return nil, r.Context().Err()
			}
			return answerWith(200, `{"keys": []}`), nil
		})
		r := rand.New(rand.NewPCG(1, 49))
		chain := func() *snapshot.FilterChain {
			c := &snapshot.FilterChain{}
			if r.IntN(2) == 0 {
				remotes := map[string]snapshot.RemoteKeys{}
				for range 1 + r.IntN(3) {
					n := r.IntN(30)
					remotes[fmt.Sprint("issuer", n)] = snapshot.RemoteKeys{URI: fmt.Sprint("https://issuer.test/", n), CacheDuration: time.Minute, Timeout: time.Second}
				}
				c.Tokens = tokensOf(t, remotes)
			}
			if r.IntN(3) == 0 {
				c.RateLimits = limitedBy(limitOf(t, fmt.Sprint("l", r.IntN(9)), 3, nil)).RateLimits
			}
			return c
		}
		snap := func() *snapshot.Snapshot {
			s := &snapshot.Snapshot{Inbound: map[string]*snapshot.Inbound{}}
			for range 1 + r.IntN(4) {
				s.Inbound[fmt.Sprintf("10.0.0.%d:80", r.IntN(200))] = &snapshot.Inbound{Plain: chain()}
			}
			return s
		}
		var conns []*Conn
		for range 400 {
			s := snap()
			e.Install(s)
			for name := range s.Inbound {
				local := at(t, name)
				opened++
				conns = append(conns, e.Open(local, remoteAddr(), func() error { return nil }))
				req := incoming("/", nil)
				req.Local, req.Conn = local, conns[len(conns)-1]
				_ = e.Admit(t.Context(), req, new(Admission))
			}
			for len(conns) > 20 {
				conns[0].Closed()
				conns = conns[1:]
			}
			time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
		}
		for _, c := range conns {
			c.Closed()
		}
		// left says what is kept or still runs by itself.
		left := func() string {
			time.Sleep(time.Minute) // what was under way ends
			synctest.Wait()
			before := fetches.Load()
			time.Sleep(time.Hour)
			synctest.Wait()
			n := 0
			e.conns.Range(func(any, any) bool { n++; return true })
			if remotes := len(*e.keys.remotes.Load()); n+remotes+len(e.credentials)+len(e.authorizers)+len(e.view.Load().listeners) > 0 {
				return fmt.Sprintf("%d connections, %d issuers, %d credentials, %d authorizers, %d listeners", n, remotes, len(e.credentials), len(e.authorizers), len(e.view.Load().listeners))
			}
			if n := fetches.Load() - before; n > 0 {
				return fmt.Sprintf("%d fetches in an hour", n)
			}
			if stacks := others(); strings.Contains(stacks, "transport/inbound.(*") {
				return stacks
			}
			return ""
		}
		if n := fetches.Load(); n < 300 || opened < 300 {
			t.Errorf("%d fetches and %d connections prove nothing", n, opened)
		}
		e.Install(&snapshot.Snapshot{})
		if what := left(); what != "" {
			t.Errorf("without policy: %s", what)
		}
		// The mistakes: an issuer that left policy is fetched from, a connection that has ended is kept.
		stray := newRemoteKeys("https://issuer.test/2")
		stray.configure(time.Minute, time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		e.keys.running.Go(func() { e.keys.keep(ctx, stray) })
		if left() == "" {
			t.Error("fetching that goes on is not found")
		}
		cancel()
		kept := e.Open(at(t, "10.0.0.1:80"), remoteAddr(), func() error { return nil })
		if left() == "" {
			t.Error("a connection that is kept is not found")
		}
		kept.Closed()
		e.Install(snap())
		e.Close()
		e.Install(snap()) // too late: takes no effect
		synctest.Wait()
		if stacks := others(); strings.Contains(stacks, "transport/inbound.(*") {
			t.Errorf("closed: %s", stacks)
		}
	})
}

// others returns the stacks of all goroutines but this one.
func others() string {
	buf := make([]byte, 1<<20)
	_, rest, _ := strings.Cut(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return rest
}
