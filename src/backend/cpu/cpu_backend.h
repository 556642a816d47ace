#pragma once
// The CPU backend: each operator is a few parallel regions over independent tasks, whose results do not depend on which worker runs them.
// Scratch memory is one block, carved anew by every call; reserve() sizes it and no operator allocates. Split over cpu_backend.cpp (rows),
// cpu_linear.cpp (matrix products), cpu_attention.cpp, cpu_mla.cpp and cpu_kv_store.cpp.
#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "core/thread_pool.h"

namespace conclave::cpu {

/// Consecutive 64-byte aligned pieces of a block; without a block it only adds up. Throws internal when the block is too
/// small or was never reserved.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(const Buffer& block) : base_(block.data()), size_(block.size()), counting_(false) {}
  template <class T>
  T* take(int64_t count) { return reinterpret_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T))); }
  size_t used() const { return used_; }

 private:
  std::byte* take_bytes(size_t bytes);
  std::byte* base_ = nullptr;
  size_t size_ = 0, used_ = 0;
  bool counting_ = true;
};

/// Rows [first, first + rows) of an operator's row list, packed for the tile kernels.
struct RowBlock {
  const void* x = nullptr;
  const float* scale = nullptr;  ///< int8 only
  int32_t first = 0, rows = 0;
};

struct AttentionItem;

class CpuBackend final : public Backend {
 public:
  CpuBackend(ThreadPool& pool, const KernelTable& table) : pool_(pool), k_(table) {}
  std::string_view name() const override { return "cpu"; }
  std::string_view isa() const override { return k_.isa; }

  size_t packed_bytes(const WeightStorage& storage, Weight::Layout layout, int64_t rows, int64_t cols) const override;
  Weight pack(const HostMatrix& matrix, Weight::Layout layout, std::span<std::byte> dst) const override;
  Weight pack_pair(const HostMatrix& gate, const HostMatrix& up, std::span<std::byte> dst) const override;
  size_t workspace_bytes(const StepLimits& limits) const override;
  void reserve(const StepLimits& limits) override;

 protected:
  void do_embed(Tensor out, const Weight& table, Tensor ids) override;
  void do_add_rms_norm(Tensor out, Tensor residual, Tensor delta, Tensor gain, float eps) override;
  void do_add(Tensor residual, Tensor delta) override;
  void do_gather_rows(Tensor out, Tensor x, std::span<const int32_t> index) override;
  void do_linear(std::span<const Linear> jobs, Tensor x, Tensor row_max) override;
  void do_rope(Tensor x, const RopeAngles& angles, RopePairs pairs) override;
  void do_store_kv(const KvLayer& kv, Tensor k, Tensor v, const BatchView& batch) override;
  void do_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const GqaSpec& spec) override;
  void do_store_latent(const KvLayer& kv, Tensor latent, Tensor k_rope, const BatchView& batch) override;
  void do_mla_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const MlaSpec& spec,
                        const MlaUpWeights& up) override;
  void do_route(const Routing& out, Tensor logits, Tensor selection_bias, const RouterSpec& spec) override;
  void do_ffn(Tensor out, Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts, const SwiGluWeights* shared,
              const InnerMax* inner_max) override;

 private:
  struct LinearScratch;
  struct FfnScratch;
  struct FfnCall;
  struct AttentionScratch;
  struct PagedAttention;
  struct MlaScratch;

  /// f(begin, end) over ranges of rows, on the caller when there is little to do.
  void for_rows(int64_t rows, int64_t elements_per_row, FunctionRef<void(int64_t, int64_t, int)> f);
  /// f(index, worker) in parallel, or on the caller when the whole is small.
  void for_tasks(int64_t count, int64_t elements, FunctionRef<void(int64_t, int)> f);

  /// A packed weight whose activations this processor's kernels can round, or keeps floating.
  Weight as_offered(Weight weight) const;
  void gate_up(FfnCall& call);
  void agree_on_inner(FfnCall& call, const InnerMax& inner_max);
  void quantise_inner(FfnCall& call, bool agreed);
  /// k_.quantise(), or with the magnitude of a longer row where `row_max` is given; q is zero-filled to a multiple of 4.
  float quantise(const float* x, int64_t n, int8_t* q, const float* row_max) const;
  void down(FfnCall& call, Tensor out);
  void attend_paged(const PagedAttention& call, AttentionScratch& scratch);
  void attend_item(const PagedAttention& call, AttentionScratch& scratch, int64_t task, int worker);
  void attend_span(const PagedAttention& call, AttentionScratch& scratch, int64_t task, int worker);
  struct MlaCall {
    Tensor out, q;
    const KvLayer& kv;
    int block_size;
    const MlaSpec& spec;
    const MlaUpWeights& up;
  };
  struct MlaTile { KvType type; int64_t head, first, n; };
  void expand_tile(const MlaCall& call, const SequenceRows& s, const MlaTile& tile, AttendArgs& args, MlaScratch& scratch, int worker);
  void mla_head(const MlaCall& call, const SequenceRows& s, int64_t rows, int64_t head, MlaScratch& scratch, int worker);
  void mla_absorbed(const MlaCall& call, std::span<const int32_t> rows, std::span<const AttentionItem> items, MlaScratch& scratch);

  size_t linear_bytes(const StepLimits& limits) const;
  size_t attention_bytes(const StepLimits& limits) const;
  /// Room for one converted vector.
  static int64_t store_floats(int64_t width);

  ThreadPool& pool_;
  const KernelTable& k_;
  Buffer block_;
  StepLimits limits_;
};

}  // namespace conclave::cpu
