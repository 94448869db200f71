package telemetry

import (
	"net/url"
	"strings"
)

const redacted = "REDACTED"

// fullURL is url.full: the URL of a request without credentials.
func fullURL(scheme, authority, path, query string) string {
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user := redacted + "@"
		if strings.IndexByte(authority[:i], ':') >= 0 {
			user = redacted + ":" + redacted + "@"
		}
		authority = user + authority[i+1:]
	}
	s := scheme + "://" + authority + path
	if query != "" {
		s += "?" + redactQuery(query)
	}
	return s
}

// redactQuery replaces the values of parameters that carry credentials. It
// also looks into values that hold a URL with a query of their own.
func redactQuery(query string) string {
	var b strings.Builder
	for len(query) > 0 {
		n := strings.IndexAny(query, "&;?")
		pair, rest, separator := query, "", ""
		if n >= 0 {
			pair, separator, rest = query[:n], query[n:n+1], query[n+1:]
		}
		key, value, ok := strings.Cut(pair, "=")
		b.WriteString(key)
		if ok {
			b.WriteByte('=')
			if value != "" && (sensitiveKey(key) || sensitiveValue(value)) {
				value = redacted
			}
			b.WriteString(value)
		}
		b.WriteString(separator)
		query = rest
	}
	return b.String()
}

// sensitiveValue reports whether an escaped value holds a query with a credential.
func sensitiveValue(value string) bool {
	for range 3 {
		if strings.IndexByte(value, '%') < 0 {
			return false
		}
		plain, err := url.QueryUnescape(value)
		if err != nil || plain == value {
			return false
		}
		value = plain
		if strings.IndexByte(value, '=') >= 0 && redactQuery(value) != value {
			return true
		}
	}
	return false
}

// sensitiveParts are found in the names of parameters with credentials: those that the
// conventions list for AWS, Azure and Google Cloud, and those of OAuth and common use.
var sensitiveParts = []string{
	"token", "secret", "passw", "signature", "credential", "apikey", "api_key", "api-key",
	"accesskey", "access_key", "access-key", "session", "jwt", "oauth", "assertion", "authorization",
}

// sensitiveKey reports whether a parameter's name says that its value is a credential.
func sensitiveKey(key string) bool {
	if plain, err := url.QueryUnescape(key); err == nil {
		key = plain
	}
	key = strings.ToLower(key)
	switch key {
	case "sig", "key", "auth", "code", "pwd", "sid", "otp":
		return true
	}
	for _, part := range sensitiveParts {
		if strings.Contains(key, part) {
			return true
		}
	}
	return false
}
