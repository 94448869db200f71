// Command bookinfo is a small book shop in a mesh: seven services in thirteen
// processes of their own, an xDS server, and a tour that shows and checks what the mesh
// does with their traffic.
//
//	go run ./examples/bookinfo             # the tour, then stay up for playing
//	go run ./examples/bookinfo --for 20s   # end after 20 s, with status 1 if a step of the tour failed
//
// Where to read:
//
//	services.go  what a service does: its mesh, its server, its calls
//	ratings.go   the service that speaks gRPC
//	policy/      the rules, in Istio's and SMI's words
//	access/      who may call whom: what the last steps of the tour add
//	run.go       how the processes are started and ended
//	tour.go      the steps
//	access.go    those about certificates and permissions
//	trace.go     how spans of all processes become one tree
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if child, status := runChild(os.Args[1:]); child {
		os.Exit(status)
	}
	var o options
	flag.DurationVar(&o.stay, "for", 0, "how long to stay up, at least until the tour is over; 0 is until Ctrl-C")
	flag.StringVar(&o.policy, "policy", "", "folder with policy to use instead of the example's own; it is copied and not changed")
	flag.StringVar(&o.xdsserver, "xdsserver", "", "xdsserver program to use instead of building it")
	flag.BoolVar(&o.noTour, "no-tour", false, "do not run the tour")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bookinfo: unexpected argument", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx = endWithGoRun(ctx)
	if err := bookinfo(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bookinfo:", err)
		stop()
		os.Exit(1)
	}
}

// endWithGoRun ends the context with the "go run" that this process belongs to,
// if it does: "go run" that is killed tells nobody.
func endWithGoRun(ctx context.Context) context.Context {
	self, err := os.Executable()
	if err != nil || !strings.Contains(self, "go-build") {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	parent := os.Getppid()
	go func() {
		for range time.Tick(500 * time.Millisecond) {
			if os.Getppid() != parent {
				cancel()
			}
		}
	}()
	return ctx
}
