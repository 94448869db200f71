// Package routing decides where a request goes: which virtual host its
// authority selects, which route it matches, which destination the weights
// choose. Every rule is an immutable value, made once when policy arrives and
// read by many requests at a time; random draws are arguments. The functions
// that run for each request do not allocate.
//
// The meaning of each rule is Envoy's (the message it comes from is named at the
// rule), so that policy written for Envoy or Istio means the same here.
package routing
