package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// The files that the last steps of the tour add to the policy, one after the
// other, as a team would. Taking them away again is the way back.
const (
	mutualTLS = "peerauthentication.yaml"
	payments  = "authorizationpolicy-payment.yaml"
)

const (
	payer = "payment-service-v1-2"
	// principals is what the service accounts of the shop have in common.
	principals = "spiffe://cluster.local/ns/default/sa/"
)

// addAccessPolicy puts one of the documents in access/ into the policy folder.
func (s *shop) addAccessPolicy(document, as string) error {
	text, err := accessPolicy.ReadFile("access/" + document)
	if err != nil {
		return err
	}
	return replaceFile(s.policyFile(as), text)
}

func (s *shop) withoutAccessPolicy() error {
	var errs []error
	for _, file := range []string{mutualTLS, payments} {
		if err := os.Remove(s.policyFile(file)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// payDirectly asks an instance of the payment service without the mesh, in plaintext.
func (s *shop) payDirectly(ctx context.Context) (caller string, status int, err error) {
	return s.pay(ctx, "http://"+s.address(payer)+"/pay")
}

// pay returns whom the payment service takes the caller for.
func (s *shop) pay(ctx context.Context, url string) (caller string, status int, err error) {
	r, err := s.request(ctx, http.MethodGet, url, visitor{}.header())
	if err != nil {
		return "", 0, err
	}
	var paid receipt
	if r.status == http.StatusOK {
		err = json.Unmarshal(r.body, &paid)
	}
	return strings.TrimPrefix(paid.Caller, principals), r.status, err
}

// Step 9: access/peerauthentication-permissive.yaml.
func (s *shop) permissive(ctx context.Context) (string, error) {
	if err := s.addAccessPolicy("peerauthentication-permissive.yaml", mutualTLS); err != nil {
		return "", err
	}
	direct, status, err := s.payDirectly(ctx)
	if err != nil || status != http.StatusOK {
		return "plaintext fails", errors.Join(err, fmt.Errorf("status %d", status))
	}
	meshed, status, err := s.pay(ctx, "http://"+s.page()+"/buy")
	observed := fmt.Sprintf("plaintext from %q, mutual TLS from %q", direct, meshed)
	switch {
	case err != nil || status != http.StatusOK:
		return observed, errors.Join(err, fmt.Errorf("status %d by way of productpage", status))
	case direct != "" || meshed != "productpage":
		return observed, errors.New("the callers are not who they are")
	}
	return observed, nil
}

// Step 10: access/peerauthentication-strict.yaml.
func (s *shop) strict(ctx context.Context) (string, error) {
	if err := s.addAccessPolicy("peerauthentication-strict.yaml", mutualTLS); err != nil {
		return "", err
	}
	began := time.Now()
	for {
		_, status, err := s.payDirectly(ctx)
		if ctx.Err() != nil {
			return "plaintext is still served", ctx.Err()
		}
		if err != nil || status == http.StatusForbidden {
			break
		}
	}
	observed := fmt.Sprintf("plaintext refused after %s", time.Since(began).Round(time.Millisecond))
	caller, status, err := s.pay(ctx, "http://"+s.page()+"/buy")
	if err != nil || status != http.StatusOK || caller != "productpage" {
		return observed, errors.Join(err, fmt.Errorf("mutual TLS: status %d, caller %q", status, caller))
	}
	return observed + fmt.Sprintf(", %q still pays", caller), nil
}

// Step 11: access/authorizationpolicy-payment.yaml.
func (s *shop) authorization(ctx context.Context) (string, error) {
	if err := s.addAccessPolicy("authorizationpolicy-payment.yaml", payments); err != nil {
		return "", err
	}
	refused := 0
	for refused < 20 { // in a row, so that both instances have the rule
		_, status, err := s.pay(ctx, "http://"+s.page()+"/buy")
		switch {
		case err != nil:
			return "", err
		case status == http.StatusForbidden:
			refused++
		case status == http.StatusOK:
			refused = 0
		default:
			return "", fmt.Errorf("status %d by way of productpage", status)
		}
	}
	observed := "productpage 403"
	for path, want := range map[string]string{"/checkout": "checkout-service", "/refund": "refund-service"} {
		caller, status, err := s.pay(ctx, "http://"+s.page()+path)
		if err != nil || status != http.StatusOK || caller != want {
			return observed, errors.Join(err, fmt.Errorf("%s: status %d, caller %q", path, status, caller))
		}
	}
	return observed + ", checkout 200, refund 200", nil
}
