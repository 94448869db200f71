package compile

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/sinew-mesh/sinew/routing/lb"
)

// at is an endpoint with further fields.
func at(address string, port int, fields string) string {
	return fmt.Sprintf(`{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %d}}}%s}`, address, port, fields)
}

func TestEndpoints(t *testing.T) {
	name, eps, err := Endpoints(endpointsOf(t, `{"cluster_name": "e", "policy": {"overprovisioning_factor": 150, "weighted_priority_health": true,
			"drop_overloads": [{"category": "lb", "drop_percentage": {"numerator": 2}}, {"category": "all", "drop_percentage": {"numerator": 300}}]},
		"endpoints": [
			{"locality": {"region": "r", "zone": "z", "sub_zone": "s"}, "load_balancing_weight": 3, "lb_endpoints": [
				`+at("10.0.0.1", 80, `, "load_balancing_weight": 5, "metadata": {"filter_metadata": {
					"envoy.lb": {"hash_key": "k", "n": 3, "workload": "of envoy.lb"}, "istio": {"workload": "w", "x": "y"}, "envoy.transport_socket_match": {"tlsMode": "istio"}, "other": {"a": "b"}}}`)+`,
				`+at("2001:DB8::0001", 81, `, "health_status": "DRAINING"`)+`,
				`+at("reviews.example.com", 82, `, "health_status": "DEGRADED"`)+`]},
			{"lb_endpoints": [`+at("10.0.0.1", 81, `, "health_status": "UNHEALTHY"`)+`, `+at("10.0.0.2", 80, `, "health_status": "TIMEOUT"`)+`, `+at("10.0.0.3", 80, `, "health_status": "HEALTHY"`)+`]},
			{"priority": 7, "locality": {"region": "r", "zone": "z", "sub_zone": "s"}, "load_balancing_weight": 9, "lb_endpoints": [
				`+at("10.0.0.1", 80, `, "load_balancing_weight": 2`)+`, {"endpoint": {"address": {"socket_address": {"address": "10.0.0.9", "port_value": 80}},
					"health_check_config": {"port_value": 8080, "hostname": "check.example"}}}]},
			{"locality": {"region": "empty"}}]}`))
	if err != nil || name != "e" {
		t.Fatal(name, err)
	}
	place := lb.Locality{Region: "r", Zone: "z", SubZone: "s"}
	want := []lb.Endpoint{
		{Address: "10.0.0.1:80", Weight: 5, Locality: place, HashKey: "k", Socket: map[string]string{"tlsMode": "istio"}, Metadata: map[string]string{"hash_key": "k", "workload": "of envoy.lb", "x": "y", "tlsMode": "istio"}},
		{Address: "[2001:db8::1]:81", Weight: 1, Health: lb.Draining, Locality: place},
		{Address: "reviews.example.com:82", Weight: 1, Health: lb.Degraded, Locality: place},
		{Address: "10.0.0.1:81", Weight: 1, Health: lb.Unhealthy},
		{Address: "10.0.0.2:80", Weight: 1, Health: lb.Unhealthy},
		{Address: "10.0.0.3:80", Weight: 1},
		{Address: "10.0.0.9:80", Weight: 1, Priority: 7, Locality: place, HealthPort: 8080, HealthHost: "check.example"},
	}
	if !reflect.DeepEqual(eps.All, want) {
		t.Errorf("%+v\nwant %+v", eps.All, want)
	}
	if weights := []lb.LocalityWeight{{Locality: place, Weight: 3}, {Locality: place, Priority: 7, Weight: 9}}; !reflect.DeepEqual(eps.Localities, weights) {
		t.Errorf("%+v, want %+v", eps.Localities, weights)
	}
	if eps.Overprovisioning != 150 || !eps.WeightedPriorityHealth {
		t.Errorf("%d %v", eps.Overprovisioning, eps.WeightedPriorityHealth)
	}
	if drops := []lb.Drop{{Category: "lb", PerMillion: 20_000}, {Category: "all", PerMillion: 1_000_000}}; !reflect.DeepEqual(eps.Drops, drops) {
		t.Errorf("%+v, want %+v", eps.Drops, drops)
	}
	if _, eps, err = Endpoints(endpointsOf(t, `{"cluster_name": "none"}`)); err != nil || eps == nil || len(eps.All) != 0 || eps.Overprovisioning != 140 || eps.WeightedPriorityHealth {
		t.Errorf("no endpoints: %+v, %v", eps, err)
	}
}

func TestEndpointErrorsNameTheField(t *testing.T) {
	const first = "endpoints[0].lb_endpoints[0]"
	for _, tt := range []struct{ fields, path string }{
		{`"endpoints": [{"lb_endpoints": [{}]}]`, first + ".endpoint.address.socket_address"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint_name": "x"}]}]`, first + ".endpoint_name"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "/x"}}}}]}]`, first + ".endpoint.address.pipe"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "x"}}}}]}]`, first + ".endpoint.address.envoy_internal_address"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "10.0.0.1"}}}}]}]`, first + ".endpoint.address.socket_address.port_value"},
		{`"endpoints": [{"lb_endpoints": [` + at("10.0.0.1", 65536, "") + `]}]`, first + ".endpoint.address.socket_address.port_value"},
		{`"endpoints": [{"lb_endpoints": [` + at("", 80, "") + `]}]`, first + ".endpoint.address.socket_address.address"},
		{`"endpoints": [{"lb_endpoints": [` + at("a b", 80, "") + `]}]`, first + ".endpoint.address.socket_address.address"},
		{`"endpoints": [{"lb_endpoints": [` + at("[::1]", 80, "") + `]}]`, first + ".endpoint.address.socket_address.address"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"protocol": "UDP", "address": "10.0.0.1", "port_value": 80}}}}]}]`, first + ".endpoint.address.socket_address.protocol"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"additional_addresses": [{}]}}]}]`, first + ".endpoint.additional_addresses"},
		{`"endpoints": [{"lb_endpoints": [` + at("10.0.0.1", 80, `, "load_balancing_weight": 0`) + `]}]`, first + ".load_balancing_weight"},
		{`"endpoints": [{"lb_endpoints": [` + at("10.0.0.1", 80, `, "health_status": 77`) + `]}]`, first + ".health_status"},
		{`"endpoints": [{"lb_endpoints": [` + at("a", 1, `, "load_balancing_weight": 4294967295`) + `, ` + at("b", 1, ``) + `]}]`, "endpoints[0].lb_endpoints[1].load_balancing_weight"},
		{`"endpoints": [{}, {"locality": {}}]`, "endpoints[1].locality"},
		{`"endpoints": [{"priority": 129}]`, "endpoints[0].priority"},
		{`"endpoints": [{"load_balancing_weight": 0}]`, "endpoints[0].load_balancing_weight"},
		{`"endpoints": [{"load_balancing_weight": 4294967295}, {"priority": 1, "load_balancing_weight": 1}, {"locality": {"zone": "z"}, "load_balancing_weight": 1}]`, "endpoints[2].load_balancing_weight"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"health_check_config": {"address": {}}}}]}]`, first + ".endpoint.health_check_config.address"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"health_check_config": {"disable_active_health_check": true}}}]}]`, first + ".endpoint.health_check_config.disable_active_health_check"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "::1", "port_value": 1}}, "health_check_config": {"port_value": 65536}}}]}]`, first + ".endpoint.health_check_config.port_value"},
		{`"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "::1", "port_value": 1}}, "health_check_config": {"hostname": "a\r\nb"}}}]}]`, first + ".endpoint.health_check_config.hostname"},
		{`"policy": {"overprovisioning_factor": 0}`, "policy.overprovisioning_factor"},
		{`"endpoints": [{"leds_cluster_locality_config": {}}]`, "endpoints[0].leds_cluster_locality_config"},
		{`"named_endpoints": {"x": {}}`, "named_endpoints"},
		{`"policy": {"endpoint_stale_after": "1s"}`, "policy.endpoint_stale_after"},
		{`"policy": {"drop_overloads": [{"drop_percentage": {"denominator": 5}}]}`, "policy.drop_overloads[0].drop_percentage.denominator"},
	} {
		name, eps, err := Endpoints(endpointsOf(t, `{"cluster_name": "e", `+tt.fields+`}`))
		if name != "e" || eps != nil {
			t.Errorf("%s: %q, %+v", tt.path, name, eps)
		}
		t.Run(tt.path, func(t *testing.T) { requirePath(t, err, tt.path) })
	}
}
