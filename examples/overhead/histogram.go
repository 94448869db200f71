package main

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are about 1.6 % wide, in a fixed
// space: a list of all durations would grow the heap that is measured.
type histogram struct {
	buckets [64 * (64 - subBits)]uint32
	total   uint64
}

// subBits is how many bits below the highest tell buckets apart.
const subBits = 6

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < 1<<subBits {
		return int(n)
	}
	shift := bits.Len64(n) - 1 - subBits
	return shift<<subBits + int(n>>shift)
}

// bucketEnd is the first duration after the bucket.
func bucketEnd(i int) time.Duration {
	if i < 1<<subBits {
		return time.Duration(i + 1)
	}
	shift := i>>subBits - 1
	return time.Duration(i-shift<<subBits+1) << shift
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.total++
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.buckets {
		h.buckets[i] += n
	}
	h.total += other.total
}

// quantile returns a duration that the share q of those counted are below.
func (h *histogram) quantile(q float64) time.Duration {
	want, seen := uint64(q*float64(h.total)), uint64(0)
	for i, n := range h.buckets {
		if seen += uint64(n); n > 0 && seen >= want {
			return bucketEnd(i)
		}
	}
	return 0
}
