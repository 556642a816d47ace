// conclave bench serve: load on a running server, this program's or another one with OpenAI's completions.
#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "bench/cases.h"
#include "bench/load_report.h"
#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "core/error.h"
#include "io/partial_file.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

struct BenchServeOptions {
  std::string concurrency, rate, prompt_tokens = "128", new_tokens = "64", dataset, prompts = "auto", model, api_key, json, csv;
  int requests = 0, seconds = 0, vocab = 0, warmup = 1, timeout_s = 600;
  uint64_t seed = 0;
  float temperature = 0, slo_ttft = 0, slo_itl = 0, slo_e2e = 0;
  bool ignore_eos = true;
};

void declare_load(OptionTable& table, BenchServeOptions& o) {
  constexpr double kMost = 1 << 30;
  table.group("Load");
  table.add("concurrency", &o.concurrency, "closed loop: clients that send one request after the other; each number is one row; default 1")
      .placeholder("N,...");
  table.add("rate", &o.rate, "open loop: requests per second at random moments (Poisson); each number is one row").placeholder("R,...");
  table.add("requests", &o.requests, "requests per row; 0: four per client, at least 16").placeholder("N").range(0, 1 << 24);
  table.add("seconds", &o.seconds, "send nothing after that time; 0: until all are sent").placeholder("S").range(0, kMost);
  table.add("warmup", &o.warmup, "requests sent before, unmeasured").placeholder("N").range(0, 1 << 20);
  table.add("seed", &o.seed, "of lengths, prompts and moments").placeholder("N");
  table.group("Requests");
  table.add("prompt-tokens", &o.prompt_tokens, "length of the prompts, or a range to choose from: 64-256").placeholder("N");
  table.add("new-tokens", &o.new_tokens, "length of the answers, or a range to choose from").placeholder("N");
  table
      .add("dataset", &o.dataset, "requests instead of random ones: lines of {\"prompt\": text or token ids, \"max_tokens\": N}, from the start again when used up")
      .placeholder("FILE.jsonl");
  table.add("prompts", &o.prompts, "random prompts as token ids or as words; auto: ids where the server tells its vocabulary")
      .choices({"auto", "ids", "words"});
  table.add("vocab", &o.vocab, "token ids are below this; 0: what /tokenizer_info says").placeholder("N").range(0, 1 << 24);
  table.add("temperature", &o.temperature, "randomness of the answers").placeholder("T").range(0, 100);
  table.add("ignore-eos", &o.ignore_eos, "ask for answers of the full length, where the server knows that field");
  table.add("served-model-name", &o.model, "name of the model; empty: the first of /v1/models").placeholder("NAME");
  table.add("api-key", &o.api_key, "sent as bearer token").placeholder("KEY");
  table.add("timeout", &o.timeout_s, "seconds without a byte after which a request has failed").placeholder("S").range(1, 86400);
}

void declare_output(OptionTable& table, BenchServeOptions& o) {
  table.group("Output");
  const auto objective = [&](const char* name, float* field, const char* what) {
    table.add(name, field, fmt::format("objective for {}, milliseconds; 0: none", what)).placeholder("MS").range(0, 1e9);
  };
  objective("slo-ttft", &o.slo_ttft, "the first token");
  objective("slo-itl", &o.slo_itl, "the mean time between an answer's tokens");
  objective("slo-e2e", &o.slo_e2e, "whole answers");
  table.add("json", &o.json, "also write the figures as JSON").placeholder("FILE");
  table.add("csv", &o.csv, "also write the rows as CSV").placeholder("FILE");
}

std::vector<double> parse_rates(std::string_view text) {
  std::vector<double> rates;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(','));
    double rate = 0;
    const auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), rate);
    if (error != std::errc() || rest != word.data() + word.size() || !(rate > 0 && rate <= 1e6))
      refuse(fmt::format("--rate has \"{}\", wanted numbers above 0 and up to 1e6", word));
    rates.push_back(rate);
    text.remove_prefix(std::min(word.size() + 1, text.size()));
  }
  return rates;
}

/// One line of the data set.
LoadRequest read_request(const Json& line, const std::string& where, int fallback_tokens) {
  require_object(line, where);
  LoadRequest request;
  request.max_tokens = fallback_tokens;
  const auto prompt = line.find("prompt"), tokens = line.find("max_tokens");
  if (prompt != line.end() && prompt->is_string()) request.text = prompt->get<std::string>();
  else if (prompt != line.end() && prompt->is_array())
    for (const Json& id : *prompt) {
      if (!id.is_number_integer() || id < 0 || id > 2147483647) refuse(fmt::format("{}: prompt holds something other than token ids", where));
      request.ids.push_back(id.get<int32_t>());
    }
  if (request.text.empty() && request.ids.empty()) refuse(fmt::format("{}: prompt is missing or empty; wanted a text or token ids", where));
  if (tokens != line.end()) {
    if (!tokens->is_number_integer() || *tokens < 1 || *tokens > 1 << 24) refuse(fmt::format("{}: max_tokens is no number from 1", where));
    request.max_tokens = tokens->get<int>();
  }
  return request;
}

class BenchServeCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("URL", positionals_, 1);
    declare_load(table, o_);
    declare_output(table, o_);
    table.example("conclave bench serve http://127.0.0.1:8080 --concurrency 1,16");
    table.example("conclave bench serve http://127.0.0.1:8080 --rate 2 --seconds 60 --slo-ttft 2000 --slo-itl 200");
  }

  int execute(const OptionTable&, Console& console) override {
    if (positionals_.empty()) refuse("no server given; name its address, e.g. http://127.0.0.1:8080");
    if (!o_.json.empty()) require_writable(o_.json, "--json");
    if (!o_.csv.empty()) require_writable(o_.csv, "--csv");
    const std::vector<LoadPace> paces = read_paces();
    const LoadTarget target = find_target();
    const Objective objective{o_.slo_ttft, o_.slo_itl, o_.slo_e2e};
    const std::vector<LoadRequest> set = o_.dataset.empty() ? std::vector<LoadRequest>{} : read_dataset();
    const int vocab = set.empty() ? vocabulary(target) : 0;
    const Interrupts interrupts;
    const auto stop = [&] { return interrupts.raised(); };
    warm_up(target, requests_for(set, vocab, static_cast<size_t>(o_.warmup), o_.seed + 1));
    std::vector<LoadRow> rows;
    for (const LoadPace& pace : paces) {
      if (stop()) break;
      const size_t count = o_.requests > 0 ? static_cast<size_t>(o_.requests)
                           : o_.seconds > 0 ? most_for(pace)
                                            : static_cast<size_t>(std::max(16, 4 * pace.concurrency));
      const std::vector<LoadRequest> requests = requests_for(set, vocab, count, o_.seed + 2 + rows.size());
      const std::string name = pace.concurrency > 0 ? fmt::format("concurrency {}", pace.concurrency) : fmt::format("rate {}/s", pace.rate);
      rows.push_back(summarize(name, run_load(target, requests, pace, stop), objective));
      console.log.info(fmt::format("{}: {:.1f} output tokens/s, {} of {} requests failed", name, rows.back().output_tokens_per_s,
                                   rows.back().failed(), rows.back().requests));
    }
    console.out.write(load_markdown(rows, objective));
    write_files(rows, objective);
    const bool nothing = std::all_of(rows.begin(), rows.end(), [](const LoadRow& row) { return row.failed() == row.requests; });
    if (nothing) throw Error(Error::Kind::network, "no request succeeded; the errors above say why");
    return 0;
  }

 private:
  std::vector<LoadPace> read_paces() const {
    std::vector<LoadPace> paces;
    const bool neither = o_.concurrency.empty() && o_.rate.empty();
    if (neither || !o_.concurrency.empty())
      for (const int n : parse_numbers(neither ? "1" : o_.concurrency, "--concurrency", 1, 100'000)) paces.push_back({.concurrency = n});
    for (const double rate : parse_rates(o_.rate)) paces.push_back({.rate = rate});
    for (size_t i = 0; i < paces.size(); ++i) paces[i].seconds = o_.seconds, paces[i].seed = o_.seed + i;
    return paces;
  }

  /// More than can be sent within --seconds.
  size_t most_for(const LoadPace& pace) const {
    constexpr double kPerClient = 50;  // answers per second and client
    return 16 + static_cast<size_t>(o_.seconds * (pace.rate > 0 ? 2 * pace.rate : kPerClient * pace.concurrency));
  }

  LoadTarget find_target() const {
    LoadTarget target{.url = parse_http_url(positionals_.front()), .model = o_.model, .api_key = o_.api_key,
                      .temperature = static_cast<double>(o_.temperature), .ignore_eos = o_.ignore_eos, .timeout_s = o_.timeout_s};
    if (!target.model.empty()) return target;
    const Json models = ask(target, "/v1/models");
    const auto data = models.find("data");
    if (data == models.end() || !data->is_array() || data->empty() || !data->front().is_object() || !data->front().contains("id") ||
        !data->front()["id"].is_string())
      refuse(fmt::format("{}/v1/models names no model; give --served-model-name", positionals_.front()));
    target.model = data->front()["id"].get<std::string>();
    return target;
  }

  /// The answer's JSON; an empty object where the server has no such path.
  Json ask(const LoadTarget& target, const std::string& path) const {
    HttpClient client(target.url, target.timeout_s);
    HttpClient::Headers headers;
    if (!o_.api_key.empty()) headers.emplace_back("Authorization", "Bearer " + o_.api_key);
    const HttpAnswer response = client.get(path, headers);
    Json json = response.status == 200 ? Json::parse(response.body, nullptr, false) : Json::object();
    return json.is_object() ? json : Json::object();
  }

  int vocabulary(const LoadTarget& target) const {
    if (o_.prompts == "words") return 0;
    if (o_.vocab > 0) return o_.vocab;
    const Json info = ask(target, "/tokenizer_info");
    const auto size = info.find("vocab_size");
    if (size != info.end() && size->is_number_integer() && *size >= 2 && *size <= 1 << 24) return size->get<int>();
    if (o_.prompts == "ids") refuse("the server does not tell its vocabulary; give --vocab, or --prompts words");
    return 0;
  }

  std::vector<LoadRequest> read_dataset() const {
    const int fallback = parse_length(o_.new_tokens, "new-tokens", 1).most;
    std::vector<LoadRequest> set;
    for_each_json_line(o_.dataset, [&](const Json& line, const std::string& where) { set.push_back(read_request(line, where, fallback)); });
    if (set.empty()) refuse(fmt::format("--dataset {}: no line in this file", o_.dataset));
    return set;
  }

  std::vector<LoadRequest> requests_for(const std::vector<LoadRequest>& set, int vocab, size_t count, uint64_t seed) const {
    if (set.empty())
      return random_requests({parse_length(o_.prompt_tokens, "prompt-tokens", 1), parse_length(o_.new_tokens, "new-tokens", 1), vocab}, count, seed);
    std::vector<LoadRequest> requests;
    for (size_t i = 0; i < count; ++i) requests.push_back(set[i % set.size()]);
    return requests;
  }

  void warm_up(const LoadTarget& target, const std::vector<LoadRequest>& requests) const {
    HttpClient client(target.url, target.timeout_s);
    for (const LoadRequest& request : requests) {
      const LoadSample sample = send_request(client, target, request);
      if (!sample.error.empty()) throw Error(Error::Kind::network, fmt::format("{}: the first request failed: {}", positionals_.front(), sample.error));
    }
  }

  void write_files(const std::vector<LoadRow>& rows, const Objective& objective) const {
    if (!o_.json.empty()) write_file(o_.json, load_json(rows, objective).dump(1) + "\n");
    if (!o_.csv.empty()) write_file(o_.csv, load_csv(rows));
  }

  std::vector<std::string> positionals_;
  BenchServeOptions o_;
};

}  // namespace

std::unique_ptr<Command> make_bench_serve() { return std::make_unique<BenchServeCommand>(); }

}  // namespace conclave
