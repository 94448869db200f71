// Package journal keeps what the goroutines and processes of a test write to a
// log, for the test to read meanwhile. Only tests import it.
package journal

import (
	"bytes"
	"sync"
)

// Journal is a log in memory. The zero value is empty and ready for use; its
// methods are safe for concurrent use.
type Journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer and never fails.
func (j *Journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

// String returns all that was written so far.
func (j *Journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}
