#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cpu/attention_scratch.h"

namespace conclave::cpu {
namespace {

/// Enough tasks for every worker to balance; fewer, and long contexts are split over their spans.
constexpr int64_t kTasksPerWorker = 4;

int64_t spans_of(const AttentionItem& item) { return (int64_t{item.first_position} + item.tokens - 1) / kSpan + 1; }

}  // namespace

void StateRows::clear(int64_t rows) const {
  std::fill(top, top + rows, -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + rows, 0.0f);
  std::fill(out, out + rows * stride, 0.0f);
}

CpuBackend::AttentionScratch::AttentionScratch(Scratch& s, const Sizes& n, int workers) : key_dim(n.key_dim), value_dim(n.value_dim) {
  split_tasks = kTasksPerWorker * workers;
  items = s.take<AttentionItem>(n.items);
  first_span = s.take<int64_t>(split_tasks + 1);
  const int64_t rows = std::min<int64_t>(n.sequences * n.heads, split_tasks * kHeadTile);
  partial_floats = rows * ((n.context + kSpan - 1) / kSpan) * (2 + padded_width(n.value_dim));
  partial = s.take<float>(partial_floats);
  floats = s.take<float>(workers * worker_floats());
  pointers = s.take<const void*>(int64_t{workers} * 2 * kKeyTile);
  visible = s.take<int32_t>(int64_t{workers} * kTaskRows);
}

int64_t CpuBackend::AttentionScratch::worker_floats() const { return kTaskRows * key_dim + 2 * StateRows::floats(kTaskRows, value_dim); }

CpuBackend::AttentionScratch::Worker CpuBackend::AttentionScratch::worker(int index) const {
  float* own = floats + index * worker_floats();
  float* states = own + kTaskRows * key_dim;
  const void** keys = pointers + int64_t{index} * 2 * kKeyTile;
  return {own, StateRows(states, kTaskRows, value_dim), StateRows(states + StateRows::floats(kTaskRows, value_dim), kTaskRows, value_dim),
          keys, keys + kKeyTile, visible + int64_t{index} * kTaskRows};
}

namespace {

/// One task's rows: `tokens` x `heads`, token-major, gathered so that one stride leads from row to row.
struct TaskRows { int64_t first_head, heads, rows; };

TaskRows task_rows(const AttentionItem& item, int64_t head_task, int heads_per_task, int64_t num_heads) {
  const int64_t first = head_task * heads_per_task, heads = std::min<int64_t>(heads_per_task, num_heads - first);
  return {first, heads, heads * item.tokens};
}

void gather_queries(float* to, const Tensor& q, const AttentionItem& item, const TaskRows& t) {
  for (int64_t i = 0; i < item.tokens; ++i)
    for (int64_t h = 0; h < t.heads; ++h)
      std::memcpy(to + (i * t.heads + h) * q.dim[2], q.row<float>(item.query + i) + (t.first_head + h) * q.stride[1],
                  static_cast<size_t>(q.dim[2]) * sizeof(float));
}

void write_out(const Tensor& out, const AttentionItem& item, const TaskRows& t, const StateRows& state) {
  for (int64_t r = 0; r < t.rows; ++r) {
    float* to = out.row<float>(item.query + r / t.heads) + (t.first_head + r % t.heads) * out.stride[1];
    const float* from = state.out + r * state.stride;
    for (int64_t d = 0; d < out.dim[2]; ++d) to[d] = from[d] / state.sum[r];
  }
}

}  // namespace

/// State of all rows of a task over the positions of one span, starting from nothing.
template <class Call, class Worker>
static void attend_positions(const KernelTable& k, const Call& call, const AttentionItem& item, const TaskRows& rows, int64_t span,
                             int64_t head_task, const Worker& w, const StateRows& state) {
  state.clear(rows.rows);
  const int64_t head_offset = head_task / call.tasks_per_kv_head * call.kv_head_stride;
  const int64_t last = int64_t{item.first_position} + item.tokens, end = std::min<int64_t>((span + 1) * kSpan, last);
  for (int64_t first = span * kSpan; first < end; first += kKeyTile) {
    const int64_t n = std::min<int64_t>(kKeyTile, end - first);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t position = first + j, block = item.block_table[position / call.block_size], slot = position % call.block_size;
      w.keys[j] = at_element(call.k, block * call.k.stride[0] + head_offset + slot * call.position_stride);
      w.values[j] = at_element(call.v, block * call.v.stride[0] + head_offset + slot * call.position_stride);
    }
    for (int64_t r = 0; r < rows.rows; ++r)
      w.visible[r] = static_cast<int32_t>(std::clamp<int64_t>(item.first_position + r / rows.heads + 1 - first, 0, n));
    k.attend[static_cast<int>(kv_type(call.k.dtype))]({.q = w.q, .q_stride = call.q.dim[2], .rows = static_cast<int>(rows.rows),
        .num_keys = static_cast<int>(n), .key_dim = static_cast<int>(call.q.dim[2]), .value_dim = call.value_dim, .keys = w.keys,
        .values = w.values, .visible = w.visible, .scale = call.scale, .top = state.top, .sum = state.sum, .out = state.out,
        .out_stride = state.stride});
  }
}

void CpuBackend::attend_item(const PagedAttention& call, AttentionScratch& scratch, int64_t task, int worker) {
  const AttentionItem& item = call.items[task / call.head_tasks];
  const int64_t head_task = task % call.head_tasks;
  const TaskRows rows = task_rows(item, head_task, call.heads_per_task, call.q.dim[1]);
  const AttentionScratch::Worker w = scratch.worker(worker);
  gather_queries(w.q, call.q, item, rows);
  w.total.clear(rows.rows);
  for (int64_t span = 0; span < spans_of(item); ++span) {
    attend_positions(k_, call, item, rows, span, head_task, w, w.span);
    for (int64_t r = 0; r < rows.rows; ++r)
      if (item.first_position + r / rows.heads >= span * kSpan) k_.merge(w.total.row(r), w.span.row(r), call.value_dim);
  }
  write_out(call.out, item, rows, w.total);
}

/// The same arithmetic with a task per span: all parts first, then the merges in the same order.
void CpuBackend::attend_span(const PagedAttention& call, AttentionScratch& scratch, int64_t index, int worker) {
  const int64_t tasks = call.num_items * call.head_tasks;
  const int64_t task = std::upper_bound(scratch.first_span, scratch.first_span + tasks, index) - scratch.first_span - 1;
  const AttentionItem& item = call.items[task / call.head_tasks];
  const TaskRows rows = task_rows(item, task % call.head_tasks, call.heads_per_task, call.q.dim[1]);
  const AttentionScratch::Worker w = scratch.worker(worker);
  gather_queries(w.q, call.q, item, rows);
  const StateRows part(scratch.partial + index * StateRows::floats(call.heads_per_task, call.value_dim), rows.rows, call.value_dim);
  attend_positions(k_, call, item, rows, index - scratch.first_span[task], task % call.head_tasks, w, part);
}

void CpuBackend::attend_paged(const PagedAttention& call, AttentionScratch& scratch) {
  const int64_t tasks = call.num_items * call.head_tasks;
  bool split = tasks < scratch.split_tasks && pool_.size() > 1;
  int64_t spans = 0;
  for (int64_t task = 0; task < tasks && split; ++task) {
    const AttentionItem& item = call.items[task / call.head_tasks];
    split = item.tokens == 1;  // one token's heads fit the space planned for a part
    scratch.first_span[task] = spans;
    spans += spans_of(item);
  }
  split = split && spans > tasks && spans * StateRows::floats(call.heads_per_task, call.value_dim) <= scratch.partial_floats;
  if (!split) {
    pool_.parallel_for(tasks, [&](int64_t i, int worker) { attend_item(call, scratch, tasks - 1 - i, worker); });  // longest first
    return;
  }
  scratch.first_span[tasks] = spans;
  pool_.parallel_for(spans, [&](int64_t i, int worker) { attend_span(call, scratch, i, worker); });
  for_tasks(tasks, spans * call.heads_per_task * call.value_dim, [&](int64_t task, int worker) {
    const AttentionItem& item = call.items[task / call.head_tasks];
    const TaskRows rows = task_rows(item, task % call.head_tasks, call.heads_per_task, call.q.dim[1]);
    const AttentionScratch::Worker w = scratch.worker(worker);
    w.total.clear(rows.rows);
    for (int64_t i = scratch.first_span[task]; i < scratch.first_span[task + 1]; ++i) {
      const StateRows part(scratch.partial + i * StateRows::floats(call.heads_per_task, call.value_dim), rows.rows, call.value_dim);
      for (int64_t r = 0; r < rows.rows; ++r) k_.merge(w.total.row(r), part.row(r), call.value_dim);
    }
    write_out(call.out, item, rows, w.total);
  });
}

void CpuBackend::do_attention(Tensor out, Tensor q, const KvLayer& kv, const BatchView& batch, const GqaSpec& spec) {
  Scratch memory(block_);
  const int group = spec.num_heads / spec.num_kv_heads;
  int heads = std::min(group, kTaskRows);
  while (group % heads != 0) --heads;
  const int tile = kTaskRows / heads;
  int64_t count = 0, context = 0;
  for (const SequenceRows& s : batch.sequences) {
    count += (s.num_rows + tile - 1) / tile;
    context = std::max<int64_t>(context, s.context_len);
  }
  AttentionScratch scratch(memory, {count, spec.head_dim, spec.head_dim, batch.num_rows, spec.num_heads,
                                    static_cast<int64_t>(batch.sequences.size()), context}, pool_.size());
  int64_t n = 0;
  for (const SequenceRows& s : batch.sequences)
    for (int32_t i = 0; i < s.num_rows; i += tile)
      scratch.items[n++] = {s.block_table, s.context_len - s.num_rows + i, std::min(tile, s.num_rows - i), s.first_row + i};
  attend_paged({.out = out, .q = q, .k = kv.k, .v = kv.v, .kv_head_stride = kv.k.stride[1], .position_stride = kv.k.stride[2],
                .block_size = batch.block_size, .heads_per_task = heads, .head_tasks = spec.num_heads / heads, .tasks_per_kv_head = group / heads, .value_dim = spec.head_dim,
                .scale = spec.softmax_scale, .items = scratch.items, .num_items = n}, scratch);
}

}  // namespace conclave::cpu
