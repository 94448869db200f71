package source

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// save keeps the certificate, its key and the announced roots for the next
// start. The file is replaced as a whole: a crash leaves the old one or the new one.
func (c *CA) save(m *Material) error {
	if c.config.StateFile == "" {
		return nil
	}
	key, err := x509.MarshalPKCS8PrivateKey(m.Certificate.PrivateKey)
	if err != nil {
		return errors.New("the key can not be written")
	}
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: key}); err != nil {
		return err
	}
	for _, der := range m.Certificate.Certificate {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	for _, root := range c.learned {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}); err != nil {
			return err
		}
	}
	return replaceFile(c.config.StateFile, b.Bytes())
}

func replaceFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// restore puts the certificate of the last run in force where it is still
// valid, and returns how long until the next one is to be asked for.
func (c *CA) restore() time.Duration {
	if c.config.StateFile == "" {
		return 0
	}
	m, err := c.load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0
	case err != nil:
		c.log.Warn("the certificate of the last run is not used", "file", c.config.StateFile, "error", err)
		return 0
	}
	c.proof = m.Certificate
	c.publish(m)
	// From its own start, not from now: a process that restarts often must
	// come to a renewal all the same.
	leaf := m.Certificate.Leaf
	return max(0, renewAfter(leaf, leaf.NotBefore, rand.Float64())-time.Since(leaf.NotBefore))
}

func (c *CA) load() (*Material, error) {
	info, err := os.Stat(c.config.StateFile)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("mode %04o: others than its owner may read or write it, it must be 0600", mode)
	}
	b, err := readFile(c.config.StateFile)
	if err != nil {
		return nil, err
	}
	certs, err := parsePEM(b)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it does not begin with a private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, errors.New("its private key can not be read")
	}
	return c.check(certs, key)
}
