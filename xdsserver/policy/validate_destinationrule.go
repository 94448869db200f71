package policy

//lint:file-ignore SA1019 Istio's deprecated fields are still written.

import (
	"fmt"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func (f *findings) destinationRule(meta Meta, dr *networking.DestinationRule) {
	if dr.Host == "" {
		f.errorf("spec.host", "required")
	} else {
		f.err("spec.host", checkHost(dr.Host))
	}
	f.trafficPolicy("spec.trafficPolicy", meta.Namespace, dr.TrafficPolicy)
	seen := make(map[string]bool)
	for i, s := range dr.Subsets {
		in := fmt.Sprintf("spec.subsets[%d]", i)
		switch {
		case s.GetName() == "":
			f.errorf(in+".name", "required")
		case !isLabel(s.GetName()):
			f.errorf(in+".name", "%q is not the name of a subset", s.GetName())
		case seen[s.GetName()]:
			f.errorf(in+".name", "subset %q is declared twice", s.GetName())
		}
		seen[s.GetName()] = true
		f.labels(in+".labels", s.GetLabels())
		f.trafficPolicy(in+".trafficPolicy", meta.Namespace, s.GetTrafficPolicy())
	}
	if lb := dr.TrafficPolicy.GetLoadBalancer(); meta.PeakEWMA() && lb.GetLbPolicy() != nil && lb.GetSimple() != networking.LoadBalancerSettings_UNSPECIFIED || meta.PeakEWMA() && lb.GetConsistentHash() != nil {
		f.errorf("metadata.annotations["+BalancerAnnotation+"]", "can not be set together with spec.trafficPolicy.loadBalancer, which names another")
	}
	f.exportTo("spec.exportTo", meta.Namespace, dr.ExportTo, false)
	if sel := dr.WorkloadSelector; sel != nil {
		if len(dr.ExportTo) > 0 && !(len(dr.ExportTo) == 1 && (dr.ExportTo[0] == "." || dr.ExportTo[0] == meta.Namespace)) {
			f.errorf("spec.exportTo", "must be \".\" where a workloadSelector is given")
		}
		f.selectorLabels("spec.workloadSelector.matchLabels", sel.GetMatchLabels())
		if len(sel.GetMatchLabels()) == 0 {
			f.warnf("spec.workloadSelector", "selects nothing in particular: it has no labels")
		}
	}
}

func (f *findings) trafficPolicy(in, namespace string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	if p.OutlierDetection == nil && p.ConnectionPool == nil && p.LoadBalancer == nil && p.Tls == nil &&
		p.PortLevelSettings == nil && p.Tunnel == nil && p.ProxyProtocol == nil && p.RetryBudget == nil {
		f.errorf(in, "must have at least one field")
		return
	}
	if p.Tunnel != nil && p.ProxyProtocol != nil {
		f.errorf(in+".proxyProtocol", "can not be set together with tunnel")
	}
	f.settings(in, namespace, p.LoadBalancer, p.ConnectionPool, p.OutlierDetection, p.Tls)
	for i, s := range p.PortLevelSettings {
		at := fmt.Sprintf("%s.portLevelSettings[%d]", in, i)
		if s.GetPort() == nil {
			f.errorf(at+".port", "required")
		}
		if s.GetOutlierDetection() == nil && s.GetConnectionPool() == nil && s.GetLoadBalancer() == nil && s.GetTls() == nil {
			f.errorf(at, "must have at least one field beside port")
		}
		f.settings(at, namespace, s.GetLoadBalancer(), s.GetConnectionPool(), s.GetOutlierDetection(), s.GetTls())
	}
	if t := p.Tunnel; t != nil {
		if t.Protocol != "" && t.Protocol != "CONNECT" && t.Protocol != "POST" {
			f.errorf(in+".tunnel.protocol", "%q is neither CONNECT nor POST", t.Protocol)
		}
		if checkDomain(t.TargetHost) != nil && !isIP(t.TargetHost) {
			f.errorf(in+".tunnel.targetHost", "%q is neither a host name nor an IP address", t.TargetHost)
		}
		f.err(in+".tunnel.targetPort", checkPort(t.TargetPort))
	}
	if v := p.GetProxyProtocol().GetVersion(); v != networking.TrafficPolicy_ProxyProtocol_V1 && v != networking.TrafficPolicy_ProxyProtocol_V2 {
		f.errorf(in+".proxyProtocol.version", "%d is not a version of the proxy protocol", v)
	}
	if b := p.RetryBudget; b != nil {
		if v := b.GetPercent().GetValue(); v < 0 || v > 100 {
			f.errorf(in+".retryBudget.percent", "%v is not between 0 and 100", v)
		}
		f.err(in+".retryBudget.budgetInterval", checkDuration(b.BudgetInterval))
	}
}

// settings checks the blocks that a traffic policy and a port's own have in common.
func (f *findings) settings(in, namespace string, lb *networking.LoadBalancerSettings, pool *networking.ConnectionPoolSettings,
	outlier *networking.OutlierDetection, tls *networking.ClientTLSSettings,
) {
	f.loadBalancer(in+".loadBalancer", lb, outlier)
	f.connectionPool(in+".connectionPool", pool)
	f.outlier(in+".outlierDetection", outlier)
	f.clientTLS(in+".tls", namespace, tls)
}

func (f *findings) outlier(in string, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	f.err(in+".baseEjectionTime", checkDuration(o.BaseEjectionTime))
	f.err(in+".interval", checkDuration(o.Interval))
	if o.ConsecutiveErrors != 0 { //nolint:staticcheck // deprecated by Istio, still accepted
		f.warnf(in+".consecutiveErrors", "is deprecated and has no effect: use consecutive5xxErrors or consecutiveGatewayErrors")
	}
	if !o.SplitExternalLocalOriginErrors && o.ConsecutiveLocalOriginFailures.GetValue() > 0 {
		f.errorf(in+".consecutiveLocalOriginFailures", "needs splitExternalLocalOriginErrors: true")
	}
	f.percent(in+".maxEjectionPercent", o.MaxEjectionPercent)
	f.percent(in+".minHealthPercent", o.MinHealthPercent)
}

func (f *findings) percent(field string, n int32) {
	if n < 0 || n > 100 {
		f.errorf(field, "%d is not between 0 and 100", n)
	}
}

func (f *findings) notNegative(field string, n int32) {
	if n < 0 {
		f.errorf(field, "%d is negative", n)
	}
}

func (f *findings) connectionPool(in string, p *networking.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if p.Http == nil && p.Tcp == nil {
		f.errorf(in, "must have at least one field")
	}
	if h := p.Http; h != nil {
		f.notNegative(in+".http.http1MaxPendingRequests", h.Http1MaxPendingRequests)
		f.notNegative(in+".http.http2MaxRequests", h.Http2MaxRequests)
		f.notNegative(in+".http.maxRequestsPerConnection", h.MaxRequestsPerConnection)
		f.notNegative(in+".http.maxRetries", h.MaxRetries)
		f.notNegative(in+".http.maxConcurrentStreams", h.MaxConcurrentStreams)
		f.err(in+".http.idleTimeout", checkDuration(h.IdleTimeout))
		if h.H2UpgradePolicy == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE && h.UseClientProtocol {
			f.errorf(in+".http.useClientProtocol", "can not be true where h2UpgradePolicy is UPGRADE")
		}
		if k := h.Http2KeepAlive; k != nil {
			f.err(in+".http.http2KeepAlive.interval", checkDuration(k.Interval))
			f.err(in+".http.http2KeepAlive.timeout", checkDuration(k.Timeout))
		}
	}
	if t := p.Tcp; t != nil {
		f.notNegative(in+".tcp.maxConnections", t.MaxConnections)
		f.err(in+".tcp.connectTimeout", checkDuration(t.ConnectTimeout))
		f.err(in+".tcp.maxConnectionDuration", checkDuration(t.MaxConnectionDuration))
		// 0 turns this one off.
		if t.IdleTimeout != nil && t.IdleTimeout.AsDuration().Milliseconds() != 0 {
			f.err(in+".tcp.idleTimeout", checkDuration(t.IdleTimeout))
		}
		f.err(in+".tcp.tcpKeepalive.time", checkDuration(t.GetTcpKeepalive().GetTime()))
		f.err(in+".tcp.tcpKeepalive.interval", checkDuration(t.GetTcpKeepalive().GetInterval()))
	}
}

func (f *findings) loadBalancer(in string, lb *networking.LoadBalancerSettings, outlier *networking.OutlierDetection) {
	if lb == nil {
		return
	}
	if h := lb.GetConsistentHash(); h != nil {
		at := in + ".consistentHash"
		if c := h.GetHttpCookie(); c != nil && c.GetName() == "" {
			f.errorf(at+".httpCookie.name", "required")
		}
		if h.MinimumRingSize != 0 { //nolint:staticcheck // deprecated by Istio, still accepted
			f.warnf(at+".minimumRingSize", "is deprecated: use ringHash.minimumRingSize")
			if h.GetHashAlgorithm() != nil {
				f.errorf(at+".minimumRingSize", "can not be set together with ringHash or maglev")
			}
		}
		if m := h.GetMaglev(); m != nil {
			switch {
			case m.TableSize == 0:
				f.errorf(at+".maglev.tableSize", "required")
			case m.TableSize >= 5000011:
				f.errorf(at+".maglev.tableSize", "%d is not less than 5000011", m.TableSize)
			case !isPrime(m.TableSize):
				f.errorf(at+".maglev.tableSize", "%d is not a prime number", m.TableSize)
			}
		}
	}
	f.locality(in+".localityLbSetting", lb.LocalityLbSetting, outlier)
	f.zoneAware(in+".zoneAwareLbSetting", lb.ZoneAwareLbSetting)
	if z, l := lb.ZoneAwareLbSetting, lb.LocalityLbSetting; z != nil && l != nil && z.GetEnabled().GetValue() && l.GetEnabled().GetValue() {
		f.errorf(in+".zoneAwareLbSetting", "can not be enabled together with localityLbSetting")
	}
	if w := lb.Warmup; w != nil {
		if w.Duration == nil {
			f.errorf(in+".warmup.duration", "required")
		}
		f.err(in+".warmup.duration", checkDuration(w.Duration))
		if v := w.MinimumPercent.GetValue(); v > 100 {
			f.errorf(in+".warmup.minimumPercent", "%v is more than 100", v)
		}
		if w.Aggression != nil && w.Aggression.GetValue() < 1 {
			f.errorf(in+".warmup.aggression", "%v is less than 1", w.Aggression.GetValue())
		}
	}
}

func isPrime(n uint64) bool {
	if n < 2 {
		return false
	}
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

func (f *findings) locality(in string, s *networking.LocalityLoadBalancerSetting, outlier *networking.OutlierDetection) {
	if s == nil {
		return
	}
	if len(s.Distribute) > 0 && len(s.Failover) > 0 {
		f.errorf(in+".failover", "can not be set together with distribute")
		return
	}
	if len(s.Failover) > 0 {
		for i, p := range s.FailoverPriority {
			switch p {
			case "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone":
				f.errorf(fmt.Sprintf("%s.failoverPriority[%d]", in, i), "%q can not be set together with failover", p)
			}
		}
	}
	var sources []string
	for i, d := range s.Distribute {
		at := fmt.Sprintf("%s.distribute[%d]", in, i)
		sources = append(sources, d.GetFrom())
		total := uint64(0)
		for _, to := range sortedKeys(d.GetTo()) {
			w := d.To[to]
			if w < 1 || w > 100 {
				f.errorf(at+".to["+to+"]", "weight %d is not between 1 and 100", w)
			}
			total += uint64(w)
		}
		if total != 100 {
			f.errorf(at+".to", "the weights add up to %d, not 100", total)
		}
		f.localities(at+".to", sortedKeys(d.GetTo()))
	}
	f.localities(in+".distribute", sources)
	if (len(s.Failover) > 0 || len(s.FailoverPriority) > 0) && outlier == nil {
		f.warnf(in, "failover needs outlierDetection to take effect")
	}
	for i, o := range s.Failover {
		f.failover(fmt.Sprintf("%s.failover[%d]", in, i), o.GetFrom(), o.GetTo())
	}
}

func (f *findings) zoneAware(in string, s *networking.ZoneAwareLoadBalancerSetting) {
	for i, p := range s.GetFailoverPriority() {
		switch p {
		case "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone":
			f.errorf(fmt.Sprintf("%s.failoverPriority[%d]", in, i), "%q counts in any case and can not be set here", p)
		}
	}
	for i, o := range s.GetFailover() {
		f.failover(fmt.Sprintf("%s.failover[%d]", in, i), o.GetFrom(), o.GetTo())
	}
}

func (f *findings) failover(at, from, to string) {
	switch {
	case from == to:
		f.errorf(at, "from and to are the same region")
	case strings.ContainsAny(from+to, "/*"):
		f.errorf(at, "from and to must be regions, without zone or wildcard")
	}
}

// localities checks that none of a list of region/zone/subzone covers another.
func (f *findings) localities(field string, list []string) {
	for i, l := range list {
		if n := strings.Count(l, "*"); n > 1 || n == 1 && !strings.HasSuffix(l, "*") {
			f.errorf(field, "locality %q may have one wildcard, at its end", l)
			return
		}
		for _, part := range strings.SplitN(l, "/", 3) {
			if part == "" {
				f.errorf(field, "locality %q has an empty region, zone or subzone", l)
				return
			}
		}
		for _, other := range list[:i] {
			if covers(l, other) || covers(other, l) {
				f.errorf(field, "localities %q and %q overlap", other, l)
				return
			}
		}
	}
}

// covers reports whether every place in b is in a.
func covers(a, b string) bool {
	pa, pb := strings.SplitN(a, "/", 3), strings.SplitN(b, "/", 3)
	for i, part := range pa {
		if part == "*" {
			return true
		}
		if i >= len(pb) || pb[i] != part {
			return false
		}
	}
	return true
}

func (f *findings) clientTLS(in, namespace string, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	if _, known := networking.ClientTLSSettings_TLSmode_name[int32(t.Mode)]; !known {
		f.errorf(in+".mode", "%d is not a mode", t.Mode)
	}
	const configMap = "configmap://"
	if name, ok := strings.CutPrefix(t.CredentialName, configMap); ok {
		ns, _, qualified := strings.Cut(name, "/")
		if name == "" || qualified && ns != namespace {
			f.errorf(in+".credentialName", "%q must name a ConfigMap of namespace %s", t.CredentialName, namespace)
		}
	}
	simple, mutual := t.Mode == networking.ClientTLSSettings_SIMPLE, t.Mode == networking.ClientTLSSettings_MUTUAL
	if t.GetInsecureSkipVerify().GetValue() &&
		(simple && (t.CaCertificates != "" || t.CredentialName != "" || t.SubjectAltNames != nil) ||
			mutual && (t.CaCertificates != "" || t.SubjectAltNames != nil)) {
		f.errorf(in+".insecureSkipVerify", "can not be true where something to verify is given")
	}
	if (simple || mutual) && t.CredentialName != "" {
		if t.ClientCertificate != "" || t.CaCertificates != "" || t.PrivateKey != "" || t.CaCrl != "" {
			f.errorf(in+".credentialName", "can not be set together with certificates from files")
		}
		return
	}
	if mutual {
		if t.ClientCertificate == "" {
			f.errorf(in+".clientCertificate", "required for MUTUAL")
		}
		if t.PrivateKey == "" {
			f.errorf(in+".privateKey", "required for MUTUAL")
		}
	}
}
