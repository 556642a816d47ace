#pragma once
// The reference backend: every operator as the plainest loop over its definition, on row-major weights, with sums in double. It allocates
// freely, uses one thread, and is the oracle of all operator tests. Weights keep their stored elements (FP8 is held dequantised, int4 as
// bytes less their zero points).
#include "backend/backend.h"

namespace conclave {

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string_view isa() const override { return "plain"; }

  size_t packed_bytes(const WeightStorage& storage, Weight::Layout layout, int64_t rows, int64_t cols) const override;
  Weight pack(const HostMatrix& matrix, Weight::Layout layout, std::span<std::byte> dst) const override;
  Weight pack_pair(const HostMatrix& gate, const HostMatrix& up, std::span<std::byte> dst) const override;
  size_t workspace_bytes(const StepLimits&) const override { return 0; }
  void reserve(const StepLimits&) override {}

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
};

namespace reference {

/// y [rows] = W x [cols]; int8_token weights quantise x first (least_amax: quantise_row_int8).
std::vector<double> apply(const Weight& w, const float* x, float least_amax = 0.0f);
/// Dequantised row of a weight.
std::vector<double> row_of(const Weight& w, int64_t row);

}  // namespace reference
}  // namespace conclave
