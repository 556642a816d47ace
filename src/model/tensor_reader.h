#pragma once
// One tensor at a time from a source towards a backend's packing code: shape and type checked against the model, scales as f32, floating
// values rounded to the arithmetic type where one is asked for. Thread-safe; what it returns owns or borrows a single tensor.
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/parallel_plan.h"
#include "model/spec.h"
#include "model/tensor_source.h"
#include "quant/formats.h"

namespace conclave {

/// What a matrix is for: a linear may be quantised; a table (embedding, head) is floating; a router is floating and keeps its type.
enum class MatrixRole : uint8_t { linear, table, router };

struct StoredMatrix {
  std::vector<SourceTensor> sources;  ///< released when the matrix has been packed
  std::vector<std::byte> values;      ///< converted values; empty when `host` reads a source directly
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  HostMatrix host;
};

class TensorReader {
 public:
  /// How weights are held and met where that differs from what the files say.
  struct Rules {
    std::optional<DType> arithmetic = std::nullopt;  ///< floating linear weights are held in this type instead of the file's
    bool bf16_activations = false;                   ///< activations may be rounded to bf16 where they meet bf16 weights other than a router's
    std::optional<Activations> activations = std::nullopt;  ///< of int8 and int4 weights
    Activations int4_activations = Activations::floating;   ///< of int4 weights whose files ask for floating ones
  };
  TensorReader(const ModelSpec& spec, const TensorSource& source, const Rules& rules);

  struct Held {
    WeightStorage storage;
    Activations activations;
    bool operator==(const Held&) const = default;
  };
  /// How matrix() will give a tensor, from its stored type alone. Throws bad_model: missing tensor, a type that the model's quantisation
  /// does not explain, FP8 or int8 without scales.
  Held held(const std::string& name, MatrixRole role) const;
  /// Shape that the model implies; throws internal for a name that for_each_tensor does not list.
  const std::vector<int64_t>& shape(const std::string& name) const;
  /// The matrix, or the part that `cut` names: of a floating, int8 or FP8 tensor only the bytes of that part are read. Throws bad_model as
  /// held() does, and for a wrong shape or a value that does not fit f16.
  StoredMatrix matrix(const std::string& name, MatrixRole role, const TensorCut& cut = {}) const;
  /// A floating tensor of out.size() elements as f32.
  void vector(const std::string& name, std::span<float> out) const;
  void release(const StoredMatrix& matrix) const {
    for (const SourceTensor& tensor : matrix.sources) source_.release(tensor);
  }

 private:
  SourceTensor fetch(const std::string& name) const;
  void check_shape(const SourceTensor& tensor, const std::vector<int64_t>& wanted, std::string_view cause) const;
  std::string scale_name(const std::string& name, WeightFormat format) const;
  Activations activations_of(const std::string& name, WeightFormat format) const;
  std::optional<Held> held_packed(const std::string& name) const;
  StoredMatrix packed_matrix(const std::string& name, const Held& as) const;
  void convert(StoredMatrix& matrix, WeightFormat format) const;
  void read_scales(const std::string& name, StoredMatrix& matrix) const;

  const ModelSpec& spec_;
  const TensorSource& source_;
  Rules rules_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

WeightFormat weight_format(DType floating);
/// n floating values (f32, f16, bf16) at `data` as f32.
void to_f32(const std::byte* data, DType dtype, std::span<float> out);
/// Part of a matrix in place: `rows` contiguous; int4 columns begin at an even one, and at a group where there are several.
HostMatrix part_of(HostMatrix matrix, const IndexRange& rows, const IndexRange& cols);
/// FP8 rows in several ranges leave their scale grid and are held as f32.
bool leaves_grid(WeightFormat format, const TensorCut& cut);
/// Every element dequantised to f32.
StoredMatrix dequantised(const StoredMatrix& matrix);

}  // namespace conclave
