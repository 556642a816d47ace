#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/reference.h"
#include "core/float_types.h"

namespace conclave {
namespace {

float load(const Tensor& cache, int64_t element) {
  switch (cache.dtype) {
    case DType::bf16: return bf16_to_f32(cache.as<uint16_t>()[element]);
    case DType::f16: return f16_to_f32(cache.as<uint16_t>()[element]);
    default: return cache.as<float>()[element];
  }
}

void store(const Tensor& cache, int64_t element, float value) {
  switch (cache.dtype) {
    case DType::bf16: cache.as<uint16_t>()[element] = f32_to_bf16(value); break;
    case DType::f16: cache.as<uint16_t>()[element] = f32_to_f16(value); break;
    default: cache.as<float>()[element] = value;
  }
}

/// First element of a position's vector; `head` is 0 and the cache has rank 3 for latents.
int64_t slot(const Tensor& cache, const SequenceRows& s, int block_size, int64_t position, int64_t head = 0) {
  const int64_t block = s.block_table[position / block_size], offset = position % block_size;
  return cache.rank == 4 ? block * cache.stride[0] + head * cache.stride[1] + offset * cache.stride[2]
                         : block * cache.stride[0] + offset * cache.stride[1];
}

/// Calls f(row, position, sequence) for every row of the step.
template <class F>
void for_each_row(const BatchView& batch, F&& f) {
  for (const SequenceRows& s : batch.sequences)
    for (int64_t i = 0; i < s.num_rows; ++i) f(s.first_row + i, s.context_len - s.num_rows + i, s);
}

std::vector<double> softmax(std::vector<double> scores) {
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double s : scores) top = std::max(top, s);
  for (double& s : scores) sum += (s = std::exp(s - top));
  for (double& s : scores) s /= sum;
  return scores;
}

/// One cached position of an MLA layer, as f32 after the cache's rounding.
std::vector<float> latent_at(const KvLayer& kv, const SequenceRows& s, int block_size, int64_t position) {
  const int64_t at = slot(kv.k, s, block_size, position);
  std::vector<float> out(static_cast<size_t>(kv.k.dim[2]));
  for (size_t i = 0; i < out.size(); ++i) out[i] = load(kv.k, at + static_cast<int64_t>(i));
  return out;
}

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

struct Position {
  std::vector<float> latent;    ///< [kv_rank | rope]
  std::vector<double> up;       ///< plain form only: kv_b latent, rows of head h are [k_nope | v]
};

void plain_row(float* out, const float* q, int64_t head, std::span<const Position> context, const MlaSpec& spec) {
  std::vector<double> scores;
  const int64_t first = head * (spec.nope_dim + spec.v_dim);
  for (const auto& [latent, up] : context) {
    double score = dot(q + spec.nope_dim, latent.data() + spec.kv_lora_rank, spec.rope_dim);
    for (int64_t i = 0; i < spec.nope_dim; ++i) score += q[i] * up[static_cast<size_t>(first + i)];
    scores.push_back(score * spec.softmax_scale);
  }
  const std::vector<double> p = softmax(std::move(scores));
  for (int64_t i = 0; i < spec.v_dim; ++i) {
    double sum = 0;
    for (size_t j = 0; j < p.size(); ++j) sum += p[j] * context[j].up[static_cast<size_t>(first + spec.nope_dim + i)];
    out[i] = static_cast<float>(sum);
  }
}

/// Scores and values in the latent space itself: q~ = W_UK^T q_nope, out = W_UV sum(p * latent).
void absorbed_row(float* out, const float* q, int64_t head, std::span<const Position> context, const MlaSpec& spec, const MlaUpWeights& up) {
  const std::vector<double> q_latent = reference::apply(up.k_up_t[static_cast<size_t>(head)], q);
  std::vector<double> scores;
  for (const Position& at : context) {
    const std::vector<float>& latent = at.latent;
    double score = dot(q + spec.nope_dim, latent.data() + spec.kv_lora_rank, spec.rope_dim);
    for (int64_t i = 0; i < spec.kv_lora_rank; ++i) score += q_latent[static_cast<size_t>(i)] * latent[static_cast<size_t>(i)];
    scores.push_back(score * spec.softmax_scale);
  }
  const std::vector<double> p = softmax(std::move(scores));
  std::vector<float> mixed(static_cast<size_t>(spec.kv_lora_rank));
  for (size_t i = 0; i < mixed.size(); ++i) {
    double sum = 0;
    for (size_t j = 0; j < p.size(); ++j) sum += p[j] * context[j].latent[i];
    mixed[i] = static_cast<float>(sum);
  }
  const std::vector<double> y = reference::apply(up.v_up[static_cast<size_t>(head)], mixed.data());
  std::transform(y.begin(), y.end(), out, [](double v) { return static_cast<float>(v); });
}

}  // namespace

void ReferenceBackend::do_store_kv(const KvLayer& kv, Tensor k, Tensor v, const BatchView& batch) {
  for_each_row(batch, [&](int64_t row, int64_t position, const SequenceRows& s) {
    for (int64_t h = 0; h < k.dim[1]; ++h)
      for (int64_t i = 0; i < k.dim[2]; ++i) {
        store(kv.k, slot(kv.k, s, batch.block_size, position, h) + i, k.row<float>(row)[h * k.stride[1] + i]);
        store(kv.v, slot(kv.v, s, batch.block_size, position, h) + i, v.row<float>(row)[h * v.stride[1] + i]);
      }
  });
}

void ReferenceBackend::do_store_latent(const KvLayer& kv, Tensor latent, Tensor k_rope, const BatchView& batch) {
  for_each_row(batch, [&](int64_t row, int64_t position, const SequenceRows& s) {
    const int64_t at = slot(kv.k, s, batch.block_size, position);
    for (int64_t i = 0; i < latent.dim[1]; ++i) store(kv.k, at + i, latent.row<float>(row)[i]);
    for (int64_t i = 0; i < k_rope.dim[1]; ++i) store(kv.k, at + latent.dim[1] + i, k_rope.row<float>(row)[i]);
  });
}

void ReferenceBackend::do_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const GqaSpec& spec) {
  for_each_row(batch, [&](int64_t row, int64_t position, const SequenceRows& s) {
    for (int64_t h = 0; h < spec.num_heads; ++h) {
      const int64_t kv_head = h / (spec.num_heads / spec.num_kv_heads);
      const float* query = q.row<float>(row) + h * q.stride[1];
      std::vector<double> scores;
      for (int64_t j = 0; j <= position; ++j) {
        double score = 0;
        for (int64_t i = 0; i < spec.head_dim; ++i)
          score += static_cast<double>(query[i]) * load(kv.k, slot(kv.k, s, batch.block_size, j, kv_head) + i);
        scores.push_back(score * spec.softmax_scale);
      }
      const std::vector<double> p = softmax(std::move(scores));
      for (int64_t i = 0; i < spec.head_dim; ++i) {
        double sum = 0;
        for (int64_t j = 0; j <= position; ++j)
          sum += p[static_cast<size_t>(j)] * load(kv.v, slot(kv.v, s, batch.block_size, j, kv_head) + i);
        out.row<float>(row)[h * out.stride[1] + i] = static_cast<float>(sum);
      }
    }
  });
}

void ReferenceBackend::do_mla_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const MlaSpec& spec,
                                        const MlaUpWeights& up) {
  for_each_row(batch, [&](int64_t row, int64_t position, const SequenceRows& s) {
    const bool plain = position < s.prompt_len;
    std::vector<Position> context;
    for (int64_t j = 0; j <= position; ++j) {
      std::vector<float> latent = latent_at(kv, s, batch.block_size, j);
      std::vector<double> expanded = plain ? reference::apply(up.kv_b, latent.data()) : std::vector<double>{};
      context.push_back({std::move(latent), std::move(expanded)});
    }
    for (int64_t h = 0; h < spec.num_heads; ++h) {
      const float* query = q.row<float>(row) + h * q.stride[1];
      float* result = out.row<float>(row) + h * out.stride[1];
      if (plain) plain_row(result, query, h, context, spec);
      else absorbed_row(result, query, h, context, spec, up);
    }
  });
}

}  // namespace conclave
