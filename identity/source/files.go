package source

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sinew-mesh/sinew/identity"
)

// FilesConfig says which files hold a certificate and what it is verified
// with. Its JSON form is that of gRPC's file_watcher (gRFC A29, A87) and one
// member more, trust_domains.
type FilesConfig struct {
	// CertificateFile and PrivateKeyFile hold a chain, leaf first, and its
	// key, in PEM. Both or neither.
	CertificateFile string
	PrivateKeyFile  string
	// CACertificateFile holds the roots in PEM.
	CACertificateFile string
	// SPIFFETrustBundleMapFile holds the roots of several trust domains
	// (identity.ParseBundleMap). It outranks CACertificateFile, as in gRPC.
	SPIFFETrustBundleMapFile string
	// TrustDomains are those that the roots in CACertificateFile vouch for:
	// the former name of a mesh that has been renamed, for instance. The trust
	// domain of the own certificate is always one of them.
	TrustDomains []identity.TrustDomain
	// RefreshInterval is how often the files are read. Default 10 min.
	RefreshInterval time.Duration
}

const (
	defaultRefresh = 10 * time.Minute
	// Files may be seen in the middle of a change: they are read again soon.
	firstReread = time.Second
	maxReread   = 5 * time.Second
	maxFileSize = 4 << 20
)

// ParseFilesConfig reads the JSON form. Members that it does not know are
// skipped, as gRPC does.
func ParseFilesConfig(config json.RawMessage) (FilesConfig, error) {
	var j struct {
		Certificate  string                 `json:"certificate_file"`
		PrivateKey   string                 `json:"private_key_file"`
		CA           string                 `json:"ca_certificate_file"`
		BundleMap    string                 `json:"spiffe_trust_bundle_map_file"`
		Refresh      json.RawMessage        `json:"refresh_interval"`
		TrustDomains []identity.TrustDomain `json:"trust_domains"`
	}
	if err := json.Unmarshal(config, &j); err != nil {
		return FilesConfig{}, fmt.Errorf("file_watcher: %w", err)
	}
	c := FilesConfig{
		CertificateFile: j.Certificate, PrivateKeyFile: j.PrivateKey, CACertificateFile: j.CA,
		SPIFFETrustBundleMapFile: j.BundleMap, TrustDomains: j.TrustDomains,
	}
	if len(j.Refresh) > 0 && string(j.Refresh) != "null" {
		var d durationpb.Duration
		if err := protojson.Unmarshal(j.Refresh, &d); err != nil {
			return FilesConfig{}, fmt.Errorf("file_watcher: refresh_interval: %s is no duration such as \"60s\"", j.Refresh)
		}
		if c.RefreshInterval = d.AsDuration(); c.RefreshInterval <= 0 {
			return FilesConfig{}, fmt.Errorf("file_watcher: refresh_interval: %s is not positive", j.Refresh)
		}
	}
	return c, c.validate()
}

func (c *FilesConfig) validate() error {
	switch {
	case c.CertificateFile == "" && c.PrivateKeyFile == "" && c.CACertificateFile == "" && c.SPIFFETrustBundleMapFile == "":
		return errors.New("file_watcher: at least one file must be given")
	case (c.CertificateFile == "") != (c.PrivateKeyFile == ""):
		return errors.New("file_watcher: certificate_file and private_key_file go together, one of them is missing")
	case c.RefreshInterval < 0:
		return errors.New("file_watcher: refresh_interval is negative")
	default:
		return nil
	}
}

// Files is a source that reads files as cert-manager, an Istio agent or
// gRPC's file_watcher have them.
type Files struct {
	state
	config FilesConfig
	log    *slog.Logger
	last   contents // what the material in force was made of
	warned string   // the failure that was logged last

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewFiles reads the files and keeps reading them. Files that are missing or
// broken are no error: Current says what is wrong until they are sound, and a
// set that breaks later leaves the last sound one in force. log may be nil.
func NewFiles(config FilesConfig, log *slog.Logger) (*Files, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	if config.RefreshInterval == 0 {
		config.RefreshInterval = defaultRefresh
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Files{state: newState("files"), config: config, log: logger(log), cancel: cancel}
	ok := f.read()
	f.done.Go(func() { f.run(ctx, ok) })
	return f, nil
}

// Close implements Source.
func (f *Files) Close() error {
	f.cancel()
	f.done.Wait()
	return nil
}

func (f *Files) run(ctx context.Context, ok bool) {
	reread := firstReread
	for {
		wait := f.config.RefreshInterval
		if ok {
			reread = firstReread
		} else {
			wait = min(wait, reread)
			reread = min(2*reread, maxReread)
		}
		f.nextAttempt(time.Now().Add(wait))
		if !f.sleep(ctx, wait) {
			return
		}
		ok = f.read()
	}
}

// sleep waits, announces an expiry that comes in the meantime, and reports
// whether the source is still open.
func (s *state) sleep(ctx context.Context, wait time.Duration) bool {
	if left, ok := s.untilExpiry(); ok && left < wait {
		// A moment later, so that the certificate has expired by then.
		left += time.Millisecond
		if !pause(ctx, left) {
			return false
		}
		s.announceExpiry()
		wait -= left
	}
	return pause(ctx, wait)
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

type contents struct{ certificate, key, ca, bundles []byte }

func (c *contents) equal(o *contents) bool {
	return bytes.Equal(c.certificate, o.certificate) && bytes.Equal(c.key, o.key) && bytes.Equal(c.ca, o.ca) && bytes.Equal(c.bundles, o.bundles)
}

// read puts what the files say in force and reports whether they are sound.
func (f *Files) read() bool {
	now, err := f.contents()
	if err == nil && f.current != nil && now.equal(&f.last) {
		f.succeeded()
		f.warned = ""
		return true
	}
	var m *Material
	if err == nil {
		m, err = f.material(&now)
	}
	if err != nil {
		if text := err.Error(); text != f.warned {
			f.log.Warn("identity files are not sound, the last sound ones stay in force", "error", err)
			f.warned = text // once: a broken file is read every few seconds
		}
		f.failed(err)
		return false
	}
	f.last, f.warned = now, ""
	f.publish(m)
	f.log.Info("identity files read", "id", m.ID.String(), "not_after", m.NotAfter)
	return true
}

func (f *Files) contents() (c contents, err error) {
	for _, file := range []struct {
		path string
		into *[]byte
	}{
		{f.config.CertificateFile, &c.certificate},
		{f.config.PrivateKeyFile, &c.key},
		{f.config.CACertificateFile, &c.ca},
		{f.config.SPIFFETrustBundleMapFile, &c.bundles},
	} {
		if file.path == "" {
			continue
		}
		if *file.into, err = readFile(file.path); err != nil {
			return contents{}, err
		}
	}
	return c, nil
}

// readFile reads a file of bounded size. The error names the path and never the content.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileSize {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxFileSize)
	}
	return b, nil
}

func (f *Files) material(c *contents) (*Material, error) {
	m := &Material{}
	if f.config.CertificateFile != "" {
		cert, err := keyPair(c.certificate, c.key)
		if err != nil {
			return nil, fmt.Errorf("%s with %s: %w", f.config.CertificateFile, f.config.PrivateKeyFile, err)
		}
		m.Certificate = cert
		if err := m.complete(); err != nil {
			return nil, fmt.Errorf("%s: %w", f.config.CertificateFile, err)
		}
		if now := time.Now(); now.After(m.NotAfter) {
			return nil, fmt.Errorf("%s: expired at %s", f.config.CertificateFile, m.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	var roots []*x509.Certificate
	if f.config.CACertificateFile != "" {
		var err error
		if roots, err = parseRoots(c.ca); err != nil {
			return nil, fmt.Errorf("%s: %w", f.config.CACertificateFile, err)
		}
		m.Roots = x509.NewCertPool()
		for _, r := range roots {
			m.Roots.AddCert(r)
		}
	}
	if f.config.SPIFFETrustBundleMapFile != "" {
		var err error
		if m.Bundles, err = identity.ParseBundleMap(c.bundles); err != nil {
			return nil, fmt.Errorf("%s: %w", f.config.SPIFFETrustBundleMapFile, err)
		}
		return m, nil
	}
	if len(roots) > 0 {
		bundle, err := identity.NewBundle(roots, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.config.CACertificateFile, err)
		}
		m.Bundles = make(identity.BundleSet)
		for _, td := range f.config.TrustDomains {
			m.Bundles[td] = bundle
		}
		if !m.ID.IsZero() {
			m.Bundles[m.ID.TrustDomain()] = bundle
		}
	}
	return m, nil
}

// keyPair is tls.X509KeyPair with errors that can not hold key material, and
// without its leniency: a file that is cut off in the middle of a block is
// refused as a whole.
func keyPair(certificate, key []byte) (*tls.Certificate, error) {
	if _, err := parsePEM(certificate); err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		if block, _ := pem.Decode(key); block == nil {
			return nil, errors.New("the key file holds no complete PEM block")
		}
		return nil, errors.New("the private key can not be read or does not belong to the certificate")
	}
	return &pair, nil
}

// parsePEM parses a file of PEM certificates. Anything after the last complete
// block that looks like the beginning of another means that the file is cut off.
func parsePEM(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for i := 0; ; i++ {
		block, rest := pem.Decode(b)
		if block == nil {
			if bytes.Contains(b, []byte("-----BEGIN")) {
				return nil, fmt.Errorf("block %d is cut off or malformed", i)
			}
			break
		}
		if skipped := b[:len(b)-len(rest)]; bytes.Count(skipped, []byte("-----BEGIN")) != 1 {
			return nil, fmt.Errorf("block %d is cut off or malformed", i)
		}
		b = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return certs, nil
}

// parseRoots parses PEM certificates and asks that each may be a root.
func parseRoots(b []byte) ([]*x509.Certificate, error) {
	certs, err := parsePEM(b)
	if err != nil {
		return nil, err
	}
	if _, err := identity.NewBundle(certs, nil); err != nil {
		return nil, err
	}
	return certs, nil
}
