package meshhttp

import (
	"encoding/base64"
	"math"
	"net/http"
	"strconv"
	"strings"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/routing/lb"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// What an endpoint says of its load stands in one of two headers or trailers
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_reporting):
// the first has a serialised message in base64, the second says its own form by
// its beginning: "TEXT cpu_utilization=0.3,named_metrics.x=2", "JSON {...}", "BIN <base64>".
const (
	loadBinary = "Endpoint-Load-Metrics-Bin"
	loadNative = "Endpoint-Load-Metrics"
	// maxLoadReport bounds what is read: a report is an endpoint's word, and short.
	maxLoadReport = 16 << 10
)

// loadReport returns what a header or trailer says of the endpoint's load; nil
// where it says nothing, or nothing that can be read: a report is never a
// reason to fail a request.
func loadReport(h http.Header) *lb.LoadReport {
	if v := h[loadBinary]; len(v) > 0 {
		return decodeLoad(v[0])
	}
	v := h[loadNative]
	if len(v) == 0 || len(v[0]) > maxLoadReport {
		return nil
	}
	form, text, ok := strings.Cut(v[0], " ")
	if !ok {
		return nil
	}
	switch form {
	case "BIN":
		return decodeLoad(text)
	case "JSON":
		var m orcav3.OrcaLoadReport
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), &m) != nil {
			return nil
		}
		return outbound.LoadReport(&m)
	case "TEXT":
		return parseLoad(text)
	}
	return nil
}

// decodeLoad reads a message in base64, padded or not, as gRPC's binary metadata allows both.
func decodeLoad(s string) *lb.LoadReport {
	if len(s) > maxLoadReport {
		return nil
	}
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(s), "="))
	if err != nil {
		return nil
	}
	var m orcav3.OrcaLoadReport
	if proto.Unmarshal(raw, &m) != nil {
		return nil
	}
	return outbound.LoadReport(&m)
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// parseLoad reads "name=value,name=value". As in Envoy a report with a part
// that can not be read, a name twice or a number that is none counts for
// nothing; names that nobody knows are left out.
func parseLoad(s string) *lb.LoadReport {
	r := &lb.LoadReport{}
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(s, ",") {
		name, text, ok := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || seen[name] {
			return nil
		}
		seen[name] = true
		v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || !finite(v) {
			return nil
		}
		switch name {
		case "cpu_utilization":
			r.CPU = v
		case "mem_utilization":
			r.Memory = v
		case "application_utilization":
			r.Application = v
		case "rps_fractional":
			r.QPS = v
		case "eps":
			r.EPS = v
		default:
			for _, prefix := range [...]string{"named_metrics.", "utilization.", "request_cost."} {
				if strings.HasPrefix(name, prefix) && len(name) > len(prefix) {
					if r.Named == nil {
						r.Named = make(map[string]float64)
					}
					r.Named[name] = v
				}
			}
		}
	}
	return r
}
