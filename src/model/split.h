#pragma once
// A checkpoint cut for a fixed world: one folder per rank with that rank's part alone, gate and up merged, experts grouped and kv_b taken apart
// into w_k and w_v, as tensor-parallel programs for DeepSeek-V3 keep them; and back. A manifest (conclave_split.json) names the world, every
// original tensor and each file's checksum. Files are written tensor by tensor and renamed when complete; a second call continues.
#include <filesystem>
#include <functional>
#include <memory>

#include "io/checkpoint.h"
#include "model/parallel_plan.h"
#include "model/tensor_source.h"

namespace conclave {

struct SplitOptions {
  std::filesystem::path in, out;
  ParallelLayout layout;                              ///< of resolve_layout()
  std::function<void(size_t, size_t)> progress = {};  ///< bytes written, bytes of all files
};
struct SplitReport { int files = 0, resumed = 0; size_t bytes = 0; };

/// Throws bad_input when `out` holds something else, unsupported for weights in packed words (any rank reads its part of those from the
/// published files).
SplitReport split_folder(const Checkpoint& checkpoint, const ModelSpec& spec, const SplitOptions& options);
/// Writes the original tensors of a split folder as one checkpoint; throws bad_model naming a file whose checksum is wrong.
SplitReport join_folder(const std::filesystem::path& in, const std::filesystem::path& out, const std::function<void(size_t, size_t)>& progress = {});

bool is_split(const std::filesystem::path& folder);
/// The layout that a split folder is for.
ParallelLayout split_layout(const std::filesystem::path& folder);
/// Each rank's tensors by their published names, cut as cut_of() says (of_rank()). Throws bad_model naming what is missing or damaged.
std::unique_ptr<TensorSource> split_source(const std::filesystem::path& folder, const ModelSpec& spec);

}  // namespace conclave
