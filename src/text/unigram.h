#pragma once
// The unigram model of SentencePiece: the segmentation with the highest sum of scores (Viterbi over a trie of pieces).
#include <cstdint>
#include <limits>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace conclave {

class UnigramModel {
 public:
  /// A part of the text and its piece; id < 0 = unknown character.
  struct Part {
    size_t begin, end;
    int32_t id;
  };
  /// Adds a piece that texts may yield. User-defined pieces always win over others of their length.
  void add(std::string_view piece, int32_t id, float score, bool user_defined);
  /// Segments valid UTF-8.
  std::vector<Part> segment(std::string_view text) const;

 private:
  struct Entry {
    int32_t id = -1;
    float score = 0;
    bool user_defined = false;
  };
  std::unordered_map<uint64_t, uint32_t> edges_;  ///< (node << 8 | byte) -> node
  std::vector<Entry> ends_{{}};
  float lowest_ = std::numeric_limits<float>::max();
  float highest_ = std::numeric_limits<float>::min();  ///< as SentencePiece: scores are negative, so this stays about zero
};

}  // namespace conclave
