package compile

import (
	concurrencyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/adaptive_concurrency/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
)

// clientFilters reads the HTTP filters of an API listener.
type clientFilters struct{ listener *snapshot.Listener }

// read reads a filter that is enforced on the way out. There may be one of each kind.
func (c clientFilters) read(name string, config *anypb.Any, disabled bool) (known bool, f *fault) {
	filter := snapshot.Filter{Name: name, Disabled: disabled}
	switch {
	case config.MessageIs((*faultv3.HTTPFault)(nil)):
		filter.Kind = snapshot.FaultFilter
		filter.Fault, f = faultOf(config)
	case config.MessageIs((*corsv3.Cors)(nil)):
		filter.Kind = snapshot.CORSFilter
		f = extension(config, &corsv3.Cors{})
	case config.MessageIs((*concurrencyv3.AdaptiveConcurrency)(nil)):
		filter.Kind = snapshot.ConcurrencyFilter
		var m concurrencyv3.AdaptiveConcurrency
		if f = extension(config, &m); f != nil {
			break
		}
		limits, problem := adaptiveConcurrency(&m)
		if f = problem; f == nil && limits.Enabled && !disabled {
			c.listener.Concurrency = limits
		}
	default:
		return false, nil
	}
	if f != nil {
		return true, f.under("typed_config")
	}
	for _, other := range c.listener.Filters {
		if other.Kind == filter.Kind {
			return true, faultf("typed_config", "there is a filter of type %q already (%q): not supported", typeName(config), other.Name)
		}
	}
	c.listener.Filters = append(c.listener.Filters, filter)
	return true, nil
}

// router reads the options of the last filter.
func (c clientFilters) router(config *anypb.Any) *fault {
	var m routerv3.Router
	if f := extension(config, &m); f != nil {
		return f
	}
	c.listener.SuppressHeaders = m.GetSuppressEnvoyHeaders()
	c.listener.RespectExpectedTimeout = m.GetRespectExpectedRqTimeout()
	return nil
}

func faultOf(config *anypb.Any) (*snapshot.FaultSetting, *fault) {
	var m faultv3.HTTPFault
	if f := extension(config, &m); f != nil {
		return nil, f
	}
	return faultSetting(&m)
}

// filterLevels are what the levels of the routes say of filters, from the route
// configuration down to a destination.
type filterLevels []filterLevel

// filterLevel is what one of them says.
type filterLevel struct {
	filters map[string]filterSetting
	cors    *cors // of the routes' own field
}

// filterSetting is what a level says of one filter.
type filterSetting struct {
	disabled bool
	isFault  bool
	fault    *snapshot.FaultSetting // with isFault; nil injects none
	cors     *cors
}

// with adds a level. A filter that is optional, and not known, is left out.
func (s filterLevels) with(configs map[string]*anypb.Any, own *cors) (filterLevels, *fault) {
	if len(configs) == 0 && own == nil {
		return s, nil
	}
	next := filterLevel{cors: own, filters: make(map[string]filterSetting, len(configs))}
	for _, name := range sortedKeys(configs) {
		config, disabled, optional, f := filterConfig(configs[name])
		entry := filterSetting{disabled: disabled}
		known := disabled
		switch {
		case f != nil || disabled:
		case config.MessageIs((*faultv3.HTTPFault)(nil)):
			known, entry.isFault = true, true
			entry.fault, f = faultOf(config)
		case config.MessageIs((*corsv3.CorsPolicy)(nil)):
			known = true
			var m corsv3.CorsPolicy
			if f = extension(config, &m); f == nil {
				entry.cors, f = corsOf(&m)
			}
		case !optional:
			f = harmlessSetting(config)
		}
		if f != nil {
			return nil, f.underKey(perFilter, name)
		}
		if known {
			next.filters[name] = entry
		}
	}
	return append(s[:len(s):len(s)], next), nil
}

// inForce is what the levels say together: the most specific one of each
// filter, but for the parts of a CORS policy, which are found level by level.
func (s filterLevels) inForce() snapshot.FilterSettings {
	var out snapshot.FilterSettings
	policies := make(map[string][]*cors)
	var own []*cors
	for i := len(s) - 1; i >= 0; i-- {
		if s[i].cors != nil {
			own = append(own, s[i].cors)
		}
		for name, entry := range s[i].filters {
			if entry.cors != nil {
				policies[name] = append(policies[name], entry.cors)
			}
			if _, ok := out.ByName[name]; ok {
				continue
			}
			if out.ByName == nil {
				out.ByName = make(map[string]snapshot.FilterSetting)
			}
			inForce := snapshot.FilterSetting{Disabled: entry.disabled}
			if entry.isFault {
				if inForce.Fault = entry.fault; entry.fault == nil {
					inForce.Fault = noFault
				}
			}
			out.ByName[name] = inForce
		}
	}
	for name, levels := range policies {
		inForce := out.ByName[name]
		inForce.CORS = merged(levels)
		out.ByName[name] = inForce
	}
	out.CORS = merged(own)
	return out
}

// noFault takes the place of a fault of the listener and injects none.
var noFault = &snapshot.FaultSetting{}
