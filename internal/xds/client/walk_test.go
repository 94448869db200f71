package client

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// TestWalk walks at random through updates that are valid, refused, silent or
// deletions, broken streams and lost servers. Every published snapshot must be
// consistent, and once all is well the client must show and ask for exactly
// what a plain walk through the server's resources finds.
func TestWalk(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 5
	}
	for _, sotw := range []bool{false, true} {
		for seed := range seeds {
			t.Run(fmt.Sprintf("sotw=%v/%d", sotw, seed), func(t *testing.T) {
				in(t, 1, sotw, func(e *env) { walk(e, rand.New(rand.NewPCG(1, uint64(seed)))) })
			})
		}
	}
}

var walkHosts = []string{"a:80", "b:80", "c:80", "d:80"}

func walk(e *env, r *rand.Rand) {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	some := func(prefix string) []string {
		var out []string
		for i := range 4 {
			if r.IntN(2) == 0 {
				out = append(out, prefix+strconv.Itoa(i))
			}
		}
		if out == nil {
			out = []string{prefix + "0"}
		}
		return out
	}
	name := func(k kind) string {
		return pick(walkHosts...)[:1] + map[kind]string{listeners: ":80"}[k]
	}
	random := func() {
		bad := r.IntN(5) == 0
		why := strconv.Itoa(r.IntN(3))
		switch kind(r.IntN(int(kinds))) {
		case listeners:
			m := ldsOf(name(listeners), "r-"+name(routes))
			if bad {
				spoil(m, why)
			}
			e.set(m)
		case routes:
			n := name(routes)
			m := rdsOf("r-"+n, pick("*", "*", "*", n+":80"), some("c")...)
			if bad {
				spoil(m, why)
			}
			e.set(m)
		case clusters:
			m := cdsOf(pick("c0", "c1", "c2", "c3"), pick("e0", "e1", "e2", "e3"))
			if r.IntN(3) == 0 {
				m = aggregateOf(m.Name, some("c")...)
			}
			if bad {
				spoil(m, why)
			}
			e.set(m)
		case endpoints:
			m := edsOf(pick("e0", "e1", "e2", "e3"), 1+r.IntN(9), 10+r.IntN(9))
			if bad {
				spoil(m, why)
			}
			e.set(m)
		}
	}
	e.start()
	e.open(func(o *Options) { o.IdleTimeout = 3 * time.Minute })
	up := true
	for range 150 {
		switch n := r.IntN(20); {
		case n < 10:
			for range 1 + r.IntN(3) {
				random()
			}
		case n < 12:
			e.client.Subscribe(pick(walkHosts...))
		case n < 13:
			e.remove(kind(r.IntN(int(kinds))), pick("a:80", "b:80", "r-a", "r-b", "c0", "c1", "e0", "e1"))
		case n < 14:
			e.mu.Lock()
			n := pick("c0", "c1", "e0", "e1", "r-a", "a:80")
			e.silent[n] = !e.silent[n]
			e.mu.Unlock()
		case n < 15:
			e.breakStreams(nil)
		case n < 16:
			if up {
				e.stop()
			} else {
				e.start()
			}
			up = !up
		case n < 19:
			time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond)
		default:
			for _, h := range e.snap().Hosts {
				h.Used.Store(r.IntN(3) > 0)
			}
		}
		if r.IntN(2) == 0 {
			e.snap()
		}
	}

	// All is well again.
	if !up {
		e.start()
	}
	e.mu.Lock()
	clear(e.silent)
	e.mu.Unlock()
	for i, h := range walkHosts {
		e.client.Subscribe(h)
		e.set(ldsOf(h, "r-"+pick("a", "b", "c", "d")), rdsOf("r-"+h[:1], "*", some("c")...))
		if c := fmt.Sprint("c", i); r.IntN(3) == 0 {
			e.set(aggregateOf(c, some("c")...))
		} else {
			e.set(cdsOf(c, pick("e0", "e1", "e2", "e3")))
		}
		e.set(edsOf(fmt.Sprint("e", i), 1+r.IntN(9)))
	}
	// Server found again, refusals held back, absences that crossed.
	time.Sleep(10 * time.Second)
	names, shown := [kinds]map[string]bool{{}, {}, {}, {}}, map[string]bool{}
	for _, h := range walkHosts {
		e.want(h, model(e.fake, h, &names, shown))
	}
	for k := range kinds {
		var want []string
		for n := range names[k] {
			want = append(want, n)
		}
		slices.Sort(want)
		if got := e.wants(k); !slices.Equal(got, want) {
			e.Errorf("asks for %v %v, want %v", k, got, want)
		}
	}
	if s := e.snap(); len(s.Clusters) != len(shown) {
		e.Errorf("%d clusters in the snapshot, want %v", len(s.Clusters), shown)
	}
}

// model follows a host through the server's resources, as env.show prints it, and
// notes their names, and the clusters that a snapshot has.
func model(f *fake, host string, names *[kinds]map[string]bool, shown map[string]bool) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &listenerv3.Listener{}
	names[listeners][host] = true
	if err := f.resources[listeners][host].UnmarshalTo(l); err != nil {
		panic(err)
	}
	hcm := &hcmv3.HttpConnectionManager{}
	if err := l.ApiListener.ApiListener.UnmarshalTo(hcm); err != nil {
		panic(err)
	}
	rds := hcm.GetRds().RouteConfigName
	names[routes][rds] = true
	_, rc, err := plain.routes(f.resources[routes][rds])
	if err != nil {
		panic(err)
	}
	var parts []string
	for _, route := range rc.VirtualHosts[0].Routes {
		name := route.Clusters.Clusters[0].Name
		shown[name] = true
		if leaves, is := leavesOf(f, name, names); is {
			for _, leaf := range leaves {
				shown[leaf] = true
			}
			part := name + "=" + strings.Join(leaves, "+")
			if leaves == nil {
				part += "!"
			}
			parts = append(parts, part)
			continue
		}
		_, c, err := plain.cluster(f.resources[clusters][name])
		if err != nil {
			panic(err)
		}
		_, set, err := plain.endpoints(f.resources[endpoints][c.EndpointsName])
		if err != nil {
			panic(err)
		}
		var ports []string
		for _, ep := range set.All {
			_, port, _ := net.SplitHostPort(ep.Address)
			ports = append(ports, port)
		}
		parts = append(parts, name+"="+strings.Join(ports, ","))
	}
	return strings.Join(parts, " ")
}

// leavesOf lists what an aggregate is made of in the end, and notes all that has to be asked for.
func leavesOf(f *fake, root string, names *[kinds]map[string]bool) (leaves []string, is bool) {
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name], names[clusters][name] = true, true
		_, c, err := plain.cluster(f.resources[clusters][name])
		if err != nil {
			panic(err)
		}
		if c.Underlying == nil {
			names[endpoints][c.EndpointsName] = true
			leaves = append(leaves, name)
		}
		for _, inner := range c.Underlying {
			is = is || name == root
			visit(inner)
		}
	}
	visit(root)
	return leaves, is
}
