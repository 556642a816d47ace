#include "server/app.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "core/error.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

bool is_request_id(std::string_view text, size_t longest) {
  return !text.empty() && text.size() <= longest && std::all_of(text.begin(), text.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
}

/// The name in a Host header or URL authority, without port and brackets.
std::string_view host_of(std::string_view authority) {
  if (authority.starts_with('[')) return authority.substr(1, std::min(authority.find(']'), authority.size()) - 1);
  return authority.substr(0, std::min(authority.find(':'), authority.size()));
}

bool is_own_name(std::string_view host) { return host == "localhost" || host == "::1" || host.starts_with("127."); }

std::vector<std::string> split_path(std::string_view path) {
  std::vector<std::string> parts;
  for (size_t at = 1; at <= path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    parts.emplace_back(path.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

bool matches(const std::string& pattern, const std::vector<std::string>& path, std::vector<std::string>* arguments) {
  const std::vector<std::string> wanted = split_path(pattern);
  const bool rest = !wanted.empty() && wanted.back() == "{id...}";  // a model's name may hold slashes
  if (rest ? path.size() < wanted.size() : path.size() != wanted.size()) return false;
  std::vector<std::string> found;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (rest && i + 1 == wanted.size()) {
      std::string joined = path[i];
      for (size_t k = i + 1; k < path.size(); ++k) joined += "/" + path[k];
      found.push_back(std::move(joined));
    } else if (const size_t brace = wanted[i].find('{'); brace != std::string::npos) {
      if (!path[i].starts_with(wanted[i].substr(0, brace)) || path[i].size() == brace) return false;
      found.push_back(path[i].substr(brace));
    } else if (wanted[i] != path[i]) {
      return false;
    }
  }
  if (arguments) *arguments = std::move(found);
  return true;
}

/// Unknown paths get the form that a client of that family reads.
Dialect dialect_of_path(const std::string& path) {
  if (path.starts_with("/v2")) return Dialect::triton;
  if (path.starts_with("/generate") || path == "/" || path == "/info") return Dialect::tgi;
  if (path.starts_with("/infer")) return Dialect::reference;
  return Dialect::openai;
}

ApiError error_of(HttpFault fault, const ServerLimits& limits) {
  switch (fault) {
    case HttpFault::header_too_large:
      return {ApiCode::header_too_large, fmt::format("request line and headers exceed {} bytes; send less", limits.header_bytes)};
    case HttpFault::body_too_large:
      return {ApiCode::body_too_large, fmt::format("the body exceeds {} bytes; send less", limits.body_bytes)};
    case HttpFault::too_slow: return {ApiCode::request_timeout, "the request arrived too slowly; send it again"};
    case HttpFault::malformed: break;
  }
  return {ApiCode::malformed_http, "the bytes are no HTTP/1.1 request"};
}

}  // namespace

std::string random_hex(size_t digits) {
  thread_local std::mt19937_64 generator{std::random_device{}() ^ (static_cast<uint64_t>(std::random_device{}()) << 32)};
  std::string text;
  while (text.size() < digits) text += fmt::format("{:016x}", generator());
  return text.substr(0, digits);
}

uint64_t random_seed() { return std::stoull(random_hex(15), nullptr, 16); }

App::App(ServerOptions options, const Log& log)
    : options_(std::move(options)), log_(log), routes_(make_routes(options_)), keys_(),
      watch_(std::make_shared<EngineWatch>(options_.limits.probe_idle_ms)), began_(Clock::now()) {
  handlers_.admit = [this](HttpRequest& head) { return admit(head); };
  handlers_.handle = [this](HttpRequest&& request, std::shared_ptr<Exchange> exchange) {
    handle(std::move(request), std::move(exchange));
  };
  handlers_.refuse = [this](const HttpRequest& request, HttpFault fault) { return refuse(request, fault); };
}

const Route* App::find(const HttpRequest& request, std::vector<std::string>* arguments, bool* other_method) const {
  const std::string& method = request.method == "HEAD" ? "GET" : request.method;
  const auto path = split_path(
      request.path.size() > 1 && request.path.ends_with('/') ? request.path.substr(0, request.path.size() - 1) : request.path);
  const Route* found = nullptr;
  for (const Route& route : routes_) {
    if (!covers(request.plane, route.plane) || !matches(route.path, path, nullptr)) continue;
    if (route.method != method) {
      *other_method = true;
    } else if (!found || found->path.find('{') != std::string::npos) {
      found = &route;
      if (arguments) matches(route.path, path, arguments);
    }
  }
  return found;
}

void App::check_origin(const HttpRequest& head) const {
  const auto allowed = [&](std::string_view host) {
    return std::find(options_.allowed_hosts.begin(), options_.allowed_hosts.end(), host) != options_.allowed_hosts.end();
  };
  const std::string_view host = host_of(head.header("host"));
  if (options_.loopback_only && head.count("host") > 0 && !is_own_name(host) && !allowed(host))
    throw ApiError(ApiCode::host_not_allowed,
                   "the Host header names another machine; use localhost, or allow the name with --allowed-host");
  std::string_view origin = head.header("origin");
  if (head.method == "GET" || origin.empty()) return;
  const size_t scheme = origin.find("://");
  if (scheme != std::string_view::npos) origin.remove_prefix(scheme + 3);
  if (origin != head.header("host") && !allowed(host_of(origin)))
    throw ApiError(ApiCode::origin_not_allowed, "a page of another origin sent this request; allow its host with --allowed-host");
}

void App::check_access(const Route& route, HttpRequest& head) {
  if (route.access == Access::open) return;
  if (keys_.empty()) {
    if (route.access == Access::admin && !options_.loopback_only && head.plane != Plane::management)
      throw ApiError(ApiCode::key_limit, "management of a public listener needs an admin key; give the server a key file");
    return;
  }
  head.key = keys_.find(bearer_of(head));
  if (head.key == 0)
    throw ApiError(ApiCode::invalid_api_key, "no API key, or one that is not known; send it as Authorization: Bearer KEY");
  const KeyLimits limits = keys_.limits(head.key);
  if (route.access == Access::admin && !limits.admin) throw ApiError(ApiCode::key_limit, "this key may not manage the server");
  if (const double wait = keys_.take(head.key); wait > 0) {
    ApiError error(ApiCode::slow_down, fmt::format("the key's {} requests per minute or {} tokens per day are used up; wait",
                                                   limits.requests_per_minute, limits.tokens_per_day));
    error.retry_after_ms = wait;
    throw error;
  }
}

void App::check_body(const HttpRequest& head) const {
  if (head.method != "POST") return;
  const std::string_view type = head.header("content-type");
  if (type.empty()) return;
  std::string lower(type.substr(0, std::min(type.find(';'), type.size())));
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  while (lower.ends_with(' ')) lower.pop_back();
  if (lower != "application/json" && !lower.ends_with("+json"))
    throw ApiError(ApiCode::unsupported_media_type, "the body is not declared as JSON; send Content-Type: application/json");
}

void App::require_ready(const Route& route) const {
  if (!route.needs_model) return;
  if (state() == ServerState::starting) {
    const LoadProgress p = progress();
    const double share = p.total > 0 ? static_cast<double>(p.done) / static_cast<double>(p.total) : 0;
    ApiError error(ApiCode::model_loading,
                   fmt::format("the model is not ready: {}, {:.0f} % of {} bytes; ask /health/load for progress", p.stage,
                               100 * share, p.total));
    error.retry_after_ms = share > 0.01 ? p.elapsed_s * 1000 * (1 / share - 1) : 1000;
    throw error;
  }
  const bool generates = route.fields && route.method == "POST";
  if (state() == ServerState::draining && generates)
    throw ApiError(ApiCode::draining, "the server is being stopped; send the request elsewhere");
}

std::optional<HttpResponse> App::admit(HttpRequest& head) {
  const std::string_view given = head.header("x-request-id");
  head.id = is_request_id(given, limits().request_id_bytes) ? std::string(given) : "req-" + random_hex(24);
  bool other_method = false;
  const Route* route = find(head, nullptr, &other_method);
  const Dialect dialect = route ? route->dialect : dialect_of_path(head.path);
  try {
    check_origin(head);
    if (!route && other_method)
      throw ApiError(ApiCode::method_not_allowed, fmt::format("{} is not offered here", shown(Json(head.method))));
    if (!route)
      throw ApiError(ApiCode::not_found, fmt::format("no such path: {}; /openapi.json lists all", shown(Json(head.path))));
    check_access(*route, head);
    check_body(head);
    if (!head.header("expect").empty() && head.header("expect") != "100-continue")
      throw ApiError(ApiCode::malformed_http, "the Expect header asks for something other than 100-continue");
    require_ready(*route);
    return std::nullopt;
  } catch (const ApiError& error) {
    metrics_.note_answer(entry_of(error.code).status, entry_of(error.code).name);
    HttpResponse response = error_response(error, dialect, head.id);
    log_line(head, response.status, 0, nullptr);
    return response;
  }
}

void App::handle(HttpRequest&& request, std::shared_ptr<Exchange> exchange) {
  bool other_method = false;
  std::vector<std::string> arguments;
  const Route* route = find(request, &arguments, &other_method);
  Call call{*this, *route, std::move(request), std::move(exchange), model(), std::move(arguments)};
  const auto fail = [&](const ApiError& error) {
    metrics_.note_answer(entry_of(error.code).status, entry_of(error.code).name);
    HttpResponse response = error_response(error, route->dialect, call.request.id);
    log_line(call.request, response.status, 0, nullptr);
    call.exchange->respond(std::move(response));
  };
  try {
    route->handle(call);
  } catch (const ApiError& error) {
    fail(error);
  } catch (const std::exception& error) {
    log_.error(fmt::format("{} {} failed: {}", call.request.id, route->path, error.what()));
    fail(ApiError(ApiCode::internal_error, "the server failed on this request; its log tells more"));
  }
}

HttpResponse App::refuse(const HttpRequest& request, HttpFault fault) {
  const ApiError error = error_of(fault, limits());
  const std::string id = request.id.empty() ? "req-" + random_hex(24) : request.id;
  metrics_.note_answer(entry_of(error.code).status, entry_of(error.code).name);
  HttpResponse response = error_response(error, request.path.empty() ? Dialect::openai : dialect_of_path(request.path), id);
  HttpRequest named = request;
  named.id = id;
  log_line(named, response.status, 0, nullptr);
  return response;
}

void App::note_progress(const std::string& stage, size_t done, size_t total) {
  const std::lock_guard lock(mutex_);
  progress_ = {stage, done, total, 0};
}

void App::publish(std::shared_ptr<const ServedModel> model) {
  const std::lock_guard lock(mutex_);
  model_ = std::move(model);
  progress_.stage = "ready";
  progress_.done = progress_.total;
}

void App::watch_load(std::shared_ptr<Exchange> exchange) {
  const std::lock_guard lock(mutex_);
  load_watchers_.push_back(std::move(exchange));
}

void App::tick() {
  if (state() == ServerState::ready) watch_->look(*model());
  const std::string text = event(progress_json(progress()));
  const bool over = state() != ServerState::starting;
  std::vector<std::shared_ptr<Exchange>> watchers;
  {
    const std::lock_guard lock(mutex_);
    watchers = load_watchers_;
    if (over) load_watchers_.clear();
  }
  for (const auto& exchange : watchers) {
    exchange->post([exchange, text, over] {
      exchange->write(text);
      if (over) exchange->finish();
    });
  }
}

void App::start_draining() { draining_ = true; }

std::shared_ptr<const ServedModel> App::model() const {
  const std::lock_guard lock(mutex_);
  return model_;
}

LoadProgress App::progress() const {
  const std::lock_guard lock(mutex_);
  LoadProgress p = progress_;
  p.elapsed_s = std::chrono::duration<double>(Clock::now() - began_).count();
  return p;
}

ServerState App::state() const {
  const auto served = model();
  if (!served) return draining_ ? ServerState::draining : ServerState::starting;
  if (served->engine->status().state == ServiceStatus::State::failed) return ServerState::failed;
  return draining_ ? ServerState::draining : ServerState::ready;
}

int App::generations() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(generations_.size());
}

void App::track(const std::shared_ptr<Generation>& generation) {
  const std::lock_guard lock(mutex_);
  generations_[generation.get()] = generation;
}

void App::forget(const Generation* generation) {
  const std::lock_guard lock(mutex_);
  generations_.erase(generation);
}

std::vector<std::shared_ptr<Generation>> App::running() const {
  std::vector<std::shared_ptr<Generation>> all;
  const std::lock_guard lock(mutex_);
  for (const auto& [key, weak] : generations_)
    if (auto generation = weak.lock()) all.push_back(std::move(generation));
  return all;
}

bool App::stop_generation(const std::string& id, uint64_t key) {
  bool found = false;
  for (const auto& generation : running()) {
    if (generation->params().id != id || generation->params().key != key) continue;
    generation->exchange().post([generation] { generation->stop(); });
    found = true;
  }
  return found;
}

void App::end_generations() {
  for (const auto& generation : running())
    generation->exchange().post([generation] {
      generation->abandon(ApiError(ApiCode::draining, "the server is being stopped; send the request again later"));
    });
}

void App::log_line(const HttpRequest& request, int status, double ms, const GenerationFigures* f) const {
  std::string line = fmt::format("request id={} key={} peer={} {} {} status={}", request.id, keys_.name(request.key),
                                 request.peer, shown(Json(request.method)), shown(Json(request.path)), status);
  if (f) {
    line += fmt::format(
        " finish={} prompt_tokens={} cached_tokens={} new_tokens={} queue_ms={:.1f} prefill_ms={:.1f} decode_ms={:.1f} "
        "total_ms={:.1f}",
        f->finish, f->prompt_tokens, f->cached_tokens, f->completion_tokens, f->queue_ms, f->prefill_ms, f->decode_ms, ms);
  }
  log_.info(line);
}

}  // namespace conclave
