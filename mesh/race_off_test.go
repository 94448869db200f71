//go:build !race

package mesh_test

const raceSlack = 0
