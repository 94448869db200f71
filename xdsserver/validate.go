package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
	"github.com/sinew-mesh/sinew/xdsserver/source"
)

func validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate DIR",
		Short: "Check the policy in a folder or file",
		Long: `Check the policy in a folder, or in one file, as serve would read it. Every
problem is one line of the output: file, line, object, field and what is wrong.
Where there is no error, a line of the error output says what was read.
The exit status is 1 if there is an error; warnings and notices leave it 0.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return errors.New(`say which folder or file to check: "xdsserver validate DIR"`)
			case 1:
				return nil
			}
			return fmt.Errorf("give one folder, or one file, instead of %d: what is in a folder is checked together", len(args))
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.Validate(args[0])
			if err != nil {
				return err
			}
			found := make(map[policy.Severity]int)
			for _, p := range c.Problems {
				found[p.Severity]++
				fmt.Fprintln(cmd.OutOrStdout(), p)
			}
			if n := found[policy.Error]; n > 0 {
				return errors.New(counted(n, policy.Error.String()))
			}
			fmt.Fprintln(cmd.ErrOrStderr(), summary(args[0], c, found))
			return nil
		},
	}
}

// summary says what was read where there is no error.
func summary(path string, c *source.Checked, found map[policy.Severity]int) string {
	read := fmt.Sprintf("%s: %s with %s", path, counted(c.Files, "file"), counted(c.Objects, "object"))
	switch {
	case c.Files == 0:
		return path + ": no policy is there, for no file is named *.yaml, *.yml or *.json"
	case c.Objects == 0:
		return read + ": no policy is there"
	case len(found) == 0:
		return read + ": nothing is wrong"
	}
	var parts []string
	for _, s := range []policy.Severity{policy.Warning, policy.Notice} {
		if n := found[s]; n > 0 {
			parts = append(parts, counted(n, s.String()))
		}
	}
	return read + ": no error, " + strings.Join(parts, ", ")
}

// counted is "1 file", "2 files".
func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
