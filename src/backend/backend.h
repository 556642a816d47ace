#pragma once
// The operator interface that the decoder is written against. Public calls check shapes once for every backend and then call
// the protected body (do_x). Activations are f32; a backend owns its scratch memory, reserved before the first step, and
// never allocates afterwards. The result of a row depends only on that row (and its sequence's cache): not on the number of threads, the other
// rows, or how the prompt was chunked. One caller at a time.
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/op_params.h"
#include "core/tensor.h"
#include "quant/formats.h"

namespace conclave {

class ThreadPool;

/// A matrix in the layout its backend reads; memory belongs to the caller of pack(). Only the backend looks inside `data`.
struct Weight {
  /// panels: for linear(). paired: gate and up interleaved, for ffn(). table: whole rows, for embed().
  enum class Layout : uint8_t { panels, paired, table };
  WeightFormat format = WeightFormat::f32;
  Activations activations = Activations::floating;
  Layout layout = Layout::panels;
  int64_t rows = 0, cols = 0;
  std::byte* data = nullptr;
  size_t bytes = 0;
  Int4Groups groups = {};  ///< int4 only
};
inline WeightStorage storage_of(const Weight& w) { return {w.format, w.groups}; }

/// down( silu(gate x) * (up x) ): gate_up is paired [2I, D], down [D, I].
struct SwiGluWeights { Weight gate_up, down; };

/// MLA's up-projections: kv_b as stored [H * (nope + v), kv_rank] for the plain form; per head k_up_t [kv_rank, nope] and
/// v_up [v_dim, kv_rank] for the absorbed form.
struct MlaUpWeights { Weight kv_b; std::vector<Weight> k_up_t, v_up; };

/// Where a feed-forward's width is shared out to ranks, int8 activations between its two products need the largest magnitude of the whole row.
/// Called between them with the magnitudes of this rank's part: one per routed (expert, token) pair, experts ascending, tokens ascending in
/// an expert, and one per row for the shared feed-forward; makes them those of all ranks.
using InnerMax = std::function<void(std::span<float> routed, std::span<float> shared)>;

/// Largest sizes that any step will have; a backend reserves its scratch memory from it.
struct StepLimits {
  int max_rows = 0;       ///< tokens of a step
  int max_sequences = 0;
  int max_context = 0;
  int max_width = 0;      ///< largest input width of a linear
  int hidden_size = 0;    ///< D; 0: max_width
  int max_inner = 0;      ///< largest SwiGLU width
  int max_expert_inner = 0;  ///< largest width of a routed expert; 0: max_inner
  int max_experts = 0, max_top_k = 0;
  int max_heads = 0;
  int max_head_dim = 0;   ///< of GQA; 0: max_width / max_heads
  std::optional<MlaSpec> mla;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  /// "scalar", "avx2", "avx512", "avx512_vnni", "neon" ...
  virtual std::string_view isa() const = 0;

  // ---- weights; thread-safe, so that a loader may pack several matrices at once
  /// Bytes that pack() writes for such a matrix (multiple of 64). paired: rows = 2I.
  virtual size_t packed_bytes(const WeightStorage& storage, Weight::Layout layout, int64_t rows, int64_t cols) const = 0;
  /// Packs for linear() or embed(); `dst` is 64-byte aligned and packed_bytes() long.
  virtual Weight pack(const HostMatrix& matrix, Weight::Layout layout, std::span<std::byte> dst) const = 0;
  /// Packs gate [I, D] and up [I, D] as one paired weight.
  virtual Weight pack_pair(const HostMatrix& gate, const HostMatrix& up, std::span<std::byte> dst) const = 0;

  /// Bytes that reserve() takes.
  virtual size_t workspace_bytes(const StepLimits& limits) const = 0;
  virtual void reserve(const StepLimits& limits) = 0;

  // ---- operators; T = rows of the step, D = model width
  /// out [T, D] = rows `ids` [T] (i32) of table [V, D], zeros for an id of -1; layout table or panels (tied head).
  void embed(Tensor out, const Weight& table, Tensor ids);
  /// out = gain * x / sqrt(mean(x^2) + eps); x and out [T, D], gain [D]; out may be x.
  void rms_norm(Tensor out, Tensor x, Tensor gain, float eps);
  /// residual += delta, then out = rms_norm(residual).
  void add_rms_norm(Tensor out, Tensor residual, Tensor delta, Tensor gain, float eps);
  /// residual += delta.
  void add(Tensor residual, Tensor delta);
  /// out [n, D] = rows `index` (n entries) of x [T, D].
  void gather_rows(Tensor out, Tensor x, std::span<const int32_t> index);
  struct Linear { Tensor out; const Weight* weight; };
  /// out_j [T, N_j] = x [T, K] W_j^T for each job, in one parallel region. `row_max` [T], where given: largest magnitudes of the longer rows
  /// that those of x are parts of, for int8 activations.
  void linear(std::span<const Linear> jobs, Tensor x, Tensor row_max = {});
  void linear(Tensor out, Tensor x, const Weight& weight) { const Linear job{out, &weight}; linear({&job, 1}, x); }
  /// Rotates x [T, H, dim] (strided view) in place by the rows' angles.
  void rope(Tensor x, const RopeAngles& angles, RopePairs pairs);
  /// Writes k, v [T, num_kv_heads, head_dim] of the step's rows to their cache slots, converting to the cache's dtype. With
  /// kv.saturate the rows of k and v are clamped in place first; so are those of store_latent.
  void store_kv(const KvLayer& kv, Tensor k, Tensor v, const BatchView& batch);
  /// out, q [T, H, head_dim]; causal attention over the cache, which already holds this step's rows.
  void attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const GqaSpec& spec);
  /// latent [T, kv_rank] (normalised) and k_rope [T, rope_dim] (rotated) to the cache.
  void store_latent(const KvLayer& kv, Tensor latent, Tensor k_rope, const BatchView& batch);
  /// out [T, H, v_dim]; q [T, H, nope + rope] (rope part rotated). Prompt tokens in plain form, generated ones absorbed.
  void mla_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const MlaSpec& spec,
                     const MlaUpWeights& up);
  /// Chosen experts and final weights from router logits [T, E]; `selection_bias` [E] or empty.
  void route(const Routing& out, Tensor logits, Tensor selection_bias, const RouterSpec& spec);
  /// out [T, D] = sum_k weight[t,k] * expert_{e(t,k)}(x[t]) in ascending expert id, plus shared(x[t]) where `shared` is given.
  /// Without experts (empty routing) it is the dense feed-forward `shared`. Choices of expert -1 are left out.
  void ffn(Tensor out, Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts, const SwiGluWeights* shared,
           const InnerMax* inner_max = nullptr);

 protected:
  virtual void do_embed(Tensor out, const Weight& table, Tensor ids) = 0;
  virtual void do_add_rms_norm(Tensor out, Tensor residual, Tensor delta, Tensor gain, float eps) = 0;  ///< delta may be empty
  virtual void do_add(Tensor residual, Tensor delta) = 0;
  virtual void do_gather_rows(Tensor out, Tensor x, std::span<const int32_t> index) = 0;
  virtual void do_linear(std::span<const Linear> jobs, Tensor x, Tensor row_max) = 0;
  virtual void do_rope(Tensor x, const RopeAngles& angles, RopePairs pairs) = 0;
  virtual void do_store_kv(const KvLayer& kv, Tensor k, Tensor v, const BatchView& batch) = 0;
  virtual void do_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const GqaSpec& spec) = 0;
  virtual void do_store_latent(const KvLayer& kv, Tensor latent, Tensor k_rope, const BatchView& batch) = 0;
  virtual void do_mla_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const MlaSpec& spec,
                                const MlaUpWeights& up) = 0;
  virtual void do_route(const Routing& out, Tensor logits, Tensor selection_bias, const RouterSpec& spec) = 0;
  virtual void do_ffn(Tensor out, Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts,
                      const SwiGluWeights* shared, const InnerMax* inner_max) = 0;
};

/// The executable specification: plain loops in the definition's order, no packing tricks. Oracle of all op tests.
std::unique_ptr<Backend> make_reference();
/// `isa` empty: the best this processor has, or CONCLAVE_ISA. Throws unsupported for an ISA that the processor or build lacks,
/// naming the ones it has.
std::unique_ptr<Backend> make_cpu(ThreadPool& pool, std::string_view isa = {});
/// ISAs that make_cpu accepts on this machine, best first.
std::vector<std::string> available_isas();

}  // namespace conclave
