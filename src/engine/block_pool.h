#pragma once
// Which blocks of the cache are free. Knows integers only; a block has exactly one owner, who gives it back once.
#include <cstdint>
#include <span>
#include <vector>

namespace conclave {

class BlockPool {
 public:
  explicit BlockPool(int num_blocks);

  int capacity() const { return static_cast<int>(used_.size()); }
  int free() const { return static_cast<int>(free_.size()); }
  bool used(int32_t block) const { return used_.at(static_cast<size_t>(block)); }
  /// Appends `count` free blocks to `table`; throws internal when there are fewer.
  void take(int count, std::vector<int32_t>& table);
  /// Removes all but the first `kept` blocks from `table` and frees them; throws internal for a block that is not in use.
  void give_back(std::vector<int32_t>& table, size_t kept = 0);

 private:
  std::vector<int32_t> free_;  ///< the next one to hand out is last
  std::vector<bool> used_;
};

}  // namespace conclave
