//go:build !unix

package main

import "time"

// cpuTime is zero: this system has no getrusage, and the report says so.
func cpuTime() time.Duration { return 0 }
