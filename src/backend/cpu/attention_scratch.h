#pragma once
// Scratch memory of the two attention operators, and the list of work they share. Private to cpu_attention.cpp and cpu_mla.cpp.
#include "backend/cpu/cpu_backend.h"

namespace conclave::cpu {

inline constexpr int kTaskRows = 64;       ///< query rows (tokens x heads) of one attention task
inline constexpr int kAbsorbedRows = 32;   ///< generated tokens of one pass of absorbed MLA
inline constexpr int kHeadTile = 16;       ///< heads of one absorbed MLA task: they share every key

inline int64_t padded_width(int64_t width) { return (width + 15) / 16 * 16; }
inline KvType kv_type(DType dtype) { return dtype == DType::f32 ? KvType::f32 : dtype == DType::f16 ? KvType::f16 : KvType::bf16; }
inline const void* at_element(const Tensor& t, int64_t index) {
  return static_cast<const std::byte*>(t.data) + static_cast<size_t>(index) * size_of(t.dtype);
}

/// Running state of some rows: [rows] maxima, [rows] sums, [rows][padded width] outputs.
struct StateRows {
  float *top = nullptr, *sum = nullptr, *out = nullptr;
  int64_t stride = 0;

  static int64_t floats(int64_t rows, int64_t width) { return rows * (2 + padded_width(width)); }
  StateRows() = default;
  StateRows(float* memory, int64_t rows, int64_t width)
      : top(memory), sum(memory + rows), out(memory + 2 * rows), stride(padded_width(width)) {}
  void clear(int64_t rows) const;
  AttendState row(int64_t r) const { return {top + r, sum + r, out + r * stride}; }
};

/// Consecutive tokens of one sequence whose queries are taken together.
struct AttentionItem {
  const int32_t* block_table;
  int32_t first_position, tokens;
  int32_t query;                 ///< first row in q and out
};

/// Head task h is heads [h * heads_per_task, ...) of q; they read kv head h / tasks_per_kv_head of the cache.
struct CpuBackend::PagedAttention {
  Tensor out, q;                 // [rows, H, width]
  Tensor k, v;                   // cache
  int64_t kv_head_stride, position_stride;
  int block_size, heads_per_task, head_tasks, tasks_per_kv_head, value_dim;
  float scale;
  const AttentionItem* items;
  int64_t num_items;
};

struct CpuBackend::AttentionScratch {
  AttentionItem* items;
  int64_t* first_span;           // [tasks of one split call + 1]
  float* partial;                // states of split spans
  int64_t partial_floats, split_tasks;
  struct Worker {
    float* q;
    StateRows total, span;
    const void **keys, **values;
    int32_t* visible;
  };
  float* floats;
  const void** pointers;
  int32_t* visible;
  int64_t key_dim, value_dim;

  struct Sizes { int64_t items, key_dim, value_dim, rows, heads, sequences, context; };
  AttentionScratch(Scratch& s, const Sizes& n, int workers);
  int64_t worker_floats() const;
  Worker worker(int index) const;
};

}  // namespace conclave::cpu
