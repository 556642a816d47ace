#pragma once
// Load on a server that speaks OpenAI's completions: requests sent one after the other by C clients (closed loop), or at random moments
// whatever the server does (open loop, Poisson), each timed from the moment it was due. One thread per request under way. Everything random
// follows from the seed. A request that fails is a sample with an error, never left out.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/http_client.h"

namespace conclave {

struct LoadRequest {
  std::vector<int32_t> ids;  ///< the prompt, unless it is `text`
  std::string text;
  int max_tokens = 16;
};

struct LoadTarget {
  HttpUrl url;
  std::string model, api_key;
  double temperature = 0;
  bool ignore_eos = true;
  int timeout_s = 600;
};

struct LoadPace {
  int concurrency = 0;  ///< closed loop, or
  double rate = 0;      ///< open loop: requests per second
  double seconds = 0;   ///< sends nothing after that time; 0: until all are sent
  uint64_t seed = 0;
};

struct LoadSample {
  double sent_ms = 0;           ///< since the start of the load; when it was due
  double first_ms = 0;          ///< from there to the first text
  double end_ms = 0;            ///< and to the end
  std::vector<double> gaps_ms;  ///< between pieces of text
  int prompt_tokens = 0, output_tokens = 0;
  double inside_ms = -1;  ///< the server's own time in queue and prefill, where it says so
  std::string error;      ///< empty: the answer came whole
};

struct LoadResult {
  std::vector<LoadSample> samples;
  double seconds = 0;  ///< from the start to the last end
};

/// Sends the requests in order, each once. Throws bad_input for a pace with neither or both loops.
LoadResult run_load(const LoadTarget& target, std::span<const LoadRequest> requests, const LoadPace& pace,
                    const std::function<bool()>& stop);

/// One exchange, timed from `due`; never throws for what the server does.
LoadSample send_request(HttpClient& client, const LoadTarget& target, const LoadRequest& request);

/// Lengths of prompts and answers: "128", or "64-256" for a uniform choice.
struct LengthRange {
  int least = 1, most = 1;
};
LengthRange parse_length(std::string_view text, std::string_view option, int least);

struct LoadShape {
  LengthRange prompt, output;
  int vocab = 0;  ///< random token ids below it; 0: random words instead
};
/// Throws bad_input for a vocabulary below 2.
std::vector<LoadRequest> random_requests(const LoadShape& shape, size_t count, uint64_t seed);

}  // namespace conclave
