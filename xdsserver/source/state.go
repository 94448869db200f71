package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// state is the file in which the access policy in force is kept: a line with the
// SHA-256 of the rest, a line with the folder's name, quoted, and what
// policy.Result.AccessState wrote.
type state struct {
	path   string
	dir    string // the folder as it is named, with which the names of all files begin
	stored []byte // what is known to be in the file, synced; nil where that is not known
}

const checksumPrefix = "sha256:"

// openState refuses a file that would itself be read as policy of the folder.
func openState(path, dir string) (*state, error) {
	if rel, err := filepath.Rel(absolute(dir), absolute(path)); err == nil && isPolicy(path) && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return nil, fmt.Errorf("state file %s would be read as policy: keep it outside of %s", path, dir)
	}
	return &state{path: path, dir: dir}, nil
}

// load reads the state as the result before the first one: nil where there is none yet.
func (s *state) load(log *slog.Logger) *policy.Result {
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var restored *policy.Result
	var dir string
	if err == nil {
		restored, dir, err = restore(data)
	}
	if err != nil {
		log.Error("the stored access policy can not be used: listeners that it would have decided on are withheld until the policy files are good",
			"file", s.path, "error", err)
		return policy.AccessLost()
	}
	if dir != s.dir {
		log.Warn("the stored access policy is that of another folder: a file that can be read only in part withholds listeners", "file", s.path, "stored", dir, "dir", s.dir)
		return restored.FromElsewhere()
	}
	return restored
}

// restore checks and reads what seal made.
func restore(data []byte) (r *policy.Result, dir string, err error) {
	line, text, whole := bytes.Cut(data, []byte("\n"))
	if !whole {
		return nil, "", errors.New("it is cut off")
	}
	if string(line) != checksum(text) {
		return nil, "", errors.New("it does not fit its checksum")
	}
	quoted, text, _ := bytes.Cut(text, []byte("\n"))
	if dir, err = strconv.Unquote(string(quoted)); err != nil {
		return nil, "", errors.New("it does not name the folder")
	}
	r, err = policy.RestoreAccess(text)
	return r, dir, err
}

func seal(dir string, text []byte) []byte {
	text = append([]byte(strconv.Quote(dir)+"\n"), text...)
	return append([]byte(checksum(text)+"\n"), text...)
}

func checksum(text []byte) string {
	sum := sha256.Sum256(text)
	return checksumPrefix + hex.EncodeToString(sum[:])
}

// store writes the access policy of a result, if it is not in the file already.
func (s *state) store(r *policy.Result) error {
	text, err := r.AccessState()
	if err != nil {
		return err
	}
	data := seal(s.dir, text)
	if s.stored != nil && bytes.Equal(data, s.stored) {
		return nil
	}
	s.stored = nil
	if err := replace(s.path, data); err != nil {
		return fmt.Errorf("store access policy in %s: %w", s.path, err)
	}
	s.stored = data
	return nil
}

// replace puts data in the place of a file, so that after a crash at any moment the
// file holds the old or the new data in full.
func replace(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, "."+filepath.Base(path)+".new")
	// What a crash left behind may be readable by others.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	// The new name is on disk only when the folder is.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
