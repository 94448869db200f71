package meshgrpc

import (
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/stats/opentelemetry"
)

// Metrics returns the names of gRPC's metrics that are recorded where a
// MeterProvider is given: gRPC's defaults (calls and attempts, gRFC A66) and,
// which gRPC leaves out by default, those that tell how it gets on with policy:
// its xDS client (A78), outlier ejection (A91), weighted round robin (A78) and
// subchannels (A94). Names that gRPC does not know do no harm.
func Metrics() *stats.MetricSet {
	return opentelemetry.DefaultMetrics().Add(
		"grpc.xds_client.connected",
		"grpc.xds_client.server_failure",
		"grpc.xds_client.resources",
		"grpc.xds_client.resource_updates_valid",
		"grpc.xds_client.resource_updates_invalid",
		"grpc.lb.outlier_detection.ejections_enforced",
		"grpc.lb.outlier_detection.ejections_unenforced",
		"grpc.lb.wrr.rr_fallback",
		"grpc.lb.wrr.endpoint_weight_not_yet_usable",
		"grpc.lb.wrr.endpoint_weight_stale",
		"grpc.lb.wrr.endpoint_weights",
		"grpc.subchannel.open_connections",
		"grpc.subchannel.connection_attempts_succeeded",
		"grpc.subchannel.connection_attempts_failed",
		"grpc.subchannel.disconnections",
	)
}

// metricLabels are the optional labels worth their cardinality: the cluster
// and its locality, and why a connection ended.
var metricLabels = []string{"grpc.lb.backend_service", "grpc.lb.locality", "grpc.disconnect_error"}

func metricsOptions(p metric.MeterProvider) opentelemetry.Options {
	return opentelemetry.Options{MetricsOptions: opentelemetry.MetricsOptions{
		MeterProvider:  p,
		Metrics:        Metrics(),
		OptionalLabels: metricLabels,
	}}
}

func clientMetrics(p metric.MeterProvider) grpc.DialOption {
	return opentelemetry.DialOption(metricsOptions(p))
}

func serverMetrics(p metric.MeterProvider) grpc.ServerOption {
	return opentelemetry.ServerOption(metricsOptions(p))
}
