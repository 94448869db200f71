package telemetry

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/metric"
)

// XDSUpdate counts an accepted resource that is new or has changed.
func (t *Telemetry) XDSUpdate(typeURL string) {
	t.updates.Add(context.Background(), 1, metric.WithAttributes(keyType.String(resourceType(typeURL))))
}

// XDSNack counts a response of the control plane that was refused in whole or in part.
func (t *Telemetry) XDSNack(typeURL string) {
	t.nacks.Add(context.Background(), 1, metric.WithAttributes(keyType.String(resourceType(typeURL))))
}

// XDSConnected says whether there is a stream to the control plane.
func (t *Telemetry) XDSConnected(connected bool) {
	n := int64(0)
	if connected {
		n = 1
	}
	t.connection.Record(context.Background(), n)
}

// resourceType is the message's name of a type URL that the client asks for.
func resourceType(typeURL string) string {
	switch name := typeURL[strings.LastIndexByte(typeURL, '.')+1:]; name {
	case "Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment":
		return name
	}
	return other
}
