#include "quant/formats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/float_types.h"

namespace conclave {

size_t element_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return 4;
    case WeightFormat::f16:
    case WeightFormat::bf16: return 2;
    case WeightFormat::f8e4m3:
    case WeightFormat::int8: return 1;
    case WeightFormat::int4: break;
  }
  return 0;
}

size_t bytes_of(WeightFormat format, int64_t elements) {
  const auto n = static_cast<size_t>(elements);
  return format == WeightFormat::int4 ? (n + 1) / 2 : n * element_bytes(format);
}

WeightStorage storage_of(const HostMatrix& m) {
  if (m.format != WeightFormat::int4) return m.format;
  return {m.format, {m.block_cols, m.scale_type, m.zeros != nullptr}};
}

std::string_view name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return "f32";
    case WeightFormat::f16: return "f16";
    case WeightFormat::bf16: return "bf16";
    case WeightFormat::f8e4m3: return "fp8";
    case WeightFormat::int8: return "int8";
    case WeightFormat::int4: return "int4";
  }
  return "";
}

float dequantise(const HostMatrix& m, int64_t row, int64_t col) {
  const int64_t i = row * m.row_stride + col;
  switch (m.format) {
    case WeightFormat::f32: return reinterpret_cast<const float*>(m.data)[i];
    case WeightFormat::f16: return f16_to_f32(reinterpret_cast<const uint16_t*>(m.data)[i]);
    case WeightFormat::bf16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(m.data)[i]);
    case WeightFormat::f8e4m3: return f8e4m3_to_f32(reinterpret_cast<const uint8_t*>(m.data)[i]) * m.scale(row, col);
    case WeightFormat::int8: return static_cast<float>(reinterpret_cast<const int8_t*>(m.data)[i]) * m.scale(row, col);
    case WeightFormat::int4: return static_cast<float>(m.code(row, col) - m.zero(row, col)) * m.scale(row, col);
  }
  return 0.0f;
}

float largest_magnitude(const float* x, int64_t n) {
  float amax = 0.0f;
  for (int64_t i = 0; i < n; ++i) amax = std::isfinite(x[i]) ? std::max(amax, std::fabs(x[i])) : std::numeric_limits<float>::infinity();
  return amax;
}

float quantise_row_int8(const float* x, int64_t n, int8_t* q, float least_amax) {
  float amax = least_amax;
  bool finite = std::isfinite(amax);
  for (int64_t i = 0; i < n; ++i) {
    amax = std::max(amax, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  if (!finite) {
    std::fill(q, q + n, int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float step = amax / 127.0f, scale = step > 0.0f ? step : 1.0f;
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
  return scale;
}

}  // namespace conclave
