#include "model/expert_dispatch.h"

#include <algorithm>
#include <cstring>

namespace conclave {
namespace {

/// Rows that a rank can send or receive in a step, each as one record.
size_t most_records(const ParallelLayout& l, int max_rows) {
  const auto own = static_cast<size_t>(share(max_rows, l.tp - 1, l.tp).size());
  return own * static_cast<size_t>(l.stage_size());
}

void scaled(std::vector<int64_t>& out, const std::vector<int64_t>& counts, int64_t factor) {
  out.clear();
  for (const int64_t n : counts) out.push_back(n * factor);
}

}  // namespace

size_t ExpertDispatch::bytes(const ParallelLayout& l, int hidden_size, int top_k, int max_rows) {
  const auto width = static_cast<size_t>(hidden_size), record = width + 2 * static_cast<size_t>(top_k);
  return most_records(l, max_rows) * (2 * record + 2 * width) * sizeof(float);
}

ExpertDispatch::ExpertDispatch(const Ranks& ranks, Backend& backend, int hidden_size, int top_k, int max_rows)
    : ranks_(ranks), backend_(backend), hidden_(hidden_size), top_k_(top_k), max_rows_(max_rows) {
  const size_t records = most_records(ranks.plan.layout, max_rows), record_size = static_cast<size_t>(record());
  for (auto* buffer : {&sent_, &received_}) buffer->resize(records * record_size);
  results_.resize(2 * records * static_cast<size_t>(hidden_));
  row_of_sent_.reserve(records);
}

void ExpertDispatch::run(const Call& call) {
  const int64_t each = static_cast<int64_t>(sizeof(int64_t));
  Communicator& stage = *ranks_.stage;
  pack(call);
  receives_.assign(sends_.size(), 0);
  const std::vector<int64_t> ones(sends_.size(), each);
  stage.all_to_all(std::as_writable_bytes(std::span(receives_)), std::as_bytes(std::span<const int64_t>(sends_)), ones, ones);
  const auto total = [](const std::vector<int64_t>& counts) {
    int64_t sum = 0;
    for (const int64_t n : counts) sum += n;
    return static_cast<size_t>(sum);
  };
  const size_t sent = total(sends_), received = total(receives_), record_size = static_cast<size_t>(record()), width = static_cast<size_t>(hidden_);
  const int64_t record_bytes = record() * static_cast<int64_t>(sizeof(float)), row_bytes = hidden_ * static_cast<int64_t>(sizeof(float));
  scaled(send_bytes_, sends_, record_bytes), scaled(receive_bytes_, receives_, record_bytes);
  stage.all_to_all(std::as_writable_bytes(std::span(received_.data(), received * record_size)),
                   std::as_bytes(std::span<const float>(sent_.data(), sent * record_size)), send_bytes_, receive_bytes_);
  compute(call);
  scaled(send_bytes_, receives_, row_bytes), scaled(receive_bytes_, sends_, row_bytes);
  float* back = results_.data() + results_.size() / 2;
  stage.all_to_all(std::as_writable_bytes(std::span(back, sent * width)), std::as_bytes(std::span<const float>(results_.data(), received * width)),
                   send_bytes_, receive_bytes_);
  combine(call);
}

/// Records by rank of the stage, rows ascending.
void ExpertDispatch::pack(const Call& call) {
  const ParallelLayout& l = ranks_.plan.layout;
  const IndexRange own = ranks_.own_rows(call.x.dim[0]);
  sends_.assign(static_cast<size_t>(l.stage_size()), 0);
  row_of_sent_.clear();
  float* out = sent_.data();
  for (int rank = 0; rank < l.stage_size(); ++rank) {
    const IndexRange theirs = share(call.num_experts, rank / l.moe_tp, l.moe_ep);
    for (int64_t row = own.begin; row < own.end; ++row) {
      const auto* chosen = call.routing.expert.row<int32_t>(row);
      if (std::none_of(chosen, chosen + top_k_, [&](int32_t e) { return theirs.contains(e); })) continue;
      std::memcpy(out, call.x.row<float>(row), static_cast<size_t>(hidden_) * sizeof(float));
      std::memcpy(out + hidden_, chosen, static_cast<size_t>(top_k_) * sizeof(float));
      std::memcpy(out + hidden_ + top_k_, call.routing.weight.row<float>(row), static_cast<size_t>(top_k_) * sizeof(float));
      out += record();
      row_of_sent_.push_back(static_cast<int32_t>(row));
      ++sends_[static_cast<size_t>(rank)];
    }
  }
}

/// The received rows through this rank's experts, to the first half of the results.
void ExpertDispatch::compute(const Call& call) {
  int64_t rows = 0;
  for (const int64_t n : receives_) rows += n;
  const auto strided = [&](float* data, int64_t n, int64_t width, DType dtype) {
    Tensor t = view(data, {n, width}, dtype);
    t.stride[0] = record();
    return t;
  };
  for (int64_t first = 0; first < rows; first += max_rows_) {
    const int64_t n = std::min(max_rows_, rows - first);
    float* records = received_.data() + first * record();
    const Routing routing{strided(records + hidden_, n, top_k_, DType::i32), strided(records + hidden_ + top_k_, n, top_k_, DType::f32)};
    for (int64_t row = 0; row < n; ++row)
      for (int64_t k = 0; k < top_k_; ++k) {
        int32_t& e = routing.expert.row<int32_t>(row)[k];
        e = call.held.contains(e) ? e - static_cast<int32_t>(call.held.begin) : -1;
      }
    backend_.ffn(view(results_.data() + first * hidden_, {n, hidden_}), strided(records, n, hidden_, DType::f32), routing, call.experts, nullptr,
                 call.inner_max);
  }
}

void ExpertDispatch::combine(const Call& call) {
  for (int64_t row = 0; row < call.out.dim[0]; ++row) std::memset(call.out.row<float>(row), 0, static_cast<size_t>(hidden_) * sizeof(float));
  float* back = results_.data() + results_.size() / 2;
  for (const int32_t row : row_of_sent_) {
    backend_.add(call.out.rows(row, 1), view(back, {1, hidden_}));
    back += hidden_;
  }
}

}  // namespace conclave
