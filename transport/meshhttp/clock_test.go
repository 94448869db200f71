package meshhttp

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestClock runs many deadlines at once, some of which end early, and wants
// each of the others to pass at its time exactly and none twice.
func TestClock(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, seed))
			c := new(clock)
			var work sync.WaitGroup
			for range 300 {
				begin := time.Duration(r.IntN(2000)) * time.Millisecond
				limit := time.Duration(1+r.IntN(3000)) * time.Millisecond
				early := limit + time.Hour
				if r.IntN(3) > 0 {
					early = time.Duration(r.Int64N(int64(limit)))
				}
				work.Go(func() {
					time.Sleep(begin)
					d := new(deadline)
					began := time.Now()
					d.begin(c, context.Background(), began, limit)
					select {
					case <-d.Done():
						if took := time.Since(began); took != limit || d.Err() != context.DeadlineExceeded {
							t.Errorf("passed after %v with %v, want %v", took, d.Err(), limit)
						}
					case <-time.After(early):
						if early > limit {
							t.Errorf("did not pass in %v, limit %v", early, limit)
						}
					}
					d.end()
				})
			}
			work.Wait()
			time.Sleep(time.Hour)
			for i := range c.shards {
				s := &c.shards[i]
				s.mu.Lock()
				if s.first != nil || !s.set.IsZero() {
					t.Errorf("shard %d still has a deadline, or its timer set", i)
				}
				s.mu.Unlock()
			}
		})
	}
}

// TestClockUnderLoad is for the race detector: deadlines begin, end and pass on
// many goroutines.
func TestClockUnderLoad(t *testing.T) {
	c := new(clock)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for i := range 3000 {
				d := new(deadline)
				d.begin(c, context.Background(), time.Now(), time.Duration(i%3)*50*time.Microsecond)
				if i%2 == 0 {
					<-d.Done()
				}
				d.end()
			}
		})
	}
	work.Wait()
}
