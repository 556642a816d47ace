#include "model/whole_sums.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace conclave {
namespace {

/// Rows of a step over all data groups, each with its choices.
int64_t most_records(const ParallelLayout& l, const StepLimits& limits) { return int64_t{limits.max_rows} * l.dp * std::max(1, limits.max_top_k); }
int64_t most_sent(const ParallelLayout& l, const StepLimits& limits) {
  return share(limits.max_rows, l.tp - 1, l.tp).size() * std::max(1, limits.max_top_k);
}

std::vector<int64_t> times(const std::vector<int64_t>& counts, int64_t factor) {
  std::vector<int64_t> out;
  for (const int64_t n : counts) out.push_back(n * factor * static_cast<int64_t>(sizeof(float)));
  return out;
}

std::span<std::byte> bytes_of(std::vector<float>& v, int64_t floats) { return std::as_writable_bytes(std::span(v.data(), static_cast<size_t>(floats))); }

}  // namespace

size_t WholeSums::bytes(const ParallelLayout& l, const StepLimits& limits, int64_t width) {
  const int64_t hidden = limits.hidden_size, rows = limits.max_rows, records = most_records(l, limits), sent = most_sent(l, limits);
  const int64_t floats = rows * width + rows * std::max(width, hidden) + rows * hidden + records * (2 * hidden + 1) + sent * (2 * hidden + 1);
  return static_cast<size_t>(floats) * sizeof(float);
}

WholeSums::WholeSums(const Ranks& ranks, Backend& backend, const StepLimits& limits, int64_t width)
    : ranks_(ranks), backend_(backend), hidden_(limits.hidden_size), max_rows_(limits.max_rows), fused_(backend.isa() != "scalar") {
  const ParallelLayout& l = ranks.plan.layout;
  const auto rows = static_cast<size_t>(max_rows_), hidden = static_cast<size_t>(hidden_), wide = static_cast<size_t>(width);
  const auto records = static_cast<size_t>(most_records(l, limits)), sent = static_cast<size_t>(most_sent(l, limits));
  wide_.resize(rows * wide), scratch_.resize(rows * std::max(wide, hidden)), part_.resize(rows * hidden);
  received_.resize(records * (hidden + 1)), results_.resize(records * hidden);
  sent_.resize(sent * (hidden + 1)), back_.resize(sent * hidden);
  origins_.reserve(sent);
}

/// Each tensor rank's columns of the rows of `out`.
void WholeSums::gather_columns(const Tensor& out, const Tensor& part, std::span<const IndexRange> columns) {
  const int64_t n = out.dim[0];
  if (n == 0) return;
  std::vector<int64_t> counts;
  for (const IndexRange& c : columns) counts.push_back(n * c.size());
  ranks_.tensor->all_gather(bytes_of(scratch_, n * out.dim[1]), std::as_bytes(flat(part)), times(counts, 1));
  const float* from = scratch_.data();
  for (const IndexRange& c : columns)
    for (int64_t row = 0; row < n; ++row, from += c.size())
      std::memcpy(out.row<float>(row) + c.begin, from, static_cast<size_t>(c.size()) * sizeof(float));
}

void WholeSums::output(Tensor delta, Tensor mixed, const Weight& o, int64_t heads) {
  const int tp = ranks_.plan.layout.tp;
  if (tp == 1) return backend_.linear(delta, mixed, o);
  const int64_t head = mixed.dim[1] / heads, total = o.cols / head;
  std::vector<IndexRange> inputs, outputs;
  for (int r = 0; r < tp; ++r) {
    const IndexRange own = share(total, r, tp);
    inputs.push_back({own.begin * head, own.end * head});
    outputs.push_back(share(hidden_, r, tp));
  }
  const Tensor all = view(wide_.data(), {mixed.dim[0], o.cols}), part = view(part_.data(), {mixed.dim[0], o.rows});
  gather_columns(all, mixed, inputs);
  backend_.linear(part, all, o);
  gather_columns(delta, part, outputs);
}

void WholeSums::feed(Tensor delta, Tensor x, const SwiGluWeights& weights) {
  const IndexRange own = ranks_.own_rows(x.dim[0]);
  const Tensor part = view(part_.data(), {own.size(), hidden_});
  backend_.ffn(part, x.rows(own.begin, own.size()), Routing{}, {}, &weights);
  gather_rows(ranks_, delta, part);
}

void WholeSums::feed(const Call& call) {
  const IndexRange own = ranks_.own_rows(call.x.dim[0]);
  exchange(call, own);
  const Tensor part = view(part_.data(), {own.size(), hidden_});
  std::fill_n(part_.data(), own.size() * hidden_, 0.0f);
  // By choice and so by ascending expert of each row: what one rank's sum adds in this order.
  std::vector<const float*> outputs(static_cast<size_t>(own.size() * call.routing.expert.dim[1]));
  for (size_t i = 0; i < origins_.size(); ++i)
    outputs[static_cast<size_t>((origins_[i].row - own.begin) * call.routing.expert.dim[1] + origins_[i].choice)] = back_.data() + i * static_cast<size_t>(hidden_);
  for (int64_t row = 0; row < own.size(); ++row)
    for (int64_t k = 0; k < call.routing.expert.dim[1]; ++k) {
      const float weight = call.routing.weight.row<float>(own.begin + row)[k];
      const float* y = outputs[static_cast<size_t>(row * call.routing.expert.dim[1] + k)];
      float* sum = part.row<float>(row);
      for (int64_t i = 0; i < hidden_; ++i) sum[i] = fused_ ? std::fma(weight, y[i], sum[i]) : weight * y[i] + sum[i];
    }
  if (call.shared) {
    const Tensor shared = view(scratch_.data(), {own.size(), hidden_});
    backend_.ffn(shared, call.x.rows(own.begin, own.size()), Routing{}, {}, call.shared);
    backend_.add(part, shared);
  }
  gather_rows(ranks_, call.delta, part);
}

/// Own rows to the ranks of their experts, one record for each choice, and the experts' outputs back.
void WholeSums::exchange(const Call& call, const IndexRange& own) {
  const ParallelLayout& l = ranks_.plan.layout;
  const auto ranks = static_cast<size_t>(l.stage_size());
  sends_.assign(ranks, 0), receives_.assign(ranks, 0);
  origins_.clear();
  float* out = sent_.data();
  for (int rank = 0; rank < l.stage_size(); ++rank) {
    const IndexRange theirs = share(call.num_experts, rank / l.moe_tp, l.moe_ep);
    for (int64_t row = own.begin; row < own.end; ++row)
      for (int64_t k = 0; k < call.routing.expert.dim[1]; ++k) {
        const int32_t expert = call.routing.expert.row<int32_t>(row)[k];
        if (!theirs.contains(expert) || row % l.moe_tp != rank % l.moe_tp) continue;  // ranks with the same experts take turns
        std::memcpy(out, call.x.row<float>(row), static_cast<size_t>(hidden_) * sizeof(float));
        std::memcpy(out + hidden_, &expert, sizeof expert);
        out += record();
        origins_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(k)});
        ++sends_[static_cast<size_t>(rank)];
      }
  }
  const std::vector<int64_t> ones(ranks, static_cast<int64_t>(sizeof(int64_t)));
  ranks_.stage->all_to_all(std::as_writable_bytes(std::span(receives_)), std::as_bytes(std::span<const int64_t>(sends_)), ones, ones);
  int64_t received = 0;
  for (const int64_t n : receives_) received += n;
  const auto sent = static_cast<int64_t>(origins_.size());
  ranks_.stage->all_to_all(bytes_of(received_, received * record()), bytes_of(sent_, sent * record()), times(sends_, record()), times(receives_, record()));
  compute(call, received);
  ranks_.stage->all_to_all(bytes_of(back_, sent * hidden_), bytes_of(results_, received * hidden_), times(receives_, hidden_), times(sends_, hidden_));
}

void WholeSums::compute(const Call& call, int64_t rows) {
  const auto strided = [&](float* data, int64_t n, int64_t width, DType dtype) {
    Tensor t = view(data, {n, width}, dtype);
    t.stride[0] = record();
    return t;
  };
  std::vector<float> ones(static_cast<size_t>(std::min(rows, max_rows_)), 1.0f);
  for (int64_t first = 0; first < rows; first += max_rows_) {
    const int64_t n = std::min(max_rows_, rows - first);
    float* records = received_.data() + first * record();
    const Routing routing{strided(records + hidden_, n, 1, DType::i32), view(ones.data(), {n, 1})};
    for (int64_t row = 0; row < n; ++row) *routing.expert.row<int32_t>(row) -= static_cast<int32_t>(call.held.begin);
    backend_.ffn(view(results_.data() + first * hidden_, {n, hidden_}), strided(records, n, hidden_, DType::f32), routing, call.experts, nullptr);
  }
}

}  // namespace conclave
