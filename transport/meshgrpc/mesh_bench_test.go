package meshgrpc

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

const benchServers = "MESHGRPC_BENCH_SERVERS"

// otherProcess starts two servers in a process of their own and returns their
// addresses, so that the CPU time of this one is the client's alone.
func otherProcess(b *testing.B) []string {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestBenchServers$", "-test.v")
	cmd.Env = append(os.Environ(), benchServers+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if addresses, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return strings.Fields(addresses)
		}
	}
	b.Fatal("the servers' process has not said where they are")
	return nil
}

// TestBenchServers is the other process: it serves until its input ends.
func TestBenchServers(t *testing.T) {
	if os.Getenv(benchServers) == "" {
		t.Skip("only in a child process")
	}
	fmt.Printf("\nserving %s %s\n", newBackend(t, "a", nil).address, newBackend(t, "b", nil).address)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// benchClients returns clients over the same two addresses: of bare gRPC under
// round_robin, of "mesh:///" and of "xds:///".
func benchClients(b *testing.B, addresses []string, retry bool) (all [3]pb.TestServiceClient) {
	target, with := resolvesTo(addresses...)
	all[0], _ = dial(b, target, with, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	w := newMeshWorld(b)
	r := mroute(b, "c")
	if retry {
		r.Retry = meshRetry(b, "unavailable", 2)
	}
	w.set([]*snapshot.Cluster{mcluster("c", addresses...)}, r)
	all[1], _ = w.dial(b)
	cp := newControlPlane(b)
	cp.set(b, join(listener(host, 0), routes(host, to("c")), cluster("c", addresses...))...)
	all[2], _ = dial(b, "xds:///"+host, DialOptions(ClientOptions{Bootstrap: cp.bootstrap()})...)
	return all
}

// BenchmarkMeshUnary compares the client's CPU time for unary calls of "mesh:///"
// with that of bare gRPC under round_robin and of "xds:///", each over the same
// two addresses. Blocks of calls take turns, so that all see the same machine:
// x-plain and x-xds are medians of the blocks' ratios, between their quartiles.
func BenchmarkMeshUnary(b *testing.B) {
	for _, workers := range []int{1, 16} {
		for _, retry := range []bool{false, true} {
			b.Run(fmt.Sprintf("workers=%d/retry=%v", workers, retry), func(b *testing.B) {
				clients := benchClients(b, otherProcess(b), retry)
				block := func(c pb.TestServiceClient, n int) time.Duration {
					var wg sync.WaitGroup
					begin := cpuTime()
					for i := range workers {
						wg.Go(func() {
							for j := i; j < n; j += workers {
								if _, err := c.UnaryCall(context.Background(), &pb.SimpleRequest{}); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					return cpuTime() - begin
				}
				for _, c := range clients {
					block(c, 1000)
				}
				var toPlain, toXDS []float64
				const calls = 2000
				var sum [3]time.Duration
				b.ResetTimer()
				n := 0
				for ; n*calls < b.N; n++ {
					// Who is first changes, and none pays for another's garbage.
					var took [3]time.Duration
					for i := range took {
						at := (n + i) % 3
						runtime.GC()
						took[at] = block(clients[at], calls)
						sum[at] += took[at]
					}
					p, m, x := took[0], took[1], took[2]
					toPlain, toXDS = append(toPlain, float64(m)/float64(p)), append(toXDS, float64(m)/float64(x))
				}
				report := func(name string, all []float64) {
					slices.Sort(all)
					b.ReportMetric(all[len(all)/4], name+"-q1")
					b.ReportMetric(all[len(all)/2], name)
					b.ReportMetric(all[len(all)*3/4], name+"-q3")
				}
				report("x-plain", toPlain)
				report("x-xds", toXDS)
				for i, name := range [...]string{"plain", "mesh", "xds"} {
					b.ReportMetric(float64(sum[i].Microseconds())/float64(n*calls), name+"-µs/call")
				}
			})
		}
	}
}

// BenchmarkMeshAllocs is one call with what the client allocates for it.
func BenchmarkMeshAllocs(b *testing.B) {
	clients := benchClients(b, otherProcess(b), false)
	for i, name := range [...]string{"plain", "mesh", "xds"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := clients[i].UnaryCall(context.Background(), &pb.SimpleRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// cpuTime is the CPU time that the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
