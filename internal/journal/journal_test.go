package journal

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestJournal(t *testing.T) {
	var j Journal
	if j.String() != "" {
		t.Error("it is not empty")
	}
	var writers sync.WaitGroup
	for n := range 8 {
		writers.Go(func() {
			for range 100 {
				fmt.Fprintf(&j, "line of %d\n", n)
				_ = j.String()
			}
		})
	}
	writers.Wait()
	for n := range 8 {
		if got := strings.Count(j.String(), fmt.Sprintf("line of %d\n", n)); got != 100 {
			t.Errorf("%d lines of %d", got, n)
		}
	}
}
