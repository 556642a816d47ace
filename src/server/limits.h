#pragma once
// Every bound that a client can run into, in one place. All are checked before the memory they protect is spent, shown by /server_info,
// and small enough to be lowered by tests.
#include <cstddef>
#include <cstdint>

namespace conclave {

struct ServerLimits {
  size_t header_bytes = size_t{16} << 10;  ///< request line and headers
  size_t body_bytes = size_t{4} << 20;
  int json_depth = 64;
  size_t json_keys = 20'000;
  size_t messages = 2'048;
  size_t stop_strings = 16, stop_bytes = 256;
  size_t logit_bias = 1'024;
  size_t bad_words = 256;
  size_t token_lists = 65'536;     ///< entries of allowed_token_ids and the like
  int sequences_per_request = 64;  ///< prompts x max(n, best_of)
  int logprobs = 20;
  int64_t routed_experts = 4 << 20;  ///< ids that a whole answer may hold
  size_t request_id_bytes = 128;
  int connections = 12'000, connections_per_address = 256;
  int header_ms = 10'000, idle_ms = 60'000, write_stall_ms = 60'000;
  int body_bytes_per_second = 1'024;       ///< slower senders are cut off after header_ms
  int heart_beat_ms = 10'000;              ///< silence of an event stream before a comment is sent
  size_t pause_bytes = size_t{256} << 10;  ///< unsent bytes at which a stream's generation pauses; it resumes at a quarter
  int drain_ms = 90'000;
  int probe_idle_ms = 10'000;              ///< without a step after which an idle engine is asked for a token
};

}  // namespace conclave
