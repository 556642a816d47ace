#pragma once
// Where weights come from: a checkpoint on disk or a seeded random generator. The loader asks for one tensor at a time and may do so
// from several threads.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "io/checkpoint.h"
#include "model/spec.h"

namespace conclave {

struct ParallelLayout;

/// A tensor's bytes, alive while `owner` is (a checkpoint's tensors live as long as the source).
struct SourceTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  std::string origin;  ///< file, for messages
  std::shared_ptr<const void> owner;
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  /// The tensor, or nothing when the source has none of that name.
  virtual std::optional<SourceTensor> find(std::string_view name) const = 0;
  /// Stored type of a tensor without producing its data (memory is planned from it), or nothing when there is none of that name.
  virtual std::optional<DType> dtype(std::string_view name) const {
    const auto tensor = find(name);
    return tensor ? std::optional(tensor->dtype) : std::nullopt;
  }
  /// Says that a tensor's data has been consumed.
  virtual void release(const SourceTensor& tensor) const = 0;

  /// Of a checkpoint that is split for a fixed world: one rank's tensors, cut (sliced()) as cut_of() says. Others serve every rank alike.
  virtual const TensorSource& of_rank(int) const { return *this; }
  virtual bool sliced() const { return false; }
  /// Throws bad_model when the source is for another world.
  virtual void check_layout(const ParallelLayout&) const {}
};

/// Tensors of a checkpoint. Fused layouts (`experts.gate_up_proj` [E, 2I, H], `experts.down_proj` [E, H, I]) answer under the per-expert
/// names. Extra tensors that the spec does not know and does not ignore are refused at construction (bad_model), as are missing ones.
std::unique_ptr<TensorSource> checkpoint_source(const Checkpoint& checkpoint, const ModelSpec& spec);

/// Format of generated linear weights. Router, norms, embedding and head stay floating as published quantised checkpoints keep them, and
/// with the integer formats so does kv_b. int4_gN: symmetric, N inputs per scale (pack-quantized); matrices whose inputs are no multiple
/// of N stay floating.
enum class RandomFormat : uint8_t { f32, f16, bf16, fp8, int8, w8a16, int4_g32, int4_g64, int4_g128 };
inline constexpr RandomFormat kRandomFormats[] = {RandomFormat::f32,      RandomFormat::f16,      RandomFormat::bf16,
                                                  RandomFormat::fp8,      RandomFormat::int8,     RandomFormat::w8a16,
                                                  RandomFormat::int4_g32, RandomFormat::int4_g64, RandomFormat::int4_g128};
/// Parses "bf16|f16|f32|fp8|int8|w8a8|w8a16|int4-g32|int4-g64|int4-g128"; throws bad_input listing the choices.
RandomFormat parse_random_format(std::string_view text);
std::vector<std::string> random_format_names();
/// Inputs per scale; 0 for all formats but int4_gN.
int group_of(RandomFormat format);

/// Whether a tensor is quantised in a generated model of this format.
bool is_quantised(const TensorInfo& info, RandomFormat format);
/// The tensors that hold a tensor of the model in such a model: elements first, then scales and what else belongs to them.
struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};
std::vector<StoredTensor> stored_tensors(const ModelSpec& spec, const TensorInfo& info, RandomFormat format);

/// Deterministic in (spec, seed, format), independent of threads and call order; scaled so that activations stay finite.
/// For int8: I8 weights with F32 `_scale`; for fp8: F8_E4M3 with `_scale_inv`; for int4: `_packed`, `_scale` and `_shape`.
std::unique_ptr<TensorSource> random_source(const ModelSpec& spec, RandomFormat format, uint64_t seed);

}  // namespace conclave
