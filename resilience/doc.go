// Package resilience holds the rules that keep a client calm under failure:
// when to try again, how long to wait, how many retries at once, when to refuse
// work, when to stop using an endpoint. Every rule is a value or a pure
// function: the time, the random draw and the live counts are arguments, and
// the engine above owns what changes.
package resilience
