#include "backend/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_info.h"
#include "backend/cpu/pack.h"
#include "core/error.h"

namespace conclave {
namespace cpu {
namespace {

/// Below this many elements a parallel region costs more than it saves.
constexpr int64_t kSerialElements = 32768;

/// Marks the `count` largest of v in `taken` (cleared first): ties to the lower index, NaN last. Returns the sum of the chosen.
float take_largest(const float* v, int n, int count, uint8_t* taken) {
  std::memset(taken, 0, static_cast<size_t>(n));
  float sum = 0;
  for (int c = 0; c < count; ++c) {
    int best = -1;
    for (int i = 0; i < n; ++i)
      if (!taken[i] && (best < 0 || v[i] > v[best] || (std::isnan(v[best]) && !std::isnan(v[i])))) best = i;
    taken[best] = 1;
    sum += v[best];
  }
  return sum;
}

/// Scores of one row; softmax and sigmoid in f32.
void score(float* s, const float* logits, const RouterSpec& spec) {
  const int n = spec.num_experts;
  if (spec.score == RouterSpec::Score::sigmoid) {
    for (int e = 0; e < n; ++e) s[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float top = *std::max_element(logits, logits + n);
  float sum = 0;
  for (int e = 0; e < n; ++e) sum += s[e] = std::exp(logits[e] - top);
  for (int e = 0; e < n; ++e) s[e] /= sum;
}

struct RouteScratch { float *scores, *selection, *groups; uint8_t* taken; };

void route_row(int32_t* expert, float* weight, const float* logits, const Tensor& bias, const RouterSpec& spec, const RouteScratch& w) {
  const int n = spec.num_experts, size = n / spec.num_groups;
  score(w.scores, logits, spec);
  for (int e = 0; e < n; ++e) w.selection[e] = w.scores[e] + (bias.empty() ? 0.0f : bias.as<float>()[e]);
  if (spec.num_groups > 1) {
    const int members = spec.group_score == RouterSpec::GroupScore::top2_sum ? std::min(2, size) : 1;
    for (int g = 0; g < spec.num_groups; ++g) w.groups[g] = take_largest(w.selection + g * size, size, members, w.taken);
    take_largest(w.groups, spec.num_groups, spec.top_groups, w.taken);
    for (int e = 0; e < n; ++e)
      if (!w.taken[e / size]) w.selection[e] = -std::numeric_limits<float>::infinity();
  }
  take_largest(w.selection, n, spec.top_k, w.taken);
  float sum = 0;
  for (int e = 0, k = 0; e < n; ++e)
    if (w.taken[e]) {
      expert[k++] = e;
      sum += w.scores[e];
    }
  const float divisor = spec.renormalise ? std::max(sum + spec.norm_epsilon, spec.norm_floor) : 1.0f;
  for (int k = 0; k < spec.top_k; ++k) weight[k] = w.scores[expert[k]] / divisor * spec.scale;
}

}  // namespace

std::byte* Scratch::take_bytes(size_t bytes) {
  const size_t at = used_;
  used_ += (bytes + 63) / 64 * 64;
  if (!counting_ && used_ > size_)
    throw Error(Error::Kind::internal, fmt::format("a step needs more than the {} bytes of scratch memory reserved for its limits", size_));
  return counting_ ? nullptr : base_ + at;
}

size_t CpuBackend::packed_bytes(const WeightStorage& storage, Weight::Layout layout, int64_t rows, int64_t cols) const {
  return cpu::packed_bytes(storage, layout, rows, cols);
}

Weight CpuBackend::as_offered(Weight weight) const {
  if (weight.activations == Activations::bf16 && !k_.pack_bf16) weight.activations = Activations::floating;
  return weight;
}

Weight CpuBackend::pack(const HostMatrix& matrix, Weight::Layout layout, std::span<std::byte> dst) const {
  return as_offered(cpu::pack(matrix, layout, dst));
}

Weight CpuBackend::pack_pair(const HostMatrix& gate, const HostMatrix& up, std::span<std::byte> dst) const {
  return as_offered(cpu::pack_pair(gate, up, dst));
}

size_t CpuBackend::workspace_bytes(const StepLimits& limits) const {
  Scratch route;
  route.take<float>(int64_t{3} * limits.max_experts * pool_.size());
  route.take<uint8_t>(int64_t{limits.max_experts} * pool_.size());
  return std::max({route.used(), linear_bytes(limits), attention_bytes(limits)});
}

void CpuBackend::reserve(const StepLimits& limits) {
  block_ = Buffer(workspace_bytes(limits));
  limits_ = limits;
}

void CpuBackend::for_rows(int64_t rows, int64_t elements_per_row, FunctionRef<void(int64_t, int64_t, int)> f) {
  if (rows * elements_per_row < kSerialElements || pool_.size() == 1) return f(0, rows, 0);
  const int64_t grain = std::max<int64_t>(1, std::min((rows + pool_.size() - 1) / pool_.size(), kSerialElements / elements_per_row));
  pool_.parallel_for((rows + grain - 1) / grain, [&](int64_t i, int worker) { f(i * grain, std::min(rows, (i + 1) * grain), worker); });
}

void CpuBackend::for_tasks(int64_t count, int64_t elements, FunctionRef<void(int64_t, int)> f) {
  if (elements < kSerialElements)
    for (int64_t i = 0; i < count; ++i) f(i, 0);
  else
    pool_.parallel_for(count, f);
}

void CpuBackend::do_embed(Tensor out, const Weight& table, Tensor ids) {
  for_rows(out.dim[0], out.dim[1], [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t id = ids.as<int32_t>()[t];
      if (id >= 0) unpack_row(table, id, out.row<float>(t));
      else std::memset(out.row<float>(t), 0, static_cast<size_t>(out.dim[1]) * sizeof(float));
    }
  });
}

void CpuBackend::do_add_rms_norm(Tensor out, Tensor residual, Tensor delta, Tensor gain, float eps) {
  for_rows(residual.dim[0], residual.dim[1], [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      k_.add_rms_norm(out.row<float>(t), residual.row<float>(t), delta.empty() ? nullptr : delta.row<float>(t), gain.as<float>(),
                      residual.dim[1], eps);
  });
}

void CpuBackend::do_add(Tensor residual, Tensor delta) {
  for_rows(residual.dim[0], residual.dim[1], [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) k_.add(residual.row<float>(t), delta.row<float>(t), residual.dim[1]);
  });
}

void CpuBackend::do_gather_rows(Tensor out, Tensor x, std::span<const int32_t> index) {
  for_rows(out.dim[0], out.dim[1], [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n)
      std::memcpy(out.row<float>(n), x.row<float>(index[static_cast<size_t>(n)]), static_cast<size_t>(x.dim[1]) * sizeof(float));
  });
}

void CpuBackend::do_rope(Tensor x, const RopeAngles& angles, RopePairs pairs) {
  const int64_t half = x.dim[2] / 2;
  const bool halves = pairs == RopePairs::halves;
  const int64_t step = halves ? 1 : 2, partner = halves ? half : 1;
  for_rows(x.dim[0], x.dim[1] * x.dim[2], [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float *cos = angles.cos.row<float>(t), *sin = angles.sin.row<float>(t);
      for (int64_t h = 0; h < x.dim[1]; ++h) {
        float* head = x.row<float>(t) + h * x.stride[1];
        for (int64_t i = 0; i < half; ++i) {
          const float a = head[i * step], b = head[i * step + partner];
          head[i * step] = a * cos[i] - b * sin[i];
          head[i * step + partner] = b * cos[i] + a * sin[i];
        }
      }
    }
  });
}

void CpuBackend::do_route(const Routing& out, Tensor logits, Tensor selection_bias, const RouterSpec& spec) {
  Scratch scratch(block_);
  const int workers = pool_.size(), n = spec.num_experts;
  auto* floats = scratch.take<float>(int64_t{3} * n * workers);
  auto* flags = scratch.take<uint8_t>(int64_t{n} * workers);
  for_rows(logits.dim[0], int64_t{n} * 16, [&](int64_t begin, int64_t end, int worker) {
    float* own = floats + int64_t{3} * n * worker;
    const RouteScratch w{own, own + n, own + 2 * n, flags + int64_t{n} * worker};
    for (int64_t t = begin; t < end; ++t)
      route_row(out.expert.row<int32_t>(t), out.weight.row<float>(t), logits.row<float>(t), selection_bias, spec, w);
  });
}

}  // namespace cpu

std::unique_ptr<Backend> make_cpu(ThreadPool& pool, std::string_view isa) {
  return std::make_unique<cpu::CpuBackend>(pool, cpu::table_for(isa));
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : cpu::available_tables()) names.emplace_back(table->isa);
  return names;
}

}  // namespace conclave
