#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/pack.h"

namespace conclave::cpu {
namespace {

/// Weight bytes that one task of a linear reads, so that handing out tasks costs nothing and streams stay long.
constexpr size_t kTaskBytes = size_t{128} << 10;

int64_t round4(int64_t n) { return (n + 3) / 4 * 4; }
/// Bytes of one row in pack_int8's form.
int64_t packed_int8(int64_t n) { return round4(n) + (n + kSumDepth - 1) / kSumDepth * static_cast<int64_t>(sizeof(float)); }
int64_t count_blocks(int64_t rows, int max_rows) { return (rows + max_rows - 1) / max_rows; }

/// Cuts rows [first, first + rows) into the fewest blocks of nearly equal size; returns their number.
int64_t cut_blocks(RowBlock* out, int64_t first, int64_t rows, int max_rows) {
  const int64_t count = count_blocks(rows, max_rows);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t begin = rows * b / count, end = rows * (b + 1) / count;
    out[b] = {nullptr, nullptr, static_cast<int32_t>(first + begin), static_cast<int32_t>(end - begin)};
  }
  return count;
}

int block_rows(const KernelTable& k, Input input) {
  return input == Input::int8 ? k.int8_rows : input == Input::bf16 ? k.bf16_rows : k.float_rows;
}

/// Makes block.x from f32 rows, as f32 or bf16: a single f32 row is used where it is, others are interleaved at `dst`.
void pack_block(const KernelTable& k, RowBlock& block, Input input, const float* const* rows, int64_t depth, void* dst) {
  block.x = dst;
  if (input == Input::bf16) return k.pack_bf16(dst, rows, block.rows, depth);
  if (block.rows == 1) block.x = rows[0];
  else k.pack_f32(static_cast<float*>(dst), rows, block.rows, depth);
}

/// The tile of one panel, `cols` of its 32 columns, to out [rows][stride].
void tile_to(const KernelTable& k, TileKind kind, TileArgs args, float* out, int64_t stride, int64_t cols) {
  if (cols == kPanel) {
    args.out = out;
    args.out_stride = stride;
    return k.tile[static_cast<int>(kind)](args);
  }
  alignas(64) float edge[kMaxTileRows * kPanel];
  args.out = edge;
  args.out_stride = kPanel;
  k.tile[static_cast<int>(kind)](args);
  for (int r = 0; r < args.rows; ++r) std::memcpy(out + r * stride, edge + r * kPanel, static_cast<size_t>(cols) * sizeof(float));
}

TileArgs tile_args(const RowBlock& block, const std::byte* panel, int64_t depth) {
  return {.panel = panel, .x = block.x, .x_scale = block.scale, .depth = depth, .rows = block.rows};
}

}  // namespace

// ---- linear

struct CpuBackend::LinearScratch {
  RowBlock* blocks[kInputs];
  std::byte* x[kInputs];         // packed rows
  int64_t row_bytes[kInputs];    // of x
  float* scale;                  // [rows]
  int8_t* q;                     // [workers][kMaxTileRows][depth4]

  LinearScratch(Scratch& s, const KernelTable& k, int64_t rows, int64_t depth, int workers)
      : row_bytes{depth * int64_t{sizeof(float)}, packed_int8(depth), (depth + 1) / 2 * 4}, scale(s.take<float>(rows)),
        q(s.take<int8_t>(workers * kMaxTileRows * round4(depth))) {
    for (int i = 0; i < kInputs; ++i) {
      const int most = block_rows(k, static_cast<Input>(i));
      blocks[i] = most > 0 ? s.take<RowBlock>(count_blocks(rows, most)) : nullptr;
      x[i] = most > 0 ? s.take<std::byte>(rows * row_bytes[i]) : nullptr;
    }
  }
};

float CpuBackend::quantise(const float* x, int64_t n, int8_t* q, const float* row_max) const {
  if (!row_max) return k_.quantise(x, n, q);
  std::fill(q + n, q + round4(n), int8_t{0});
  return quantise_row_int8(x, n, q, *row_max);
}

void CpuBackend::do_linear(std::span<const Linear> jobs, Tensor x, Tensor row_max) {
  const int64_t rows = x.dim[0], depth = x.dim[1], depth4 = round4(depth);
  Scratch scratch(block_);
  const LinearScratch w(scratch, k_, rows, depth, pool_.size());
  int64_t tasks = 0, counts[kInputs] = {};
  for (const Linear& job : jobs) {
    const Input input = input_of(tile_kind(*job.weight));
    int64_t& count = counts[static_cast<int>(input)];
    if (count == 0) count = cut_blocks(w.blocks[static_cast<int>(input)], 0, rows, block_rows(k_, input));
    tasks += panel_count(job.weight->rows);
  }
  const bool packs = rows > 1 || counts[static_cast<int>(Input::f32)] == 0;
  for_tasks(counts[0] + counts[1] + counts[2], packs ? rows * depth : 0, [&](int64_t i, int worker) {
    int input = 0;
    for (; i >= counts[input]; ++input) i -= counts[input];
    RowBlock& block = w.blocks[input][i];
    std::byte* dst = w.x[input] + block.first * w.row_bytes[input];
    const float* from[kMaxTileRows];
    for (int r = 0; r < block.rows; ++r) from[r] = x.row<float>(block.first + r);
    if (static_cast<Input>(input) != Input::int8) return pack_block(k_, block, static_cast<Input>(input), from, depth, dst);
    const int8_t* quantised[kMaxTileRows];
    for (int r = 0; r < block.rows; ++r) {
      int8_t* q = w.q + (worker * kMaxTileRows + r) * depth4;
      w.scale[block.first + r] = quantise(from[r], depth, q, row_max.empty() ? nullptr : row_max.as<float>() + block.first + r);
      quantised[r] = q;
    }
    block.x = dst;
    block.scale = w.scale + block.first;
    k_.pack_int8(dst, quantised, block.rows, depth4);
  });

  const size_t smallest = panel_bytes(storage_of(*jobs[0].weight), depth);
  const int64_t group = std::max<int64_t>(1, std::min(static_cast<int64_t>(kTaskBytes / smallest), tasks / (int64_t{4} * pool_.size())));
  pool_.parallel_for((tasks + group - 1) / group, [&](int64_t task, int) {
    int64_t panel = task * group, count = std::min(group, tasks - panel);
    for (const Linear& job : jobs) {
      const Weight& weight = *job.weight;
      const TileKind kind = tile_kind(weight);
      const size_t bytes = panel_bytes(storage_of(weight), depth);
      const auto input = static_cast<int>(input_of(kind));
      const RowBlock* blocks = w.blocks[input];
      const int64_t blocks_count = counts[input];
      for (; count > 0 && panel < panel_count(weight.rows); ++panel, --count)
        for (int64_t b = 0; b < blocks_count; ++b)
          tile_to(k_, kind, tile_args(blocks[b], weight.data + static_cast<size_t>(panel) * bytes, depth),
                  job.out.row<float>(blocks[b].first) + panel * kPanel, job.out.stride[0], std::min(kPanel, weight.rows - panel * kPanel));
      panel -= std::min(panel, panel_count(weight.rows));
      if (count == 0) return;
    }
  });
}

// ---- feed-forward

/// One expert that has rows in this step; its rows are consecutive slots.
struct Group {
  const SwiGluWeights* weights;
  int64_t first_slot, rows, first_block, blocks;
  int64_t first_task;            // of gate_up
  int64_t inner, inner_offset;   // floats before its inner rows
  int64_t inner_q_offset;        // bytes before its quantised inner rows
  TileKind up_kind, down_kind;
};

struct CpuBackend::FfnScratch {
  int32_t *starts, *slot_token;
  float *slot_weight, *slot_scale, *token_scale;
  Group* groups;
  RowBlock* blocks;
  int8_t* token_q;               // [T][depth4]
  std::byte* x;                  // packed rows by slot
  float* inner;                  // packed or row-major rows by slot
  std::byte* inner_q;            // packed int8 rows by slot
  int8_t* q;                     // [workers][kMaxTileRows][inner4]

  struct Sizes { int64_t rows, depth, experts, top_k, inner, expert_inner; };
  FfnScratch(Scratch& s, const KernelTable& k, const Sizes& n, int workers) {
    const int64_t routed = n.rows * n.top_k, slots = routed + n.rows;
    const int64_t groups_most = n.experts + 1, inner_most = std::max(n.inner, n.expert_inner);
    const int min_rows = std::min({k.float_rows, k.int8_rows, k.bf16_rows > 0 ? k.bf16_rows : k.float_rows});
    starts = s.take<int32_t>(n.experts + 1);
    slot_token = s.take<int32_t>(slots);
    slot_weight = s.take<float>(slots);
    slot_scale = s.take<float>(slots);
    token_scale = s.take<float>(n.rows);
    groups = s.take<Group>(groups_most);
    blocks = s.take<RowBlock>(slots / min_rows + groups_most);
    token_q = s.take<int8_t>(n.rows * round4(n.depth));
    x = s.take<std::byte>(slots * n.depth * static_cast<int64_t>(sizeof(float)) + slots * 4);
    inner = s.take<float>(routed * n.expert_inner + n.rows * n.inner);
    inner_q = s.take<std::byte>(routed * packed_int8(n.expert_inner) + n.rows * packed_int8(n.inner));
    q = s.take<int8_t>(workers * kMaxTileRows * round4(inner_most));
  }
};

struct CpuBackend::FfnCall {
  FfnScratch w;
  Tensor x;
  int64_t groups = 0, blocks = 0, tasks = 0;
  int64_t routed = 0;  // slots before those of the shared expert
  bool quantised_x = false, quantised_inner = false;

  /// The group that owns a block or a gate_up task.
  const Group& of_block(int64_t block) const {
    return *(std::upper_bound(w.groups, w.groups + groups, block, [](int64_t b, const Group& g) { return b < g.first_block; }) - 1);
  }
  const Group& of_task(int64_t task) const {
    return *(std::upper_bound(w.groups, w.groups + groups, task, [](int64_t t, const Group& g) { return t < g.first_task; }) - 1);
  }

  void add_group(const KernelTable& k, const SwiGluWeights& weights, int64_t first_slot, int64_t rows) {
    Group g{&weights, first_slot, rows, blocks, 0, tasks, weights.gate_up.rows / 2, 0, 0, tile_kind(weights.gate_up), tile_kind(weights.down)};
    if (groups > 0) {
      const Group& last = w.groups[groups - 1];
      g.inner_offset = last.inner_offset + last.rows * last.inner;
      g.inner_q_offset = last.inner_q_offset + last.rows * packed_int8(last.inner);
    }
    const int max_rows = std::min(block_rows(k, input_of(g.up_kind)), block_rows(k, input_of(g.down_kind)));
    quantised_x = quantised_x || input_of(g.up_kind) == Input::int8;
    quantised_inner = quantised_inner || input_of(g.down_kind) == Input::int8;
    g.blocks = cut_blocks(w.blocks + blocks, first_slot, rows, max_rows);
    blocks += g.blocks;
    tasks += panel_count(g.inner);
    w.groups[groups++] = g;
  }

  /// Stable counting sort of (token, choice) by expert, then the shared expert over all tokens.
  void plan(const KernelTable& k, const Routing& routing, std::span<const SwiGluWeights> experts, const SwiGluWeights* shared) {
    const int64_t rows = x.dim[0], top_k = routing.expert.empty() ? 0 : routing.expert.dim[1];
    std::fill(w.starts, w.starts + experts.size() + 1, 0);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t c = 0; c < top_k; ++c)
        if (const int32_t e = routing.expert.row<int32_t>(t)[c]; e >= 0) ++w.starts[e + 1];
    for (size_t e = 0; e < experts.size(); ++e) w.starts[e + 1] += w.starts[e];
    routed = w.starts[experts.size()];
    for (size_t e = 0; e < experts.size() && top_k > 0; ++e)
      if (w.starts[e + 1] > w.starts[e]) add_group(k, experts[e], w.starts[e], w.starts[e + 1] - w.starts[e]);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t c = 0; c < top_k; ++c) {
        const int32_t e = routing.expert.row<int32_t>(t)[c];
        if (e < 0) continue;
        const int32_t slot = w.starts[e]++;
        w.slot_token[slot] = static_cast<int32_t>(t);
        w.slot_weight[slot] = routing.weight.row<float>(t)[c];
      }
    if (!shared) return;
    for (int64_t t = 0; t < rows; ++t) {
      w.slot_token[routed + t] = static_cast<int32_t>(t);
      w.slot_weight[routed + t] = 1.0f;
    }
    add_group(k, *shared, routed, rows);
  }
};

void CpuBackend::do_ffn(Tensor out, Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts, const SwiGluWeights* shared,
                        const InnerMax* inner_max) {
  const int64_t rows = x.dim[0], depth = x.dim[1], depth4 = round4(depth);
  const int64_t top_k = routing.expert.empty() ? 0 : routing.expert.dim[1];
  int64_t expert_inner = 0;
  for (const SwiGluWeights& e : experts) expert_inner = std::max(expert_inner, e.gate_up.rows / 2);
  Scratch scratch(block_);
  FfnCall call{.w = FfnScratch(scratch, k_, {rows, depth, static_cast<int64_t>(experts.size()), top_k, shared ? shared->gate_up.rows / 2 : 0, expert_inner},
                               pool_.size()), .x = x};
  call.plan(k_, routing, experts, shared);
  const FfnScratch& w = call.w;
  if (call.quantised_x)
    for_rows(rows, depth, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) w.token_scale[t] = k_.quantise(x.row<float>(t), depth, w.token_q + t * depth4);
    });
  const int64_t slots = call.routed + (shared ? rows : 0);
  for_tasks(call.blocks, rows > 1 ? slots * depth : 0, [&](int64_t b, int) {
    RowBlock& block = w.blocks[b];
    std::byte* dst = w.x + block.first * depth * static_cast<int64_t>(sizeof(float)) + block.first * 4;
    const int32_t* tokens = w.slot_token + block.first;
    const Input input = input_of(call.of_block(b).up_kind);
    if (input != Input::int8) {
      const float* from[kMaxTileRows];
      for (int r = 0; r < block.rows; ++r) from[r] = x.row<float>(tokens[r]);
      return pack_block(k_, block, input, from, depth, dst);
    }
    const int8_t* from[kMaxTileRows];
    for (int r = 0; r < block.rows; ++r) {
      from[r] = w.token_q + tokens[r] * depth4;
      w.slot_scale[block.first + r] = w.token_scale[tokens[r]];
    }
    block.x = dst;
    block.scale = w.slot_scale + block.first;
    k_.pack_int8(dst, from, block.rows, depth4);
  });
  gate_up(call);
  if (inner_max) agree_on_inner(call, *inner_max);
  if (call.quantised_inner) quantise_inner(call, inner_max != nullptr);
  down(call, out);
}

/// One task is 32 inner columns of one expert: its gate panel, its up panel and silu(gate) * up, for all rows of the expert. The result is
/// stored as the down product reads it: interleaved by block, or row-major where it will be quantised.
void CpuBackend::gate_up(FfnCall& call) {
  const FfnScratch& w = call.w;
  const int64_t depth = call.x.dim[1];
  pool_.parallel_for(call.tasks, [&](int64_t task, int) {
    const Group& g = call.of_task(task);
    const int64_t panel = task - g.first_task, column = panel * kPanel, cols = std::min(kPanel, g.inner - column);
    const size_t bytes = panel_bytes(storage_of(g.weights->gate_up), depth);
    const std::byte* gate_panel = g.weights->gate_up.data + static_cast<size_t>(2 * panel) * bytes;
    const auto tile = k_.tile[static_cast<int>(g.up_kind)];
    alignas(64) float gate[kMaxTileRows * kPanel], up[kMaxTileRows * kPanel];
    for (int64_t b = g.first_block; b < g.first_block + g.blocks; ++b) {
      const RowBlock& block = w.blocks[b];
      TileArgs args = tile_args(block, gate_panel, depth);
      args.out_stride = kPanel;
      args.out = gate;
      tile(args);
      args.panel = gate_panel + bytes;
      args.out = up;
      tile(args);
      k_.silu_mul(gate, gate, up, int64_t{block.rows} * kPanel);
      float* inner = w.inner + g.inner_offset + (block.first - g.first_slot) * g.inner;
      const float* rows[kMaxTileRows];
      for (int r = 0; r < block.rows; ++r) rows[r] = gate + r * kPanel;
      switch (input_of(g.down_kind)) {
        case Input::int8:
          for (int r = 0; r < block.rows; ++r) std::memcpy(inner + r * g.inner + column, rows[r], static_cast<size_t>(cols) * sizeof(float));
          break;
        case Input::bf16: k_.pack_bf16(reinterpret_cast<uint32_t*>(inner) + column / 2 * block.rows, rows, block.rows, cols); break;
        case Input::f32: k_.pack_f32(inner + column * block.rows, rows, block.rows, cols); break;
      }
    }
  });
  for (int64_t i = 0; i < call.groups; ++i) {
    const Group& g = w.groups[i];
    for (int64_t b = g.first_block; b < g.first_block + g.blocks; ++b)
      w.blocks[b].x = w.inner + g.inner_offset + (w.blocks[b].first - g.first_slot) * g.inner;
  }
}

/// Leaves the largest magnitudes in slot_scale, where quantise_inner replaces them by scales.
void CpuBackend::agree_on_inner(FfnCall& call, const InnerMax& inner_max) {
  const FfnScratch& w = call.w;
  int64_t slots = 0, shared = 0;
  for (int64_t i = 0; i < call.groups; ++i) {
    const Group& g = w.groups[i];
    slots += g.rows;
    if (g.first_slot >= call.routed) shared += g.rows;
    if (input_of(g.down_kind) != Input::int8) {
      std::fill(w.slot_scale + g.first_slot, w.slot_scale + g.first_slot + g.rows, 0.0f);
      continue;
    }
    const float* inner = w.inner + g.inner_offset;
    for_rows(g.rows, g.inner, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) w.slot_scale[g.first_slot + r] = largest_magnitude(inner + r * g.inner, g.inner);
    });
  }
  const auto routed = static_cast<size_t>(slots - shared);
  inner_max({w.slot_scale, routed}, {w.slot_scale + routed, static_cast<size_t>(shared)});
}

void CpuBackend::quantise_inner(FfnCall& call, bool agreed) {
  const FfnScratch& w = call.w;
  int64_t elements = 0;
  for (int64_t i = 0; i < call.groups; ++i) elements += w.groups[i].rows * w.groups[i].inner;
  for_tasks(call.blocks, elements, [&](int64_t b, int worker) {
    const Group& g = call.of_block(b);
    if (input_of(g.down_kind) != Input::int8) return;
    RowBlock& block = w.blocks[b];
    const int64_t inner4 = round4(g.inner);
    const int8_t* quantised[kMaxTileRows];
    for (int r = 0; r < block.rows; ++r) {
      int8_t* q = w.q + (worker * kMaxTileRows + r) * inner4;
      float& scale = w.slot_scale[block.first + r];
      const float whole = scale;
      scale = quantise(static_cast<const float*>(block.x) + r * g.inner, g.inner, q, agreed ? &whole : nullptr);
      quantised[r] = q;
    }
    std::byte* dst = w.inner_q + g.inner_q_offset + (block.first - g.first_slot) * packed_int8(g.inner);
    k_.pack_int8(dst, quantised, block.rows, inner4);
    block.x = dst;
    block.scale = w.slot_scale + block.first;
  });
}

/// One task is 32 output columns over every expert in ascending order, the shared one last: the sum per token needs no further pass.
void CpuBackend::down(FfnCall& call, Tensor out) {
  const FfnScratch& w = call.w;
  pool_.parallel_for(panel_count(out.dim[1]), [&](int64_t panel, int) {
    const int64_t column = panel * kPanel, cols = std::min(kPanel, out.dim[1] - column);
    for (int64_t t = 0; t < out.dim[0]; ++t) std::memset(out.row<float>(t) + column, 0, static_cast<size_t>(cols) * sizeof(float));
    alignas(64) float y[kMaxTileRows * kPanel];
    for (const Group* g = w.groups; g != w.groups + call.groups; ++g) {
      const std::byte* weights = g->weights->down.data + static_cast<size_t>(panel) * panel_bytes(storage_of(g->weights->down), g->inner);
      for (int64_t b = g->first_block; b < g->first_block + g->blocks; ++b) {
        const RowBlock& block = w.blocks[b];
        TileArgs args = tile_args(block, weights, g->inner);
        args.out = y;
        args.out_stride = kPanel;
        k_.tile[static_cast<int>(g->down_kind)](args);
        for (int r = 0; r < block.rows; ++r)
          k_.add_scaled(out.row<float>(w.slot_token[block.first + r]) + column, y + r * kPanel, w.slot_weight[block.first + r], cols);
      }
    }
  });
}

size_t CpuBackend::linear_bytes(const StepLimits& limits) const {
  Scratch linear, feed;
  LinearScratch(linear, k_, limits.max_rows, limits.max_width, pool_.size());
  FfnScratch(feed, k_, {limits.max_rows, limits.hidden_size > 0 ? limits.hidden_size : limits.max_width, limits.max_experts, limits.max_top_k, limits.max_inner,
                        limits.max_expert_inner > 0 ? limits.max_expert_inner : limits.max_inner}, pool_.size());
  return std::max(linear.used(), feed.used());
}

}  // namespace conclave::cpu
