#include "model/tensor_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/float_types.h"
#include "model/packed_matrix.h"

namespace conclave {
namespace {

bool is_floating(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_model, message); }

std::vector<int64_t> without_ones(const std::vector<int64_t>& shape) {
  std::vector<int64_t> kept;
  for (const int64_t n : shape)
    if (n != 1) kept.push_back(n);
  return kept;
}

template <class T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void store(std::byte* p, T value) { std::memcpy(p, &value, sizeof(T)); }

void from_f32(std::span<const float> values, DType dtype, std::byte* out, const SourceTensor& tensor) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) store(out + 4 * i, values[i]);
    else if (dtype == DType::bf16) store(out + 2 * i, f32_to_bf16(values[i]));
    else {
      if (std::fabs(values[i]) > 65504.0f && !std::isinf(values[i]))
        refuse(fmt::format("{}: {} holds {}, which F16 cannot represent (limit 65504); use --dtype bf16 or f32", tensor.origin,
                           tensor.name, values[i]));
      store(out + 2 * i, f32_to_f16(values[i]));
    }
  }
}

}  // namespace

WeightFormat weight_format(DType floating) {
  switch (floating) {
    case DType::f32: return WeightFormat::f32;
    case DType::f16: return WeightFormat::f16;
    case DType::bf16: return WeightFormat::bf16;
    default: throw Error(Error::Kind::internal, fmt::format("{} is not a floating weight type", name_of(floating)));
  }
}

void to_f32(const std::byte* data, DType dtype, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = dtype == DType::f32   ? load<float>(data + 4 * i)
             : dtype == DType::f16 ? f16_to_f32(load<uint16_t>(data + 2 * i))
                                   : bf16_to_f32(load<uint16_t>(data + 2 * i));
}

StoredMatrix dequantised(const StoredMatrix& matrix) {
  const HostMatrix& m = matrix.host;
  StoredMatrix plain;
  plain.sources = matrix.sources;
  plain.values.resize(static_cast<size_t>(m.rows * m.cols) * sizeof(float));
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < m.cols; ++c)
      store(plain.values.data() + static_cast<size_t>(r * m.cols + c) * sizeof(float), dequantise(m, r, c));
  plain.host = {.rows = m.rows, .cols = m.cols, .row_stride = m.cols, .data = plain.values.data()};
  return plain;
}

HostMatrix part_of(HostMatrix m, const IndexRange& rows, const IndexRange& cols) {
  m.data += bytes_of(m.format, rows.begin * m.row_stride + cols.begin);
  m.rows = rows.size(), m.cols = cols.size();
  m.row_offset += rows.begin;
  if (m.format != WeightFormat::int4) m.col_offset += cols.begin;
  else if (const int64_t groups = cols.begin / m.block_cols; groups > 0) {
    m.scales += groups;
    if (m.zeros) m.zeros += groups;
  }
  return m;
}

bool leaves_grid(WeightFormat format, const TensorCut& cut) { return format == WeightFormat::f8e4m3 && cut.rows.size() > 1; }

namespace {

/// Rows in several ranges, copied one after the other with their scales; `whole` has a scale row per row, or none.
void gather(StoredMatrix& whole, std::span<const IndexRange> ranges) {
  const HostMatrix& m = whole.host;
  StoredMatrix out;
  out.host = m;
  out.host.rows = 0, out.host.row_offset = 0;
  const size_t row_bytes = bytes_of(m.format, m.row_stride);
  for (const IndexRange& range : ranges)
    for (int64_t r = range.begin; r < range.end; ++r, ++out.host.rows) {
      const std::byte* row = m.data + static_cast<size_t>(r) * row_bytes;
      out.values.insert(out.values.end(), row, row + row_bytes);
      const int64_t grid = m.grid_index(r, 0);
      if (m.scales) out.scales.insert(out.scales.end(), m.scales + grid, m.scales + grid + m.scale_stride);
      if (m.zeros) out.zeros.insert(out.zeros.end(), m.zeros + grid, m.zeros + grid + m.scale_stride);
    }
  out.host.data = out.values.data();
  out.host.scales = out.scales.empty() ? nullptr : out.scales.data();
  out.host.zeros = out.zeros.empty() ? nullptr : out.zeros.data();
  out.sources = std::move(whole.sources);
  whole = std::move(out);
}

std::vector<int64_t> cut_shape(std::vector<int64_t> shape, const TensorCut& cut) {
  if (!cut.rows.empty()) {
    shape[0] = 0;
    for (const IndexRange& range : cut.rows) shape[0] += range.size();
  }
  if (cut.cols.size() > 0) shape[1] = cut.cols.size();
  return shape;
}

void apply(StoredMatrix& matrix, const TensorCut& cut) {
  if (leaves_grid(matrix.host.format, cut)) {
    const Activations activations = matrix.host.activations;
    matrix = dequantised(matrix);
    matrix.host.activations = activations;
  }
  if (cut.rows.size() > 1) return gather(matrix, cut.rows);
  const IndexRange all_rows{0, matrix.host.rows}, all_cols{0, matrix.host.cols};
  matrix.host = part_of(matrix.host, cut.rows.empty() ? all_rows : cut.rows.front(), cut.cols.size() > 0 ? cut.cols : all_cols);
}

}  // namespace

TensorReader::TensorReader(const ModelSpec& spec, const TensorSource& source, const Rules& rules)
    : spec_(spec), source_(source), rules_(rules) {
  if (rules_.arithmetic && !is_floating(*rules_.arithmetic))
    throw Error(Error::Kind::bad_input, fmt::format("arithmetic type {} is not one of F32, F16, BF16", name_of(*rules_.arithmetic)));
  for_each_tensor(spec, [&](const TensorInfo& info) { shapes_.emplace(info.name, info.shape); });
}

const std::vector<int64_t>& TensorReader::shape(const std::string& name) const {
  const auto found = shapes_.find(name);
  if (found == shapes_.end()) throw Error(Error::Kind::internal, fmt::format("tensor {} is not in the model's tensor list", name));
  return found->second;
}

SourceTensor TensorReader::fetch(const std::string& name) const {
  auto tensor = source_.find(name);
  if (!tensor) refuse(fmt::format("tensor {} is missing; the model needs it with shape [{}]", name, fmt::join(shape(name), ", ")));
  return std::move(*tensor);
}

std::string TensorReader::scale_name(const std::string& name, WeightFormat format) const {
  return name + (format == WeightFormat::f8e4m3 ? "_scale_inv" : "_scale");
}

Activations TensorReader::activations_of(const std::string& name, WeightFormat format) const {
  if (rules_.activations) return *rules_.activations;
  const auto described = spec_.quant.described.find(name);
  const Activations stored = described == spec_.quant.described.end() ? spec_.quant.activations : described->second;
  return format == WeightFormat::int4 && stored == Activations::floating ? rules_.int4_activations : stored;
}

std::optional<TensorReader::Held> TensorReader::held_packed(const std::string& name) const {
  const QuantSpec& quant = spec_.quant;
  if (!is_packed(quant.scheme)) return std::nullopt;
  const auto parts = packed_parts(quant, shape(name)[0], shape(name)[1], name);
  const std::string module = module_of(name);
  const auto type_of = [&](const PackedPart& part) { return source_.dtype(module + std::string(part.suffix)); };
  if (!type_of(parts[0])) return std::nullopt;
  for (const PackedPart& part : parts) {
    const auto found = type_of(part);
    if (part.required && !found)
      refuse(fmt::format("{}: {}{} is missing beside {}{}; the folder is incomplete", fetch(module + std::string(parts[0].suffix)).origin,
                         module, part.suffix, module, parts[0].suffix));
    const bool fits = !found || (part.dtype == DType::f32 ? is_floating(*found) : *found == part.dtype);
    if (!fits)
      refuse(fmt::format("{}: {}{} is {}, wanted {}", fetch(module + std::string(part.suffix)).origin, module, part.suffix, name_of(*found),
                         part.dtype == DType::f32 ? "F32, F16 or BF16" : name_of(part.dtype)));
  }
  if (quant.bits == 8) return Held{WeightFormat::int8, activations_of(name, WeightFormat::int8)};
  const int64_t group = quant.group > 0 ? quant.group : shape(name)[1];
  return Held{{WeightFormat::int4, {group, *type_of(parts[1]), quant.zeros}}, activations_of(name, WeightFormat::int4)};
}

TensorReader::Held TensorReader::held(const std::string& name, MatrixRole role) const {
  const auto dtype = source_.dtype(name);
  if (!dtype && role == MatrixRole::linear)
    if (const auto packed = held_packed(name)) return *packed;
  if (!dtype) fetch(name);  // throws with the shape that is wanted
  if (is_floating(*dtype)) {
    const DType kept = role == MatrixRole::router ? *dtype : rules_.arithmetic.value_or(*dtype);
    const bool rounds = rules_.bf16_activations && kept == DType::bf16 && role != MatrixRole::router;
    return {weight_format(kept), rounds ? Activations::bf16 : Activations::floating};
  }
  const auto where = [&] { return fetch(name).origin; };
  const bool fp8 = *dtype == DType::f8e4m3, int8 = *dtype == DType::i8;
  if (role != MatrixRole::linear || (!fp8 && !int8))
    refuse(fmt::format("{}: {} is {}, wanted BF16, F16 or F32{}", where(), name, name_of(*dtype),
                       role == MatrixRole::linear ? ", F8_E4M3 or I8 with scales" : ""));
  const WeightScheme wanted = fp8 ? WeightScheme::fp8_block : WeightScheme::int8_channel;
  if (spec_.quant.scheme != wanted)
    refuse(fmt::format("{}: {} is {}, but config.json's quantization_config does not describe {} weights; restore the "
                       "config.json that belongs to these files", where(), name, name_of(*dtype), fp8 ? "FP8 block-scaled" : "int8"));
  const WeightFormat format = fp8 ? WeightFormat::f8e4m3 : WeightFormat::int8;
  const auto scale = source_.dtype(scale_name(name, format));
  if (!scale)
    refuse(fmt::format("{}: {} is {} but its scales {} are missing; the folder is incomplete", where(), name, name_of(*dtype),
                       scale_name(name, format)));
  if (!is_floating(*scale))
    refuse(fmt::format("{}: {} is {}, wanted F32 or BF16", where(), scale_name(name, format), name_of(*scale)));
  return {format, fp8 ? Activations::floating : activations_of(name, format)};
}

void TensorReader::check_shape(const SourceTensor& tensor, const std::vector<int64_t>& wanted, std::string_view cause) const {
  if (tensor.shape != wanted)
    refuse(fmt::format("{}: {} has shape [{}], wanted [{}] {}", tensor.origin, tensor.name, fmt::join(tensor.shape, ", "),
                       fmt::join(wanted, ", "), cause));
}

void TensorReader::read_scales(const std::string& name, StoredMatrix& matrix) const {
  HostMatrix& m = matrix.host;
  if (m.format != WeightFormat::f8e4m3 && m.format != WeightFormat::int8) return;
  const bool blocks = m.format == WeightFormat::f8e4m3;
  const SourceTensor scale = fetch(scale_name(name, m.format));
  m.block_rows = blocks ? kFp8Block : 1;
  m.block_cols = blocks ? kFp8Block : m.cols;
  const int64_t grid_rows = (m.row_offset + m.rows + m.block_rows - 1) / m.block_rows;
  m.scale_stride = (m.col_offset + m.cols + m.block_cols - 1) / m.block_cols;
  const bool flat = !blocks && scale.shape == std::vector<int64_t>{m.rows};
  if (!flat)
    check_shape(scale, {grid_rows, m.scale_stride}, blocks ? "(one scale per 128 x 128 block)" : "(one scale per output row)");
  matrix.scales.resize(static_cast<size_t>(grid_rows * m.scale_stride));
  to_f32(scale.data, scale.dtype, matrix.scales);
  m.scales = matrix.scales.data();
  source_.release(scale);
}

StoredMatrix TensorReader::packed_matrix(const std::string& name, const Held& as) const {
  const int64_t rows = shape(name)[0], cols = shape(name)[1];
  StoredMatrix out;
  for (const PackedPart& part : packed_parts(spec_.quant, rows, cols, name)) {
    auto tensor = source_.find(module_of(name) + std::string(part.suffix));
    if (tensor) check_shape(*tensor, part.shape, "as config.json implies; use the config.json that belongs to these files");
    out.sources.push_back(tensor ? std::move(*tensor) : SourceTensor{});
  }
  UnpackedMatrix unpacked = unpack(spec_.quant, rows, cols, out.sources);
  std::erase_if(out.sources, [](const SourceTensor& tensor) { return !tensor.data; });
  out.values = std::move(unpacked.values);
  out.scales = std::move(unpacked.scales);
  out.zeros = std::move(unpacked.zeros);
  out.host = unpacked.host;
  out.host.activations = as.activations;
  return out;
}

/// Floating values in the type they are held in; any others at an address that fits their size (the header of a file may leave its data at
/// any).
void TensorReader::convert(StoredMatrix& matrix, WeightFormat format) const {
  HostMatrix& m = matrix.host;
  const SourceTensor& tensor = matrix.sources.front();
  const size_t element = element_bytes(m.format), to = element_bytes(format);
  if (m.format == format && reinterpret_cast<uintptr_t>(m.data) % element == 0) return;
  std::vector<std::byte> values(static_cast<size_t>(m.rows * m.cols) * to);
  std::vector<float> row(static_cast<size_t>(m.cols));
  for (int64_t r = 0; r < m.rows; ++r) {
    const std::byte* from = m.data + static_cast<size_t>(r * m.row_stride) * element;
    std::byte* out = values.data() + static_cast<size_t>(r * m.cols) * to;
    if (m.format == format) {
      std::memcpy(out, from, row.size() * element);
      continue;
    }
    to_f32(from, tensor.dtype, row);
    from_f32(row, *rules_.arithmetic, out, tensor);
  }
  matrix.values = std::move(values);
  m.format = format;
  m.row_stride = m.cols;
  m.data = matrix.values.data();
}

StoredMatrix TensorReader::matrix(const std::string& name, MatrixRole role, const TensorCut& cut) const {
  const Held as = held(name, role);
  const WeightFormat format = as.storage.format;
  if (is_packed(spec_.quant.scheme) && !source_.dtype(name)) {
    StoredMatrix out = packed_matrix(name, as);
    apply(out, cut);
    return out;
  }
  StoredMatrix out;
  out.sources.push_back(fetch(name));
  const SourceTensor& tensor = out.sources.front();
  const bool sliced = source_.sliced();
  check_shape(tensor, sliced ? cut_shape(shape(name), cut) : shape(name), "as config.json implies; use the config.json that belongs to these files");
  out.host = {.format = is_floating(tensor.dtype) ? weight_format(tensor.dtype) : format, .activations = as.activations,
              .rows = tensor.shape[0], .cols = tensor.shape[1], .row_stride = tensor.shape[1], .data = tensor.data};
  if (sliced && format == WeightFormat::f8e4m3) {  // the stored scales begin with the block that holds the first element
    if (!cut.rows.empty()) out.host.row_offset = cut.rows.front().begin % kFp8Block;
    out.host.col_offset = cut.cols.begin % kFp8Block;
  }
  read_scales(name, out);
  if (!sliced) apply(out, cut);
  if (!leaves_grid(format, cut)) convert(out, format);
  return out;
}

void TensorReader::vector(const std::string& name, std::span<float> out) const {
  const SourceTensor tensor = fetch(name);
  const std::vector<int64_t>& wanted = shape(name);
  if (without_ones(tensor.shape) != without_ones(wanted) || checked_product(tensor.shape, name) != out.size())
    check_shape(tensor, wanted, "as config.json implies; use the config.json that belongs to these files");
  if (!is_floating(tensor.dtype))
    refuse(fmt::format("{}: {} is {}, wanted F32, BF16 or F16", tensor.origin, tensor.name, name_of(tensor.dtype)));
  to_f32(tensor.data, tensor.dtype, out);
  source_.release(tensor);
}

}  // namespace conclave
