// Command xdsserver serves the mesh's policy over xDS. It reads Istio API
// objects and Kubernetes services from a folder and gives every client the
// listeners, routes, clusters and endpoints that it asks for.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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

// noArguments refuses what stands beside a command's flags, and says where it belongs.
func noArguments(where string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return fmt.Errorf("%q takes no arguments, and there is %q: %s", cmd.CommandPath(), args[0], where)
	}
}

// group is a command that is nothing without one of the commands under it.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return pflag.ErrHelp
			}
			var names []string
			for _, c := range commands {
				names = append(names, c.Name())
			}
			return fmt.Errorf("unknown command %q for %q: it has %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))
		},
		Run: func(*cobra.Command, []string) {}, // without it nobody asks Args
	}
	cmd.AddCommand(commands...)
	return cmd
}
