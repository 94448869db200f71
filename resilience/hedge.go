package resilience

import (
	"fmt"

	"github.com/sinew-mesh/sinew/routing"
)

// Hedge sends a request more than once at the same time and takes the first
// good answer (envoy.config.route.v3.HedgePolicy). Only methods that are safe
// to repeat are hedged, and each hedge is charged to the retry budget.
type Hedge struct {
	// Initial is how many attempts begin at once. Default 1.
	Initial uint32
	// Additional is the chance of one attempt more at the beginning.
	Additional routing.Fraction
	// OnPerTryTimeout begins another attempt when the time limit of one passes,
	// and lets that one go on.
	OnPerTryTimeout bool
}

// MaxHedges is the largest number of attempts that may begin at once.
const MaxHedges = 16

// Validate reports the first field with a value that has no meaning.
func (h *Hedge) Validate() error {
	switch {
	case h.Initial == 0:
		return fmt.Errorf("initial_requests: must be at least 1")
	case h.Initial > MaxHedges:
		return fmt.Errorf("initial_requests: %d is more than %d", h.Initial, MaxHedges)
	case h.Additional.PerMillion > 1_000_000:
		return fmt.Errorf("additional_request_chance: %d per million is more than all", h.Additional.PerMillion)
	}
	return nil
}
