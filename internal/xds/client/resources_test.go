package client

import (
	"errors"
	"net"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sinew-mesh/sinew/internal/snapshot"
	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/routing/lb"
)

// The resources that the tests send. One that spoil changed has the word "bad"
// in an otherwise unused field, and is refused by the tests' decoders.

func pack(m proto.Message) *anypb.Any {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return &anypb.Any{TypeUrl: typePrefix + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}

func ldsOf(name, rds string) *listenerv3.Listener {
	hcm := &hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource:    &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}},
			RouteConfigName: rds,
		}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})}}},
	}
	return &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: pack(hcm)}}
}

func rdsOf(name, domain string, clusters ...string) *routev3.RouteConfiguration {
	vh := &routev3.VirtualHost{Name: domain, Domains: []string{domain}}
	for i, c := range clusters {
		match := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/" + strconv.Itoa(i)}}
		if i == len(clusters)-1 {
			match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
		}
		vh.Routes = append(vh.Routes, &routev3.Route{Match: match, Action: &routev3.Route_Route{
			Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: c}},
		}})
	}
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{vh}}
}

func cdsOf(name, eds string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: eds, EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		}},
	}
}

func aggregateOf(name string, of ...string) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{
		ClusterType: &clusterv3.Cluster_CustomClusterType{TypedConfig: pack(&aggregatev3.ClusterConfig{Clusters: of})},
	}}
}

func edsOf(name string, ports ...int) *endpointv3.ClusterLoadAssignment {
	l := &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Zone: "z"}}
	for _, p := range ports {
		l.LbEndpoints = append(l.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(p)},
			}}}},
		}})
	}
	l.LoadBalancingWeight = nil
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{l}}
}

// spoil makes a resource that the decoders refuse, with the reason in the text.
func spoil(m proto.Message, why string) proto.Message {
	why = "bad " + why
	switch m := m.(type) {
	case *listenerv3.Listener:
		m.StatPrefix = why
	case *routev3.RouteConfiguration:
		m.InternalOnlyHeaders = []string{why}
	case *clusterv3.Cluster:
		m.AltStatName = why
	case *endpointv3.ClusterLoadAssignment:
		m.Endpoints[0].Locality.SubZone = why
	}
	return m
}

func spoiled(s string) error {
	if strings.HasPrefix(s, "bad") {
		return errors.New(s)
	}
	return nil
}

// plain decodes just what the tests put in; its failures are theirs to choose.
var plain = decoders{
	listener: func(a *anypb.Any) (string, *snapshot.Listener, error) {
		m := &listenerv3.Listener{}
		if err := a.UnmarshalTo(m); err != nil {
			return "", nil, err
		}
		l := &snapshot.Listener{Name: m.GetName()}
		if m.GetApiListener() != nil {
			hcm := &hcmv3.HttpConnectionManager{}
			if err := m.GetApiListener().GetApiListener().UnmarshalTo(hcm); err != nil {
				return l.Name, nil, err
			}
			l.RouteName = hcm.GetRds().GetRouteConfigName()
			l.MaxStreamDuration = hcm.GetCommonHttpProtocolOptions().GetMaxStreamDuration().AsDuration()
		}
		if m.StatPrefix == "panic" {
			panic("decoder")
		}
		return l.Name, l, spoiled(m.StatPrefix)
	},
	inbound: func(a *anypb.Any) (string, *snapshot.Inbound, error) {
		m := &listenerv3.Listener{}
		if err := a.UnmarshalTo(m); err != nil {
			return "", nil, err
		}
		return m.GetName(), &snapshot.Inbound{Name: m.GetName(), Service: m.GetTrafficDirection().String()}, spoiled(m.StatPrefix)
	},
	routes: func(a *anypb.Any) (string, *snapshot.RouteConfig, error) {
		m := &routev3.RouteConfiguration{}
		if err := a.UnmarshalTo(m); err != nil {
			return "", nil, err
		}
		rc := &snapshot.RouteConfig{Name: m.Name}
		var domains [][]string
		for _, vh := range m.VirtualHosts {
			domains = append(domains, vh.Domains)
			v := snapshot.VirtualHost{Name: vh.Name}
			for _, r := range vh.Routes {
				w, err := routing.NewWeighted([]routing.WeightedCluster{{Name: r.GetRoute().GetCluster(), Weight: 1}})
				if err != nil {
					return m.Name, nil, err
				}
				route := snapshot.Route{Clusters: w}
				for _, m := range r.GetRoute().GetRequestMirrorPolicies() {
					route.Mirrors = append(route.Mirrors, routing.Mirror{Cluster: m.GetCluster()})
				}
				v.Routes = append(v.Routes, route)
			}
			rc.VirtualHosts = append(rc.VirtualHosts, v)
		}
		var err error
		if rc.Domains, err = routing.NewDomains(domains); err != nil {
			return m.Name, nil, err
		}
		return m.Name, rc, spoiled(strings.Join(m.InternalOnlyHeaders, ""))
	},
	cluster: func(a *anypb.Any) (string, *snapshot.Cluster, error) {
		m := &clusterv3.Cluster{}
		if err := a.UnmarshalTo(m); err != nil {
			return "", nil, err
		}
		if m.GetClusterType() != nil {
			config := &aggregatev3.ClusterConfig{}
			if err := m.GetClusterType().GetTypedConfig().UnmarshalTo(config); err != nil {
				return m.Name, nil, err
			}
			return m.Name, &snapshot.Cluster{Name: m.Name, Discovery: snapshot.Aggregate, Underlying: config.Clusters}, spoiled(m.AltStatName)
		}
		return m.Name, &snapshot.Cluster{Name: m.Name, EndpointsName: m.GetEdsClusterConfig().GetServiceName(), ConnectTimeout: m.GetConnectTimeout().AsDuration()}, spoiled(m.AltStatName)
	},
	endpoints: func(a *anypb.Any) (string, *lb.Endpoints, error) {
		m := &endpointv3.ClusterLoadAssignment{}
		if err := a.UnmarshalTo(m); err != nil {
			return "", nil, err
		}
		var all []lb.Endpoint
		for _, l := range m.Endpoints {
			if err := spoiled(l.GetLocality().GetSubZone()); err != nil {
				return m.ClusterName, nil, err
			}
			for _, e := range l.LbEndpoints {
				sa := e.GetEndpoint().GetAddress().GetSocketAddress()
				all = append(all, lb.Endpoint{Address: net.JoinHostPort(sa.GetAddress(), strconv.Itoa(int(sa.GetPortValue()))), Weight: 1})
			}
		}
		return m.ClusterName, lb.NewEndpoints(all, nil), nil
	},
}

// service is a host with one cluster and one endpoint.
func service(name string, port int) []proto.Message {
	return []proto.Message{
		ldsOf(name+":80", "r-"+name), rdsOf("r-"+name, name+":80", "c-"+name), cdsOf("c-"+name, "e-"+name), edsOf("e-"+name, port),
	}
}
