package routing

import "testing"

// typical is a request and the routes of a canary: by header, by query, by regex, the rest.
func typical(t testing.TB) (*Request, []Match) {
	r := &Request{
		Method: "GET", Scheme: "http", Authority: "reviews:9080", Path: "/reviews/0", RawQuery: "page=2&lang=en",
		Header: map[string][]string{"User-Agent": {"curl/8.0"}, "End-User": {"tester"}, "X-Count": {"17"}, "Content-Type": {"application/json"}},
	}
	return r, []Match{
		{Path: PathMatch{Value: "/"}, Headers: []HeaderMatch{{Name: NewHeaderName("end-user"), String: Exact("jason", false)}}},
		{Path: PathMatch{Kind: PathExact, Value: "/Reviews/1", IgnoreCase: true}},
		{Path: PathMatch{Kind: PathSeparatedPrefix, Value: "/reviews"}, Query: []QueryMatch{{Name: "lang", Kind: QueryString, String: Exact("de", true)}}},
		{Headers: []HeaderMatch{{Name: NewHeaderName("x-count"), Kind: HeaderRange, Start: 0, End: 10}}},
		{Headers: []HeaderMatch{{Name: NewHeaderName("x-count"), Kind: HeaderRange, Start: 17, End: 18, Invert: true}}},
		{Headers: []HeaderMatch{{Name: NewHeaderName(":method"), String: Contains("pos", true)}}},
		{GRPC: true},
		{Fraction: &Fraction{PerMillion: 0}},
		{Path: PathMatch{Kind: PathRegex, Regex: mustRegex(t, "/reviews/[0-9]+")}},
	}
}

func TestNothingAllocates(t *testing.T) {
	r, matches := typical(t)
	w, err := NewWeighted(weightsOf(90, 9, 1))
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDomains([][]string{{"reviews:9080"}, {"*.test", "a.*", "*"}})
	if err != nil {
		t.Fatal(err)
	}
	matched, chosen, found := 0, 0, 0
	for name, f := range map[string]func(){
		"Match": func() {
			for i := range matches {
				if matches[i].Matches(r, 5) {
					matched = i
				}
			}
		},
		"Choose":  func() { chosen = w.Choose(1 << 63) },
		"Domains": func() { found = d.Lookup("reviews:9080") + d.Lookup("x.test") + d.Lookup("none") },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	if matched != 8 || chosen != 0 || found != 2 {
		t.Errorf("matched %d, chose %d, found %d", matched, chosen, found)
	}
}

func BenchmarkMatch(b *testing.B) {
	r, matches := typical(b)
	b.Run("nine routes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for i := range matches {
				if matches[i].Matches(r, 5) {
					break
				}
			}
		}
	})
	b.Run("one prefix", func(b *testing.B) {
		m := Match{Path: PathMatch{Value: "/"}}
		b.ReportAllocs()
		for b.Loop() {
			m.Matches(r, 5)
		}
	})
}

func BenchmarkChoose(b *testing.B) {
	few, _ := NewWeighted(weightsOf(90, 10))
	clusters := weightsOf(make([]uint32, 64)...)
	for i := range clusters {
		clusters[i].Weight = uint32(i + 1)
	}
	many, _ := NewWeighted(clusters)
	for name, w := range map[string]*Weighted{"two": &few, "sixty-four": &many} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			draw := uint64(0)
			for b.Loop() {
				draw += 0x9e3779b97f4a7c15
				w.Choose(draw)
			}
		})
	}
}
