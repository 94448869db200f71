//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package ca

import (
	"io"
	"os"
)

// lockDir makes the file only: the lock of Unix does not exist here, and a lock that
// survives a kill would keep the server from starting again.
func lockDir(path string) (io.Closer, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// syncDir does nothing: directories can not be synced here.
func syncDir(string) error { return nil }
