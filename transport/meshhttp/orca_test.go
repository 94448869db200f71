package meshhttp

import (
	"encoding/base64"
	"net/http"
	"reflect"
	"testing"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sinew-mesh/sinew/routing/lb"
)

func TestLoadReport(t *testing.T) {
	raw, err := proto.Marshal(&orcav3.OrcaLoadReport{
		CpuUtilization: 0.5, ApplicationUtilization: 0.75, MemUtilization: 0.25, RpsFractional: 100, Eps: 2,
		NamedMetrics: map[string]float64{"queue": 3}, Utilization: map[string]float64{"disk": 0.1}, RequestCost: map[string]float64{"db": 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := &lb.LoadReport{CPU: 0.5, Application: 0.75, Memory: 0.25, QPS: 100, EPS: 2,
		Named: map[string]float64{"named_metrics.queue": 3, "utilization.disk": 0.1, "request_cost.db": 4}}
	padded, bare := base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw)
	for _, c := range []struct {
		name, header, value string
		want                *lb.LoadReport
	}{
		{"none", "X-Other", "1", nil},
		{"binary", loadBinary, padded, whole},
		{"binary without padding", loadBinary, bare, whole},
		{"binary in the other header", loadNative, "BIN " + padded, whole},
		{"not base64", loadBinary, "%%%", nil},
		{"not a message", loadBinary, "/////w", nil},
		{"text", loadNative, "TEXT cpu_utilization=0.5,mem_utilization=0.25,application_utilization=0.75,rps_fractional=100,eps=2,named_metrics.queue=3,utilization.disk=0.1,request_cost.db=4", whole},
		{"text with blanks", loadNative, "TEXT cpu_utilization = 0.5 , eps=1", &lb.LoadReport{CPU: 0.5, EPS: 1}},
		{"text with an unknown name", loadNative, "TEXT cpu_utilization=0.5,other=1", &lb.LoadReport{CPU: 0.5}},
		{"text with a name twice", loadNative, "TEXT eps=1,eps=2", nil},
		{"text without a value", loadNative, "TEXT eps", nil},
		{"text without a name", loadNative, "TEXT =1", nil},
		{"text that is no number", loadNative, "TEXT eps=NaN", nil},
		{"text beyond all numbers", loadNative, "TEXT eps=1e999", nil},
		{"JSON", loadNative, `JSON {"cpu_utilization":0.5,"namedMetrics":{"queue":3},"new_field":1}`, &lb.LoadReport{CPU: 0.5, Named: map[string]float64{"named_metrics.queue": 3}}},
		{"JSON that is none", loadNative, `JSON {`, nil},
		{"JSON beyond all numbers", loadNative, `JSON {"named_metrics":{"x":"Infinity"}}`, nil},
		{"another form", loadNative, "XML <a/>", nil},
		{"no form", loadNative, "eps=1", nil},
		{"too long", loadNative, "TEXT eps=1," + string(make([]byte, maxLoadReport)), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := loadReport(http.Header{c.header: {c.value}}); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

// FuzzLoadReport: whatever an endpoint says, every number that comes out is one.
func FuzzLoadReport(f *testing.F) {
	for _, s := range []string{"TEXT eps=1,named_metrics.x=2", `JSON {"eps":1}`, "BIN CQAAAAAAAOA/", "TEXT =,", "TEXT cpu_utilization=1e400"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, h := range []http.Header{{loadNative: {s}}, {loadBinary: {s}}} {
			r := loadReport(h)
			if r == nil {
				continue
			}
			for _, v := range []float64{r.CPU, r.Application, r.Memory, r.QPS, r.EPS} {
				if !finite(v) {
					t.Fatalf("%q gives %v", s, v)
				}
			}
			for name, v := range r.Named {
				if !finite(v) {
					t.Fatalf("%q gives %s=%v", s, name, v)
				}
			}
		}
	})
}
