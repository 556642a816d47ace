#include "io/non_finite.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "core/error.h"

namespace conclave {
namespace {

/// First element whose bits under `mask` are all set. Blocks are tested without branches, so that compilers vectorise
/// them.
template <class Word>
std::optional<size_t> first_with_all(const std::byte* data, size_t count, Word mask) {
  constexpr size_t kBlock = 4096 / sizeof(Word);
  Word block[kBlock];  // a copy, because file data may lie at any address
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t n = std::min(kBlock, count - begin);
    std::memcpy(block, data + begin * sizeof(Word), n * sizeof(Word));
    Word hits = 0;
    for (size_t i = 0; i < n; ++i) hits = static_cast<Word>(hits | static_cast<Word>((block[i] & mask) == mask));
    if (!hits) continue;
    const Word* hit = std::find_if(block, block + n, [mask](Word w) { return (w & mask) == mask; });
    return begin + static_cast<size_t>(hit - block);
  }
  return std::nullopt;
}

}  // namespace

std::optional<size_t> first_non_finite(const TensorRecord& r) {
  switch (r.dtype) {
    case DType::f64: return first_with_all<uint64_t>(r.data, r.bytes / 8, 0x7ff0000000000000u);
    case DType::f32: return first_with_all<uint32_t>(r.data, r.bytes / 4, 0x7f800000u);
    case DType::f16: return first_with_all<uint16_t>(r.data, r.bytes / 2, 0x7c00u);
    case DType::bf16: return first_with_all<uint16_t>(r.data, r.bytes / 2, 0x7f80u);
    case DType::f8e4m3: return first_with_all<uint8_t>(r.data, r.bytes, 0x7fu);
    case DType::f8e5m2: return first_with_all<uint8_t>(r.data, r.bytes, 0x7cu);
    default: return std::nullopt;
  }
}

void check_finite(std::span<const TensorRecord* const> records) {
  std::atomic<size_t> next{0}, first{records.size()};
  const auto scan = [&] {
    for (size_t i = next++; i < records.size() && i < first; i = next++) {
      if (!first_non_finite(*records[i])) continue;
      size_t known = first;
      while (i < known && !first.compare_exchange_weak(known, i)) {}
    }
  };
  std::vector<std::jthread> team;
  const unsigned helpers = std::clamp(std::thread::hardware_concurrency(), 1u, 16u) - 1;
  for (unsigned t = 0; t < helpers; ++t) team.emplace_back(scan);
  scan();
  team.clear();
  if (first == records.size()) return;
  const TensorRecord& bad = *records[first];
  throw Error(Error::Kind::bad_model,
              fmt::format("{}: tensor {} ({}) is NaN or infinite at element {}; the file is damaged, fetch it again",
                          bad.file.string(), bad.name, name_of(bad.dtype), *first_non_finite(bad)));
}

}  // namespace conclave
