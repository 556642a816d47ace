#include "engine/step_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace conclave {
namespace {

static_assert(std::endian::native == std::endian::little, "step plans are written as they lie in memory");

constexpr uint64_t kMagic = 0x31504554534e4f43ull;  // "CONSTEP1"
constexpr size_t kHeaderBytes = 5 * sizeof(uint64_t);
constexpr size_t kChunkBytes = sizeof(uint64_t) + 9 * sizeof(int32_t);

[[noreturn]] void refuse(const std::string& what) {
  throw Error(Error::Kind::network, fmt::format("a step plan cannot be read: {}; do all ranks run the same build?", what));
}

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) : at_(out.data()) {}
  template <class T>
  void put(std::span<const T> values) {
    if (!values.empty()) std::memcpy(at_, values.data(), values.size_bytes());
    at_ += values.size_bytes();
  }
  template <class T>
  void put(T value) { put(std::span<const T>(&value, 1)); }

 private:
  std::byte* at_;
};

/// Reads what the caller has checked to be there.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, bytes_.data(), sizeof value);
    bytes_ = bytes_.subspan(sizeof value);
    return value;
  }
  void take(std::vector<int32_t>& list, size_t count) {
    list.resize(count);
    if (count > 0) std::memcpy(list.data(), bytes_.data(), count * sizeof(int32_t));
    bytes_ = bytes_.subspan(count * sizeof(int32_t));
  }

 private:
  std::span<const std::byte> bytes_;
};

bool within(int32_t first, int32_t count, size_t size) {
  return first >= 0 && count >= 0 && static_cast<uint64_t>(first) + static_cast<uint64_t>(count) <= size;
}

void check_chunk(const Chunk& c, const StepPlan& plan, int32_t next_row) {
  const auto broken = [&](const char* rule) { refuse(fmt::format("chunk of request {}: {}", c.id, rule)); };
  if (c.first_token != next_row || c.token_count < 1 || !within(c.first_token, c.token_count, plan.tokens.size()))
    broken("its rows do not follow those before it");
  if (!within(c.first_block, c.block_count, plan.blocks.size())) broken("its blocks are outside the list");
  if (c.context_len < c.token_count || c.prompt_len < 1 || c.block_count < 1) broken("its lengths contradict each other");
  if (c.num_scored != 0 && (c.first_scored < c.first_token || c.num_scored < 0 ||
                            int64_t{c.first_scored} + c.num_scored > int64_t{c.first_token} + c.token_count))
    broken("its scored rows are outside it");
  for (int32_t i = 0; i < c.token_count; ++i)
    if (plan.positions[static_cast<size_t>(c.first_token + i)] != c.context_len - c.token_count + i) broken("its positions are not consecutive");
}

}  // namespace

std::vector<StepPlan> cut_plan(const StepPlan& plan, int parts) {
  const auto rows = static_cast<int64_t>(plan.tokens.size());
  const bool scored = std::any_of(plan.chunks.begin(), plan.chunks.end(), [](const Chunk& c) { return c.num_scored > 0; });
  const int64_t count = scored ? 1 : std::clamp<int64_t>(parts, 1, std::max<int64_t>(1, rows));
  std::vector<StepPlan> out;
  for (int64_t p = 0; p < count; ++p) {
    const auto begin = static_cast<int32_t>(rows * p / count), end = static_cast<int32_t>(rows * (p + 1) / count);
    StepPlan& part = out.emplace_back();
    part.step = plan.step;
    part.tokens.assign(plan.tokens.begin() + begin, plan.tokens.begin() + end);
    part.positions.assign(plan.positions.begin() + begin, plan.positions.begin() + end);
    part.blocks = plan.blocks;
    for (Chunk c : plan.chunks) {
      const int32_t chunk_end = c.first_token + c.token_count, from = std::max(begin, c.first_token), to = std::min(end, chunk_end);
      if (from >= to) continue;
      c.context_len -= chunk_end - to;
      c.sample = c.sample && to == chunk_end;
      if (c.num_scored > 0) c.first_scored -= begin;
      c.first_token = from - begin, c.token_count = to - from;
      part.chunks.push_back(c);
    }
  }
  return out;
}

std::vector<std::byte> encode(const StepPlan& plan) {
  std::vector<std::byte> bytes(kHeaderBytes + (2 * plan.tokens.size() + plan.blocks.size()) * sizeof(int32_t) +
                               plan.chunks.size() * kChunkBytes);
  Writer out(bytes);
  for (const uint64_t value : {kMagic, plan.step, uint64_t{plan.tokens.size()}, uint64_t{plan.blocks.size()}, uint64_t{plan.chunks.size()}})
    out.put(value);
  for (const auto* list : {&plan.tokens, &plan.positions, &plan.blocks}) out.put(std::span<const int32_t>(*list));
  for (const Chunk& c : plan.chunks) {
    out.put(c.id);
    for (const int32_t value : {c.first_token, c.token_count, c.context_len, c.prompt_len, c.first_block, c.block_count, c.first_scored,
                                c.num_scored, int32_t{c.sample}})
      out.put(value);
  }
  return bytes;
}

StepPlan decode_step_plan(std::span<const std::byte> bytes) {
  if (bytes.size() < kHeaderBytes) refuse(fmt::format("{} bytes, wanted at least {}", bytes.size(), kHeaderBytes));
  Reader in(bytes);
  if (const auto magic = in.take<uint64_t>(); magic != kMagic) refuse(fmt::format("it begins with {:#x}, wanted {:#x}", magic, kMagic));
  StepPlan plan;
  plan.step = in.take<uint64_t>();
  const auto tokens = in.take<uint64_t>(), blocks = in.take<uint64_t>(), chunks = in.take<uint64_t>();
  const uint64_t most = bytes.size() / sizeof(int32_t);  // keeps the sum below from overflowing
  if (tokens > most || blocks > most || chunks > most ||
      kHeaderBytes + (2 * tokens + blocks) * sizeof(int32_t) + chunks * kChunkBytes != bytes.size())
    refuse(fmt::format("{} tokens, {} blocks and {} chunks do not make {} bytes", tokens, blocks, chunks, bytes.size()));
  in.take(plan.tokens, tokens), in.take(plan.positions, tokens), in.take(plan.blocks, blocks);
  int32_t next_row = 0;
  for (uint64_t i = 0; i < chunks; ++i) {
    Chunk c;
    c.id = in.take<uint64_t>();
    for (int32_t* field : {&c.first_token, &c.token_count, &c.context_len, &c.prompt_len, &c.first_block, &c.block_count,
                           &c.first_scored, &c.num_scored})
      *field = in.take<int32_t>();
    const auto sample = in.take<int32_t>();
    if (sample != 0 && sample != 1) refuse(fmt::format("chunk of request {}: sample is {}, wanted 0 or 1", c.id, sample));
    c.sample = sample == 1;
    check_chunk(c, plan, next_row);
    next_row += c.token_count;
    plan.chunks.push_back(c);
  }
  if (static_cast<uint64_t>(next_row) != tokens) refuse(fmt::format("its chunks have {} rows, its lists {}", next_row, tokens));
  return plan;
}

}  // namespace conclave
