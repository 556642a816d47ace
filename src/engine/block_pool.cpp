#include "engine/block_pool.h"

#include <fmt/format.h>

#include "core/error.h"

namespace conclave {

BlockPool::BlockPool(int num_blocks) : used_(static_cast<size_t>(num_blocks)) {
  free_.reserve(used_.size());
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

void BlockPool::take(int count, std::vector<int32_t>& table) {
  if (count < 0 || count > free())
    throw Error(Error::Kind::internal, fmt::format("{} cache blocks wanted, {} are free", count, free()));
  for (int i = 0; i < count; ++i) {
    used_[static_cast<size_t>(free_.back())] = true;
    table.push_back(free_.back());
    free_.pop_back();
  }
}

void BlockPool::give_back(std::vector<int32_t>& table, size_t kept) {
  while (table.size() > kept) {
    const int32_t block = table.back();
    if (!used(block)) throw Error(Error::Kind::internal, fmt::format("cache block {} is freed twice", block));
    used_[static_cast<size_t>(block)] = false;
    free_.push_back(block);
    table.pop_back();
  }
}

}  // namespace conclave
