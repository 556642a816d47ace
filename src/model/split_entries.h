#pragma once
// What a rank's file of a split checkpoint holds: stored tensors as sequences of cuts of published ones. Part of split.h's implementation.
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/parallel_plan.h"
#include "model/tensor_source.h"

namespace conclave {

/// A cut of one published tensor (a weight or its scales): rows of `row_bytes` bytes, of which columns are byte ranges.
struct SplitPart {
  std::string name;                ///< published
  TensorCut cut;                   ///< in elements of that tensor
  std::vector<int64_t> shape;      ///< of the cut
  /// kv_b's rows of every head from `first` on: w_k keeps them, w_v transposes them. Empty `head_rows`: the cut as it is.
  IndexRange head_rows;
  int64_t head = 0;                ///< rows of a head
  bool transposed = false;
};
struct SplitEntry {
  SafetensorsWriter::Entry stored;
  std::vector<SplitPart> parts;
};

/// Suffix of a weight's scales by its type, or "".
std::string scale_suffix(DType dtype);
/// The cut of a weight's scales [rows, columns] that belongs to a cut of the weight.
TensorCut scale_cut(const TensorCut& weight, DType dtype, const std::vector<int64_t>& scale_shape);
/// Shape of a cut of a tensor.
std::vector<int64_t> shape_of(const std::vector<int64_t>& whole, const TensorCut& cut);

/// Entries of one rank's file.
std::vector<SplitEntry> split_entries(const ModelSpec& spec, const TensorSource& source, const RankPlan& plan);

/// Bytes of a part, read from the published tensor.
std::vector<std::byte> read_part(const SplitPart& part, const SourceTensor& tensor);
/// Puts a cut's bytes (row-major) back into the whole tensor.
void put_back(std::span<std::byte> whole, const std::vector<int64_t>& shape, size_t element, const TensorCut& cut, const std::byte* bytes);

}  // namespace conclave
