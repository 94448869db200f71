// Package source brings policy from where it is kept.
package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

const (
	// quiet is how long a folder must be quiet after a change before it is read: a
	// program that writes several files, or one in pieces, is let finish.
	quiet = 20 * time.Millisecond
	// patience bounds the wait for quiet, so that one busy file can not hold up the others.
	patience = 100 * time.Millisecond
	// pollEvery is the safety net under the notifications, which network file systems
	// do not send and a full queue loses.
	pollEvery = 30 * time.Second
	// pollMissing is how often a folder that has vanished is looked for.
	pollMissing = 250 * time.Millisecond
	// racy is the age from which a file's size and time prove that it has not changed
	// since it was read: file systems keep times as coarsely as two seconds.
	racy = 3 * time.Second
)

// Checked is what Validate has read.
type Checked struct {
	*policy.Result
	Files   int // that hold policy by their names, and could be read
	Objects int // of policy in them, valid or not
}

// Validate reads a folder, or one file, as Directory does, once. The error is that of
// a folder that can not be read at all; what is wrong inside is in the result.
func Validate(path string) (*Checked, error) {
	t := &tree{root: path}
	if err := t.scan(); err != nil {
		return nil, err
	}
	c := &Checked{Result: policy.Build(t.parsed(), nil), Files: len(t.files)}
	for _, f := range t.files {
		c.Objects += f.parsed.Count()
	}
	return c, nil
}

// Directory reads the policy in a folder and all folders below it, and again after
// every change, until the context ends; then it returns nil. Files named *.yaml, *.yml
// and *.json are read; those whose name, or whose folder's name, starts with a dot are
// not. Symbolic links are followed, so that a mounted ConfigMap works.
//
// onChange gets the first result before anything is watched for, and then one for
// every change; it is never called concurrently. It returns an error at once where the
// folder can not be read or watched. A folder that vanishes later is logged, is an
// error in the next result, and loses nothing.
//
// With Options.StateFile the access policy in force outlives a restart: it is stored
// before a result with another one is handed on. It is an error if that fails for the
// first result; later it is logged and tried again. A state that is there but can not
// be used is logged, and what it would have decided is withheld: see policy.AccessLost.
func Directory(ctx context.Context, dir string, o Options, onChange func(*policy.Result)) error {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer w.Close()
	d := &directory{tree: tree{root: dir}, watcher: w, log: log, onChange: onChange}
	if o.StateFile != "" {
		if d.state, err = openState(o.StateFile, dir); err != nil {
			return err
		}
		d.last = d.state.load(log)
	}
	if err := d.reload(); err != nil {
		return err
	}
	return d.run(ctx)
}

// Options are what Directory takes beside the folder.
type Options struct {
	// StateFile keeps the last good state of what restricts access, readable by the
	// server's user alone. Default none: then an access object that is broken when the
	// server starts withholds listeners, although it was good before.
	StateFile string
	// Log gets what happens to the folder and the state. Default none.
	Log *slog.Logger
}

type directory struct {
	tree
	watcher  *fsnotify.Watcher
	log      *slog.Logger
	onChange func(*policy.Result)
	last     *policy.Result
	began    bool   // onChange has had a result
	missing  bool   // the folder has vanished
	state    *state // nil where none is kept
}

func (d *directory) run(ctx context.Context) error {
	poll := time.NewTimer(pollEvery)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-d.watcher.Events:
			if !ok {
				return nil
			}
			if !d.settle(ctx) {
				return nil
			}
		case err, ok := <-d.watcher.Errors:
			if !ok {
				return nil
			}
			// A queue that overflowed has lost events: read everything.
			d.log.Warn("watching policy files", "dir", d.root, "error", err)
		case <-poll.C:
		}
		if err := d.reload(); err != nil {
			d.vanished(err)
		}
		_ = d.save() // once more, if it failed; it is logged
		if d.missing {
			poll.Reset(pollMissing)
		} else {
			poll.Reset(pollEvery)
		}
	}
}

// settle waits until the folder is quiet; false means that the context has ended.
func (d *directory) settle(ctx context.Context) bool {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	still := time.NewTimer(quiet)
	defer still.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-limit.C:
			return true
		case <-still.C:
			return true
		case _, ok := <-d.watcher.Events:
			if !ok {
				return false
			}
			still.Reset(quiet)
		}
	}
}

// reload reads what has changed, and reports it where that is anything.
func (d *directory) reload() error {
	// What came into a folder before it was watched was not notified of: scan again
	// until no folder is new.
	for range 8 {
		if err := d.scan(); err != nil {
			return err
		}
		if !d.watch() {
			break
		}
	}
	if !d.changed && d.began && !d.missing {
		return nil
	}
	if d.missing {
		d.log.Info("policy folder is back", "dir", d.root)
		d.missing = false
	}
	d.changed = false
	return d.publish(d.parsed())
}

// vanished reports, once, that the folder is gone; all policy stays in force.
func (d *directory) vanished(err error) {
	if d.missing {
		return
	}
	d.missing = true
	d.log.Error("policy folder can not be read; what was in force stays", "dir", d.root, "error", err)
	_ = d.publish(append(d.parsed(), policy.Unreadable(d.root, err))) // fails for the first result only
}

func (d *directory) publish(files []*policy.File) error {
	d.last = policy.Build(files, d.last)
	if err := d.save(); err != nil && !d.began {
		return err
	}
	d.began = true
	d.onChange(d.last)
	return nil
}

// save stores the access policy in force, if that is another than the stored one.
func (d *directory) save() error {
	if d.state == nil {
		return nil
	}
	err := d.state.store(d.last)
	if err != nil && d.began {
		d.log.Error("access policy can not be stored: after a restart an older one may be in force where files are broken", "file", d.state.path, "error", err)
	}
	return err
}

// watch follows the folders that the scan went through, and reports whether one is new.
func (d *directory) watch() bool {
	watched := d.watcher.WatchList()
	added := false
	for _, dir := range d.folders {
		if slices.Contains(watched, dir) {
			continue
		}
		if err := d.watcher.Add(dir); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				d.log.Warn("folder can not be watched; it is read every 30 seconds", "dir", dir, "error", err)
			}
			continue
		}
		added = true
	}
	for _, dir := range watched {
		if !slices.Contains(d.folders, dir) {
			// It may be gone already, and its watch with it.
			_ = d.watcher.Remove(dir)
		}
	}
	return added
}

// tree is the files of a folder as they were read last.
type tree struct {
	root    string
	files   map[string]*file // by path
	broken  []*policy.File   // what can not be read, and links that lead astray
	folders []string         // real paths of all folders that files came from
	changed bool             // since somebody last looked
}

// file is a file as it was read.
type file struct {
	data   []byte
	info   os.FileInfo
	read   time.Time
	parsed *policy.File
}

// parsed returns everything that was read.
func (t *tree) parsed() []*policy.File {
	out := slices.Clone(t.broken)
	for _, f := range t.files {
		out = append(out, f.parsed)
	}
	return out
}

// scan brings the tree up to date. An error means that the root can not be read; the
// tree is then as before.
func (t *tree) scan() error {
	s := &scan{tree: t, files: make(map[string]*file), seen: make(map[string]string)}
	info, err := os.Stat(t.root)
	if err != nil {
		return err
	}
	if info.IsDir() {
		if _, err := os.ReadDir(t.root); err != nil {
			return err
		}
		s.folder(t.root, nil)
	} else {
		s.link(t.root)
	}
	if info, err := os.Lstat(t.root); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		// Where the root itself is a link, the folder that holds the link tells of its change.
		s.follow(filepath.Dir(t.root))
	}
	if !sameProblems(t.broken, s.broken) {
		t.changed = true
	}
	for path := range t.files {
		if s.files[path] == nil {
			t.changed = true
		}
	}
	slices.Sort(s.folders)
	t.files, t.broken, t.folders = s.files, s.broken, slices.Compact(s.folders)
	return nil
}

func sameProblems(a, b []*policy.File) bool {
	return slices.EqualFunc(a, b, func(x, y *policy.File) bool {
		return x.Name == y.Name && slices.Equal(x.Problems, y.Problems)
	})
}

// scan is one walk through the tree.
type scan struct {
	tree    *tree
	files   map[string]*file
	broken  []*policy.File
	folders []string
	seen    map[string]string // real path -> path under which it was found
}

func (s *scan) unreadable(path string, err error) {
	s.broken = append(s.broken, policy.Unreadable(path, err))
}

// folder walks one folder. The real paths of those around it tell a link that leads
// back into one of them.
func (s *scan) folder(path string, around []string) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.unreadable(path, err)
		}
		return
	}
	real = absolute(real)
	if slices.Contains(around, real) {
		s.broken = append(s.broken, note(path, policy.Warning, "the link leads back to the folder %s around it and is not followed", real))
		return
	}
	if first, twice := s.seen[real]; twice {
		s.broken = append(s.broken, note(path, policy.Notice, "is the same folder as %s and is read there", first))
		return
	}
	s.seen[real] = path
	s.folders = append(s.folders, real)
	entries, err := os.ReadDir(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.unreadable(path, err)
		}
		return
	}
	// Links last: what is in the folder itself keeps its own name.
	links := slices.DeleteFunc(slices.Clone(entries), func(e fs.DirEntry) bool { return e.Type()&fs.ModeSymlink == 0 })
	entries = append(slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Type()&fs.ModeSymlink != 0 }), links...)
	around = append(slices.Clip(around), real)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		at := filepath.Join(path, e.Name())
		mode := e.Type()
		isLink := mode&fs.ModeSymlink != 0
		if isLink {
			info, err := os.Stat(at)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				if isPolicy(at) {
					// A mounted ConfigMap's files lead nowhere for a moment while it is replaced.
					s.unreadable(at, errors.New("the link leads nowhere"))
				}
				continue
			case err != nil:
				s.unreadable(at, err)
				continue
			}
			mode = info.Mode().Type()
		}
		switch {
		case mode.IsDir():
			s.folder(at, around)
		case isPolicy(at) && mode.IsRegular() && isLink:
			s.link(at)
		case isPolicy(at) && mode.IsRegular():
			s.file(at, filepath.Join(real, e.Name()))
		case isPolicy(at):
			s.broken = append(s.broken, note(at, policy.Warning, "is not a regular file and is not read"))
		}
	}
}

func isPolicy(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func note(path string, sev policy.Severity, format string, args ...any) *policy.File {
	return &policy.File{Name: path, Problems: []policy.Problem{{
		At: policy.Position{File: path}, Message: fmt.Sprintf(format, args...), Severity: sev,
	}}}
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// follow has a folder watched in which a change may matter.
func (s *scan) follow(dir string) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		s.folders = append(s.folders, absolute(real))
	}
}

// link reads the file that a path leads to. A change of that file is seen in its own folder.
func (s *scan) link(path string) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		s.unreadable(path, err)
		return
	}
	s.follow(filepath.Dir(real))
	s.file(path, absolute(real))
}

// file reads one file, if it may have changed.
func (s *scan) file(path, real string) {
	if first, twice := s.seen[real]; twice {
		s.broken = append(s.broken, note(path, policy.Notice, "is the same file as %s and is read there", first))
		return
	}
	s.seen[real] = path
	before := s.tree.files[path]
	now := time.Now()
	info, err := os.Stat(path)
	if err == nil && before != nil && os.SameFile(info, before.info) && info.Size() == before.info.Size() &&
		info.ModTime().Equal(before.info.ModTime()) && before.read.Sub(info.ModTime()) > racy {
		s.files[path] = before
		return
	}
	var data []byte
	if err == nil {
		data, err = read(path, info)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		s.unreadable(path, err)
		return
	}
	f := &file{data: data, info: info, read: now}
	if before != nil && bytes.Equal(before.data, data) {
		f.parsed = before.parsed
	} else {
		f.parsed = policy.Parse(path, data)
		s.tree.changed = true
	}
	s.files[path] = f
}

func read(path string, info os.FileInfo) ([]byte, error) {
	if info.Size() > policy.MaxFileSize {
		return nil, fmt.Errorf("file has %d bytes; at most %d are read", info.Size(), policy.MaxFileSize)
	}
	return os.ReadFile(path)
}
