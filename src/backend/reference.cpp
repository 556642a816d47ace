#include "backend/reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/float_types.h"

namespace conclave {
namespace {

using reference::apply;
using reference::row_of;

/// Held row-major: int8 as [rows] f32 scales and then the elements, int4 as [rows][groups] scales and then bytes of code - zero, FP8 as
/// dequantised f32, the others as stored.
size_t held_element(WeightFormat format) {
  return format == WeightFormat::f8e4m3 ? sizeof(float) : format == WeightFormat::int4 ? 1 : element_bytes(format);
}
int64_t scales_per_row(const WeightStorage& s, int64_t cols) {
  if (s.format == WeightFormat::int4) return (cols + s.groups.size - 1) / s.groups.size;
  return s.format == WeightFormat::int8 ? 1 : 0;
}
size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }
size_t scale_bytes(const WeightStorage& s, int64_t rows, int64_t cols) {
  return padded(checked_product(std::array{rows, scales_per_row(s, cols), static_cast<int64_t>(sizeof(float))}, "scales"));
}
const std::byte* elements_of(const Weight& w) { return w.data + scale_bytes(storage_of(w), w.rows, w.cols); }

void copy_rows(const HostMatrix& m, const Weight& to, int64_t first_row) {
  const size_t element = held_element(m.format);
  const int64_t per_row = scales_per_row(storage_of(to), to.cols);
  auto* scales = reinterpret_cast<float*>(to.data) + first_row * per_row;
  std::byte* rows = to.data + scale_bytes(storage_of(to), to.rows, to.cols);
  for (int64_t r = 0; r < m.rows; ++r) {
    std::byte* out = rows + static_cast<size_t>((first_row + r) * m.cols) * element;
    for (int64_t g = 0; g < per_row; ++g) scales[r * per_row + g] = m.scale(r, g * m.block_cols);
    if (m.format == WeightFormat::f8e4m3)
      for (int64_t c = 0; c < m.cols; ++c) reinterpret_cast<float*>(out)[c] = dequantise(m, r, c);
    else if (m.format == WeightFormat::int4)
      for (int64_t c = 0; c < m.cols; ++c) out[c] = static_cast<std::byte>(m.code(r, c) - m.zero(r, c));
    else
      std::memcpy(out, m.data + static_cast<size_t>(r * m.row_stride) * element, static_cast<size_t>(m.cols) * element);
  }
}

float silu(double x) { return static_cast<float>(x / (1.0 + std::exp(-x))); }

/// Indices of the `count` largest values, ties to the lower index, NaN last.
std::vector<int> largest(const std::vector<float>& values, int count) {
  std::vector<int> chosen;
  std::vector<bool> taken(values.size(), false);
  for (int n = 0; n < count; ++n) {
    int best = -1;
    for (int i = 0; i < static_cast<int>(values.size()); ++i) {
      if (taken[static_cast<size_t>(i)]) continue;
      const float v = values[static_cast<size_t>(i)];
      if (best < 0 || v > values[static_cast<size_t>(best)] || (std::isnan(values[static_cast<size_t>(best)]) && !std::isnan(v))) best = i;
    }
    taken[static_cast<size_t>(best)] = true;
    chosen.push_back(best);
  }
  return chosen;
}

std::vector<float> scores_of(const float* logits, const RouterSpec& spec) {
  const auto n = static_cast<size_t>(spec.num_experts);
  std::vector<float> s(logits, logits + n);
  if (spec.score == RouterSpec::Score::sigmoid) {
    for (float& v : s) v = 1.0f / (1.0f + std::exp(-v));
    return s;
  }
  float top = s[0], sum = 0.0f;
  for (const float v : s) top = std::max(top, v);
  for (float& v : s) sum += (v = std::exp(v - top));
  for (float& v : s) v /= sum;
  return s;
}

/// All experts outside the best groups become -inf.
void keep_best_groups(std::vector<float>& selection, const RouterSpec& spec) {
  const int size = spec.num_experts / spec.num_groups;
  std::vector<float> group(static_cast<size_t>(spec.num_groups));
  for (int g = 0; g < spec.num_groups; ++g) {
    std::vector<float> members(selection.begin() + g * size, selection.begin() + (g + 1) * size);
    const bool two = spec.group_score == RouterSpec::GroupScore::top2_sum && size > 1;
    float sum = 0.0f;
    for (const int i : largest(members, two ? 2 : 1)) sum += members[static_cast<size_t>(i)];
    group[static_cast<size_t>(g)] = sum;
  }
  std::vector<bool> kept(group.size(), false);
  for (const int g : largest(group, spec.top_groups)) kept[static_cast<size_t>(g)] = true;
  for (int e = 0; e < spec.num_experts; ++e)
    if (!kept[static_cast<size_t>(e / size)]) selection[static_cast<size_t>(e)] = -std::numeric_limits<float>::infinity();
}

/// silu(gate x) * up x
std::vector<float> inner_of(const SwiGluWeights& w, const float* x) {
  const std::vector<double> gate_up = apply(w.gate_up, x);
  const size_t inner = gate_up.size() / 2;
  std::vector<float> h(inner);
  for (size_t i = 0; i < inner; ++i) h[i] = silu(gate_up[i]) * static_cast<float>(gate_up[inner + i]);
  return h;
}

/// Largest magnitudes for InnerMax, made those of all ranks: of routed pairs by (expert, token), and of the shared feed-forward by token.
struct InnerMaxima {
  std::map<std::pair<int32_t, int64_t>, float> routed;
  std::vector<float> shared;

  InnerMaxima(Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts, const SwiGluWeights* shared_weights,
              const InnerMax& reduce) {
    const auto largest = [&](const SwiGluWeights& w, int64_t t) {
      const std::vector<float> h = inner_of(w, x.row<float>(t));
      return largest_magnitude(h.data(), static_cast<int64_t>(h.size()));
    };
    for (int64_t t = 0; t < x.dim[0]; ++t) {
      for (int64_t k = 0; k < (routing.expert.empty() ? 0 : routing.expert.dim[1]); ++k)
        if (const int32_t e = routing.expert.row<int32_t>(t)[k]; e >= 0) routed[{e, t}] = largest(experts[static_cast<size_t>(e)], t);
      if (shared_weights) shared.push_back(largest(*shared_weights, t));
    }
    std::vector<float> flat;
    for (const auto& [key, value] : routed) flat.push_back(value);
    reduce(flat, shared);
    size_t i = 0;
    for (auto& [key, value] : routed) value = flat[i++];
  }
};

}  // namespace

namespace {

/// Exact integer sums per group of inputs that share a scale, scaled and added.
std::vector<double> apply_int8(const Weight& w, const float* x, float least_amax) {
  std::vector<double> y(static_cast<size_t>(w.rows));
  std::vector<int8_t> q(static_cast<size_t>(w.cols));
  const float x_scale = quantise_row_int8(x, w.cols, q.data(), least_amax);
  const auto* scales = reinterpret_cast<const float*>(w.data);
  const auto* rows = reinterpret_cast<const int8_t*>(elements_of(w));
  const int64_t per_row = scales_per_row(storage_of(w), w.cols), group = w.format == WeightFormat::int8 ? w.cols : w.groups.size;
  for (int64_t r = 0; r < w.rows; ++r) {
    double total = 0;
    for (int64_t g = 0; g < per_row; ++g) {
      int64_t sum = 0;
      for (int64_t c = g * group; c < std::min(w.cols, (g + 1) * group); ++c) sum += int64_t{rows[r * w.cols + c]} * q[static_cast<size_t>(c)];
      if (w.format == WeightFormat::int8) total = static_cast<float>(sum) * (x_scale * scales[r]);
      else total += static_cast<double>(sum) * scales[r * per_row + g];
    }
    y[static_cast<size_t>(r)] = w.format == WeightFormat::int8 ? total : total * x_scale;
  }
  return y;
}

}  // namespace

std::vector<double> reference::row_of(const Weight& w, int64_t row) {
  const std::byte* rows = elements_of(w);
  const int64_t per_row = scales_per_row(storage_of(w), w.cols);
  std::vector<double> out(static_cast<size_t>(w.cols));
  for (int64_t c = 0; c < w.cols; ++c) {
    const int64_t i = row * w.cols + c;
    double& v = out[static_cast<size_t>(c)];
    switch (w.format) {
      case WeightFormat::f32:
      case WeightFormat::f8e4m3: v = reinterpret_cast<const float*>(rows)[i]; break;
      case WeightFormat::f16: v = f16_to_f32(reinterpret_cast<const uint16_t*>(rows)[i]); break;
      case WeightFormat::bf16: v = bf16_to_f32(reinterpret_cast<const uint16_t*>(rows)[i]); break;
      case WeightFormat::int8:
      case WeightFormat::int4: {
        const int64_t group = w.format == WeightFormat::int8 ? 0 : c / w.groups.size;
        v = static_cast<float>(reinterpret_cast<const int8_t*>(rows)[i]) * reinterpret_cast<const float*>(w.data)[row * per_row + group];
        break;
      }
    }
  }
  return out;
}

std::vector<double> reference::apply(const Weight& w, const float* x, float least_amax) {
  std::vector<double> y(static_cast<size_t>(w.rows));
  if (w.activations == Activations::int8_token) return apply_int8(w, x, least_amax);
  const auto met = [&](float v) { return w.activations == Activations::bf16 ? bf16_to_f32(f32_to_bf16(v)) : v; };
  for (int64_t r = 0; r < w.rows; ++r) {
    const std::vector<double> row = row_of(w, r);
    double sum = 0;
    for (int64_t c = 0; c < w.cols; ++c) sum += row[static_cast<size_t>(c)] * met(x[c]);
    y[static_cast<size_t>(r)] = sum;
  }
  return y;
}

size_t ReferenceBackend::packed_bytes(const WeightStorage& storage, Weight::Layout, int64_t rows, int64_t cols) const {
  return scale_bytes(storage, rows, cols) + padded(checked_product(std::array{rows, cols, static_cast<int64_t>(held_element(storage.format))}, "weight"));
}

Weight ReferenceBackend::pack(const HostMatrix& m, Weight::Layout layout, std::span<std::byte> dst) const {
  const size_t bytes = packed_bytes(storage_of(m), layout, m.rows, m.cols);
  if (dst.size() < bytes) throw Error(Error::Kind::internal, fmt::format("pack needs {} bytes, {} given", bytes, dst.size()));
  const Weight w{m.format, m.activations, layout, m.rows, m.cols, dst.data(), bytes, storage_of(m).groups};
  copy_rows(m, w, 0);
  return w;
}

Weight ReferenceBackend::pack_pair(const HostMatrix& gate, const HostMatrix& up, std::span<std::byte> dst) const {
  const size_t bytes = packed_bytes(storage_of(gate), Weight::Layout::paired, gate.rows + up.rows, gate.cols);
  if (dst.size() < bytes || gate.rows != up.rows || gate.cols != up.cols || storage_of(gate) != storage_of(up) ||
      gate.activations != up.activations)
    throw Error(Error::Kind::internal, fmt::format("pack_pair of [{}, {}] and [{}, {}] into {} bytes", gate.rows, gate.cols, up.rows, up.cols, dst.size()));
  const Weight w{gate.format, gate.activations, Weight::Layout::paired, gate.rows + up.rows, gate.cols, dst.data(), bytes,
                 storage_of(gate).groups};
  copy_rows(gate, w, 0);
  copy_rows(up, w, gate.rows);
  return w;
}

void ReferenceBackend::do_embed(Tensor out, const Weight& table, Tensor ids) {
  for (int64_t t = 0; t < out.dim[0]; ++t) {
    const int32_t id = ids.as<int32_t>()[t];
    const std::vector<double> row = id < 0 ? std::vector<double>(static_cast<size_t>(out.dim[1]), 0.0) : row_of(table, id);
    for (int64_t c = 0; c < out.dim[1]; ++c) out.row<float>(t)[c] = static_cast<float>(row[static_cast<size_t>(c)]);
  }
}

void ReferenceBackend::do_add_rms_norm(Tensor out, Tensor residual, Tensor delta, Tensor gain, float eps) {
  const int64_t width = residual.dim[1];
  for (int64_t t = 0; t < residual.dim[0]; ++t) {
    float* x = residual.row<float>(t);
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) {
      if (!delta.empty()) x[i] += delta.row<float>(t)[i];
      squares += static_cast<double>(x[i]) * x[i];
    }
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (int64_t i = 0; i < width; ++i) out.row<float>(t)[i] = static_cast<float>(gain.as<float>()[i] * (x[i] * factor));
  }
}

void ReferenceBackend::do_add(Tensor residual, Tensor delta) {
  for (int64_t t = 0; t < residual.dim[0]; ++t)
    for (int64_t i = 0; i < residual.dim[1]; ++i) residual.row<float>(t)[i] += delta.row<float>(t)[i];
}

void ReferenceBackend::do_gather_rows(Tensor out, Tensor x, std::span<const int32_t> index) {
  for (size_t n = 0; n < index.size(); ++n)
    std::memcpy(out.row<float>(static_cast<int64_t>(n)), x.row<float>(index[n]), static_cast<size_t>(x.dim[1]) * sizeof(float));
}

void ReferenceBackend::do_linear(std::span<const Linear> jobs, Tensor x, Tensor row_max) {
  for (const Linear& job : jobs)
    for (int64_t t = 0; t < x.dim[0]; ++t) {
      const std::vector<double> y = apply(*job.weight, x.row<float>(t), row_max.empty() ? 0.0f : row_max.as<float>()[t]);
      for (size_t n = 0; n < y.size(); ++n) job.out.row<float>(t)[n] = static_cast<float>(y[n]);
    }
}

void ReferenceBackend::do_rope(Tensor x, const RopeAngles& angles, RopePairs pairs) {
  const int64_t half = x.dim[2] / 2;
  for (int64_t t = 0; t < x.dim[0]; ++t)
    for (int64_t h = 0; h < x.dim[1]; ++h)
      for (int64_t i = 0; i < half; ++i) {
        float* head = x.row<float>(t) + h * x.stride[1];
        float& a = pairs == RopePairs::halves ? head[i] : head[2 * i];
        float& b = pairs == RopePairs::halves ? head[i + half] : head[2 * i + 1];
        const double c = angles.cos.row<float>(t)[i], s = angles.sin.row<float>(t)[i], first = a, second = b;
        a = static_cast<float>(first * c - second * s);
        b = static_cast<float>(second * c + first * s);
      }
}

void ReferenceBackend::do_route(const Routing& out, Tensor logits, Tensor selection_bias, const RouterSpec& spec) {
  for (int64_t t = 0; t < logits.dim[0]; ++t) {
    const std::vector<float> scores = scores_of(logits.row<float>(t), spec);
    std::vector<float> selection = scores;
    if (!selection_bias.empty())
      for (size_t e = 0; e < selection.size(); ++e) selection[e] += selection_bias.as<float>()[e];
    if (spec.num_groups > 1) keep_best_groups(selection, spec);
    std::vector<int> chosen = largest(selection, spec.top_k);
    std::sort(chosen.begin(), chosen.end());
    float sum = 0.0f;
    for (const int e : chosen) sum += scores[static_cast<size_t>(e)];
    const float divisor = spec.renormalise ? std::max(sum + spec.norm_epsilon, spec.norm_floor) : 1.0f;
    for (size_t k = 0; k < chosen.size(); ++k) {
      out.expert.row<int32_t>(t)[k] = chosen[k];
      out.weight.row<float>(t)[k] = scores[static_cast<size_t>(chosen[k])] / divisor * spec.scale;
    }
  }
}

void ReferenceBackend::do_ffn(Tensor out, Tensor x, const Routing& routing, std::span<const SwiGluWeights> experts,
                              const SwiGluWeights* shared, const InnerMax* inner_max) {
  const int64_t width = x.dim[1];
  const auto maxima = inner_max ? std::optional<InnerMaxima>(std::in_place, x, routing, experts, shared, *inner_max) : std::nullopt;
  const auto swiglu = [&](const SwiGluWeights& w, int64_t t, float least_amax) {
    return apply(w.down, inner_of(w, x.row<float>(t)).data(), least_amax);
  };
  for (int64_t t = 0; t < x.dim[0]; ++t) {
    std::vector<double> sum(static_cast<size_t>(width), 0.0);
    for (size_t e = 0; e < experts.size(); ++e)
      for (int64_t k = 0; k < routing.expert.dim[1]; ++k) {
        if (routing.expert.row<int32_t>(t)[k] != static_cast<int32_t>(e)) continue;
        const std::vector<double> y = swiglu(experts[e], t, maxima ? maxima->routed.at({static_cast<int32_t>(e), t}) : 0.0f);
        for (size_t i = 0; i < y.size(); ++i) sum[i] += routing.weight.row<float>(t)[k] * y[i];
      }
    if (shared) {
      const std::vector<double> y = swiglu(*shared, t, maxima ? maxima->shared[static_cast<size_t>(t)] : 0.0f);
      for (size_t i = 0; i < y.size(); ++i) sum[i] += y[i];
    }
    for (int64_t i = 0; i < width; ++i) out.row<float>(t)[i] = static_cast<float>(sum[static_cast<size_t>(i)]);
  }
}

std::unique_ptr<Backend> make_reference() { return std::make_unique<ReferenceBackend>(); }

}  // namespace conclave
