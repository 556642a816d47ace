#pragma once
// The merge loop that byte-level BPE and SentencePiece BPE share: join the best adjacent pair (leftmost on ties) until no
// pair can be joined. A heap over a linked list, so long texts cost n log n.
#include <cstdint>
#include <queue>
#include <vector>

namespace conclave {

struct Symbol {
  int32_t id;
  uint32_t begin, size;  ///< bytes in the text; size 0 = merged into its left neighbour
  int32_t prev, next;    ///< -1 at the ends
  bool frozen = false;   ///< takes no part in merges
};

/// What joining two symbols gives; id < 0 = they do not join. The smallest rank goes first.
struct Merge {
  double rank = 0;
  int32_t id = -1;
};

/// Merges in place; `lookup(left, right)` returns the Merge of two neighbours. Symbols of size 0 are left over.
template <typename Lookup>
void merge_symbols(std::vector<Symbol>& symbols, const Lookup& lookup) {
  struct Candidate {
    double rank;
    int32_t left, id;
    bool operator<(const Candidate& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };
  std::vector<Candidate> initial;
  const auto merge_of = [&](const Symbol& a, const Symbol& b) { return a.frozen || b.frozen ? Merge{} : lookup(a, b); };
  for (size_t i = 0; i + 1 < symbols.size(); ++i)
    if (const Merge m = merge_of(symbols[i], symbols[i + 1]); m.id >= 0) initial.push_back({m.rank, static_cast<int32_t>(i), m.id});
  std::priority_queue<Candidate> queue({}, std::move(initial));
  const auto push = [&](int32_t left) {
    if (left < 0 || symbols[static_cast<size_t>(left)].next < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    if (const Merge m = merge_of(a, symbols[static_cast<size_t>(a.next)]); m.id >= 0) queue.push({m.rank, left, m.id});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.left)];
    if (left.size == 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (merge_of(left, right).id != top.id) continue;  // an expired candidate
    left.id = top.id;
    left.size += right.size;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].prev = top.left;
    push(left.prev);
    push(top.left);
  }
}

}  // namespace conclave
