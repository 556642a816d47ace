#pragma once
// The engine as the server sees it: the calls of Service, behind a seam that tests replace by a script.
#include <memory>

#include "engine/service.h"

namespace conclave {

class EnginePort {
 public:
  virtual ~EnginePort() = default;
  /// As in Service.
  virtual RequestId submit(Request request, Service::Sink sink) = 0;
  virtual void cancel(RequestId id) = 0;
  virtual void pause(RequestId id) = 0;
  virtual void resume(RequestId id) = 0;
  virtual bool drain(double timeout_ms) = 0;
  virtual ServiceStatus status() const = 0;
  /// Null where it is not counted; lives as long as the port.
  virtual const ExpertLoad* expert_load() const { return nullptr; }
};

class ServicePort final : public EnginePort {
 public:
  ServicePort(std::unique_ptr<Engine> engine, const ServiceOptions& options) : service_(std::move(engine), options) {}
  RequestId submit(Request request, Service::Sink sink) override { return service_.submit(std::move(request), std::move(sink)); }
  void cancel(RequestId id) override { service_.cancel(id); }
  void pause(RequestId id) override { service_.pause(id); }
  void resume(RequestId id) override { service_.resume(id); }
  bool drain(double timeout_ms) override { return service_.drain(timeout_ms); }
  ServiceStatus status() const override { return service_.status(); }
  const ExpertLoad* expert_load() const override { return service_.engine().expert_load(); }

 private:
  Service service_;
};

}  // namespace conclave
