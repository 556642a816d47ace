#include "server/keys.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <sstream>

#include "core/error.h"
#include "core/json.h"

namespace conclave {
namespace {

constexpr double kMinute = 60'000, kDay = 86'400'000;  // milliseconds

[[noreturn]] void refuse(const std::string& where, int line, const std::string& message) {
  throw Error(Error::Kind::bad_input,
              fmt::format("{}: line {}: {}; wanted NAME SHA256-HEX [requests_per_minute=N] [tokens_per_day=N] "
                          "[requests_at_once=N] [priority=1..5] [admin]",
                          where, line, message));
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

bool read_digest(const std::string& text, KeyStore::Digest& digest) {
  if (text.size() != 2 * digest.size()) return false;
  for (size_t i = 0; i < digest.size(); ++i) {
    const int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    digest[i] = static_cast<unsigned char>(high * 16 + low);
  }
  return true;
}

bool read_limit(const std::string& word, KeyLimits& limits) {
  if (word == "admin") return limits.admin = true;
  const size_t equals = word.find('=');
  if (equals == std::string::npos) return false;
  const std::string name = word.substr(0, equals);
  double value = 0;
  const char *begin = word.data() + equals + 1, *end = word.data() + word.size();
  const auto [rest, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || rest != end || !(value >= 0 && value <= 1e12)) return false;
  if (name == "requests_per_minute") limits.requests_per_minute = value;
  else if (name == "tokens_per_day") limits.tokens_per_day = value;
  else if (name == "requests_at_once" && value <= 1e6) limits.requests_at_once = static_cast<int>(value);
  else if (name == "priority" && value >= 1 && value <= 5) limits.best_priority = static_cast<int>(value);
  else return false;
  return true;
}

}  // namespace

KeyStore::Digest sha256(std::string_view text) {
  KeyStore::Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

std::string_view bearer_of(const HttpRequest& request) {
  std::string_view value = request.header("authorization");
  constexpr std::string_view kBearer = "bearer ";
  const auto same = [](char a, char b) { return (a | 0x20) == b || a == b; };
  if (value.size() > kBearer.size() &&
      std::equal(kBearer.begin(), kBearer.end(), value.begin(), [&](char b, char a) { return same(a, b); })) {
    value.remove_prefix(kBearer.size());
    return value;
  }
  value = request.header("x-api-key");
  return value.empty() ? request.header("api-key") : value;
}

void KeyStore::load(const std::string& file) {
  namespace fs = std::filesystem;
  std::error_code status;
  const fs::perms mode = fs::status(file, status).permissions();
  if (!status && (mode & (fs::perms::group_all | fs::perms::others_all)) != fs::perms::none)
    throw Error(Error::Kind::bad_input, fmt::format("{}: others may read or change this key file; run chmod 600 on it", file));
  try {
    parse(read_text_file(file, size_t{1} << 20), file);
  } catch (const Error& e) {
    throw Error(Error::Kind::bad_input, e.what());
  }
}

void KeyStore::parse(std::string_view text, const std::string& where) {
  std::vector<Key> fresh;
  std::istringstream lines{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line.substr(0, line.find('#')));
    Key key;
    std::string digest;
    if (!(words >> key.name)) continue;
    if (!(words >> digest) || !read_digest(digest, key.digest)) refuse(where, number, "no SHA-256 of 64 hexadecimal digits");
    for (std::string word; words >> word;)
      if (!read_limit(word, key.limits)) refuse(where, number, fmt::format("{:?} is not understood", word));
    for (const Key& other : fresh)
      if (other.name == key.name) refuse(where, number, fmt::format("the name {} occurs twice", key.name));
    key.requests = key.limits.requests_per_minute;
    key.tokens = key.limits.tokens_per_day;
    key.filled = Clock::now();
    fresh.push_back(std::move(key));
  }
  if (fresh.empty()) throw Error(Error::Kind::bad_input, fmt::format("{}: no key in this file; give at least one line", where));
  const std::lock_guard lock(mutex_);
  for (Key& key : fresh) {
    for (const Key& old : keys_) {
      if (old.name != key.name || old.digest != key.digest) continue;
      key.number = old.number;
      key.under_way = old.under_way;
      key.requests = std::min(key.requests, old.requests);
      key.tokens = std::min(key.tokens, old.tokens);
      key.filled = old.filled;
    }
    if (key.number == 0) key.number = next_number_++;
  }
  keys_ = std::move(fresh);
}

bool KeyStore::empty() const {
  const std::lock_guard lock(mutex_);
  return keys_.empty();
}

uint64_t KeyStore::find(std::string_view presented) const {
  const Digest digest = sha256(presented);
  const std::lock_guard lock(mutex_);
  uint64_t found = 0;
  for (const Key& key : keys_)
    if (CRYPTO_memcmp(key.digest.data(), digest.data(), digest.size()) == 0) found = key.number;
  return found;
}

template <class Keys>
auto* KeyStore::numbered(Keys& keys, uint64_t number) {
  const auto found = std::find_if(keys.begin(), keys.end(), [number](const Key& key) { return key.number == number; });
  return found == keys.end() ? nullptr : &*found;
}

KeyLimits KeyStore::limits(uint64_t key) const {
  const std::lock_guard lock(mutex_);
  const Key* k = numbered(keys_, key);
  return k ? k->limits : KeyLimits{};
}

std::string KeyStore::name(uint64_t key) const {
  const std::lock_guard lock(mutex_);
  const Key* k = numbered(keys_, key);
  return k ? k->name : "-";
}

void KeyStore::refill(Key& key, Clock::time_point now) {
  const double passed = std::max(0.0, std::chrono::duration<double, std::milli>(now - key.filled).count());
  key.filled = now;
  key.requests = std::min(key.limits.requests_per_minute, key.requests + passed * key.limits.requests_per_minute / kMinute);
  key.tokens = std::min(key.limits.tokens_per_day, key.tokens + passed * key.limits.tokens_per_day / kDay);
}

double KeyStore::take(uint64_t key, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  Key* k = numbered(keys_, key);
  if (!k) return 0;
  refill(*k, now);
  if (k->limits.tokens_per_day > 0 && k->tokens <= 0) return std::max(1.0, (1 - k->tokens) * kDay / k->limits.tokens_per_day);
  if (k->limits.requests_per_minute <= 0) return 0;
  if (k->requests < 1) return std::max(1.0, (1 - k->requests) * kMinute / k->limits.requests_per_minute);
  k->requests -= 1;
  return 0;
}

double KeyStore::reserve(uint64_t key, double tokens, Clock::time_point now) {
  constexpr double kSoon = 1000;  // an answer's end is not known beforehand
  const std::lock_guard lock(mutex_);
  Key* k = numbered(keys_, key);
  if (!k) return 0;
  refill(*k, now);
  const KeyLimits& limits = k->limits;
  if (limits.requests_at_once > 0 && k->under_way >= limits.requests_at_once) return kSoon;
  if (limits.tokens_per_day > 0 && tokens > limits.tokens_per_day) return -1;
  if (limits.tokens_per_day > 0 && tokens > k->tokens) return std::max(1.0, (tokens - k->tokens) * kDay / limits.tokens_per_day);
  k->tokens -= tokens;
  ++k->under_way;
  return 0;
}

void KeyStore::settle(uint64_t key, double reserved, double used, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  Key* k = numbered(keys_, key);
  if (!k) return;
  refill(*k, now);
  k->tokens += reserved - used;
  --k->under_way;
}

}  // namespace conclave
