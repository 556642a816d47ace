#pragma once
// What a model is and costs, from its configuration alone or with the checkpoint's own types: parameters, bytes, cache,
// and the slice of every tensor that each of N tensor-parallel ranks would hold. Plain data, with a text and a JSON
// form.
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "model/spec.h"

namespace conclave {

struct InspectOptions {
  bool tensors = false;  ///< list every tensor
  int world = 1;         ///< ranks that the list slices for
  int context = 0;       ///< tokens for the memory estimate; 0: the model's maximum
};

/// Half-open range along one dimension; dim -1: the whole tensor; an empty range: this rank holds nothing of it.
struct RankSlice { int dim = -1; int64_t begin = 0, end = 0; };

struct TensorRow {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::f32;
  std::string file;  ///< file name; empty without a checkpoint
  std::string part;  ///< "attention", ...; "ignored" for tensors that are stored and not used
  size_t bytes = 0;
  std::vector<RankSlice> ranks;  ///< [world], empty for one rank
};

struct PartTotal { int64_t parameters = 0; size_t bytes = 0; };

struct Inspection {
  ModelSpec spec;
  ParameterCounts parameters;
  std::map<std::string, PartTotal> parts;  ///< by name_of(Part); bytes include scales
  std::map<std::string, size_t> dtypes;    ///< bytes by stored type
  size_t weight_bytes = 0;                 ///< all used tensors
  int64_t kv_bytes_per_token = 0;          ///< cache in bf16 (f16 has the same size, f32 twice that)
  int context = 0;
  int world = 1;
  std::vector<TensorRow> tensors;          ///< only when asked for
};

/// `checkpoint` may be null: types then follow from the configuration. Throws bad_model as checkpoint_source does, and
/// bad_input when `world` exceeds the attention heads or `context` the model's maximum.
Inspection inspect_model(const ModelSpec& spec, const Checkpoint* checkpoint, const InspectOptions& options = {});

std::string to_text(const Inspection& inspection);
nlohmann::ordered_json to_json(const Inspection& inspection);

/// Rank's share of a tensor (weights only; scales follow their weight). Rows and experts in balanced contiguous pieces
/// whose sizes differ by at most one; whole query heads, with the key/value heads that they read.
RankSlice slice_of(const ModelSpec& spec, const TensorInfo& info, int rank, int world);

}  // namespace conclave
