package policy

import (
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// trafficSplit reads an SMI TrafficSplit (https://github.com/servicemeshinterface/smi-spec,
// traffic-split v1alpha1 and v1alpha2) as the VirtualService that means the same.
func (d *decoder) trafficSplit(v *value, o *Object) {
	for _, e := range v.keys {
		switch e.key {
		case "apiVersion", "kind", "metadata", "status":
		case "spec":
			d.lines["spec"] = e.line
		default:
			d.errorf(e.line, e.key, "unknown field%s", suggest(e.key, []string{"metadata", "spec", "status"}))
		}
	}
	spec := v.get("spec")
	if !spec.isNull() && !d.expect(spec, mapValue, "spec") {
		return
	}
	service := ""
	var names []string
	var weights []*big.Rat
	if !spec.isNull() {
		for _, e := range spec.keys {
			at := "spec." + e.key
			d.lines[at] = e.line
			switch e.key {
			case "service":
				service = d.text(e.val, at)
			case "backends":
				if !e.val.isNull() && d.expect(e.val, listValue, at) {
					names, weights = d.backends(e.val, at)
				}
			default:
				d.errorf(e.line, at, "unknown field%s", suggest(e.key, []string{"service", "backends"}))
			}
		}
	}
	if service == "" {
		d.errorf(d.lineOf("spec.service"), "spec.service", "required")
	} else if err := checkHost(service); err != nil {
		d.errorf(d.lineOf("spec.service"), "spec.service", "%v", err)
	}
	if spec.get("backends").isNull() || len(spec.get("backends").items) == 0 {
		d.errorf(d.lineOf("spec.backends"), "spec.backends", "required")
	}
	if len(d.problems) > 0 {
		return
	}
	shares, ok := wholeShares(weights)
	if !ok {
		d.errorf(d.lineOf("spec.backends"), "spec.backends", "the weights can not be kept exactly as whole numbers")
		return
	}
	route := &networking.HTTPRoute{}
	sum := int64(0)
	for i, name := range names {
		sum += int64(shares[i])
		route.Route = append(route.Route, &networking.HTTPRouteDestination{
			Destination: &networking.Destination{Host: name}, Weight: shares[i],
		})
	}
	if sum == 0 {
		d.errorf(d.lineOf("spec.backends"), "spec.backends", "the weights add up to 0")
	}
	o.Spec = &networking.VirtualService{Hosts: []string{service}, Http: []*networking.HTTPRoute{route}}
}

func (d *decoder) backends(v *value, at string) (names []string, weights []*big.Rat) {
	seen := make(map[string]bool)
	for i, item := range v.items {
		in := at + "[" + strconv.Itoa(i) + "]"
		d.lines[in] = item.line
		if !d.expect(item, mapValue, in) {
			continue
		}
		name, weight := "", (*big.Rat)(nil)
		for _, e := range item.keys {
			field := in + "." + e.key
			d.lines[field] = e.line
			switch e.key {
			case "service":
				name = d.text(e.val, field)
			case "weight":
				if e.val.isNull() || !d.expect(e.val, scalarValue, field) {
					continue
				}
				var ok bool
				if weight, ok = parseQuantity(e.val.node.Value); !ok {
					d.errorf(e.line, field, "%q is not a weight: write a number such as 90, or a Kubernetes quantity such as 900m", e.val.node.Value)
				} else if weight.Sign() < 0 {
					d.errorf(e.line, field, "must not be negative")
				}
			default:
				d.errorf(e.line, field, "unknown field%s", suggest(e.key, []string{"service", "weight"}))
			}
		}
		switch err := checkHost(name); {
		case name == "":
			d.errorf(item.line, in+".service", "required")
		case err != nil:
			d.errorf(d.lineOf(in+".service"), in+".service", "%v", err)
		case seen[name]:
			d.errorf(d.lineOf(in+".service"), in+".service", "%q is given twice", name)
		}
		seen[name] = true
		if item.get("weight").isNull() {
			d.errorf(item.line, in+".weight", "required")
		}
		names, weights = append(names, name), append(weights, weight)
	}
	return names, weights
}

// A quantity is a number with an SI or binary suffix or a decimal exponent
// (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
var (
	quantity = regexp.MustCompile(`^([+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?|[+-]?\.[0-9]{1,30})(?:[eE]([+-]?[0-9]{1,2})|(n|u|m|k|M|G|T|P|E|[KMGTPE]i))?$`)
	suffixes = map[string]struct{ base, exp int64 }{
		"n": {10, -9}, "u": {10, -6}, "m": {10, -3}, "k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
		"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
	}
)

func parseQuantity(s string) (*big.Rat, bool) {
	m := quantity.FindStringSubmatch(s)
	if m == nil {
		return nil, false
	}
	n, ok := new(big.Rat).SetString(strings.TrimSuffix(m[1], "."))
	if !ok {
		return nil, false
	}
	base, exp := int64(10), int64(0)
	if m[2] != "" {
		exp, _ = strconv.ParseInt(m[2], 10, 64)
	} else if m[3] != "" {
		base, exp = suffixes[m[3]].base, suffixes[m[3]].exp
	}
	power := new(big.Int).Exp(big.NewInt(base), big.NewInt(max(exp, -exp)), nil)
	if exp < 0 {
		return n.Quo(n, new(big.Rat).SetInt(power)), true
	}
	return n.Mul(n, new(big.Rat).SetInt(power)), true
}

// wholeShares returns the smallest whole numbers in the same proportions; false where
// their sum does not fit an int32, as a route's weights must.
func wholeShares(weights []*big.Rat) ([]int32, bool) {
	common := big.NewInt(1)
	for _, w := range weights {
		g := new(big.Int).GCD(nil, nil, common, w.Denom())
		common.Mul(common, new(big.Int).Div(w.Denom(), g))
	}
	shares, divisor := make([]*big.Int, len(weights)), new(big.Int)
	for i, w := range weights {
		shares[i] = new(big.Int).Mul(w.Num(), new(big.Int).Div(common, w.Denom()))
		divisor.GCD(nil, nil, divisor, shares[i])
	}
	out, sum := make([]int32, len(weights)), new(big.Int)
	for i, s := range shares {
		if divisor.Sign() > 0 {
			s.Div(s, divisor)
		}
		if sum.Add(sum, s); sum.Cmp(big.NewInt(math.MaxInt32)) > 0 {
			return nil, false
		}
		out[i] = int32(s.Int64())
	}
	return out, true
}
