#pragma once
// Tokens and their ids, both ways. Owns the token texts; ids may have gaps. Filled once while loading.
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace conclave {

class Vocabulary {
 public:
  static constexpr int64_t kMaxId = int64_t{1} << 22;
  static constexpr size_t kMaxTokens = size_t{1} << 20;

  /// Adds a token. Throws bad_model, naming `source`, on an id that is out of range or taken, or a token that is already there.
  void add(std::string token, int64_t id, std::string_view source);
  int32_t find(std::string_view token) const {  ///< -1 when unknown
    const auto it = ids_.find(token);
    return it == ids_.end() ? -1 : it->second;
  }
  /// Null when the id has no text.
  const std::string* text(int64_t id) const {
    return id < 0 || static_cast<size_t>(id) >= texts_.size() ? nullptr : texts_[static_cast<size_t>(id)];
  }
  /// One more than the largest id.
  int32_t size() const { return static_cast<int32_t>(texts_.size()); }

 private:
  std::deque<std::string> storage_;
  std::unordered_map<std::string_view, int32_t> ids_;
  std::vector<const std::string*> texts_;
};

}  // namespace conclave
