#include "bench/load.h"

#include <fmt/format.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <list>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "core/error.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }
double ms_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

std::string body_of(const LoadTarget& target, const LoadRequest& request) {
  Json body = {{"model", target.model}};
  if (request.ids.empty()) body["prompt"] = request.text;
  else body["prompt"] = request.ids;
  body.update({{"max_tokens", request.max_tokens},
               {"temperature", target.temperature},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}});
  if (target.ignore_eos) body["ignore_eos"] = true;
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// "code", "type" or the beginning of the message of an error object, in any of the usual forms.
std::string error_name(const Json& json) {
  const Json* error = json.is_object() && json.contains("error") ? &json["error"] : &json;
  for (const char* key : {"code", "type", "message"})
    if (error->is_object() && error->contains(key) && (*error)[key].is_string()) return (*error)[key].get<std::string>().substr(0, 80);
  return error->is_string() ? error->get<std::string>().substr(0, 80) : "error without a name";
}

double number_at(const Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found != object.end() && found->is_number() ? found->get<double>() : 0;
}

/// What the events of one answer say, as they come.
class AnswerReader {
 public:
  AnswerReader(LoadSample& sample, Clock::time_point due) : sample_(sample), due_(due) {}

  bool take(std::string_view data) {
    if (data == "[DONE]") return done_ = true;
    const Json json = Json::parse(data, nullptr, false);
    if (json.is_discarded() || json.contains("error")) {
      sample_.error = json.is_discarded() ? "an event that is no JSON" : "event: " + error_name(json);
      return false;
    }
    if (has_text(json)) note_text();
    if (const auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
      sample_.prompt_tokens = static_cast<int>(number_at(*usage, "prompt_tokens"));
      sample_.output_tokens = static_cast<int>(number_at(*usage, "completion_tokens"));
    }
    if (const auto timings = json.find("timings"); timings != json.end() && timings->contains("queue_ms"))
      sample_.inside_ms = number_at(*timings, "queue_ms") + number_at(*timings, "prefill_ms");
    return true;
  }
  void finish() {
    sample_.end_ms = ms_between(due_, Clock::now());
    if (sample_.output_tokens == 0) sample_.output_tokens = pieces_;
    if (!sample_.error.empty()) return;
    if (!done_) sample_.error = "the stream ended early";
    else if (pieces_ == 0) sample_.error = "an answer without text";
  }

 private:
  static bool has_text(const Json& json) {
    const auto choices = json.find("choices");
    if (choices == json.end() || !choices->is_array() || choices->empty() || !choices->front().is_object()) return false;
    const auto text = choices->front().find("text");
    return text != choices->front().end() && text->is_string() && !text->get_ref<const std::string&>().empty();
  }
  void note_text() {
    const Clock::time_point now = Clock::now();
    if (pieces_++ == 0) sample_.first_ms = ms_between(due_, now);
    else sample_.gaps_ms.push_back(ms_between(last_, now));
    last_ = now;
  }

  LoadSample& sample_;
  Clock::time_point due_, last_;
  int pieces_ = 0;
  bool done_ = false;
};

LoadSample exchange(HttpClient& client, const LoadTarget& target, const LoadRequest& request, Clock::time_point due) {
  LoadSample sample;
  AnswerReader reader(sample, due);
  try {
    HttpClient::Headers headers;
    if (!target.api_key.empty()) headers.emplace_back("Authorization", "Bearer " + target.api_key);
    const HttpAnswer response =
        client.stream("/v1/completions", body_of(target, request), [&](std::string_view data) { return reader.take(data); }, headers);
    if (response.status != 200) {
      const Json json = Json::parse(response.body, nullptr, false);
      sample.error = fmt::format("{} {}", response.status, json.is_discarded() ? "" : error_name(json));
    }
  } catch (const Error& e) {
    const std::string what = e.what();  // without the address, so that equal failures count as one
    const size_t begin = what.find(": ");
    sample.error = what.substr(begin == std::string::npos ? 0 : begin + 2);
  }
  reader.finish();
  return sample;
}

/// Samples of all threads, and the connections that no thread uses.
class Crowd {
 public:
  Crowd(const LoadTarget& target, std::span<const LoadRequest> requests) : target_(target), requests_(requests) {}

  void send(size_t i, Clock::time_point due) {
    std::unique_ptr<HttpClient> client = take_client();
    LoadSample sample = exchange(*client, target_, requests_[i], due);
    sample.sent_ms = ms_between(began_, due);
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(client));
    samples_.push_back(std::move(sample));
  }
  Clock::time_point began() const { return began_; }
  LoadResult result() {
    LoadResult result{std::move(samples_), 0};
    for (const LoadSample& s : result.samples) result.seconds = std::max(result.seconds, (s.sent_ms + s.end_ms) / 1000);
    return result;
  }

 private:
  std::unique_ptr<HttpClient> take_client() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<HttpClient>(target_.url, target_.timeout_s);
    auto client = std::move(idle_.back());
    idle_.pop_back();
    return client;
  }
  const LoadTarget& target_;
  std::span<const LoadRequest> requests_;
  const Clock::time_point began_ = Clock::now();
  std::mutex mutex_;  ///< guards what follows
  std::vector<std::unique_ptr<HttpClient>> idle_;
  std::vector<LoadSample> samples_;
};

using Over = std::function<bool(Clock::time_point)>;

void closed_loop(Crowd& crowd, size_t count, int concurrency, const Over& over) {
  std::atomic<size_t> next{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < concurrency; ++c) {
    clients.emplace_back([&] {
      for (size_t i = next++; i < count; i = next++) {
        const auto now = Clock::now();
        if (over(now)) return;
        crowd.send(i, now);
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

void open_loop(Crowd& crowd, size_t count, const LoadPace& pace, const Over& over) {
  struct UnderWay {
    std::atomic<bool> done{false};
    std::thread thread;
  };
  std::mt19937_64 random(pace.seed);
  std::exponential_distribution<double> gap(pace.rate);
  std::list<UnderWay> under_way;
  Clock::time_point due = crowd.began();
  for (size_t i = 0; i < count; ++i) {
    std::this_thread::sleep_until(due);
    if (over(due)) break;
    for (auto one = under_way.begin(); one != under_way.end();) {
      if (!one->done) {
        ++one;
        continue;
      }
      one->thread.join();
      one = under_way.erase(one);
    }
    UnderWay& one = under_way.emplace_back();
    one.thread = std::thread([&crowd, &one, i, due] {
      crowd.send(i, due);
      one.done = true;
    });
    due += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random)));
  }
  for (UnderWay& one : under_way) one.thread.join();
}

std::string random_words(std::mt19937_64& random, int count) {
  constexpr std::string_view kSyllables[] = {"ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "wa"};
  std::string text;
  for (int i = 0; i < count; ++i) {
    if (i > 0) text += ' ';
    for (int k = 0; k < 2; ++k) text += kSyllables[random() % std::size(kSyllables)];
  }
  return text;
}

int choose(std::mt19937_64& random, LengthRange range) {
  return range.least + static_cast<int>(random() % static_cast<uint64_t>(range.most - range.least + 1));
}

}  // namespace

LoadSample send_request(HttpClient& client, const LoadTarget& target, const LoadRequest& request) {
  return exchange(client, target, request, Clock::now());
}

LoadResult run_load(const LoadTarget& target, std::span<const LoadRequest> requests, const LoadPace& pace,
                    const std::function<bool()>& stop) {
  if ((pace.concurrency > 0) == (pace.rate > 0)) refuse("a load has either a concurrency or a rate above 0");
  Crowd crowd(target, requests);
  const Over over = [&](Clock::time_point now) {
    return stop() || (pace.seconds > 0 && ms_between(crowd.began(), now) >= pace.seconds * 1000);
  };
  if (pace.concurrency > 0) closed_loop(crowd, requests.size(), pace.concurrency, over);
  else open_loop(crowd, requests.size(), pace, over);
  return crowd.result();
}

LengthRange parse_length(std::string_view text, std::string_view option, int least) {
  const auto fail = [&] { refuse(fmt::format("--{} is \"{}\", wanted a number from {} or a range like 64-256", option, text, least)); };
  const auto number = [&](std::string_view word) {
    int value = -1;
    const auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || rest != word.data() + word.size()) fail();
    return value;
  };
  const size_t dash = text.find('-');
  LengthRange range;
  range.least = number(text.substr(0, dash));
  range.most = dash == std::string_view::npos ? range.least : number(text.substr(dash + 1));
  constexpr int kMost = 1 << 24;
  if (range.least < least || range.most < range.least || range.most > kMost) fail();
  return range;
}

std::vector<LoadRequest> random_requests(const LoadShape& shape, size_t count, uint64_t seed) {
  if (shape.vocab == 1 || shape.vocab < 0) refuse(fmt::format("--vocab is {}, wanted 0 for words or at least 2", shape.vocab));
  std::mt19937_64 random(seed);
  std::vector<LoadRequest> requests(count);
  for (LoadRequest& request : requests) {
    const int length = choose(random, shape.prompt);
    request.max_tokens = choose(random, shape.output);
    if (shape.vocab == 0) request.text = random_words(random, length);
    else for (int i = 0; i < length; ++i) request.ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(shape.vocab)));
  }
  return requests;
}

}  // namespace conclave
