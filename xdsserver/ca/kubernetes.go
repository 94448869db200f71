package ca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// podCAFile and podTokenFile are where a pod finds the roots of the API server and
	// its own token
	// (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).
	podCAFile    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
	podTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

	reviewTimeout = 10 * time.Second
	maxReview     = 1 << 20
	// maxReviews bounds the questions to the API server at a time: anybody who reaches
	// the port can send tokens.
	maxReviews = 16

	serviceAccountUser  = "system:serviceaccount:"
	serviceAccountGroup = "system:serviceaccounts"
)

// KubernetesOptions say whose service account tokens are accepted.
type KubernetesOptions struct {
	// Audience is the one that a token must be for, so that a token for the API server
	// or for another service is worth nothing here: the audience of the projected
	// volume, which Istio calls "istio-ca". Required.
	Audience string
	// APIServer is the URL of the API server. Default: that of the cluster which this
	// process runs in.
	APIServer string
	// CAFile has the roots that the API server's certificate leads to, in PEM. Default:
	// the pod's. It is read again for every token.
	CAFile string
	// TokenFile has the token by which this process asks; its account needs the
	// ClusterRole system:auth-delegator. Default: the pod's. It is read again for
	// every token, since the kubelet renews it.
	TokenFile string
}

// Kubernetes authenticates callers by the tokens of their Kubernetes service accounts,
// which it has the API server review, so that the token of a pod that was deleted is
// not good any more: the account A in the namespace N is /ns/N/sa/A of the trust domain.
//
// https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
type Kubernetes struct {
	td      spiffeid.TrustDomain
	opts    KubernetesOptions
	url     string
	reviews chan struct{} // a place for each question
	clock   func() time.Time

	mu     sync.Mutex
	roots  []byte // that client trusts
	client *http.Client
}

// NewKubernetes returns an Authenticator for the identities of a trust domain. It asks
// nothing yet. An error says what of the options is wrong or where no cluster is.
func NewKubernetes(trustDomain string, o KubernetesOptions) (*Kubernetes, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	if o.Audience == "" {
		return nil, errors.New("tokens must be for an audience: without one every token of the cluster would be good here")
	}
	if o.APIServer == "" {
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("this process does not run in a Kubernetes cluster: the URL of an API server is needed")
		}
		o.APIServer = "https://" + net.JoinHostPort(host, port)
	}
	at, err := url.Parse(o.APIServer)
	if err != nil || at.Scheme != "https" || at.Host == "" || at.User != nil || at.RawQuery != "" {
		return nil, fmt.Errorf("%q is not the URL of an API server, such as https://10.96.0.1:443", o.APIServer)
	}
	if o.CAFile == "" {
		o.CAFile = podCAFile
	}
	if o.TokenFile == "" {
		o.TokenFile = podTokenFile
	}
	k := &Kubernetes{td: td, opts: o, reviews: make(chan struct{}, maxReviews), clock: time.Now}
	k.url = at.JoinPath("/apis/authentication.k8s.io/v1/tokenreviews").String()
	return k, nil
}

// Authenticate implements Authenticator. A bearer token that is no JSON Web Token is
// left to others.
func (k *Kubernetes) Authenticate(ctx context.Context) (Caller, error) {
	token, err := BearerToken(ctx)
	if err != nil {
		return Caller{}, err
	}
	claims, ok := unverified(token)
	if !ok {
		return Caller{}, ErrNoCredential
	}
	// The API server says the same of these; but it need not be asked.
	switch {
	case !slices.Contains(claims.Audience, k.opts.Audience):
		return Caller{}, fmt.Errorf("%w: the token is not for the audience %q", ErrUnauthenticated, k.opts.Audience)
	case claims.Expires <= float64(k.clock().Unix()):
		return Caller{}, fmt.Errorf("%w: the token has expired, or has no end", ErrUnauthenticated)
	}
	select {
	case k.reviews <- struct{}{}:
		defer func() { <-k.reviews }()
	case <-ctx.Done():
		return Caller{}, ctx.Err()
	}
	status, err := k.review(ctx, token)
	if err != nil {
		if ctx.Err() != nil {
			return Caller{}, ctx.Err()
		}
		return Caller{}, fmt.Errorf("%w: the cluster does not say whose token it is: %w", ErrUnavailable, err)
	}
	return k.caller(status)
}

// caller reads what the API server says of a token.
func (k *Kubernetes) caller(s *reviewStatus) (Caller, error) {
	if !s.Authenticated {
		return Caller{}, fmt.Errorf("%w: the cluster does not accept the token: %.200q", ErrUnauthenticated, s.Error)
	}
	if !slices.Contains(s.Audiences, k.opts.Audience) {
		// A server that knows no audiences has not asked for whom the token is.
		return Caller{}, fmt.Errorf("%w: the cluster does not confirm that the token is for the audience %q", ErrUnauthenticated, k.opts.Audience)
	}
	account, ok := strings.CutPrefix(s.User.Username, serviceAccountUser)
	if !ok || !slices.Contains(s.User.Groups, serviceAccountGroup) {
		return Caller{}, fmt.Errorf("%w: %.200q is not a service account", ErrDenied, s.User.Username)
	}
	namespace, name, _ := strings.Cut(account, ":")
	id, err := spiffeid.FromSegments(k.td, "ns", namespace, "sa", name) // neither may be empty or have a colon or slash
	if err != nil {
		return Caller{}, fmt.Errorf("%w: %.200q: %w", ErrDenied, s.User.Username, err)
	}
	return Caller{ID: id.String(), Method: "kubernetes token"}, nil
}

// unverifiedClaims are what is read of a token before anybody has verified it.
type unverifiedClaims struct {
	Audience audiences `json:"aud"`
	Expires  float64   `json:"exp"`
}

// audiences are a list or, where there is one, a string (RFC 7519, section 4.1.3).
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// unverified reads the claims of a JSON Web Token; false where it is none.
func unverified(token string) (claims unverifiedClaims, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	return claims, err == nil && json.Unmarshal(payload, &claims) == nil
}

// tokenReview is authentication.k8s.io/v1 TokenReview.
type tokenReview struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Spec       reviewSpec   `json:"spec"`
	Status     reviewStatus `json:"status,omitzero"`
}

type reviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences"`
}

type reviewStatus struct {
	Authenticated bool     `json:"authenticated"`
	Audiences     []string `json:"audiences"`
	Error         string   `json:"error"`
	User          struct {
		Username string   `json:"username"`
		Groups   []string `json:"groups"`
	} `json:"user"`
}

// review asks the API server about a token. An error says that it gave no answer.
func (k *Kubernetes) review(ctx context.Context, token string) (*reviewStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	client, err := k.connect()
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile(k.opts.TokenFile)
	if err != nil {
		return nil, err
	}
	question := tokenReview{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview", Spec: reviewSpec{token, []string{k.opts.Audience}}}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(own)))
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, fmt.Errorf("the API server answers %s: the account of %s needs the ClusterRole system:auth-delegator", resp.Status, k.opts.TokenFile)
	default:
		return nil, fmt.Errorf("the API server answers %s", resp.Status)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxReview+1))
	if err != nil {
		return nil, err
	}
	if len(answer) > maxReview {
		return nil, fmt.Errorf("the API server's answer has more than %d bytes", maxReview)
	}
	var read tokenReview
	if err := json.Unmarshal(answer, &read); err != nil {
		return nil, fmt.Errorf("the API server's answer is no TokenReview: %w", err)
	}
	if read.Kind != question.Kind || read.APIVersion != question.APIVersion {
		return nil, errors.New("the API server's answer is no TokenReview")
	}
	return &read.Status, nil
}

// connect returns a client that trusts the roots of today.
func (k *Kubernetes) connect() (*http.Client, error) {
	roots, err := os.ReadFile(k.opts.CAFile)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.client != nil && bytes.Equal(roots, k.roots) {
		return k.client, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s has no certificates", k.opts.CAFile)
	}
	k.closeIdle()
	k.roots = roots
	k.client = &http.Client{
		// No proxy: the token goes to the API server and to nobody else.
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true,
			IdleConnTimeout:   time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the API server redirects") },
	}
	return k.client, nil
}

// closeIdle gives up the connections of the present client. The caller holds mu.
func (k *Kubernetes) closeIdle() {
	if k.client != nil {
		k.client.CloseIdleConnections()
	}
}

// Close gives up idle connections to the API server.
func (k *Kubernetes) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closeIdle()
}
