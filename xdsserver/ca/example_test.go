package ca_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "ca")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	authority, err := ca.Open(ctx, filepath.Join(dir, "state"), ca.Options{TrustDomain: "cluster.local"})
	if err != nil {
		panic(err)
	}
	defer authority.Close()
	go authority.Run(ctx) // renews and rotates

	server := grpc.NewServer() // with TLS from authority.ServerCertificate
	ca.NewService(authority).Register(server)

	token, err := authority.Tokens().Create("spiffe://cluster.local/ns/shop/sa/reviews", 0)
	if err != nil {
		panic(err)
	}
	// token.Reveal() goes into a file of mode 0600 for the workload.
	fmt.Println(len(authority.Bundle().Roots), "root; a token for", token.Identity)
	// Output: 1 root; a token for spiffe://cluster.local/ns/shop/sa/reviews
}
