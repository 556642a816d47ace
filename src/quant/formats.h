#pragma once
// How weights are stored, as three orthogonal facts: element type, scale grid, and how activations meet them.
// HostMatrix is the one description that the loader hands to a backend's packing code; it never owns.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace conclave {

/// int4: two unsigned codes per byte, the first in the low half.
enum class WeightFormat : uint8_t { f32, f16, bf16, f8e4m3, int8, int4 };

/// floating: activations stay f32 (or the arithmetic type). int8_token: each row of activations is quantised to int8 with
/// scale amax/127, round half to even, and products are summed exactly in int32 (int4: per group; the groups' scaled sums are added in
/// ascending order in f32). bf16: each activation may be rounded to bf16 (half to even) before its product; a backend whose processor has no
/// such products keeps it floating.
enum class Activations : uint8_t { floating, int8_token, bf16 };

inline constexpr int64_t kFp8Block = 128;
/// Zero point of int4 codes where none is stored: codes 0 to 15 stand for -8 to 7.
inline constexpr int kInt4Zero = 8;

/// What sizes a packed int4 weight beside its shape.
struct Int4Groups {
  int64_t size = 0;         ///< inputs that share a scale
  DType scale = DType::f32; ///< narrowest type that holds every scale: f32, f16 or bf16
  bool zeros = false;       ///< zero points are stored; without them kInt4Zero
  bool operator==(const Int4Groups&) const = default;
};
/// Everything beside rows and columns that a packed size depends on.
struct WeightStorage {
  WeightFormat format = WeightFormat::f32;
  Int4Groups groups = {};
  WeightStorage(WeightFormat f, Int4Groups g = {}) : format(f), groups(g) {}  // NOLINT: a format alone says it all but for int4
  bool operator==(const WeightStorage&) const = default;
};

/// [rows, cols] row-major weights, y = W x. Value of an element: (stored - zero(row, col)) * scale(row, col), scale 1 where there are
/// none; only int4 has zero points. Scales are f32 on a grid of block_rows x block_cols; row_offset/col_offset place a slice inside the
/// whole tensor's grid. int4: row_stride is even and col_offset 0.
struct HostMatrix {
  WeightFormat format = WeightFormat::f32;
  Activations activations = Activations::floating;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0;  ///< elements
  const std::byte* data = nullptr;
  const float* scales = nullptr;
  int64_t scale_stride = 0;  ///< scales per grid row
  int64_t block_rows = 1, block_cols = 1;
  int64_t row_offset = 0, col_offset = 0;
  const uint8_t* zeros = nullptr;      ///< int4 only: codes on the scales' grid
  DType scale_type = DType::f32;       ///< int4 only: a type that every scale fits exactly

  int64_t grid_index(int64_t row, int64_t col) const {
    return (row + row_offset) / block_rows * scale_stride + (col + col_offset) / block_cols;
  }
  float scale(int64_t row, int64_t col) const { return scales ? scales[grid_index(row, col)] : 1.0f; }
  int zero(int64_t row, int64_t col) const { return zeros ? zeros[grid_index(row, col)] : kInt4Zero; }
  /// int4 only: the unsigned code of an element.
  int code(int64_t row, int64_t col) const {
    const auto byte = static_cast<uint8_t>(data[(row * row_stride + col) / 2]);
    return col % 2 == 0 ? byte & 0xf : byte >> 4;
  }
};

WeightStorage storage_of(const HostMatrix& m);
/// Bytes of consecutive elements (int4: of a number of columns that may be odd).
size_t bytes_of(WeightFormat format, int64_t elements);
/// Bytes of one element; 0 for int4, whose elements share bytes.
size_t element_bytes(WeightFormat format);
std::string_view name_of(WeightFormat format);
/// Dequantised element, the definition that all kernels are tested against.
float dequantise(const HostMatrix& m, int64_t row, int64_t col);

/// One row of dynamic int8 activations: scale = amax/127 (1 for a zero row), q = round half to even(x / scale).
/// Returns the scale; NaN (and zeros) for a row that is not finite, so that its outputs are NaN and not quietly wrong. `least_amax`: the
/// amax of a longer row that x is a part of. Source: compressed-tensors dynamic per-token symmetric int8.
float quantise_row_int8(const float* x, int64_t n, int8_t* q, float least_amax = 0.0f);
/// max |x|; infinite or NaN values give infinity.
float largest_magnitude(const float* x, int64_t n);

}  // namespace conclave
