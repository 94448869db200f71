// Command xdsserver serves the mesh's policy over xDS. It reads Istio API
// objects and Kubernetes services from a folder and gives every client the
// listeners, routes, clusters and endpoints that it asks for.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "xdsserver:", err)
		stop()
		os.Exit(1)
	}
}

// newCommand is the whole command line. Commands write what they print to the
// command's output and what they log to its error output.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "xdsserver",
		Short:         "Serves mesh policy over xDS",
		SilenceUsage:  true, // a failed command is not a misspelled one
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), validateCommand(), bootstrapCommand(), statusCommand(), reportCommand(), caCommand(), tokenCommand())
	return root
}
