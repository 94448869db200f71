package translate

import (
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/xdsserver/policy"
)

// TestActions has what a route becomes, in Envoy's own words. Retries and timeouts,
// which TestRoutes has, are left out.
func TestActions(t *testing.T) {
	const to = "route: [{destination: {host: reviews}}]"
	const cluster = `"cluster": "outbound|9080||reviews.default.svc.cluster.local"`
	const prefix = `"match": {"prefix": "/"}, `
	hashed := func(host, hash string) *policy.DestinationRule {
		return destinationRule(t, "default", host, "{host: "+host+", trafficPolicy: {loadBalancer: {consistentHash: {"+hash+"}}}}")
	}
	for name, test := range map[string]struct {
		http  string
		rules []*policy.DestinationRule
		want  string
		grpc  string // the same, for gRPC
		notes []string
	}{
		"redirect": {
			http: "redirect: {uri: /x, authority: a.b, port: 80, scheme: https}",
			want: prefix + `"redirect": {"pathRedirect": "/x", "hostRedirect": "a.b", "portRedirect": 80, "schemeRedirect": "https"}`,
			grpc: prefix + `"redirect": {"pathRedirect": "/x", "hostRedirect": "a.b", "portRedirect": 80, "schemeRedirect": "https"}`, notes: []string{"redirect"},
		},
		"redirect to the port of the scheme": {
			http: "redirect: {prefixRewrite: /x, port: 443, scheme: https, redirectCode: 307}",
			want: prefix + `"redirect": {"prefixRewrite": "/x", "schemeRedirect": "https", "responseCode": "TEMPORARY_REDIRECT"}`,
		},
		"redirect to the port of the request": {
			http: "redirect: {authority: a, derivePort: FROM_REQUEST_PORT, redirectCode: 302}",
			want: prefix + `"redirect": {"hostRedirect": "a", "portRedirect": 9080, "responseCode": "FOUND"}`,
		},
		"direct response": {
			http: "directResponse: {status: 503, body: {string: later}}, headers: {response: {add: {retry-after: '3'}}}",
			want: prefix + `"directResponse": {"status": 503, "body": {"inlineString": "later"}}, "responseHeadersToAdd": [{"header": {"key": "retry-after", "value": "3"}}]`,
			grpc: prefix + `"directResponse": {"status": 503, "body": {"inlineString": "later"}}`, notes: []string{"headers", "directResponse"},
		},
		"bytes": {http: "directResponse: {status: 200, body: {bytes: AAE=}}", want: prefix + `"directResponse": {"status": 200, "body": {"inlineBytes": "AAE="}}`},
		"rewrite": {
			http: "rewrite: {uri: /v1, authority: other}, headers: {request: {set: {Host: lost}}}, " + to,
			want: prefix + `"route": {` + cluster + `, "prefixRewrite": "/v1", "hostRewriteLiteral": "other"}`,
			grpc: prefix + `"route": {` + cluster + `}`, notes: []string{"headers", "rewrite"},
		},
		"rewrite by an expression": {
			http: "rewrite: {uriRegexRewrite: {match: '/a/(.*)', rewrite: '/b/\\1'}}, " + to,
			want: prefix + `"route": {` + cluster + `, "regexRewrite": {"pattern": {"regex": "/a/(.*)"}, "substitution": "/b/\\1"}}`,
		},
		"headers": {
			http: "headers: {request: {set: {':authority': a, b: '1', a: '2'}, add: {c: '3'}, remove: [d, ':path', Host]}, response: {set: {e: '4'}, add: {f: '5'}, remove: [g]}}, " +
				"route: [{destination: {host: reviews}, headers: {request: {set: {host: late, h: '6'}, remove: [i]}, response: {add: {j: '7'}}}}]",
			want: prefix + `"route": {` + cluster + `, "hostRewriteLiteral": "a"},
				"requestHeadersToAdd": [{"header": {"key": "a", "value": "2"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}, {"header": {"key": "b", "value": "1"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"},
					{"header": {"key": "c", "value": "3"}}, {"header": {"key": "h", "value": "6"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}],
				"requestHeadersToRemove": ["d", "i"],
				"responseHeadersToAdd": [{"header": {"key": "e", "value": "4"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}, {"header": {"key": "f", "value": "5"}}, {"header": {"key": "j", "value": "7"}}],
				"responseHeadersToRemove": ["g"]`,
			grpc: prefix + `"route": {` + cluster + `}`, notes: []string{"headers", "route[0].headers"},
		},
		"headers of one of several": {
			http: "route: [{destination: {host: reviews}, weight: 1, headers: {request: {set: {host: own, h: '6'}}, response: {remove: [x]}}}, {destination: {host: reviews, port: {number: 1}}, weight: 2}, {destination: {host: gone}, weight: 0}]",
			want: prefix + `"route": {"weightedClusters": {"clusters": [
				{"name": "outbound|9080||reviews.default.svc.cluster.local", "weight": 1, "hostRewriteLiteral": "own", "responseHeadersToRemove": ["x"],
					"requestHeadersToAdd": [{"header": {"key": "h", "value": "6"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}]},
				{"name": "outbound|1||reviews.default.svc.cluster.local", "weight": 2}]}}`,
		},
		"an unknown destination": {
			http: "route: [{destination: {host: gone.example.com}}]",
			want: prefix + `"route": {"cluster": "outbound|9080||gone.example.com", "clusterNotFoundResponseCode": "INTERNAL_SERVER_ERROR"}`,
		},
		"mirrors": {
			http: "mirrors: [{destination: {host: ratings}, percentage: {value: 12.5}}, {destination: {host: reviews, subset: v}}, {destination: {host: reviews}, percentage: {value: 0}}], " + to,
			want: prefix + `"route": {` + cluster + `, "requestMirrorPolicies": [
				{"cluster": "outbound|9080||ratings.default.svc.cluster.local", "runtimeFraction": {"defaultValue": {"numerator": 125000, "denominator": "MILLION"}}, "traceSampled": false, "disableShadowHostSuffixAppend": true},
				{"cluster": "outbound|9080|v|reviews.default.svc.cluster.local", "runtimeFraction": {"defaultValue": {"numerator": 100}}, "traceSampled": false, "disableShadowHostSuffixAppend": true}]}`,
			grpc: prefix + `"route": {` + cluster + `}`, notes: []string{"mirror"},
		},
		"mirror":            {http: "mirror: {host: ratings}, mirrorPercent: 3, " + to, want: prefix + `"route": {` + cluster + `, "requestMirrorPolicies": [{"cluster": "outbound|9080||ratings.default.svc.cluster.local", "runtimeFraction": {"defaultValue": {"numerator": 3}}, "traceSampled": false, "disableShadowHostSuffixAppend": true}]}`},
		"mirror of nothing": {http: "mirror: {host: ratings}, mirrorPercent: 3, mirrorPercentage: {value: 0}, " + to, want: prefix + `"route": {` + cluster + `}`},
		"mirror of all":     {http: "mirror: {host: ratings}, " + to, want: prefix + `"route": {` + cluster + `, "requestMirrorPolicies": [{"cluster": "outbound|9080||ratings.default.svc.cluster.local", "runtimeFraction": {"defaultValue": {"numerator": 100}}, "traceSampled": false, "disableShadowHostSuffixAppend": true}]}`},
		"fault": {
			http: "fault: {delay: {fixedDelay: 2s, percentage: {value: 0.0001}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}, " + to,
			want: prefix + `"route": {` + cluster + `}, "typedPerFilterConfig": {"envoy.filters.http.fault": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
				"delay": {"fixedDelay": "2s", "percentage": {"numerator": 1, "denominator": "MILLION"}}, "abort": {"grpcStatus": 14, "percentage": {"numerator": 1000000, "denominator": "MILLION"}}}}`,
			grpc: prefix + `"route": {` + cluster + `}, "typedPerFilterConfig": {"envoy.filters.http.fault": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
				"delay": {"fixedDelay": "2s", "percentage": {"numerator": 1, "denominator": "MILLION"}}, "abort": {"grpcStatus": 14, "percentage": {"numerator": 1000000, "denominator": "MILLION"}}}}`,
		},
		"faults for none": {
			http: "fault: {delay: {fixedDelay: 2s}, abort: {httpStatus: 500}}, " + to,
			want: prefix + `"route": {` + cluster + `}, "typedPerFilterConfig": {"envoy.filters.http.fault": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
				"delay": {"fixedDelay": "2s", "percentage": {}}, "abort": {"httpStatus": 500, "percentage": {}}}}`,
		},
		"cors": {
			http: "corsPolicy: {allowOrigins: [{exact: 'http://a'}, {regex: '.*b'}], allowMethods: [GET, PUT], allowHeaders: [x, y], exposeHeaders: [z], maxAge: 90s, allowCredentials: true, unmatchedPreflights: IGNORE}, " + to,
			want: prefix + `"route": {` + cluster + `}, "typedPerFilterConfig": {"envoy.filters.http.cors": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
				"allowOriginStringMatch": [{"exact": "http://a"}, {"safeRegex": {"regex": ".*b"}}], "allowMethods": "GET,PUT", "allowHeaders": "x,y", "exposeHeaders": "z", "maxAge": "90", "allowCredentials": true,
				"filterEnabled": {"defaultValue": {"numerator": 100}}, "forwardNotMatchingPreflights": false}}`,
			grpc: prefix + `"route": {` + cluster + `}`, notes: []string{"corsPolicy"},
		},
		"cors of old": {
			http: "corsPolicy: {allowOrigin: ['http://a', '*']}, " + to,
			want: prefix + `"route": {` + cluster + `}, "typedPerFilterConfig": {"envoy.filters.http.cors": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
				"allowOriginStringMatch": [{"exact": "http://a"}, {"safeRegex": {"regex": ".*"}}], "filterEnabled": {"defaultValue": {"numerator": 100}}, "forwardNotMatchingPreflights": true}}`,
		},
		"claims": {
			http: "match: [{headers: {'@request.auth.claims.a.b': {prefix: x}}, withoutHeaders: {'@request.auth.claims[c.d]': {}}}], " + to,
			want: `"match": {"prefix": "/", "dynamicMetadata": [
				{"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "a"}, {"key": "b"}],
					"value": {"orMatch": {"valueMatchers": [{"listMatch": {"oneOf": {"stringMatch": {"prefix": "x"}}}}, {"stringMatch": {"prefix": "x"}}]}}},
				{"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "c.d"}], "value": {"presentMatch": true}, "invert": true}]}, "route": {` + cluster + `}`,
			grpc: "none", notes: []string{"match[0].headers.@request.auth.claims.a.b"},
		},
		"a hash": {
			http: to, rules: []*policy.DestinationRule{hashed("reviews", "httpHeaderName: user")},
			want: prefix + `"route": {` + cluster + `, "hashPolicy": [{"header": {"headerName": "user"}}]}`,
			grpc: prefix + `"route": {` + cluster + `, "hashPolicy": [{"header": {"headerName": "user"}}]}`,
		},
		"a hash that gRPC does not know": {
			http: to, rules: []*policy.DestinationRule{hashed("reviews", "httpQueryParameterName: user")},
			want: prefix + `"route": {` + cluster + `, "hashPolicy": [{"queryParameter": {"name": "user"}}]}`,
			grpc: prefix + `"route": {` + cluster + `}`, notes: []string{""},
		},
		"hashes of several": {
			http: "route: [{destination: {host: reviews}, weight: 1}, {destination: {host: ratings}, weight: 1}]",
			rules: []*policy.DestinationRule{
				hashed("reviews", "useSourceIp: true"),
				hashed("ratings", "httpCookie: {name: c, path: /, ttl: 0s, attributes: [{name: SameSite, value: Strict}]}"),
			},
			want: prefix + `"route": {"weightedClusters": {"clusters": [{"name": "outbound|9080||reviews.default.svc.cluster.local", "weight": 1}, {"name": "outbound|9080||ratings.default.svc.cluster.local", "weight": 1}]},
				"hashPolicy": [{"connectionProperties": {"sourceIp": true}}, {"cookie": {"name": "c", "path": "/", "ttl": "0s", "attributes": [{"name": "SameSite", "value": "Strict"}]}}]}`,
		},
	} {
		set := bookinfo(t, virtualService(t, "default", "reviews", "{hosts: [reviews], http: [{"+test.http+"}]}"))
		set.DestinationRules = test.rules
		for agent, want := range map[Agent]string{Sinew: test.want, Other: test.want, GRPC: test.grpc} {
			if want == "" {
				continue
			}
			rc, r := get(t, NewView(set), RouteType, "outbound|9080||"+reviews, client(agent), &routev3.RouteConfiguration{})
			var got []*routev3.Route
			for _, r := range rc.GetVirtualHosts()[0].GetRoutes() {
				if a := r.GetRoute(); a != nil {
					a.Timeout, a.RetryPolicy = nil, nil
				}
				got = append(got, r)
			}
			if want == "none" {
				if len(got) != 0 {
					t.Errorf("%s for %v: %v", name, agent, got)
				}
			} else {
				route := &routev3.Route{}
				if err := protojson.Unmarshal([]byte("{"+want+"}"), route); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if len(got) != 1 || !proto.Equal(got[0], route) {
					t.Errorf("%s for %v:\n got %v\nwant %v", name, agent, got, route)
				}
			}
			if (agent == GRPC) && len(r.Notes) != len(test.notes) || agent != GRPC && len(r.Notes) > 0 {
				t.Errorf("%s for %v: notes %v", name, agent, r.Notes)
				continue
			}
			for i, note := range r.Notes {
				if !strings.HasSuffix(note.Field, test.notes[i]) {
					t.Errorf("%s for %v: note %v, want %s", name, agent, note, test.notes[i])
				}
			}
		}
	}
}
