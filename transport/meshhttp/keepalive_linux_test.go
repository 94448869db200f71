package meshhttp

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/sinew-mesh/sinew/internal/leak"
	"github.com/sinew-mesh/sinew/internal/snapshot"
)

func TestKeepAlive(t *testing.T) {
	leak.Check(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	system := func() [3]int { // what a connection has without anybody's asking
		return options(t, (&net.Dialer{KeepAlive: -1}).DialContext, lis.Addr().String())
	}()
	for _, c := range []struct {
		name string
		keep *snapshot.KeepAlive
		want [3]int
	}{
		{"all", &snapshot.KeepAlive{Idle: 60 * time.Second, Interval: 20 * time.Second, Probes: 3}, [3]int{60, 20, 3}},
		{"the system's", &snapshot.KeepAlive{}, system},
		{"some", &snapshot.KeepAlive{Idle: 61 * time.Second}, [3]int{61, system[1], system[2]}},
	} {
		if got := options(t, dialer(&snapshot.Cluster{ConnectTimeout: time.Second, KeepAlive: c.keep}), lis.Addr().String()); got != c.want {
			t.Errorf("%s: idle, interval and probes are %v, want %v", c.name, got, c.want)
		}
	}
}

// options returns the keepalive settings of a connection: idle and interval in seconds, probes.
func options(t *testing.T, dial dialFunc, address string) (got [3]int) {
	t.Helper()
	conn, err := dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for i, option := range []int{syscall.TCP_KEEPIDLE, syscall.TCP_KEEPINTVL, syscall.TCP_KEEPCNT} {
			if got[i], err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
