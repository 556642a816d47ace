#pragma once
// API keys: who may ask, how fast, how urgently. The file holds only SHA-256 hashes; it is read again on SIGHUP, and a bad file leaves the
// old keys in force. Thread-safe.
#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace conclave {

struct KeyLimits {
  double requests_per_minute = 0;  ///< 0: no limit
  double tokens_per_day = 0;       ///< prompt and answer; 0: no limit
  int requests_at_once = 0;        ///< answers under way; 0: no limit
  int best_priority = 1;           ///< most urgent priority the key may ask for
  bool admin = false;
};

/// The key that a request presents: Authorization: Bearer KEY, X-API-Key or api-key; "" without one.
std::string_view bearer_of(const HttpRequest& request);

class KeyStore {
 public:
  using Clock = std::chrono::steady_clock;
  using Digest = std::array<unsigned char, 32>;

  /// Lines of `NAME SHA256-HEX [requests_per_minute=N] [tokens_per_day=N] [requests_at_once=N] [priority=1..5]
  /// [admin]`; `#` opens a comment. Keys that keep
  /// name and hash keep their number and their spent quotas. Throws bad_input naming file and line; refuses files that others may read.
  void load(const std::string& file);
  /// The same from text; `where` opens messages.
  void parse(std::string_view text, const std::string& where);
  bool empty() const;
  /// The key's number, from 1, never given to another one; 0 when it is unknown. Compares in constant time.
  uint64_t find(std::string_view presented) const;
  KeyLimits limits(uint64_t key) const;
  std::string name(uint64_t key) const;  ///< "-" for none
  /// Takes one request from the quotas: 0, or the milliseconds to wait.
  double take(uint64_t key, Clock::time_point now = Clock::now());
  /// Before a generation: takes its place and the tokens that it may use. 0, or the milliseconds to wait, or -1: more than a whole day's.
  double reserve(uint64_t key, double tokens, Clock::time_point now = Clock::now());
  /// After it: gives back its place and what it did not use (or takes what it used beyond).
  void settle(uint64_t key, double reserved, double used, Clock::time_point now = Clock::now());

 private:
  struct Key {
    std::string name;
    Digest digest{};
    KeyLimits limits;
    uint64_t number = 0;
    double requests = 0, tokens = 0;  ///< left in the buckets
    int under_way = 0;
    Clock::time_point filled{};
  };
  static void refill(Key& key, Clock::time_point now);
  /// Needs the lock; null for a key that is not there (any more).
  template <class Keys>
  static auto* numbered(Keys& keys, uint64_t number);
  mutable std::mutex mutex_;  ///< guards what follows
  std::vector<Key> keys_;
  uint64_t next_number_ = 1;
};

KeyStore::Digest sha256(std::string_view text);

}  // namespace conclave
