#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.h"
#include "core/json.h"
#include "eval/runner.h"
#include "text/stream_decoder.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMostConnections = 64;

[[noreturn]] void fail(const std::string& message) { throw Error(Error::Kind::network, message); }

/// One connection: the requests of one query after the other.
class Connection {
 public:
  Connection(const HttpUrl& url, const Tokenizer& tokenizer, const std::vector<int32_t>& eos_ids)
      : client_(url), tokenizer_(tokenizer), eos_ids_(eos_ids), name_(fmt::format("{}:{}", url.host, url.port)) {}

  Json get(std::string_view path) { return checked(client_.get(path), path); }

  Reply answer(const Query& query, const std::string& model) {
    Reply reply;
    for (const int32_t id : query.candidates) {
      Json body = body_of(query, model, 1);
      body["allowed_token_ids"] = {id};
      body["logprobs"] = 0;
      const Json choice = complete(body);
      reply.logprobs.push_back(std::max(number(choice.at("logprobs").at("token_logprobs").at(0)), kLeastLogprob));
    }
    if (query.scored_from == 0 && query.max_new_tokens == 0) return reply;
    Json body = body_of(query, model, std::max(1, query.max_new_tokens));
    if (query.scored_from > 0) body["prompt_logprobs"] = 0;
    const Json choice = complete(body);
    if (query.scored_from > 0) read_scores(query, choice.at("prompt_logprobs"), reply);
    if (query.max_new_tokens > 0) read_text(query, choice.at("token_ids"), reply);
    return reply;
  }

 private:
  static Json body_of(const Query& query, const std::string& model, int max_tokens) {
    Json body = {{"model", model},       {"prompt", query.prompt},   {"max_tokens", max_tokens}, {"temperature", query.temperature},
                 {"top_p", 1.0},         {"repetition_penalty", 1.0}, {"return_token_ids", true}};
    if (query.temperature > 0) body["seed"] = query.seed;
    if (!query.stop.empty()) body["stop"] = query.stop;
    return body;
  }

  Json complete(const Json& body) {
    const std::string_view path = "/v1/completions";
    return checked(client_.post(path, body.dump(), {{"Content-Type", "application/json"}}), path).at("choices").at(0);
  }

  Json checked(const HttpAnswer& response, std::string_view path) const {
    if (response.status != 200)
      fail(fmt::format("{}{} answered {}: {}", name_, path, response.status, response.body.substr(0, 500)));
    return parse_json(response.body, fmt::format("{}{}", name_, path), {.max_bytes = size_t{256} << 20});
  }

  float number(const Json& value) const {
    if (!value.is_number()) fail(fmt::format("{}: a log-probability is {}, wanted a number", name_, value.type_name()));
    return value.get<float>();
  }

  void read_scores(const Query& query, const Json& scores, Reply& reply) const {
    for (size_t i = query.scored_from; i < query.prompt.size(); ++i) {
      const Json& entry = scores.at(i).at(std::to_string(query.prompt[i]));
      reply.logprobs.push_back(std::max(number(entry.at("logprob")), kLeastLogprob));
      reply.greedy = reply.greedy && entry.at("rank").get<int64_t>() == 1;
    }
  }

  void read_text(const Query& query, const Json& ids, Reply& reply) const {
    StreamDecoder decoder(tokenizer_, query.stop);
    for (const Json& id : ids) {
      const auto token = id.get<int32_t>();
      const bool ends = std::find(eos_ids_.begin(), eos_ids_.end(), token) != eos_ids_.end();  // servers list the end id too
      if (decoder.stopped() || ends) break;
      reply.tokens.push_back(token);
      reply.text += decoder.push(reply.tokens.back());
    }
    reply.text += decoder.finish();
  }

  HttpClient client_;
  const Tokenizer& tokenizer_;
  const std::vector<int32_t>& eos_ids_;
  std::string name_;
};

class ServerRunner final : public Runner {
 public:
  ServerRunner(const HttpUrl& url, const Tokenizer& tokenizer, RunnerOptions options)
      : url_(url), tokenizer_(tokenizer), options_(std::move(options)) {
    const Json models = guarded([&] { return Connection(url_, tokenizer_, options_.eos_ids).get("/v1/models").at("data"); });
    if (models.empty()) throw Error(Error::Kind::bad_input, fmt::format("the server {}:{} serves no model", url.host, url.port));
    guarded([&] {
      model_ = models.at(0).at("id").get<std::string>();
      context_ = models.at(0).at("max_model_len").get<size_t>();
      return 0;
    });
  }

  size_t max_context() const override { return context_; }

  void run(const Next& next, const Done& done) override {
    std::mutex mutex;
    std::exception_ptr failure;
    size_t count = 0;
    const auto work = [&] {
      try {
        Connection connection(url_, tokenizer_, options_.eos_ids);
        for (;;) {
          std::optional<Query> query;
          size_t index = 0;
          {
            const std::lock_guard lock(mutex);
            if (failure) return;
            if (options_.interrupted()) throw Error(Error::Kind::cancelled, "interrupted");
            query = next();
            if (!query) return;
            index = count++;
          }
          Reply reply = guarded([&] { return connection.answer(*query, model_); });
          const std::lock_guard lock(mutex);
          if (!failure) done(index, std::move(reply));
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    };
    std::vector<std::jthread> workers;
    for (int i = 0; i < std::min(options_.batch_size, kMostConnections); ++i) workers.emplace_back(work);
    workers.clear();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  /// An answer of another shape than the server's documentation says.
  template <class F>
  auto guarded(F&& read) const -> decltype(read()) {
    try {
      return read();
    } catch (const nlohmann::json::exception& e) {
      fail(fmt::format("the server {}:{} answered in another form than expected (it must know return_token_ids, allowed_token_ids and "
                       "prompt_logprobs): {}", url_.host, url_.port, e.what()));
    }
  }

  HttpUrl url_;
  const Tokenizer& tokenizer_;
  RunnerOptions options_;
  std::string model_;
  size_t context_ = 0;
};

}  // namespace

std::unique_ptr<Runner> make_server_runner(const HttpUrl& url, const Tokenizer& tokenizer, RunnerOptions options) {
  return std::make_unique<ServerRunner>(url, tokenizer, std::move(options));
}

}  // namespace conclave
