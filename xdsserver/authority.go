package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sinew-mesh/sinew/xdsserver/ca"
)

// rotateTimeout is how long a running server may take to answer.
const rotateTimeout = 30 * time.Second

// caDirFlag gives a group of commands the folder that they look after.
func caDirFlag(cmd *cobra.Command, dir *string) *cobra.Command {
	cmd.PersistentFlags().StringVar(dir, "ca-dir", "", "folder of the certificate authority, as \"serve\" has it; required")
	_ = cmd.MarkPersistentFlagRequired("ca-dir") // fails only for a flag that does not exist
	return cmd
}

// intoCADir is where an argument of these commands was meant to go.
const intoCADir = "the certificate authority's folder goes into --ca-dir"

// authorityError is an error of reading --ca-dir, with what to do where there is none.
func authorityError(dir string, err error) error {
	if errors.Is(err, ca.ErrNone) {
		return fmt.Errorf("--ca-dir: %w: \"xdsserver serve --ca-dir %s\" founds one", err, dir)
	}
	return fmt.Errorf("--ca-dir: %w", err)
}

func caCommand() *cobra.Command {
	var dir string
	show := func(cmd *cobra.Command) error {
		s, err := ca.ReadStatus(dir)
		if err != nil {
			return authorityError(dir, err)
		}
		return printCA(cmd.OutOrStdout(), &s, time.Now())
	}
	return caDirFlag(group("ca", "Look after the certificate authority",
		&cobra.Command{
			Use:   "status",
			Short: "Show the roots, when they change, and what is waiting",
			Args:  noArguments(intoCADir),
			RunE:  func(cmd *cobra.Command, _ []string) error { return show(cmd) },
		},
		&cobra.Command{
			Use:   "rotate",
			Short: "Replace the root",
			Long: `Prepare a new root now. It is published at once and signs when every workload has
had the time to learn of it, a day by default; the old root stays trusted until the
last certificate under it has expired. It works while "serve" runs on the folder,
and needs no restart of anything.`,
			Args: noArguments(intoCADir),
			RunE: func(cmd *cobra.Command, _ []string) error {
				if err := rotate(cmd.Context(), dir, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))); err != nil {
					return err
				}
				return show(cmd)
			},
		},
	), &dir)
}

// rotate rotates in this process, or has the process do it that runs the authority.
func rotate(ctx context.Context, dir string, log *slog.Logger) error {
	s, err := ca.ReadStatus(dir)
	if err != nil {
		return authorityError(dir, err)
	}
	if s.External {
		return errors.New("the root belongs to another authority, which has to replace it")
	}
	authority, err := ca.Open(ctx, dir, ca.Options{TrustDomain: s.TrustDomain, Log: log})
	if errors.Is(err, ca.ErrLocked) {
		ctx, cancel := context.WithTimeout(ctx, rotateTimeout)
		defer cancel()
		return ca.RequestRotation(ctx, dir)
	}
	if err != nil {
		return err
	}
	return errors.Join(authority.Rotate(ctx), authority.Close())
}

// printCA writes the state of an authority as tables.
func printCA(out io.Writer, s *ca.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	kind := ""
	if s.External {
		kind = ", under another authority"
	}
	fmt.Fprintf(w, "certificate authority of %s%s: bundle version %d, %d join tokens waiting\n", s.TrustDomain, kind, s.BundleVersion, s.Tokens)
	if s.Error != "" {
		fmt.Fprintf(w, "it can not issue: %s\n", s.Error)
	}
	if s.Issuer != nil {
		fmt.Fprintf(w, "issuing certificate %.16s, until %s\n", s.Issuer.SHA256, s.Issuer.NotAfter.UTC().Format(time.RFC3339))
	}
	if c := s.Counts; c != nil {
		fmt.Fprintf(w, "in the last %s:", now.Sub(c.Since).Round(time.Second))
		for _, m := range slices.Sorted(maps.Keys(c.Issued)) {
			fmt.Fprintf(w, " %d issued (%s)", c.Issued[m], m)
		}
		for _, m := range slices.Sorted(maps.Keys(c.Refused)) {
			fmt.Fprintf(w, " %d refused (%s)", c.Refused[m], m)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "ROOT (SHA-256)\tPHASE\tUNTIL\tEXPIRES")
	for _, r := range s.Roots {
		until := ""
		if !r.Until.IsZero() {
			until = r.Until.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.SHA256, r.Phase, until, r.NotAfter.UTC().Format(time.RFC3339))
	}
	return w.Flush()
}

func tokenCommand() *cobra.Command {
	var dir string
	open := func() (*ca.Tokens, error) {
		b, err := ca.ReadBundle(dir)
		if err != nil {
			return nil, authorityError(dir, err)
		}
		return ca.OpenTokens(dir, ca.TokenOptions{TrustDomain: b.TrustDomain})
	}
	return caDirFlag(group("token", "Look after join tokens; \"bootstrap --ca-dir\" makes them",
		&cobra.Command{
			Use:   "list",
			Short: "List the tokens that may still be used",
			Args:  noArguments(intoCADir),
			RunE: func(cmd *cobra.Command, _ []string) error {
				tokens, err := open()
				if err != nil {
					return err
				}
				list, err := tokens.List()
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tIDENTITY\tCREATED\tEXPIRES")
				for _, t := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, t.Identity, t.Created.Format(time.RFC3339), t.Expires.Format(time.RFC3339))
				}
				return w.Flush()
			},
		},
		&cobra.Command{
			Use:   "revoke ID",
			Short: "Make a token unusable",
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) != 1 {
					return fmt.Errorf("name one token by its ID, as \"xdsserver token list\" does, instead of %d", len(args))
				}
				return nil
			},
			RunE: func(_ *cobra.Command, args []string) error {
				tokens, err := open()
				if err != nil {
					return err
				}
				return tokens.Revoke(args[0])
			},
		},
	), &dir)
}
