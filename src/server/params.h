#pragma once
// What the fields of all endpoints can ask for, after validation. One struct: an endpoint's field table says which members it fills, so
// that the code behind the tables reads typed values and never JSON.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace conclave {

struct Params {
  std::string model;
  nlohmann::ordered_json prompt, messages, template_variables;
  bool stream = false, include_usage = false, continuous_usage = false;

  Sampling sampling;
  std::optional<uint64_t> seed;  ///< nothing: a random one
  bool do_sample = true;         ///< false: greedy whatever the temperature
  std::optional<int> max_tokens;
  int default_max_tokens = 0;  ///< of the endpoint; 0: what is left of the context
  int n = 1;
  std::optional<int> best_of;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> bad_words, dry_breakers;
  bool include_stop = false, ignore_eos = false, skip_special_tokens = true;
  std::optional<int> truncate_prompt;  ///< keep that many of the prompt's last tokens; -1: what fits

  std::optional<int> logprobs;  ///< alternatives per new token
  bool chat_logprobs = false;
  int top_logprobs = 0;
  std::optional<int> prompt_logprobs;
  bool echo = false, return_token_ids = false, return_routed_experts = false, timings = true;

  int priority = 3;
  double deadline_ms = 0;
  std::string cache_salt;

  bool add_generation_prompt = true, continue_final_message = false;

  // TGI and the reference stack
  bool details = false, decoder_input_details = false, full_text = false;
  int top_n_tokens = 0;
  uint64_t key = 0;  ///< of the request that asked: 1 + index of the API key; 0: nobody in particular
  std::string id;

  // tokenizer routes
  std::string text;
  std::vector<int32_t> tokens;
  bool add_special_tokens = true, parse_special = false, with_pieces = false;
};

/// For the makers of fields: how to reach a member of Params, and one of its sampling options.
inline constexpr auto member = [](auto Params::*which) {
  return [which](Params & p) -> auto& { return p.*which; };
};
inline constexpr auto sampling_member = [](auto Sampling::*which) {
  return [which](Params & p) -> auto& { return p.sampling.*which; };
};

}  // namespace conclave
