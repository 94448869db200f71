package meshgrpc

import (
	"context"
	"io"
	"net/http"

	"google.golang.org/grpc/metadata"

	"github.com/sinew-mesh/sinew/routing"
	"github.com/sinew-mesh/sinew/transport/outbound"
)

// Header implements grpc.ClientStream.
func (s *stream) Header() (metadata.MD, error) {
	cs, a := s.present()
	s.told.Lock()
	defer s.told.Unlock()
	if s.changed {
		return s.header.Copy(), nil
	}
	s.mu.Lock()
	header := s.header
	s.mu.Unlock()
	if header == nil {
		var err error
		if header, err = cs.Header(); err != nil || header == nil {
			return header, err
		}
		s.answered(a)
	}
	s.touch()
	s.incoming(a, header)
	s.mu.Lock()
	s.header, s.changed = header, true
	s.mu.Unlock()
	return header.Copy(), nil
}

// incoming makes policy's changes to the response's header.
func (s *stream) incoming(a *attempt, header metadata.MD) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.call.Incoming(a.lease(), http.StatusOK, header, routing.LowerHeaders)
}

// Trailer implements grpc.ClientStream.
func (s *stream) Trailer() metadata.MD {
	cs, a := s.present()
	trailer := cs.Trailer()
	if _, only := trailer["content-type"]; only {
		s.incoming(a, trailer) // what is the header of other responses
	}
	return trailer
}

// Context implements grpc.ClientStream. As gRPC says, it is not called before
// Header or RecvMsg has returned.
func (s *stream) Context() context.Context {
	s.mu.Lock()
	cs := s.current
	s.mu.Unlock()
	return cs.Context()
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	cs, a := s.present()
	select {
	case <-s.over:
		if s.result != nil {
			return s.result
		}
	default:
	}
	err := cs.RecvMsg(m)
	if err == nil {
		s.touch()
		if !s.desc.ServerStreams {
			// The only message, and the RPC's end.
			return nil
		}
		if s.policy == nil {
			s.answered(a)
		}
		return nil
	}
	s.finish(a, err)
	<-s.over // another goroutine may have noticed first
	if s.result != nil {
		return s.result
	}
	return err
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) error {
	s.touch()
	err := s.sendMsg(m)
	if s.desc.ClientStreams {
		return err
	}
	// The only message. As gRPC has it, what the server says is RecvMsg's to tell.
	s.complete()
	if err == io.EOF {
		return nil
	}
	return err
}

func (s *stream) sendMsg(m any) error {
	s.mu.Lock()
	held := s.replay.hold(m)
	for !s.committed && !held {
		// It can not be sent again once this is sent.
		if !s.settling || !s.attempt.over {
			s.committed = true
			s.replay.commit()
			s.attempt.limits.answered()
			s.move()
			break
		}
		moved := s.moved
		s.mu.Unlock()
		<-moved
		s.mu.Lock()
	}
	if s.finished {
		s.mu.Unlock()
		return io.EOF // RecvMsg says why
	}
	shadows := s.overflown()
	committed, cs, a := s.committed, s.current, s.attempt
	s.mu.Unlock()
	dropShadows(shadows)
	err := cs.SendMsg(m)
	switch {
	case err == nil || committed:
		return err
	case err != io.EOF:
		s.finish(a, err)
		return err
	}
	s.recover(cs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != cs {
		return nil // it was sent with what was held
	}
	return io.EOF
}

// overflown returns the copies that can not be sent because too much would have
// to be held for them. The caller holds mu.
func (s *stream) overflown() (all []*outbound.Call) {
	if s.replay.over && len(s.shadows) > 0 {
		all, s.shadows = s.shadows, nil
	}
	return all
}

// CloseSend implements grpc.ClientStream.
func (s *stream) CloseSend() error {
	s.mu.Lock()
	s.replay.closed = true
	cs := s.current
	s.mu.Unlock()
	err := cs.CloseSend()
	s.complete()
	return err
}

// complete sends copies to mirrors: all messages are known.
func (s *stream) complete() {
	s.mu.Lock()
	s.replay.closed = true
	shadows := s.shadows
	s.shadows = nil
	messages := s.replay.copies()
	a, armed := s.attempt, !s.committed
	s.mu.Unlock()
	if armed {
		a.limits.complete(a.try.Timeout())
	}
	s.sendShadows(shadows, messages)
}
