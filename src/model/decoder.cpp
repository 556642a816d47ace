#include "model/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "model/rope.h"

namespace conclave {
namespace {

/// The HF DeepSeek code builds q_a_layernorm and kv_a_layernorm with the class default, whatever rms_norm_eps says.
constexpr float kLatentNormEps = 1e-6f;
/// Logit rows kept at once even when fewer sequences run, so that whole prompts can be scored in few passes over the head.
constexpr int kScoringRows = 16;

const RopeSpec& rope_of(const AttentionSpec& attention) {
  return std::visit([](const auto& spec) -> const RopeSpec& { return spec.rope; }, attention);
}

/// [T, width] with each row cut into heads: [T, H, width / H].
Tensor as_heads(const Tensor& rows, int64_t heads) {
  Tensor t = rows;
  t.rank = 3;
  t.dim = {rows.dim[0], heads, rows.dim[1] / heads};
  t.stride = {rows.stride[0], t.dim[2], 1};
  return t;
}

/// Elements [begin, begin + count) of every head.
Tensor head_slice(Tensor heads, int64_t begin, int64_t count) {
  heads.data = heads.as<float>() + begin;
  heads.dim[2] = count;
  return heads;
}

/// Cuts consecutive 64-byte aligned tensors out of one buffer; with no buffer it only adds up.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  Tensor operator()(int64_t rows, int64_t cols, DType dtype = DType::f32) {
    const size_t bytes = checked_product(std::array<int64_t, 3>{rows, cols, static_cast<int64_t>(size_of(dtype))}, "activations");
    Tensor t = view(base_ ? base_ + used_ : nullptr, {rows, cols}, dtype);
    used_ += (bytes + 63) / 64 * 64;
    return t;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace

/// Buffers of one step, sized for the limits; each step uses the first rows of them.
struct Decoder::Activations {
  Buffer memory;
  Tensor ids, cos, sin;                      // [T, 1] i32, [T, rope dim / 2]
  Tensor residual, normed, delta;            // [T, D]
  Tensor q, k, v, mixed;                     // projections by head; mixed is attention's output before o_proj
  Tensor q_a, latent, k_rope;                // MLA
  Tensor router_logits, experts, weights;    // [T, E], [T, k]
  Tensor last, logits;                       // [rows, D], [rows, V]
  RopeAngles angles;
  std::vector<float> frequencies;
  float rope_factor = 1;
  int rows = 0;                              // of the step; in the last layer those that are kept
  std::vector<int32_t> kept, kept_positions; // rows of the step that are left after the last attention; empty: all
  std::vector<SequenceRows> kept_sequences;

  size_t carve(const ModelSpec& spec, const StepLimits& limits, std::byte* base) {
    Carver cut(base);
    const int64_t t = limits.max_rows, d = spec.hidden_size;
    const int64_t half = rope_of(spec.attention).dim / 2;
    const int64_t logit_rows = std::max(limits.max_sequences, std::min(limits.max_rows, kScoringRows));
    ids = cut(t, 1, DType::i32);
    cos = cut(t, half), sin = cut(t, half);
    residual = cut(t, d), normed = cut(t, d), delta = cut(t, d);
    if (const auto* gqa = std::get_if<GqaSpec>(&spec.attention)) {
      const int64_t width = int64_t{gqa->num_heads} * gqa->head_dim, kv_width = int64_t{gqa->num_kv_heads} * gqa->head_dim;
      q = cut(t, width), k = cut(t, kv_width), v = cut(t, kv_width), mixed = cut(t, width);
    } else {
      const auto& mla = std::get<MlaSpec>(spec.attention);
      q = cut(t, int64_t{mla.num_heads} * (mla.nope_dim + mla.rope_dim));
      mixed = cut(t, int64_t{mla.num_heads} * mla.v_dim);
      q_a = cut(t, mla.q_lora_rank), latent = cut(t, mla.kv_lora_rank), k_rope = cut(t, mla.rope_dim);
    }
    if (limits.max_experts > 0) {
      router_logits = cut(t, limits.max_experts);
      experts = cut(t, limits.max_top_k, DType::i32), weights = cut(t, limits.max_top_k);
    }
    last = cut(logit_rows, d), logits = cut(logit_rows, spec.vocab_size);
    return cut.used();
  }

  /// First `rows` rows of a buffer.
  Tensor of(const Tensor& buffer) const { return buffer.rows(0, rows); }
  Routing routing() const { return {of(experts), of(weights)}; }

  void begin_step(std::span<const int32_t> token_ids, std::span<const int32_t> positions) {
    rows = static_cast<int>(token_ids.size());
    kept.clear();
    std::memcpy(ids.data, token_ids.data(), token_ids.size_bytes());
    angles = {of(cos), of(sin)};
    fill_rope_angles(frequencies, rope_factor, positions, angles);
  }
};

Decoder::Decoder(const ModelSpec& spec, const Weights& weights, Backend& backend, const StepLimits& limits)
    : spec_(spec), weights_(weights), backend_(backend), a_(std::make_shared<Activations>()) {
  a_->memory = Buffer(activation_bytes(spec, limits));
  a_->carve(spec, limits, a_->memory.data());
  const RopeSpec& rope = rope_of(spec.attention);
  a_->frequencies = inverse_frequencies(rope);
  for (auto* list : {&a_->kept, &a_->kept_positions}) list->reserve(static_cast<size_t>(limits.max_rows));
  a_->kept_sequences.reserve(static_cast<size_t>(limits.max_sequences));
  a_->rope_factor = rope_attention_factor(rope);
}

size_t Decoder::activation_bytes(const ModelSpec& spec, const StepLimits& limits) {
  return Activations{}.carve(spec, limits, nullptr);
}

int Decoder::max_logit_rows() const { return static_cast<int>(a_->logits.dim[0]); }

Tensor Decoder::forward(const DecoderStep& step, std::span<const KvLayer> kv, const Tap& tap) {
  Activations& a = *a_;
  const std::span<const int32_t> ids = step.ids, positions = step.positions;
  if (ids.empty() || static_cast<int64_t>(ids.size()) > a.ids.dim[0] || positions.size() != ids.size() ||
      kv.size() != spec_.layers.size())
    throw Error(Error::Kind::internal,
                fmt::format("a step of {} ids, {} positions and {} cache layers; limits are {} rows and {} layers", ids.size(),
                            positions.size(), kv.size(), a.ids.dim[0], spec_.layers.size()));
  a.begin_step(ids, positions);
  Tensor residual = a.of(a.residual), normed = a.of(a.normed), delta = a.of(a.delta);
  Tensor flat_ids = view(a.ids.data, {a.rows}, DType::i32);
  backend_.embed(residual, weights_.embed, flat_ids);
  for (int l = 0; l < spec_.num_layers(); ++l) {
    const auto layer = static_cast<size_t>(l);
    const LayerWeights& w = weights_.layers[layer];
    if (l == 0) backend_.rms_norm(normed, residual, w.attention_norm, spec_.norm_eps);
    else backend_.add_rms_norm(normed, residual, delta, w.attention_norm, spec_.norm_eps);
    if (tap && l > 0) tap("ffn", l - 1, residual);
    const bool keep_all = l + 1 < spec_.num_layers() || step.kept_rows.empty();
    attend(l, kv[layer], step, keep_all);
    residual = a.of(a.residual), normed = a.of(a.normed), delta = a.of(a.delta);
    if (a.rows == 0) return a.logits.rows(0, 0);

    backend_.add_rms_norm(normed, residual, delta, w.ffn_norm, spec_.norm_eps);
    if (tap) tap("attn", l, residual);
    std::visit([&](const auto& weights, const auto& spec) {
      if constexpr (requires { feed(l, weights, spec, tap); }) feed(l, weights, spec, tap);
      else throw Error(Error::Kind::internal, "feed-forward weights do not match the model description");
    }, w.ffn, spec_.layers[layer]);
  }
  backend_.add_rms_norm(normed, residual, delta, weights_.final_norm, spec_.norm_eps);
  if (tap) tap("ffn", spec_.num_layers() - 1, residual), tap("final_norm", -1, normed);
  return logits(step.logit_rows);
}

Tensor Decoder::logits(std::span<const int32_t> rows) {
  const auto n = static_cast<int64_t>(rows.size());
  const Tensor last = a_->last.rows(0, n), logits = a_->logits.rows(0, n);
  if (n == 0) return logits;
  std::vector<int32_t>& at = a_->kept_positions;
  at.assign(rows.begin(), rows.end());
  if (!a_->kept.empty())
    for (int32_t& row : at) {
      const auto found = std::lower_bound(a_->kept.begin(), a_->kept.end(), row);
      if (found == a_->kept.end() || *found != row)
        throw Error(Error::Kind::internal, fmt::format("logits of row {}, which the step did not keep", row));
      row = static_cast<int32_t>(found - a_->kept.begin());
    }
  backend_.gather_rows(last, a_->of(a_->normed), at);
  backend_.linear(logits, last, weights_.head);
  return logits;
}

/// Leaves the attention's output in delta. Without `keep_all` keys and values of all rows go to the cache, and then only the kept rows go on.
void Decoder::attend(int layer, const KvLayer& kv, const DecoderStep& step, bool keep_all) {
  std::visit([&](const auto& w, const auto& spec) {
    if constexpr (requires { project(w, spec, Part::both); }) {
      project(w, spec, keep_all ? Part::both : Part::cache);
      store(spec, kv, step.batch);
      if (keep_all) return answer(w, spec, kv, step.batch);
      const BatchView kept = keep_rows(step);
      if (kept.num_rows == 0) return;
      project(w, spec, Part::query);
      answer(w, spec, kv, kept);
    } else {
      throw Error(Error::Kind::internal, "attention weights do not match the model description");
    }
  }, weights_.layers[static_cast<size_t>(layer)].attention, spec_.attention);
}

/// Moves the kept rows' residual and normed activations to the front of their buffers; from here on the step has no others.
BatchView Decoder::keep_rows(const DecoderStep& step) {
  Activations& a = *a_;
  a.kept_sequences.clear(), a.kept_positions.clear();
  for (size_t i = 0; i < step.batch.sequences.size(); ++i) {
    SequenceRows s = step.batch.sequences[i];
    const int32_t count = std::min(step.kept_rows[i], s.num_rows), end = s.first_row + s.num_rows;
    if (count == 0) continue;
    s.first_row = static_cast<int32_t>(a.kept.size()), s.num_rows = count;
    a.kept_sequences.push_back(s);
    for (int32_t row = end - count; row < end; ++row) {
      a.kept.push_back(row);
      a.kept_positions.push_back(step.positions[static_cast<size_t>(row)]);
    }
  }
  const Tensor normed = a.of(a.normed), residual = a.of(a.residual);
  a.rows = static_cast<int>(a.kept.size());
  if (a.rows > 0) {
    backend_.gather_rows(a.of(a.delta), normed, a.kept);
    backend_.gather_rows(a.of(a.normed), residual, a.kept);
    std::swap(a.residual, a.normed);
    std::swap(a.normed, a.delta);
    a.angles = {a.of(a.cos), a.of(a.sin)};
    fill_rope_angles(a.frequencies, a.rope_factor, a.kept_positions, a.angles);
  }
  return {a.kept_sequences, a.rows, step.batch.block_size};
}

void Decoder::project(const GqaWeights& w, const GqaSpec&, Part part) {
  const Activations& a = *a_;
  const Backend::Linear jobs[] = {{a.of(a.q), &w.q}, {a.of(a.k), &w.k}, {a.of(a.v), &w.v}};
  const std::span<const Backend::Linear> all(jobs);
  backend_.linear(part == Part::both ? all : part == Part::query ? all.first(1) : all.last(2), a.of(a.normed));
}

void Decoder::store(const GqaSpec& spec, const KvLayer& kv, const BatchView& batch) {
  const Activations& a = *a_;
  const Tensor k = as_heads(a.of(a.k), spec.num_kv_heads);
  backend_.rope(k, a.angles, spec.rope.pairs);
  backend_.store_kv(kv, k, as_heads(a.of(a.v), spec.num_kv_heads), batch);
}

void Decoder::answer(const GqaWeights& w, const GqaSpec& spec, const KvLayer& kv, const BatchView& batch) {
  const Activations& a = *a_;
  const Tensor q = as_heads(a.of(a.q), spec.num_heads), mixed = a.of(a.mixed);
  backend_.rope(q, a.angles, spec.rope.pairs);
  backend_.attention(as_heads(mixed, spec.num_heads), q, kv, batch, spec);
  backend_.linear(a.of(a.delta), mixed, w.o);
}

void Decoder::project(const MlaWeights& w, const MlaSpec& spec, Part part) {
  const Activations& a = *a_;
  const bool compressed = spec.q_lora_rank > 0;
  const Tensor q = a.of(a.q), q_a = a.of(a.q_a), latent = a.of(a.latent);
  const Backend::Linear jobs[] = {compressed ? Backend::Linear{q_a, &w.q_a} : Backend::Linear{q, &w.q}, {latent, &w.kv_a_latent},
                                  {a.of(a.k_rope), &w.kv_a_rope}};
  const std::span<const Backend::Linear> all(jobs);
  backend_.linear(part == Part::both ? all : part == Part::query ? all.first(1) : all.last(2), a.of(a.normed));
  if (part != Part::query) backend_.rms_norm(latent, latent, w.kv_a_norm, kLatentNormEps);
  if (part == Part::cache || !compressed) return;
  backend_.rms_norm(q_a, q_a, w.q_a_norm, kLatentNormEps);
  backend_.linear(q, q_a, w.q);
}

void Decoder::store(const MlaSpec& spec, const KvLayer& kv, const BatchView& batch) {
  const Activations& a = *a_;
  const Tensor k_rope = a.of(a.k_rope);
  backend_.rope(as_heads(k_rope, 1), a.angles, spec.rope.pairs);
  backend_.store_latent(kv, a.of(a.latent), k_rope, batch);
}

void Decoder::answer(const MlaWeights& w, const MlaSpec& spec, const KvLayer& kv, const BatchView& batch) {
  const Activations& a = *a_;
  const Tensor q = as_heads(a.of(a.q), spec.num_heads), mixed = a.of(a.mixed);
  backend_.rope(head_slice(q, spec.nope_dim, spec.rope_dim), a.angles, spec.rope.pairs);
  backend_.mla_attention(as_heads(mixed, spec.num_heads), q, kv, batch, spec, w.up);
  backend_.linear(a.of(a.delta), mixed, w.o);
}

void Decoder::feed(int, const SwiGluWeights& w, const DenseSpec&, const Tap&) {
  backend_.ffn(a_->of(a_->delta), a_->of(a_->normed), Routing{}, {}, &w);
}

void Decoder::feed(int layer, const MoeWeights& w, const MoeSpec& spec, const Tap& tap) {
  const Activations& a = *a_;
  const Tensor normed = a.of(a.normed), router_logits = a.of(a.router_logits);
  const Routing routing = a.routing();
  backend_.linear(router_logits, normed, w.router);
  backend_.route(routing, router_logits, w.selection_bias, spec.router);
  if (tap) {
    tap("router_logits", layer, router_logits);
    tap("experts", layer, routing.expert);
    tap("weights", layer, routing.weight);
  }
  backend_.ffn(a.of(a.delta), normed, routing, w.experts, w.shared ? &*w.shared : nullptr);
}

StepLimits step_limits(const ModelSpec& spec, int max_rows, int max_sequences, int max_context) {
  StepLimits limits;
  limits.max_rows = max_rows;
  limits.max_sequences = max_sequences;
  limits.max_context = max_context;
  limits.max_width = limits.hidden_size = spec.hidden_size;
  const auto widen = [&](int width) { limits.max_width = std::max(limits.max_width, width); };
  if (const auto* gqa = std::get_if<GqaSpec>(&spec.attention)) {
    limits.max_heads = gqa->num_heads;
    limits.max_head_dim = gqa->head_dim;
    widen(gqa->num_heads * gqa->head_dim);
  } else {
    limits.mla = std::get<MlaSpec>(spec.attention);
    limits.max_heads = limits.mla->num_heads;
    widen(limits.mla->q_lora_rank), widen(limits.mla->kv_lora_rank), widen(limits.mla->num_heads * limits.mla->v_dim);
  }
  for (const FfnSpec& layer : spec.layers) {
    const auto* moe = std::get_if<MoeSpec>(&layer);
    const int inner = moe ? std::max(moe->expert_inner, moe->shared_inner) : std::get<DenseSpec>(layer).inner;
    limits.max_inner = std::max(limits.max_inner, inner);
    if (!moe) continue;
    limits.max_expert_inner = std::max(limits.max_expert_inner, moe->expert_inner);
    limits.max_experts = std::max(limits.max_experts, moe->router.num_experts);
    limits.max_top_k = std::max(limits.max_top_k, moe->router.top_k);
  }
  widen(limits.max_inner);
  return limits;
}

}  // namespace conclave
