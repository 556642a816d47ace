#pragma once
// Shortcuts for long texts that do not change any id: cutting at space marks where no piece of the vocabulary crosses them, and
// keeping the ids of words while one text is encoded.
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace conclave {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

/// Where the first word of `text` ends: before a space mark that follows something else.
inline size_t word_end(std::string_view text) {
  size_t at = 0;
  while (text.substr(at).starts_with(kSpaceMark)) at += kSpaceMark.size();
  const size_t mark = text.find(kSpaceMark, at);
  return mark == std::string_view::npos ? text.size() : mark;
}

/// Calls `use(word)` for the words of the text, in order.
template <typename Use>
void for_each_word(std::string_view text, const Use& use) {
  while (!text.empty()) {
    const size_t end = word_end(text);
    use(text.substr(0, end));
    text.remove_prefix(end);
  }
}

/// Ids of pieces that were seen; `encode(piece, ids)` appends those of a new one.
template <typename Encode>
class PieceCache {
 public:
  explicit PieceCache(Encode encode) : encode_(std::move(encode)) {}
  void append(std::string_view piece, std::vector<int32_t>& ids) {
    if (piece.size() > kMaxPiece || known_.size() >= kMaxEntries) return encode_(piece, ids);
    const auto [entry, fresh] = known_.try_emplace(std::string(piece));
    if (fresh) encode_(piece, entry->second);
    ids.insert(ids.end(), entry->second.begin(), entry->second.end());
  }

 private:
  static constexpr size_t kMaxPiece = 64, kMaxEntries = 100'000;
  Encode encode_;
  std::unordered_map<std::string, std::vector<int32_t>> known_;
};

}  // namespace conclave
