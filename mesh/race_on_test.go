//go:build race

package mesh_test

// raceSlack is for the race detector, under which a sync.Pool forgets now and then what it was given.
const raceSlack = 3
