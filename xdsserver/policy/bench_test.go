package policy

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkBuild reads and builds a mesh of 1,000 services with ten workloads, a
// route and a rule each, and builds it again after one file has changed.
func BenchmarkBuild(b *testing.B) {
	texts := make([]string, 1000)
	for i := range texts {
		name := fmt.Sprintf("svc%d", i)
		parts := []string{kubeService(name), destinationRule(name, name, "v1", "v2"), virtualService(name, name, "v1")}
		for j := range 10 {
			w := workloadEntry(fmt.Sprintf("%s-%d", name, j), fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j+1))
			parts = append(parts, strings.Replace(w, "spec: {", "spec: {labels: {app: "+name+", version: v1}, ", 1))
		}
		texts[i] = strings.Join(parts, "---\n")
	}
	var files []*File
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			files = files[:0]
			for i, text := range texts {
				files = append(files, Parse(fmt.Sprintf("%d.yaml", i), []byte(text)))
			}
		}
	})
	var r *Result
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			r = Build(files, r)
		}
	})
	if r.Failed() {
		b.Fatal(r.Problems[0])
	}
	b.Run("endpoints", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n = 0
			for _, svc := range r.Set.Services {
				n += len(r.Set.EndpointsOf(svc, svc.Ports[0]))
			}
		}
		if n != 10_000 {
			b.Fatalf("%d endpoints", n)
		}
	})
}
