#include "model/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "model/rope.h"
#include "model/whole_sums.h"

namespace conclave {
namespace {

/// The HF DeepSeek code builds q_a_layernorm and kv_a_layernorm with the class default, whatever rms_norm_eps says.
constexpr float kLatentNormEps = 1e-6f;
/// Logit rows kept at once even when fewer sequences run, so that whole prompts can be scored in few passes over the head.
constexpr int kScoringRows = 16;

const RopeSpec& rope_of(const AttentionSpec& attention) {
  return std::visit([](const auto& spec) -> const RopeSpec& { return spec.rope; }, attention);
}

/// Inputs of o_proj over all tensor ranks.
int64_t heads_width(const ModelSpec& local, const RankPlan& plan) {
  const int64_t most = plan.layout.tp * (plan.heads.size() + 1);  // shares differ by at most one head
  if (const auto* gqa = std::get_if<GqaSpec>(&local.attention)) return most * gqa->head_dim;
  return most * std::get<MlaSpec>(local.attention).v_dim;
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
  bool watched = false;                      // a tap wants whole rows of the residual stream
  std::vector<int32_t> kept, kept_positions; // rows of the step that are left after the last attention; empty: all
  std::vector<SequenceRows> kept_sequences;
  // Several ranks only: [T] magnitudes of the rows of mixed; own rows of delta and normed; a second delta; logits of the own vocabulary.
  Tensor row_max, own_delta, own_normed, routed, part_logits, gathered;
  std::unique_ptr<WholeSums> whole;          // with --deterministic=world: delta is complete where partial sums stand otherwise

  size_t carve(const ModelSpec& spec, const StepLimits& limits, const RankPlan* plan, std::byte* base) {
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
    if (plan) carve_shared(cut, spec, *plan, {t, d, logit_rows});
    return cut.used();
  }

  struct Sizes { int64_t rows, width, logit_rows; };
  void carve_shared(Carver& cut, const ModelSpec& spec, const RankPlan& plan, const Sizes& n) {
    row_max = cut(n.rows, 1);
    if (plan.layout.sequence_parallel) own_delta = cut(n.rows, n.width), own_normed = cut(n.rows, n.width);
    if (plan.layout.dispatch == Dispatch::exchange) routed = cut(n.rows, n.width);
    if (plan.layout.tp == 1 || !plan.last_stage) return;
    part_logits = cut(n.logit_rows, plan.vocab.size()), gathered = cut(n.logit_rows, spec.vocab_size);
  }

  /// First `rows` rows of a buffer.
  Tensor of(const Tensor& buffer) const { return buffer.rows(0, rows); }
  Routing routing() const { return {of(experts), of(weights)}; }

  void begin_step(std::span<const int32_t> token_ids, std::span<const int32_t> positions) {
    rows = static_cast<int>(token_ids.size());
    kept.clear();
    if (rows > 0) std::memcpy(ids.data, token_ids.data(), token_ids.size_bytes());
    angles = {of(cos), of(sin)};
    fill_rope_angles(frequencies, rope_factor, positions, angles);
  }
};

Decoder::Decoder(const ModelSpec& spec, const Weights& weights, Backend& backend, const StepLimits& limits, const Ranks* ranks)
    : spec_(spec), weights_(weights), backend_(backend), ranks_(ranks), a_(std::make_shared<Activations>()) {
  const RankPlan* plan = ranks ? &ranks->plan : nullptr;
  a_->memory = Buffer(activation_bytes(spec, limits, plan));
  a_->carve(spec, limits, plan, a_->memory.data());
  if (plan && plan->layout.dispatch == Dispatch::exchange && limits.max_experts > 0)
    dispatch_ = std::make_unique<ExpertDispatch>(*ranks, backend, spec.hidden_size, limits.max_top_k, limits.max_rows);
  if (plan && plan->layout.whole_sums) a_->whole = std::make_unique<WholeSums>(*ranks, backend, limits, heads_width(spec, *plan));
  const RopeSpec& rope = rope_of(spec.attention);
  a_->frequencies = inverse_frequencies(rope);
  for (auto* list : {&a_->kept, &a_->kept_positions}) list->reserve(static_cast<size_t>(limits.max_rows));
  a_->kept_sequences.reserve(static_cast<size_t>(limits.max_sequences));
  a_->rope_factor = rope_attention_factor(rope);
}

size_t Decoder::activation_bytes(const ModelSpec& spec, const StepLimits& limits, const RankPlan* plan) {
  const bool exchange = plan && plan->layout.dispatch == Dispatch::exchange && limits.max_experts > 0;
  const size_t travelling = exchange ? ExpertDispatch::bytes(plan->layout, spec.hidden_size, limits.max_top_k, limits.max_rows) : 0;
  const size_t whole = plan && plan->layout.whole_sums ? WholeSums::bytes(plan->layout, limits, heads_width(spec, *plan)) : 0;
  return Activations{}.carve(spec, limits, plan, nullptr) + travelling + whole;
}

int Decoder::max_logit_rows() const { return static_cast<int>(a_->logits.dim[0]); }

Tensor Decoder::forward(const DecoderStep& step, std::span<const KvLayer> kv, const Tap& tap) {
  Activations& a = *a_;
  const auto rows = static_cast<int64_t>(step.ids.size());
  if ((rows == 0 && !dispatch_) || rows > a.ids.dim[0] || step.positions.size() != step.ids.size() || kv.size() != spec_.layers.size())
    throw Error(Error::Kind::internal,
                fmt::format("a step of {} ids, {} positions and {} cache layers; limits are {} rows and {} layers", rows,
                            step.positions.size(), kv.size(), a.ids.dim[0], spec_.layers.size()));
  const int first = ranks_ ? static_cast<int>(ranks_->plan.layers.begin) : 0;
  const bool last_stage = !ranks_ || ranks_->plan.last_stage, sharded = ranks_ && ranks_->plan.layout.sequence_parallel;
  begin(step);
  for (int l = 0; l < spec_.num_layers(); ++l) {
    const auto layer = static_cast<size_t>(l);
    const LayerWeights& w = weights_.layers[layer];
    if (l == 0) norm_first(w.attention_norm);
    else add_norm(w.attention_norm);
    if (tap && l > 0) tap("ffn", first + l - 1, a.of(a.residual));
    const bool keep_all = l + 1 < spec_.num_layers() || !last_stage || step.kept_rows.empty() || step.keep_all || sharded;
    attend(l, kv[layer], step, keep_all);
    if (a.rows == 0 && !dispatch_) break;

    add_norm(w.ffn_norm);
    if (tap) tap("attn", first + l, a.of(a.residual));
    std::visit([&](const auto& weights, const auto& spec) {
      if constexpr (requires { feed(l, weights, spec, tap); }) feed(first + l, weights, spec, tap);
      else throw Error(Error::Kind::internal, "feed-forward weights do not match the model description");
    }, w.ffn, spec_.layers[layer]);
  }
  if (!last_stage) {
    hand_over();
  } else if (a.rows > 0) {
    add_norm(weights_.final_norm);
    if (tap) tap("ffn", first + spec_.num_layers() - 1, a.of(a.residual)), tap("final_norm", -1, a.of(a.normed));
  }
  return compute_logits(step.logit_rows, step.first_logit);
}

/// The step's residual stream: of the first stage from the embedding, each rank adding the rows of its vocabulary; else from the stage before.
void Decoder::begin(const DecoderStep& step) {
  Activations& a = *a_;
  a.begin_step(step.ids, step.positions);
  a.watched = step.keep_all;
  const Tensor residual = a.of(a.residual);
  if (ranks_ && !ranks_->plan.first_stage) {
    const IndexRange own = ranks_->plan.layout.sequence_parallel ? ranks_->own_rows(a.rows) : IndexRange{0, a.rows};
    return ranks_->world.receive(std::as_writable_bytes(flat(residual.rows(own.begin, own.size()))), ranks_->previous());
  }
  if (ranks_ && ranks_->plan.layout.tp > 1) {
    const IndexRange own = ranks_->plan.vocab;
    for (int row = 0; row < a.rows; ++row) {
      int32_t& id = a.ids.as<int32_t>()[row];
      if (id < 0 || id >= spec_.vocab_size)
        throw Error(Error::Kind::bad_input, fmt::format("token id {} is outside the model's vocabulary of {} rows", id, spec_.vocab_size));
      id = own.contains(id) ? id - static_cast<int32_t>(own.begin) : -1;
    }
  }
  backend_.embed(residual, weights_.embed, view(a.ids.data, {a.rows}, DType::i32));
  if (ranks_) add_up(*ranks_->tensor, residual);
}

/// To the next stage: the residual stream with the last layer's output.
void Decoder::hand_over() {
  const Activations& a = *a_;
  const Tensor residual = a.of(a.residual), delta = a.of(a.delta);
  IndexRange own{0, a.rows};
  if (ranks_->plan.layout.sequence_parallel) {
    own = ranks_->own_rows(a.rows);
    const Tensor sums = a.own_delta.rows(0, own.size());
    add_up_own(*ranks_, sums, delta);
    backend_.add(residual.rows(own.begin, own.size()), sums);
  } else {
    if (!a.whole) add_up(*ranks_->tensor, delta);
    backend_.add(residual, delta);
  }
  ranks_->world.send(std::as_bytes(flat(residual.rows(own.begin, own.size()))), ranks_->next());
}

/// residual += delta, summed over the ranks that have parts of it; normed = rms_norm(residual). With sequence parallelism each rank does so for
/// its own rows.
void Decoder::add_norm(const Tensor& gain) {
  const Activations& a = *a_;
  const Tensor residual = a.of(a.residual), normed = a.of(a.normed), delta = a.of(a.delta);
  if (!ranks_ || !ranks_->plan.layout.sequence_parallel) {
    if (ranks_ && !a.whole) add_up(*ranks_->tensor, delta);
    return backend_.add_rms_norm(normed, residual, delta, gain, spec_.norm_eps);
  }
  const IndexRange own = ranks_->own_rows(a.rows);
  const Tensor sums = a.own_delta.rows(0, own.size()), part = a.own_normed.rows(0, own.size());
  add_up_own(*ranks_, sums, delta);
  const Tensor own_residual = residual.rows(own.begin, own.size());
  backend_.add_rms_norm(part, own_residual, sums, gain, spec_.norm_eps);
  gather_rows(*ranks_, normed, part);
  if (!a.watched) return;
  std::copy_n(flat(own_residual).begin(), flat(own_residual).size(), flat(sums).begin());
  gather_rows(*ranks_, residual, sums);
}

void Decoder::norm_first(const Tensor& gain) {
  const Activations& a = *a_;
  const bool sharded = ranks_ && ranks_->plan.layout.sequence_parallel && !ranks_->plan.first_stage;
  if (!sharded) return backend_.rms_norm(a.of(a.normed), a.of(a.residual), gain, spec_.norm_eps);
  const IndexRange own = ranks_->own_rows(a.rows);
  const Tensor part = a.own_normed.rows(0, own.size());
  backend_.rms_norm(part, a.of(a.residual).rows(own.begin, own.size()), gain, spec_.norm_eps);
  gather_rows(*ranks_, a.of(a.normed), part);
}

Tensor Decoder::logits(std::span<const int32_t> rows) {
  compute_logits(rows, 0);
  return deliver(static_cast<int64_t>(rows.size()));
}

Tensor Decoder::deliver(int64_t n) {
  const Tensor logits = a_->logits.rows(0, n);
  if (!ranks_ || ranks_->plan.layout.pp == 1 || n == 0) return logits;
  const int reader = ranks_->leader(0), writer = ranks_->leader(ranks_->plan.layout.pp - 1);
  if (ranks_->plan.rank == reader) ranks_->world.receive(std::as_writable_bytes(flat(logits)), writer);
  if (ranks_->plan.rank == writer) ranks_->world.send(std::as_bytes(flat(logits)), reader);
  return logits;
}

Tensor Decoder::compute_logits(std::span<const int32_t> rows, int first) {
  const auto n = static_cast<int64_t>(rows.size());
  const Tensor last = a_->last.rows(0, n), logits = a_->logits.rows(first, n);
  if (n == 0 || (ranks_ && !ranks_->plan.last_stage)) return logits;
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
  const bool parts = ranks_ && ranks_->plan.layout.tp > 1;
  const Tensor own = parts ? a_->part_logits.rows(0, n) : logits;
  backend_.linear(own, last, weights_.head);
  if (parts) gather_columns(*ranks_, logits, own, a_->gathered);
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
  output(mixed, w.o);
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
  output(mixed, w.o);
}

/// o_proj of this rank's heads to delta. Rows are quantised by the largest magnitude over all heads, so that their codes do not depend on the
/// layout.
void Decoder::output(const Tensor& mixed, const Weight& o) {
  const Activations& a = *a_;
  if (a.whole) return a.whole->output(a.of(a.delta), mixed, o, std::visit([](const auto& s) { return s.num_heads; }, spec_.attention));
  const Backend::Linear job{a.of(a.delta), &o};
  if (!ranks_ || ranks_->plan.layout.tp == 1 || o.activations != conclave::Activations::int8_token || mixed.dim[0] == 0)
    return backend_.linear({&job, 1}, mixed);
  const Tensor most = view(a.row_max.data, {mixed.dim[0]}, DType::f32);
  for (int64_t row = 0; row < mixed.dim[0]; ++row) most.as<float>()[row] = largest_magnitude(mixed.row<float>(row), mixed.dim[1]);
  ranks_->tensor->all_reduce_max({most.as<float>(), static_cast<size_t>(mixed.dim[0])});
  backend_.linear({&job, 1}, mixed, most);
}

namespace {

bool quantises(const SwiGluWeights& w) { return w.down.activations == Activations::int8_token; }

/// Brings together the magnitudes of inner activations whose width several ranks share; null where nobody needs them.
InnerMax inner_max_of(const Ranks* ranks, bool routed_int8, bool shared_int8) {
  if (!ranks) return nullptr;
  const bool routed = routed_int8 && ranks->plan.layout.moe_tp > 1, shared = shared_int8 && ranks->plan.layout.tp > 1;
  if (!routed && !shared) return nullptr;
  return [ranks, routed, shared](std::span<float> of_experts, std::span<float> of_shared) {
    if (routed && !of_experts.empty()) ranks->expert_tensor->all_reduce_max(of_experts);
    if (shared && !of_shared.empty()) ranks->tensor->all_reduce_max(of_shared);
  };
}

}  // namespace

void Decoder::feed(int, const SwiGluWeights& w, const DenseSpec&, const Tap&) {
  if (a_->whole) return a_->whole->feed(a_->of(a_->delta), a_->of(a_->normed), w);
  const InnerMax inner_max = inner_max_of(ranks_, false, quantises(w));
  backend_.ffn(a_->of(a_->delta), a_->of(a_->normed), Routing{}, {}, &w, inner_max ? &inner_max : nullptr);
}

void Decoder::feed(int layer, const MoeWeights& w, const MoeSpec& spec, const Tap& tap) {
  const Activations& a = *a_;
  const Tensor normed = a.of(a.normed), router_logits = a.of(a.router_logits), delta = a.of(a.delta);
  const Routing routing = a.routing();
  backend_.linear(router_logits, normed, w.router);
  backend_.route(routing, router_logits, w.selection_bias, spec.router);
  if (tap) {
    tap("router_logits", layer, router_logits);
    tap("experts", layer, routing.expert);
    tap("weights", layer, routing.weight);
  }
  const SwiGluWeights* shared = w.shared ? &*w.shared : nullptr;
  if (a.whole)
    return a.whole->feed({.delta = delta, .x = normed, .routing = routing, .num_experts = spec.router.num_experts,
                          .held = ranks_->plan.held_experts(spec.router.num_experts),
                          .experts = w.experts, .shared = shared});
  const bool routed_int8 = std::any_of(w.experts.begin(), w.experts.end(), quantises);
  const InnerMax inner_max = inner_max_of(ranks_, ranks_ && routed_int8, shared && quantises(*shared));
  const InnerMax* maximum = inner_max ? &inner_max : nullptr;
  if (!ranks_ || (!dispatch_ && ranks_->plan.layout.moe_ep == 1)) return backend_.ffn(delta, normed, routing, w.experts, shared, maximum);
  const IndexRange held = ranks_->plan.held_experts(spec.router.num_experts);
  if (!dispatch_) {
    for (int64_t row = 0; row < a.rows; ++row)
      for (int k = 0; k < spec.router.top_k; ++k) {
        int32_t& e = routing.expert.row<int32_t>(row)[k];
        e = held.contains(e) ? e - static_cast<int32_t>(held.begin) : -1;
      }
    return backend_.ffn(delta, normed, routing, w.experts, shared, maximum);
  }
  dispatch_->run({.out = delta, .x = normed, .routing = routing, .num_experts = spec.router.num_experts, .held = held, .experts = w.experts,
                  .inner_max = maximum});
  if (!shared) return;
  const Tensor extra = a.of(a.routed);
  backend_.ffn(extra, normed, Routing{}, {}, shared, maximum);
  backend_.add(delta, extra);
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
