package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/source"
)

func validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate DIR",
		Short: "Check the policy in a folder or file",
		Long: `Check the policy in a folder, or in one file, as serve would read it. Every
problem is one line: file, line, object, field and what is wrong.
The exit status is 1 if there is an error; warnings and notices leave it 0.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := source.Validate(args[0])
			if err != nil {
				return err
			}
			failed := 0
			for _, p := range r.Problems {
				if p.Severity == policy.Error {
					failed++
				}
				fmt.Fprintln(cmd.OutOrStdout(), p)
			}
			switch {
			case failed == 1:
				return errors.New("1 error")
			case failed > 0:
				return fmt.Errorf("%d errors", failed)
			}
			return nil
		},
	}
}
