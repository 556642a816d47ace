#include "text/unigram.h"

#include <algorithm>

#include "text/unicode.h"

namespace conclave {
namespace {

constexpr float kUnknownPenalty = 10.0f;

}  // namespace

void UnigramModel::add(std::string_view piece, int32_t id, float score, bool user_defined) {
  uint32_t node = 0;
  for (const char c : piece) {
    const auto [edge, fresh] =
        edges_.try_emplace(uint64_t{node} << 8 | static_cast<unsigned char>(c), static_cast<uint32_t>(ends_.size()));
    if (fresh) ends_.emplace_back();
    node = edge->second;
  }
  ends_[node] = {id, score, user_defined};
  if (user_defined) return;
  lowest_ = std::min(lowest_, score);
  highest_ = std::max(highest_, score);
}

std::vector<UnigramModel::Part> UnigramModel::segment(std::string_view text) const {
  struct Node {
    float score = 0;
    int64_t from = -1;
    int32_t id = -1;
  };
  std::vector<Node> best(text.size() + 1);
  best[0].from = 0;
  const float unknown = lowest_ - kUnknownPenalty;
  for (size_t start = 0; start < text.size();) {
    const size_t character = decode_utf8(text, start).bytes;
    const auto offer = [&, base = best[start].score](size_t end, float score, int32_t id) {
      Node& node = best[end];
      if (node.from >= 0 && base + score <= node.score) return;
      node = {base + score, static_cast<int64_t>(start), id};
    };
    bool has_single = false;
    uint32_t node = 0;
    for (size_t i = start; i < text.size(); ++i) {
      const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
      if (edge == edges_.end()) break;
      node = edge->second;
      const Entry& entry = ends_[node];
      if (entry.id < 0) continue;
      const auto length = static_cast<float>(i + 1 - start);
      offer(i + 1, entry.user_defined ? static_cast<float>(length * highest_ - 0.1) : entry.score, entry.id);
      has_single |= i + 1 - start == character;
    }
    if (!has_single) offer(start + character, unknown, -1);
    start += character;
  }
  std::vector<Part> parts;
  for (size_t end = text.size(); end > 0; end = parts.back().begin)
    parts.push_back({static_cast<size_t>(best[end].from), end, best[end].id});
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace conclave
