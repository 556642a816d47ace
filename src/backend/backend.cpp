#include "backend/backend.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "backend/kv_cache.h"
#include "core/error.h"

namespace conclave {
namespace {

[[noreturn]] void fail(std::string_view op, const std::string& what) {
  throw Error(Error::Kind::internal, fmt::format("{}: {}", op, what));
}

/// Any dimension given as -1 matches everything.
void check_shape(std::string_view op, std::string_view name, const Tensor& t, std::initializer_list<int64_t> wanted,
                 DType dtype = DType::f32) {
  bool same = t.rank == wanted.size() && t.dtype == dtype && (t.rank == 0 || t.stride[t.rank - 1u] == 1 || t.dim[t.rank - 1u] <= 1);
  size_t i = 0;
  bool none = false;
  for (const int64_t dim : wanted) {
    same = same && (dim < 0 || t.dim[i] == dim);
    none = none || (i < t.rank && t.dim[i] == 0);
    ++i;
  }
  if (!same || (t.empty() && !none))
    fail(op, fmt::format("{} is {}{}, wanted [{}] {}", name, t.empty() ? "empty " : "", describe(t),
                         fmt::join(wanted.begin(), wanted.end(), ", "), name_of(dtype)));
}

void check_weight(std::string_view op, const Weight& w, Weight::Layout layout, int64_t rows, int64_t cols) {
  if (!w.data || w.layout != layout || (rows >= 0 && w.rows != rows) || w.cols != cols)
    fail(op, fmt::format("weight is [{}, {}] in layout {}, wanted [{}, {}] in layout {}", w.rows, w.cols, static_cast<int>(w.layout), rows,
                         cols, static_cast<int>(layout)));
}

bool holds_kv(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::i8; }

/// Rows of the sequences lie inside the step without overlap, and every position has a block inside the cache.
void check_batch(std::string_view op, const BatchView& batch, const Tensor& cache) {
  if (batch.block_size <= 0 || !holds_kv(cache.dtype) || cache.empty()) fail(op, fmt::format("cache {} with block size {}", describe(cache), batch.block_size));
  int64_t next = 0;
  for (const SequenceRows& s : batch.sequences) {
    if (s.first_row < next || s.num_rows < 0 || s.first_row + int64_t{s.num_rows} > batch.num_rows || s.context_len < s.num_rows || !s.block_table)
      fail(op, fmt::format("sequence rows [{}, +{}) with context {} in a step of {} rows", s.first_row, s.num_rows, s.context_len, batch.num_rows));
    next = s.first_row + int64_t{s.num_rows};
    for (int64_t i = 0; i * batch.block_size < s.context_len; ++i)
      if (s.block_table[i] < 0 || s.block_table[i] >= cache.dim[0])
        fail(op, fmt::format("block {} of a cache of {} blocks", s.block_table[i], cache.dim[0]));
  }
}

/// The overflow rule of an f16 cache, in one place for every backend. NaN stays NaN.
void saturate(const KvLayer& kv, const Tensor& rows) {
  constexpr float kMostF16 = 65504.0f;
  if (!kv.saturate || kv.k.dtype != DType::f16) return;
  const int64_t heads = rows.rank == 3 ? rows.dim[1] : 1, width = rows.dim[rows.rank - 1u];
  for (int64_t row = 0; row < rows.dim[0]; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      float* values = rows.row<float>(row) + head * (rows.rank == 3 ? rows.stride[1] : 0);
      for (int64_t i = 0; i < width; ++i)
        if (std::fabs(values[i]) > kMostF16) values[i] = std::copysign(kMostF16, values[i]);
    }
  }
}

void check_gqa_cache(std::string_view op, const KvLayer& kv, const BatchView& batch, int64_t kv_heads, int64_t head_dim) {
  check_batch(op, batch, kv.k);
  const int64_t tiles = kv_tiles(batch.block_size), blocks = kv.k.dim[0];
  check_shape(op, "k cache", kv.k, {-1, kv_heads, tiles, kKvTile * kv_width(head_dim)}, kv.k.dtype);
  check_shape(op, "v cache", kv.v, {blocks, kv_heads, tiles, kKvTile * kv_width(head_dim)}, kv.k.dtype);
  if (kv.k.dtype != DType::i8) return;
  check_shape(op, "k scales", kv.k_scale, {blocks, kv_heads, kKvTile * tiles});
  check_shape(op, "v scales", kv.v_scale, {blocks, kv_heads, kKvTile * tiles});
}

void check_latent_cache(std::string_view op, const KvLayer& kv, const BatchView& batch, int64_t width) {
  check_batch(op, batch, kv.k);
  check_shape(op, "cache", kv.k, {-1, batch.block_size, width}, kv.k.dtype);
  if (kv.k.dtype == DType::i8) check_shape(op, "scales", kv.k_scale, {kv.k.dim[0], batch.block_size, 2});
}

void check_ffn_weights(const SwiGluWeights& w, int64_t width) {
  if (w.gate_up.rows % 2 != 0) fail("ffn", fmt::format("gate_up has {} rows", w.gate_up.rows));
  check_weight("ffn", w.gate_up, Weight::Layout::paired, -1, width);
  check_weight("ffn", w.down, Weight::Layout::panels, width, w.gate_up.rows / 2);
}

}  // namespace

void Backend::embed(Tensor out, const Weight& table, Tensor ids) {
  check_shape("embed", "ids", ids, {-1}, DType::i32);
  check_shape("embed", "out", out, {ids.dim[0], table.cols});
  check_weight("embed", table, table.layout == Weight::Layout::table ? Weight::Layout::table : Weight::Layout::panels, -1, out.dim[1]);
  for (int64_t t = 0; t < ids.dim[0]; ++t)
    if (const int32_t id = ids.as<int32_t>()[t]; id < -1 || id >= table.rows)
      throw Error(Error::Kind::bad_input, fmt::format("token id {} is outside the model's vocabulary of {} rows", id, table.rows));
  if (ids.dim[0] > 0) do_embed(out, table, ids);
}

void Backend::rms_norm(Tensor out, Tensor x, Tensor gain, float eps) {
  check_shape("rms_norm", "x", x, {-1, -1});
  check_shape("rms_norm", "out", out, {x.dim[0], x.dim[1]});
  check_shape("rms_norm", "gain", gain, {x.dim[1]});
  if (x.dim[0] > 0) do_add_rms_norm(out, x, Tensor{}, gain, eps);
}

void Backend::add_rms_norm(Tensor out, Tensor residual, Tensor delta, Tensor gain, float eps) {
  check_shape("add_rms_norm", "residual", residual, {-1, -1});
  check_shape("add_rms_norm", "delta", delta, {residual.dim[0], residual.dim[1]});
  check_shape("add_rms_norm", "out", out, {residual.dim[0], residual.dim[1]});
  check_shape("add_rms_norm", "gain", gain, {residual.dim[1]});
  if (residual.dim[0] > 0) do_add_rms_norm(out, residual, delta, gain, eps);
}

void Backend::add(Tensor residual, Tensor delta) {
  check_shape("add", "residual", residual, {-1, -1});
  check_shape("add", "delta", delta, {residual.dim[0], residual.dim[1]});
  if (residual.dim[0] > 0) do_add(residual, delta);
}

void Backend::gather_rows(Tensor out, Tensor x, std::span<const int32_t> index) {
  check_shape("gather_rows", "x", x, {-1, -1});
  check_shape("gather_rows", "out", out, {static_cast<int64_t>(index.size()), x.dim[1]});
  for (const int32_t i : index)
    if (i < 0 || i >= x.dim[0]) fail("gather_rows", fmt::format("row {} of {}", i, x.dim[0]));
  if (!index.empty()) do_gather_rows(out, x, index);
}

void Backend::linear(std::span<const Linear> jobs, Tensor x, Tensor row_max) {
  check_shape("linear", "x", x, {-1, -1});
  if (!row_max.empty()) check_shape("linear", "row_max", row_max, {x.dim[0]});
  for (const Linear& job : jobs) {
    if (!job.weight) fail("linear", "a job has no weight");
    check_weight("linear", *job.weight, Weight::Layout::panels, -1, x.dim[1]);
    check_shape("linear", "out", job.out, {x.dim[0], job.weight->rows});
  }
  if (x.dim[0] > 0 && !jobs.empty()) do_linear(jobs, x, row_max);
}

void Backend::rope(Tensor x, const RopeAngles& angles, RopePairs pairs) {
  check_shape("rope", "x", x, {-1, -1, -1});
  if (x.dim[2] % 2 != 0) fail("rope", fmt::format("cannot rotate pairs of an odd width {}", x.dim[2]));
  check_shape("rope", "cos", angles.cos, {x.dim[0], x.dim[2] / 2});
  check_shape("rope", "sin", angles.sin, {x.dim[0], x.dim[2] / 2});
  if (x.dim[0] > 0) do_rope(x, angles, pairs);
}

void Backend::store_kv(const KvLayer& kv, Tensor k, Tensor v, const BatchView& batch) {
  check_shape("store_kv", "k", k, {batch.num_rows, -1, -1});
  check_shape("store_kv", "v", v, {k.dim[0], k.dim[1], k.dim[2]});
  check_gqa_cache("store_kv", kv, batch, k.dim[1], k.dim[2]);
  saturate(kv, k), saturate(kv, v);
  if (!batch.sequences.empty()) do_store_kv(kv, k, v, batch);
}

void Backend::attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const GqaSpec& spec) {
  if (spec.num_kv_heads <= 0 || spec.num_heads % spec.num_kv_heads != 0)
    fail("attention", fmt::format("{} heads cannot share {} kv heads", spec.num_heads, spec.num_kv_heads));
  check_shape("attention", "q", q, {batch.num_rows, spec.num_heads, spec.head_dim});
  check_shape("attention", "out", out, {batch.num_rows, spec.num_heads, spec.head_dim});
  check_gqa_cache("attention", kv, batch, spec.num_kv_heads, spec.head_dim);
  if (!batch.sequences.empty()) do_attention(out, q, kv, batch, spec);
}

void Backend::store_latent(const KvLayer& kv, Tensor latent, Tensor k_rope, const BatchView& batch) {
  check_shape("store_latent", "latent", latent, {batch.num_rows, -1});
  check_shape("store_latent", "k_rope", k_rope, {batch.num_rows, -1});
  check_latent_cache("store_latent", kv, batch, latent.dim[1] + k_rope.dim[1]);
  saturate(kv, latent), saturate(kv, k_rope);
  if (!batch.sequences.empty()) do_store_latent(kv, latent, k_rope, batch);
}

void Backend::mla_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const MlaSpec& spec, const MlaUpWeights& up) {
  constexpr std::string_view op = "mla_attention";
  const auto heads = static_cast<size_t>(spec.num_heads);
  check_shape(op, "q", q, {batch.num_rows, spec.num_heads, spec.nope_dim + spec.rope_dim});
  check_shape(op, "out", out, {batch.num_rows, spec.num_heads, spec.v_dim});
  check_latent_cache(op, kv, batch, int64_t{spec.kv_lora_rank} + spec.rope_dim);
  check_weight(op, up.kv_b, Weight::Layout::panels, int64_t{spec.num_heads} * (spec.nope_dim + spec.v_dim), spec.kv_lora_rank);
  if (up.k_up_t.size() != heads || up.v_up.size() != heads) fail(op, fmt::format("{} and {} head weights for {} heads", up.k_up_t.size(), up.v_up.size(), heads));
  for (size_t h = 0; h < heads; ++h) {
    check_weight(op, up.k_up_t[h], Weight::Layout::panels, spec.kv_lora_rank, spec.nope_dim);
    check_weight(op, up.v_up[h], Weight::Layout::panels, spec.v_dim, spec.kv_lora_rank);
  }
  if (!batch.sequences.empty()) do_mla_attention(out, q, kv, batch, spec, up);
}

void Backend::route(const Routing& out, Tensor logits, Tensor selection_bias, const RouterSpec& spec) {
  check_shape("route", "logits", logits, {-1, spec.num_experts});
  check_shape("route", "expert", out.expert, {logits.dim[0], spec.top_k}, DType::i32);
  check_shape("route", "weight", out.weight, {logits.dim[0], spec.top_k});
  if (spec.top_k <= 0 || spec.top_k > spec.num_experts || spec.num_groups <= 0 || spec.num_experts % spec.num_groups != 0 ||
      spec.top_groups <= 0 || spec.top_groups > spec.num_groups)
    fail("route", fmt::format("top {} of {} experts, {} of {} groups", spec.top_k, spec.num_experts, spec.top_groups, spec.num_groups));
  if (spec.selection_bias) check_shape("route", "selection bias", selection_bias, {spec.num_experts});
  if (logits.dim[0] > 0) do_route(out, logits, spec.selection_bias ? selection_bias : Tensor{}, spec);
}

void Backend::ffn(Tensor out, Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts, const SwiGluWeights* shared,
                  const InnerMax* inner_max) {
  check_shape("ffn", "x", x, {-1, -1});
  check_shape("ffn", "out", out, {x.dim[0], x.dim[1]});
  const auto count = static_cast<int64_t>(experts.size());
  if (routing.expert.empty() ? !shared : experts.empty()) fail("ffn", "neither experts nor a shared feed-forward");
  if (shared) check_ffn_weights(*shared, x.dim[1]);
  for (const SwiGluWeights& expert : experts) check_ffn_weights(expert, x.dim[1]);
  if (!routing.expert.empty()) {
    check_shape("ffn", "expert", routing.expert, {x.dim[0], -1}, DType::i32);
    check_shape("ffn", "weight", routing.weight, {x.dim[0], routing.expert.dim[1]});
    for (int64_t t = 0; t < x.dim[0]; ++t)
      for (int64_t k = 0; k < routing.expert.dim[1]; ++k)
        if (const int32_t e = routing.expert.row<int32_t>(t)[k]; e < -1 || e >= count) fail("ffn", fmt::format("expert {} of {}", e, count));
  }
  if (x.dim[0] > 0) do_ffn(out, x, routing, experts, shared, inner_max);
}

}  // namespace conclave
