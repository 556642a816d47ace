#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "backend/cpu/attention_scratch.h"
#include "backend/cpu/pack.h"
#include "core/error.h"

namespace conclave::cpu {
namespace {

void check_floating(const Weight& w) {
  if (tile_kind(w) == TileKind::int8_token)
    throw Error(Error::Kind::unsupported, "MLA's kv_b with int8 activations is not offered; keep kv_b out of the quantised tensors");
}

/// out [n][panels * 32] = rows times panels [first, first + panels); `packed` holds one row block.
void multiply(const KernelTable& k, const Weight& w, int64_t first, int64_t panels, std::span<const float* const> rows, float* packed, float* out) {
  const size_t bytes = panel_bytes(w.format, w.cols);
  const auto n = static_cast<int64_t>(rows.size());
  const int64_t blocks = (n + k.float_rows - 1) / k.float_rows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = n * b / blocks, count = n * (b + 1) / blocks - begin;
    k.pack_f32(packed, rows.data() + begin, static_cast<int>(count), w.cols);
    for (int64_t p = 0; p < panels; ++p)
      k.tile[static_cast<int>(tile_kind(w))]({.panel = w.data + static_cast<size_t>(first + p) * bytes, .x = packed, .x_scale = nullptr,
                                              .depth = w.cols, .rows = static_cast<int>(count),
                                              .out = out + begin * panels * kPanel + p * kPanel, .out_stride = panels * kPanel});
  }
}

/// Panels of kv_b that hold the rows of one head, and where in them the head begins.
struct HeadPanels {
  int64_t first, count, offset;
  HeadPanels(const MlaSpec& spec, int64_t head) {
    const int64_t size = spec.nope_dim + spec.v_dim, begin = head * size;
    first = begin / kPanel;
    count = (begin + size + kPanel - 1) / kPanel - first;
    offset = begin - first * kPanel;
  }
  static int64_t most(const MlaSpec& spec) { return panel_count(spec.nope_dim + spec.v_dim) + 1; }
};

}  // namespace

struct CpuBackend::MlaScratch {
  const MlaSpec& spec;
  int64_t rows, workers_floats;
  float* floats;
  const void** pointers;
  int32_t* visible;
  float *q_latent, *o_latent;    // [kAbsorbedRows, H, ...]
  AttentionScratch attention;

  struct Worker {
    float *packed, *product;     // one row block; [64][widest product]
    float *latents, *keys;       // [64, rank + rope], [64, nope + rope]
    float* q;                    // [rows, nope + rope]
    StateRows total, span;
    const void **key_pointers, **value_pointers;
    int32_t* visible;
  };

  int64_t latent_width() const { return spec.kv_lora_rank + spec.rope_dim; }
  int64_t product_floats() const {
    return kKeyTile * kPanel * std::max({HeadPanels::most(spec), panel_count(spec.kv_lora_rank), panel_count(spec.v_dim)});
  }
  int64_t packed_floats() const { return kMaxTileRows * std::max<int64_t>(spec.kv_lora_rank, spec.nope_dim); }

  MlaScratch(Scratch& s, const MlaSpec& mla, int64_t max_rows, int64_t sequences, int64_t context, int workers)
      : spec(mla), rows(max_rows),
        workers_floats(packed_floats() + product_floats() + kKeyTile * (latent_width() + spec.nope_dim + spec.rope_dim) +
                       rows * (spec.nope_dim + spec.rope_dim) + 2 * StateRows::floats(rows, spec.v_dim)),
        floats(s.take<float>(workers * workers_floats)), pointers(s.take<const void*>(int64_t{workers} * 2 * kKeyTile)),
        visible(s.take<int32_t>(workers * rows)), q_latent(s.take<float>(kAbsorbedRows * spec.num_heads * latent_width())),
        o_latent(s.take<float>(int64_t{kAbsorbedRows} * spec.num_heads * spec.kv_lora_rank)),
        attention(s, {kAbsorbedRows, latent_width(), spec.kv_lora_rank, kAbsorbedRows, spec.num_heads, sequences, context}, workers) {}

  Worker worker(int index) const {
    Worker w{};
    float* next = floats + index * workers_floats;
    const auto cut = [&next](int64_t count) { return std::exchange(next, next + count); };
    const int64_t key_width = spec.nope_dim + spec.rope_dim;
    w.packed = cut(packed_floats()), w.product = cut(product_floats());
    w.latents = cut(kKeyTile * latent_width()), w.keys = cut(kKeyTile * key_width), w.q = cut(rows * key_width);
    w.total = StateRows(cut(StateRows::floats(rows, spec.v_dim)), rows, spec.v_dim);
    w.span = StateRows(cut(StateRows::floats(rows, spec.v_dim)), rows, spec.v_dim);
    w.key_pointers = pointers + int64_t{index} * 2 * kKeyTile;
    w.value_pointers = w.key_pointers + kKeyTile;
    w.visible = visible + index * rows;
    return w;
  }
};

namespace {

/// Cached positions [first, first + n) of a sequence as f32 rows.
void read_latents(const KernelTable& k, const Tensor& cache, const int32_t* block_table, int block_size, int64_t first, int64_t n, float* to) {
  for (int64_t j = 0; j < n; ++j) {
    const int64_t at = block_table[(first + j) / block_size] * cache.stride[0] + (first + j) % block_size * cache.stride[1];
    k.widen[static_cast<int>(kv_type(cache.dtype))](to + j * cache.dim[2], at_element(cache, at), cache.dim[2]);
  }
}

}  // namespace

/// Plain form of one head over all prompt rows of a sequence: keys and values of each tile of positions are rebuilt from the cache once.
void CpuBackend::mla_head(const MlaCall& call, const SequenceRows& s, int64_t rows, int64_t head, MlaScratch& scratch, int worker) {
  const MlaSpec& spec = call.spec;
  const MlaScratch::Worker w = scratch.worker(worker);
  const HeadPanels panels(spec, head);
  const int64_t key_width = spec.nope_dim + spec.rope_dim, latent_width = scratch.latent_width(), stride = panels.count * kPanel;
  const int64_t first_position = s.context_len - s.num_rows, end = first_position + rows;
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(w.q + r * key_width, call.q.row<float>(s.first_row + r) + head * call.q.stride[1], static_cast<size_t>(key_width) * sizeof(float));
  w.total.clear(rows);
  for (int64_t first = 0; first < end; first += kKeyTile) {
    if (first % kSpan == 0) w.span.clear(rows);
    const int64_t n = std::min<int64_t>(kKeyTile, end - first);
    read_latents(k_, call.cache, s.block_table, call.block_size, first, n, w.latents);
    const float* latent_rows[kKeyTile];
    for (int64_t j = 0; j < n; ++j) latent_rows[j] = w.latents + j * latent_width;
    multiply(k_, call.up.kv_b, panels.first, panels.count, {latent_rows, static_cast<size_t>(n)}, w.packed, w.product);
    for (int64_t j = 0; j < n; ++j) {
      const float* up = w.product + j * stride + panels.offset;
      std::memcpy(w.keys + j * key_width, up, static_cast<size_t>(spec.nope_dim) * sizeof(float));
      std::memcpy(w.keys + j * key_width + spec.nope_dim, latent_rows[j] + spec.kv_lora_rank, static_cast<size_t>(spec.rope_dim) * sizeof(float));
      w.key_pointers[j] = w.keys + j * key_width;
      w.value_pointers[j] = up + spec.nope_dim;
    }
    for (int64_t r = 0; r < rows; ++r) w.visible[r] = static_cast<int32_t>(std::clamp<int64_t>(first_position + r + 1 - first, 0, n));
    k_.attend[static_cast<int>(KvType::f32)]({.q = w.q, .q_stride = key_width, .rows = static_cast<int>(rows), .num_keys = static_cast<int>(n),
        .key_dim = static_cast<int>(key_width), .value_dim = spec.v_dim, .keys = w.key_pointers, .values = w.value_pointers,
        .visible = w.visible, .scale = spec.softmax_scale, .top = w.span.top, .sum = w.span.sum, .out = w.span.out, .out_stride = w.span.stride});
    if ((first + kKeyTile) % kSpan != 0 && first + kKeyTile < end) continue;
    for (int64_t r = std::max<int64_t>(0, first / kSpan * kSpan - first_position); r < rows; ++r)
      k_.merge(w.total.row(r), w.span.row(r), spec.v_dim);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < spec.v_dim; ++d)
      call.out.row<float>(s.first_row + r)[head * call.out.stride[1] + d] = w.total.out[r * w.total.stride + d] / w.total.sum[r];
}

/// Absorbed form of up to kAbsorbedRows generated tokens: queries into the latent space, attention over the latents, values out of it.
void CpuBackend::mla_absorbed(const MlaCall& call, std::span<const int32_t> rows, std::span<const AttentionItem> items, MlaScratch& scratch) {
  const MlaSpec& spec = call.spec;
  const auto n = static_cast<int64_t>(rows.size());
  const int64_t width = scratch.latent_width(), rank = spec.kv_lora_rank;
  const Tensor q_latent = view(scratch.q_latent, {n, spec.num_heads, width}), o_latent = view(scratch.o_latent, {n, spec.num_heads, rank});
  pool_.parallel_for(spec.num_heads, [&](int64_t h, int worker) {
    const MlaScratch::Worker w = scratch.worker(worker);
    const float* from[kAbsorbedRows];
    for (int64_t i = 0; i < n; ++i) from[i] = call.q.row<float>(rows[static_cast<size_t>(i)]) + h * call.q.stride[1];
    const Weight& up = call.up.k_up_t[static_cast<size_t>(h)];
    const int64_t panels = panel_count(rank);
    multiply(k_, up, 0, panels, {from, static_cast<size_t>(n)}, w.packed, w.product);
    for (int64_t i = 0; i < n; ++i) {
      float* to = q_latent.row<float>(i) + h * width;
      std::memcpy(to, w.product + i * panels * kPanel, static_cast<size_t>(rank) * sizeof(float));
      std::memcpy(to + rank, from[i] + spec.nope_dim, static_cast<size_t>(spec.rope_dim) * sizeof(float));
    }
  });
  attend_paged({.out = o_latent, .q = q_latent, .k = call.cache, .v = call.cache, .kv_head_stride = 0, .position_stride = call.cache.stride[1],
                .block_size = call.block_size, .heads_per_task = kHeadTile, .head_tasks = (spec.num_heads + kHeadTile - 1) / kHeadTile,
                .tasks_per_kv_head = 1, .value_dim = spec.kv_lora_rank, .scale = spec.softmax_scale, .items = items.data(),
                .num_items = static_cast<int64_t>(items.size())}, scratch.attention);
  pool_.parallel_for(spec.num_heads, [&](int64_t h, int worker) {
    const MlaScratch::Worker w = scratch.worker(worker);
    const float* from[kAbsorbedRows];
    for (int64_t i = 0; i < n; ++i) from[i] = o_latent.row<float>(i) + h * rank;
    const int64_t panels = panel_count(spec.v_dim);
    multiply(k_, call.up.v_up[static_cast<size_t>(h)], 0, panels, {from, static_cast<size_t>(n)}, w.packed, w.product);
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(call.out.row<float>(rows[static_cast<size_t>(i)]) + h * call.out.stride[1], w.product + i * panels * kPanel,
                  static_cast<size_t>(spec.v_dim) * sizeof(float));
  });
}

void CpuBackend::do_mla_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const MlaSpec& spec, const MlaUpWeights& up) {
  check_floating(up.kv_b);
  for (const Weight& w : up.k_up_t) check_floating(w);
  for (const Weight& w : up.v_up) check_floating(w);
  Scratch memory(block_);
  MlaScratch scratch(memory, spec, limits_.max_rows, limits_.max_sequences, limits_.max_context, pool_.size());
  const MlaCall call{out, q, kv.k, batch.block_size, spec, up};
  const auto plain_rows = [](const SequenceRows& s) {
    return std::clamp<int64_t>(int64_t{s.prompt_len} - (s.context_len - s.num_rows), 0, s.num_rows);
  };
  const auto sequences = static_cast<int64_t>(batch.sequences.size());
  if (std::any_of(batch.sequences.begin(), batch.sequences.end(), [&](const SequenceRows& s) { return plain_rows(s) > 0; }))
    pool_.parallel_for(sequences * spec.num_heads, [&](int64_t task, int worker) {
      const SequenceRows& s = batch.sequences[static_cast<size_t>(task / spec.num_heads)];
      if (const int64_t rows = plain_rows(s); rows > 0) mla_head(call, s, rows, task % spec.num_heads, scratch, worker);
    });

  int32_t rows[kAbsorbedRows];
  size_t num_rows = 0, num_items = 0;
  const auto flush = [&] {
    if (num_rows > 0) mla_absorbed(call, {rows, num_rows}, {scratch.attention.items, num_items}, scratch);
    num_rows = num_items = 0;
  };
  for (const SequenceRows& s : batch.sequences)
    for (auto i = static_cast<int32_t>(plain_rows(s)); i < s.num_rows; ++i) {
      rows[num_rows] = s.first_row + i;
      scratch.attention.items[num_items++] = {s.block_table, s.context_len - s.num_rows + i, 1, static_cast<int32_t>(num_rows)};
      if (++num_rows == kAbsorbedRows) flush();
    }
  flush();
}

size_t CpuBackend::attention_bytes(const StepLimits& limits) const {
  Scratch gqa, mla;
  const int64_t heads = std::max(limits.max_heads, 1);
  const int64_t head_dim = limits.max_head_dim > 0 ? limits.max_head_dim : limits.max_width / heads;
  AttentionScratch(gqa, {limits.max_rows, head_dim, head_dim, limits.max_rows, heads, limits.max_sequences, limits.max_context}, pool_.size());
  if (limits.mla) MlaScratch(mla, *limits.mla, limits.max_rows, limits.max_sequences, limits.max_context, pool_.size());
  return std::max(gqa.used(), mla.used());
}

}  // namespace conclave::cpu
