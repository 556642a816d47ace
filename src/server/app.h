#pragma once
// The server's inside: state of the engine, routes, keys, figures. Turns requests into calls of handlers and their errors into answers;
// knows no sockets. Thread-safe.
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/log.h"
#include "server/http.h"
#include "server/keys.h"
#include "server/limits.h"
#include "server/metrics.h"
#include "server/probe.h"
#include "server/route.h"

namespace conclave {

struct ServerOptions {
  std::string version;  ///< of the program
  ServerLimits limits = {};
  bool strict_fields = false;              ///< 400 for fields without effect
  bool loopback_only = true;               ///< listeners are this machine's own: Host is checked against rebinding
  std::vector<std::string> allowed_hosts;  ///< further names that Host may have
  bool reference_profile = false;
};

/// Loading, for 503 answers and /health/load.
struct LoadProgress {
  std::string stage = "starting";  ///< starting, opening, loading, warming, ready
  size_t done = 0, total = 0;      ///< bytes
  double elapsed_s = 0;
};

enum class ServerState : uint8_t { starting, ready, draining, failed };

class App {
 public:
  using Clock = std::chrono::steady_clock;
  App(ServerOptions options, const Log& log);
  App(const App&) = delete;

  /// For the listener; refers to this object.
  const HttpHandlers& handlers() const { return handlers_; }

  void note_progress(const std::string& stage, size_t done, size_t total);
  /// From now on requests are served.
  void publish(std::shared_ptr<const ServedModel> model);
  /// Tells those who watch the loading, and looks after the engine; to be called a few times a second.
  void tick();
  /// From now on new work is refused; health says so.
  void start_draining();
  /// Sends the loading's progress to this stream until it is done.
  void watch_load(std::shared_ptr<Exchange> exchange);
  std::function<int()> connections;             ///< open ones, for the figures
  std::function<void(bool now)> on_stop_asked;  ///< /stopService

  std::shared_ptr<const ServedModel> model() const;
  ServerState state() const;
  LoadProgress progress() const;
  const ServerOptions& options() const { return options_; }
  const ServerLimits& limits() const { return options_.limits; }
  const std::vector<Route>& routes() const { return routes_; }
  Metrics& metrics() { return metrics_; }
  KeyStore& keys() { return keys_; }
  EngineWatch& watch() const { return *watch_; }
  const Log& log() const { return log_; }
  /// Generations under way.
  int generations() const;
  void track(const std::shared_ptr<Generation>& generation);
  void forget(const Generation* generation);
  /// Ends the generation that this key's client named so; false when there is none.
  bool stop_generation(const std::string& id, uint64_t key);
  /// Ends all that are under way with an error that says so.
  void end_generations();
  void log_line(const HttpRequest& request, int status, double ms, const GenerationFigures* figures) const;

 private:
  std::optional<HttpResponse> admit(HttpRequest& head);
  void handle(HttpRequest&& request, std::shared_ptr<Exchange> exchange);
  HttpResponse refuse(const HttpRequest& request, HttpFault fault);
  const Route* find(const HttpRequest& request, std::vector<std::string>* arguments, bool* other_method) const;
  void check_origin(const HttpRequest& head) const;
  void check_access(const Route& route, HttpRequest& head);
  void check_body(const HttpRequest& head) const;
  void require_ready(const Route& route) const;
  std::vector<std::shared_ptr<Generation>> running() const;

  ServerOptions options_;
  const Log& log_;
  HttpHandlers handlers_;
  std::vector<Route> routes_;
  Metrics metrics_;
  KeyStore keys_;
  std::shared_ptr<EngineWatch> watch_;
  std::atomic<bool> draining_{false};
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<const ServedModel> model_;
  LoadProgress progress_;
  std::vector<std::shared_ptr<Exchange>> load_watchers_;
  std::map<const Generation*, std::weak_ptr<Generation>> generations_;
  Clock::time_point began_;
};

/// All endpoints.
std::vector<Route> make_routes(const ServerOptions& options);

// What handlers of several dialects share.

/// A request's fields after validation.
struct Job {
  Params params;
  std::vector<std::string> ignored_fields;
};
/// Reads the body by the route's table and the key's limits. Throws ApiError.
Job read_job(Call& call);
/// The same for a body that was parsed already, by the route's table or another one.
Job read_job(Call& call, const nlohmann::ordered_json& body);
Job read_job(Call& call, const nlohmann::ordered_json& body, const FieldTable& fields, Params defaults);
/// 404 unless the model answers to `name`.
void require_model(const ServedModel& model, const std::string& name);
/// Prompts from Params::prompt in all its forms. Throws ApiError.
std::vector<Prompt> read_prompts(const Call& call, const Params& params);
/// Bounds sequences, truncates, starts; the writer answers. Throws ApiError.
void start_generation(Call& call, Job job, std::vector<Prompt> prompts, std::unique_ptr<AnswerWriter> writer,
                      bool continues_prompt);
/// A whole answer with the generation's headers.
void answer_generation(Generation& generation, const nlohmann::ordered_json& body);
nlohmann::ordered_json progress_json(const LoadProgress& progress);
Headers generation_headers(const Generation& generation);
HttpResponse event_stream();
/// What writers of server-sent events share: the opening of a stream, and an error in the dialect's form, whole or as the last event.
class EventWriter : public AnswerWriter {
 public:
  explicit EventWriter(Dialect dialect) : dialect_(dialect) {}
  void begin(Generation& generation) override;
  void fail(Generation& generation, const ApiError& error) override;

 private:
  Dialect dialect_;
};
/// "data: {...}\n\n"
std::string event(const nlohmann::ordered_json& json);
std::string random_hex(size_t digits);
uint64_t random_seed();

}  // namespace conclave
