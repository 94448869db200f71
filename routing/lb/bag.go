package lb

import "math/bits"

// leafSize is how many entries of a bag are copied when one of them changes.
const leafSize = 128

// bag holds endpoints by their slots, each with a weight, in no particular
// order. A bag that was frozen never changes: what is edited afterwards copies
// the leaves that it touches and the spine, and shares all other leaves with
// it. So a change costs what it touches, not what the bag holds.
type bag struct {
	leaves []*leaf
	sums   []uint64 // sums[i] is the sum of the weights up to and with leaves[i]; kept when the bag is frozen
	n      int
	total  uint64
	// The sum of the squares of the weights, by which equal weights show.
	squareHigh, square uint64
	edit               uint64 // of the edit that may write leaves and sums
}

// leaf is up to leafSize entries; all leaves of a bag but the last are full.
type leaf struct {
	slots []int32
	upTo  []uint64 // upTo[i] is the sum of the weights up to and with entry i of the leaf
	edit  uint64   // of the edit that may write it
}

func (l *leaf) weight(i int) uint64 {
	if i == 0 {
		return l.upTo[0]
	}
	return l.upTo[i] - l.upTo[i-1]
}

func (l *leaf) sum() uint64 { return l.upTo[len(l.upTo)-1] }

// at returns the slot at a position.
func (b *bag) at(i int) int32 { return b.leaves[i/leafSize].slots[i%leafSize] }

// weight returns the weight at a position.
func (b *bag) weight(i int) uint64 { return b.leaves[i/leafSize].weight(i % leafSize) }

// find returns the position on which the value falls where the weights stand in a row; value is less than total.
func (b *bag) find(value uint64) int {
	l := above(b.sums, value)
	if l > 0 {
		value -= b.sums[l-1]
	}
	return l*leafSize + above(b.leaves[l].upTo, value)
}

// before returns the sum of the weights before a position.
func (b *bag) before(i int) uint64 {
	l, j, sum := i/leafSize, i%leafSize, uint64(0)
	if l > 0 {
		sum = b.sums[l-1]
	}
	if j > 0 {
		sum += b.leaves[l].upTo[j-1]
	}
	return sum
}

// above returns the first index whose sum is above the value; the last one is.
// The step is written so that it compiles to a conditional move: which way a
// random value goes is what no processor can predict.
func above(sums []uint64, value uint64) int {
	low := 0
	for n := len(sums); n > 1; {
		half := n >> 1
		next := low
		if sums[low+half-1] <= value {
			next = low + half
		}
		low = next
		n -= half
	}
	return low
}

// equal reports whether all weights are the same: n times the sum of their
// squares is the square of their sum for no others (Cauchy and Schwarz).
func (b *bag) equal() bool {
	high, low := bits.Mul64(b.square, uint64(b.n))
	more, carried := bits.Mul64(b.squareHigh, uint64(b.n))
	if more != 0 {
		return false
	}
	high, over := bits.Add64(high, carried, 0)
	wantHigh, wantLow := bits.Mul64(b.total, b.total)
	return over == 0 && high == wantHigh && low == wantLow
}

func (b *bag) count(weight uint64, sign int) {
	high, low := bits.Mul64(weight, weight)
	var carry uint64
	if sign > 0 {
		b.total += weight
		b.square, carry = bits.Add64(b.square, low, 0)
		b.squareHigh, _ = bits.Add64(b.squareHigh, high, carry)
	} else {
		b.total -= weight
		b.square, carry = bits.Sub64(b.square, low, 0)
		b.squareHigh, _ = bits.Sub64(b.squareHigh, high, carry)
	}
}

// own makes the spine and the leaf writable for the edit.
func (b *bag) own(edit uint64, l int) *leaf {
	b.ownSpine(edit)
	old := b.leaves[l]
	if old.edit == edit {
		return old
	}
	n := len(old.slots)
	fresh := &leaf{slots: make([]int32, n, room(n)), upTo: make([]uint64, n, room(n)), edit: edit}
	copy(fresh.slots, old.slots)
	copy(fresh.upTo, old.upTo)
	b.leaves[l] = fresh
	return fresh
}

// room is the capacity for n entries: some may follow.
func room(n int) int { return min(leafSize, n+n/8+1) }

func (b *bag) ownSpine(edit uint64) {
	if b.edit != edit {
		b.leaves = append(make([]*leaf, 0, len(b.leaves)+1), b.leaves...)
		b.sums, b.edit = nil, edit
	}
}

// add puts an entry at the end and returns its position.
func (b *bag) add(edit uint64, slot int32, weight uint64) int {
	i := b.n
	var l *leaf
	if i%leafSize == 0 {
		b.ownSpine(edit)
		l = &leaf{edit: edit}
		b.leaves = append(b.leaves, l)
	} else {
		l = b.own(edit, i/leafSize)
	}
	sum := weight
	if n := len(l.upTo); n > 0 {
		sum += l.upTo[n-1]
	}
	l.slots, l.upTo = append(l.slots, slot), append(l.upTo, sum)
	b.n++
	b.count(weight, 1)
	return i
}

// set changes the entry at a position.
func (b *bag) set(edit uint64, i int, slot int32, weight uint64) {
	l, j := b.own(edit, i/leafSize), i%leafSize
	old := l.weight(j)
	l.slots[j] = slot
	for k := j; k < len(l.upTo); k++ {
		l.upTo[k] += weight - old
	}
	b.count(old, -1)
	b.count(weight, 1)
}

// remove takes the entry at a position out, and puts the last one there: its slot is returned, or -1 if it was the last.
func (b *bag) remove(edit uint64, i int) (moved int32) {
	moved = -1
	last := b.n - 1
	if i != last {
		moved = b.at(last)
		b.set(edit, i, moved, b.weight(last))
	}
	l := b.own(edit, last/leafSize)
	b.count(l.weight(len(l.upTo)-1), -1)
	l.slots, l.upTo = l.slots[:len(l.slots)-1], l.upTo[:len(l.upTo)-1]
	if len(l.slots) == 0 {
		b.leaves[len(b.leaves)-1] = nil
		b.leaves = b.leaves[:len(b.leaves)-1]
	}
	b.n--
	return moved
}

// freeze returns the bag as it is, never to change; nil if it is empty.
func (b *bag) freeze() *bag {
	if b.n == 0 {
		return nil
	}
	if b.sums == nil || len(b.sums) != len(b.leaves) {
		b.sums = make([]uint64, len(b.leaves))
		sum := uint64(0)
		for i, l := range b.leaves {
			sum += l.sum()
			b.sums[i] = sum
		}
	}
	frozen := *b
	return &frozen
}
