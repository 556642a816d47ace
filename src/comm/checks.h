#pragma once
// What every communicator has in common: the checks of a call's sizes and the order of sums. Private to comm.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "core/error.h"

namespace conclave::comm {

/// `counts` has one entry per rank, none is negative, and they add up to `total`; otherwise an internal error that names the call.
inline void check_counts(std::string_view call, std::string_view what, std::span<const int64_t> counts, int size, size_t total) {
  int64_t sum = 0;
  bool negative = false;
  for (const int64_t count : counts) negative = negative || count < 0 || __builtin_add_overflow(sum, count, &sum);
  if (std::cmp_not_equal(counts.size(), size) || negative || std::cmp_not_equal(sum, total))
    throw Error(Error::Kind::internal, fmt::format("{}: the {} counts are [{}] for {} ranks and {} elements; wanted: one count from 0 for each rank, "
                                                   "{} in all", call, what, fmt::join(counts, ", "), size, total, total));
}

inline void check_rank(std::string_view call, int rank, int size) {
  if (rank < 0 || rank >= size)
    throw Error(Error::Kind::internal, fmt::format("{}: rank {} of a group of {}; wanted: a rank from 0 to {}", call, rank, size, size - 1));
}

inline void check_peer(std::string_view call, int peer, int rank, int size) {
  check_rank(call, peer, size);
  if (peer == rank) throw Error(Error::Kind::internal, fmt::format("{}: rank {} cannot exchange messages with itself", call, rank));
}

inline int64_t offset_of(std::span<const int64_t> counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

/// out += in, of floats at any address. Called for ranks 0, 1, 2 ... in this order everywhere, so that all communicators give the same bits.
inline void add(std::span<float> out, const std::byte* in) {
  for (size_t i = 0; i < out.size(); ++i) {
    float x;
    std::memcpy(&x, in + i * sizeof x, sizeof x);
    out[i] += x;
  }
}

/// out = max(out, in); a NaN on either side stays.
inline void keep_greater(std::span<float> out, const std::byte* in) {
  for (size_t i = 0; i < out.size(); ++i) {
    float x;
    std::memcpy(&x, in + i * sizeof x, sizeof x);
    out[i] = x > out[i] || x != x ? x : out[i];
  }
}

using Combine = void (*)(std::span<float> out, const std::byte* in);

/// Floats of a row that rank `rank` adds up for everybody: whole cache lines, so that neighbours do not share one.
inline std::span<float> share_of(std::span<float> row, int rank, int size) {
  constexpr size_t kLine = 16;
  const size_t share = (row.size() / static_cast<size_t>(size) / kLine + 1) * kLine;
  const size_t begin = std::min(row.size(), share * static_cast<size_t>(rank));
  return row.subspan(begin, std::min(share, row.size() - begin));
}

}  // namespace conclave::comm
