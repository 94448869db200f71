package meshgrpc

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// DefaultPolicy is what channels have whose target xDS does not know, and all
// channels of a process without a control plane. It becomes gRPC's default
// service config (gRFC A2): a service config that the resolver provides, which
// for "xds:///" is always the case and for "dns:///" is that of a TXT record,
// replaces all of it but Timeout.
//
// Addresses are used in turn (round_robin).
type DefaultPolicy struct {
	// Timeout limits a unary call, all attempts together. It does not apply to
	// streams, nor to "xds:///" targets. Zero means none.
	Timeout time.Duration
	// Retries is how many attempts may follow the first, of calls that have
	// seen no header of a response. Zero retries nothing. The pauses are gRPC's:
	// 25 ms, doubling up to 250 ms, each by 0.8 to 1.2 (gRFC A6).
	Retries uint32
	// RetryOn are the codes to retry. Default: codes.Unavailable.
	RetryOn []codes.Code
	// RetryPercent and RetryMin bound the retries of a channel by gRPC's token
	// bucket (retryThrottling of gRFC A6): of failed attempts that follow one
	// another without a success, the first RetryMin may be retried, and each
	// success earns RetryPercent hundredths of a further one. An attempt that
	// fails with a code of RetryOn costs a token whether it is retried or not,
	// so in an outage retries cease, and come back some
	// (RetryMin+2)*100/RetryPercent successes after its end. A new answer of the
	// resolver fills the bucket. Defaults: 20 and 3, each where it is zero.
	// RetryMin is at most 499.
	RetryPercent float64
	RetryMin     uint32
}

const (
	defaultRetryPercent = 20
	defaultRetryMin     = 3
	// maxRetryMin keeps maxTokens within gRPC's limit of 1000.
	maxRetryMin = 499
	// maxAttempts is gRPC's limit for service configs, unless WithMaxCallAttempts raises it.
	maxAttempts = 5

	initialBackoff    = "0.025s"
	maxBackoff        = "0.250s"
	backoffMultiplier = 2
)

// Validate returns an error that names the first field whose value gRPC does not take.
func (p *DefaultPolicy) Validate() error {
	switch {
	case p.Timeout < 0:
		return fmt.Errorf("%s: %v is negative", "Timeout", p.Timeout)
	case p.RetryPercent < 0 || p.RetryPercent > 100 || p.RetryPercent != p.RetryPercent:
		return fmt.Errorf("RetryPercent: %v is not within 0 and 100", p.RetryPercent)
	case p.RetryMin > maxRetryMin:
		return fmt.Errorf("RetryMin: %d is more than %d", p.RetryMin, maxRetryMin)
	case p.Retries > 99:
		return fmt.Errorf("%s: %d is more than 99", "Retries", p.Retries)
	}
	for i, c := range p.RetryOn {
		if c == codes.OK || c > codes.Unauthenticated {
			return fmt.Errorf("RetryOn[%d]: code %d is none of an error", i, c)
		}
	}
	return nil
}

// The service config's JSON (grpc.service_config.ServiceConfig in proto3 JSON).
type (
	serviceConfig struct {
		LoadBalancingConfig []map[string]struct{} `json:"loadBalancingConfig"`
		MethodConfig        []methodConfig        `json:"methodConfig,omitempty"`
		RetryThrottling     *retryThrottling      `json:"retryThrottling,omitempty"`
	}
	methodConfig struct {
		Name        []struct{}  `json:"name"` // an empty name stands for all methods
		RetryPolicy retryPolicy `json:"retryPolicy"`
	}
	retryPolicy struct {
		MaxAttempts          uint32       `json:"maxAttempts"`
		InitialBackoff       string       `json:"initialBackoff"`
		MaxBackoff           string       `json:"maxBackoff"`
		BackoffMultiplier    float64      `json:"backoffMultiplier"`
		RetryableStatusCodes []codes.Code `json:"retryableStatusCodes"`
	}
	retryThrottling struct {
		MaxTokens  uint32  `json:"maxTokens"`
		TokenRatio float64 `json:"tokenRatio"`
	}
)

// serviceConfig returns the policy's JSON.
func (p *DefaultPolicy) serviceConfig() string {
	c := serviceConfig{LoadBalancingConfig: []map[string]struct{}{{"round_robin": {}}}}
	if p.Retries > 0 {
		on, percent, burst := p.RetryOn, p.RetryPercent, p.RetryMin
		if len(on) == 0 {
			on = []codes.Code{codes.Unavailable}
		}
		if percent == 0 {
			percent = defaultRetryPercent
		}
		if burst == 0 {
			burst = defaultRetryMin
		}
		c.MethodConfig = []methodConfig{{
			Name: make([]struct{}, 1),
			RetryPolicy: retryPolicy{
				MaxAttempts:          p.Retries + 1,
				InitialBackoff:       initialBackoff,
				MaxBackoff:           maxBackoff,
				BackoffMultiplier:    backoffMultiplier,
				RetryableStatusCodes: on,
			},
		}}
		// A retry needs more than half of the tokens, counted after its own
		// failure: with 2(n+1) at most, n failures in a row leave n+2.
		c.RetryThrottling = &retryThrottling{MaxTokens: 2 * (burst + 1), TokenRatio: percent / 100}
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // RetryPercent is not a number, which Validate refuses
	}
	return string(b)
}

// dialOptions returns the policy as dial options.
func (p *DefaultPolicy) dialOptions() []grpc.DialOption {
	options := []grpc.DialOption{grpc.WithDefaultServiceConfig(p.serviceConfig())}
	if p.Retries+1 > maxAttempts {
		options = append(options, grpc.WithMaxCallAttempts(int(p.Retries)+1))
	}
	if p.Timeout > 0 {
		options = append(options, grpc.WithChainUnaryInterceptor(limitUnary(p.Timeout)))
	}
	return options
}
