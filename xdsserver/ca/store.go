package ca

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// store keeps each state in a file of its own, state-<number>.json, the newest and the
// one before. A state is in force once its file has its name; so a kill leaves either
// the old state or the new one, and a file that the disk has damaged is passed over for
// the one before.
type store struct {
	dir       string
	log       *slog.Logger
	failpoint func(step string) error

	last     uint64 // the highest number ever used, also by a save that failed
	inForce  uint64 // the number of the newest intact file
	previous uint64
}

// uncertainError: the save failed after the file got its name, so that after a crash
// either state may be in force.
type uncertainError struct{ error }

func (e uncertainError) Unwrap() error { return e.error }

var stateName = regexp.MustCompile(`^state-([0-9]{20})\.json$`)

func (s *store) path(n uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("state-%020d.json", n))
}

// list gives the numbers of the state files, highest first.
func (s *store) list() ([]uint64, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		if m := stateName.FindStringSubmatch(e.Name()); m != nil {
			if n, err := strconv.ParseUint(m[1], 10, 64); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	slices.Reverse(numbers)
	return numbers, nil
}

// load gives the newest intact state, nil where there has never been one, and how many
// newer files are damaged.
func (s *store) load() (found *state, damaged int, err error) {
	numbers, err := s.list()
	if err != nil || len(numbers) == 0 {
		return nil, 0, err
	}
	s.last = numbers[0]
	var first error
	for _, n := range numbers {
		st, err := readState(s.path(n))
		if err == nil {
			if found == nil {
				found, s.inForce = st, n
			} else if s.previous == 0 {
				s.previous = n
			}
			continue
		}
		if _, ok := errors.AsType[*damagedError](err); !ok {
			return nil, 0, err // can not be read: that says nothing about what is in it
		}
		if first == nil {
			first = err
		}
		if found == nil {
			damaged++
		}
	}
	if found == nil {
		return nil, 0, fmt.Errorf("none of %d state files is intact (restore one from a backup, or empty the directory and give all workloads the new root): %w", len(numbers), first)
	}
	if damaged > 0 {
		s.log.Error("certificate authority: newer state is damaged, the one before is in force", "damaged", damaged, "state", filepath.Base(s.path(s.inForce)), "error", first)
	}
	return found, damaged, nil
}

func readState(path string) (*state, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, err
		}
	}
	st, err := decodeState(data)
	if err != nil {
		return nil, &damagedError{path: path, err: err}
	}
	return st, nil
}

type damagedError struct {
	path string
	err  error
}

func (e *damagedError) Error() string { return filepath.Base(e.path) + ": " + e.err.Error() }
func (e *damagedError) Unwrap() error { return e.err }

// save puts st in force. After an error other than uncertainError the state before is
// in force.
func (s *store) save(st *state) error {
	data, err := encodeState(st)
	if err != nil {
		return err
	}
	s.last++
	n := s.last
	if err := writeFile(s.path(n), data, s.failpoint); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	s.previous, s.inForce = s.inForce, n
	// Older ones hold keys that may have been retired.
	if err := s.prune(); err != nil {
		s.log.Warn("certificate authority: old state not removed", "error", err)
	}
	return nil
}

func (s *store) prune() error {
	numbers, err := s.list()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n == s.inForce || n == s.previous {
			continue
		}
		if err := fail(s.failpoint, "remove old"); err != nil {
			return err
		}
		if err := os.Remove(s.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// Left by a kill between writing and renaming.
	stale, err := filepath.Glob(filepath.Join(s.dir, "state-*.json.tmp"))
	if err != nil {
		return err
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func fail(failpoint func(string) error, step string) error {
	if failpoint == nil {
		return nil
	}
	return failpoint(step)
}

// writeFile creates or replaces a file (mode 0600), so that after a crash at any moment
// it is either as before or complete, and is durable when it returns.
func writeFile(path string, data []byte, failpoint func(string) error) (err error) {
	if err := fail(failpoint, "create"); err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	half := len(data) / 2
	for i, part := range [][]byte{data[:half], data[half:]} {
		if err = fail(failpoint, "write "+strconv.Itoa(i+1)); err != nil {
			break
		}
		if _, err = f.Write(part); err != nil {
			break
		}
	}
	if err == nil {
		if err = fail(failpoint, "sync"); err == nil {
			err = f.Sync()
		}
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := fail(failpoint, "rename"); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := fail(failpoint, "sync directory"); err != nil {
		return uncertainError{err}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return uncertainError{err}
	}
	return nil
}
