package identity

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-jose/go-jose/v4/json"
)

// Claims are what a verified token says. They are immutable.
type Claims struct {
	// Issuer and Subject are "" where the token does not say.
	Issuer, Subject string
	Audiences       []string

	principal string
	values    map[string]any // lists in place of texts that hold several values
	raw       map[string]any // as the token has them

	expires, notBefore int64 // seconds since 1970; expires is 0 where the token does not say
}

// Principal returns "issuer/subject", which Istio calls the request principal;
// "" unless the token has both.
func (c *Claims) Principal() string {
	if c == nil {
		return ""
	}
	return c.principal
}

// Lookup returns the value under a name, and the names within it. A list of
// texts is a []any of strings; so is a claim that the provider calls
// space-delimited. It does not allocate.
func (c *Claims) Lookup(path ...string) (any, bool) {
	if c == nil {
		return nil, false
	}
	return lookup(c.values, path)
}

func lookup(values map[string]any, path []string) (v any, found bool) {
	v = values
	for _, name := range path {
		object, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = object[name]; !ok {
			return nil, false
		}
	}
	return v, true
}

// Text returns the value under a dotted name as a header carries it: a text as
// it is, a number or truth value in JSON's form, a list or object as JSON in
// base64 (JwtProvider.claim_to_headers). It reports whether there is one.
func (c *Claims) Text(dotted string) (string, bool) {
	if c == nil {
		return "", false
	}
	v, found := lookup(c.raw, strings.Split(dotted, "."))
	if !found {
		return "", false
	}
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return string(v), true
	case nil:
		return "", false
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return "", false
		}
		return base64.StdEncoding.EncodeToString(b), true
	}
}

// parseClaims reads a token's payload. Names are told apart by letter case, and
// an object with two values under one name is refused: readers disagree on
// which of them counts.
func parseClaims(payload []byte, spaceDelimited []string) (*Claims, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.SetNumberType(json.UnmarshalJSONNumber)
	c := &Claims{}
	if err := d.Decode(&c.raw); err != nil {
		return nil, fmt.Errorf("claims are not a JSON object")
	}
	if err := d.Decode(new(any)); err != io.EOF {
		return nil, fmt.Errorf("claims are followed by more")
	}
	if c.raw == nil {
		return nil, fmt.Errorf("claims are null")
	}
	var err error
	if c.Issuer, err = textClaim(c.raw, "iss"); err != nil {
		return nil, err
	}
	if c.Subject, err = textClaim(c.raw, "sub"); err != nil {
		return nil, err
	}
	if c.Issuer != "" && c.Subject != "" {
		c.principal = c.Issuer + "/" + c.Subject
	}
	if c.Audiences, err = audienceClaim(c.raw["aud"]); err != nil {
		return nil, err
	}
	if c.expires, err = timeClaim(c.raw, "exp"); err != nil {
		return nil, err
	}
	if c.notBefore, err = timeClaim(c.raw, "nbf"); err != nil {
		return nil, err
	}
	if _, err = timeClaim(c.raw, "iat"); err != nil {
		return nil, err
	}
	c.values = c.raw
	split := false
	for _, name := range spaceDelimited {
		text, ok := c.raw[name].(string)
		if !ok {
			continue
		}
		if !split {
			c.values, split = maps.Clone(c.raw), true
		}
		var list []any
		for word := range strings.FieldsSeq(text) {
			list = append(list, word)
		}
		c.values[name] = list
	}
	return c, nil
}

func textClaim(values map[string]any, name string) (string, error) {
	v, ok := values[name]
	if !ok {
		return "", nil
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("claim %q is not a text", name)
	}
	return s, nil
}

func audienceClaim(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf(`claim "aud" has an element that is not a text`)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf(`claim "aud" is neither a text nor a list`)
}

// timeClaim reads a NumericDate (RFC 7519, 2), whose fraction is cut off.
func timeClaim(values map[string]any, name string) (int64, error) {
	v, ok := values[name]
	if !ok {
		return 0, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return 0, fmt.Errorf("claim %q is not a number", name)
	}
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil && i >= 0 {
		return i, nil
	}
	f, err := strconv.ParseFloat(string(n), 64)
	switch {
	case err != nil || f < 0:
		return 0, fmt.Errorf("claim %q is not a time", name)
	case f >= math.MaxInt64:
		return math.MaxInt64, nil
	}
	return int64(f), nil
}

// fitsAudience reports whether the token is meant for one of the audiences. A
// slash at the end and the scheme do not count, as in Envoy: tokens are issued
// for "https://example.com/" and checked by "example.com".
func (c *Claims) fitsAudience(audiences []string) bool {
	if len(audiences) == 0 {
		return true
	}
	return slices.ContainsFunc(c.Audiences, func(a string) bool {
		a = bareAudience(a)
		return slices.ContainsFunc(audiences, func(b string) bool { return a == bareAudience(b) })
	})
}

func bareAudience(a string) string {
	if rest, ok := strings.CutPrefix(a, "https://"); ok {
		a = rest
	} else if rest, ok := strings.CutPrefix(a, "http://"); ok {
		a = rest
	}
	return strings.TrimSuffix(a, "/")
}
