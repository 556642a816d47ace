#pragma once
// The weights of one rank in the layout the decoder reads: one arena, filled tensor by tensor straight from the published files, each rank
// reading the parts that it holds (peak memory = the arena plus one tensor per loading thread). Nothing is allocated afterwards.
#include <functional>
#include <optional>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "model/parallel_plan.h"
#include "model/spec.h"
#include "model/tensor_source.h"

namespace conclave {

struct GqaWeights { Weight q, k, v, o; };
/// Without q compression `q` is q_proj and q_a/q_a_norm are empty; with it q_a, q_a_norm and q (= q_b_proj) are used.
struct MlaWeights { Weight q_a, q, kv_a_latent, kv_a_rope, o; Tensor q_a_norm, kv_a_norm; MlaUpWeights up; };
/// `experts` are the rank's, in the order of experts_of().
struct MoeWeights { Weight router; Tensor selection_bias; std::vector<SwiGluWeights> experts; std::optional<SwiGluWeights> shared; };
struct LayerWeights {
  Tensor attention_norm, ffn_norm;
  std::variant<GqaWeights, MlaWeights> attention;
  std::variant<SwiGluWeights, MoeWeights> ffn;
};
struct Weights {
  Buffer arena;
  Weight embed, head;  ///< the same panels when tied; embed on the first stage, head and final_norm on the last
  Tensor final_norm;
  std::vector<LayerWeights> layers;  ///< of the rank
};

struct LoadOptions {
  /// Floating linear weights are held in this type (f32, bf16, f16) instead of the file's.
  std::optional<DType> arithmetic;
  /// Activations may be rounded to bf16 where they meet bf16 weights (never in the router or between a latent and kv_b).
  bool bf16_activations = false;
  /// How activations meet int8 and int4 weights, instead of what the files say.
  std::optional<Activations> activations = std::nullopt;
  /// How they meet int4 weights whose files ask for floating activations.
  Activations int4_activations = Activations::floating;
  /// The rank whose parts are loaded; null: the whole model.
  const RankPlan* rank = nullptr;
  /// Called with (bytes done, bytes total), from one thread.
  std::function<void(size_t, size_t)> progress;
};

/// Bytes of the arena for a source's dtypes: what loading needs, computed without reading weights.
size_t weight_bytes(const ModelSpec& spec, const TensorSource& source, const Backend& backend, const LoadOptions& options);

/// Throws bad_model naming tensor, shape/dtype found and wanted, and the config keys they come from; FP8 or int8 without scales is refused.
Weights load_weights(const ModelSpec& spec, const TensorSource& source, const Backend& backend, ThreadPool& pool,
                     const LoadOptions& options = {});

/// Bytes of weights that one generated token reads of a rank (experts: top_k of each layer, evenly chosen), for GB/s figures. The rank's
/// layers begin with the model's `first_layer`.
size_t bytes_touched_per_token(const ModelSpec& spec, const Weights& weights, size_t first_layer = 0);

}  // namespace conclave
