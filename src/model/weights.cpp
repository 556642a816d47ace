#include "model/weights.h"

#include <fmt/format.h>

#include <atomic>
#include <array>
#include <cstring>
#include <unordered_map>

#include "core/error.h"
#include "model/tensor_reader.h"

namespace conclave {
namespace {

using Layout = Weight::Layout;

constexpr size_t kAlignment = 64;
size_t padded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Hands out consecutive pieces of an item's share of the arena.
class Pieces {
 public:
  explicit Pieces(std::span<std::byte> bytes) : rest_(bytes) {}
  std::span<std::byte> next(size_t bytes) {
    if (bytes > rest_.size()) throw Error(Error::Kind::internal, "packed weights exceed their planned size");
    const auto piece = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return piece;
  }

 private:
  std::span<std::byte> rest_;
};

HostMatrix row_range(HostMatrix m, int64_t begin, int64_t count) {
  m.data += bytes_of(m.format, begin * m.row_stride);
  m.rows = count;
  m.row_offset += begin;
  return m;
}

/// Transposed copies of row ranges of one matrix; scale grids are transposed with them, so that every value stays the same.
class Transposer {
 public:
  explicit Transposer(const StoredMatrix& whole) {
    if (whole.scales.empty()) return;
    grid_cols_ = whole.host.scale_stride;
    grid_rows_ = static_cast<int64_t>(whole.scales.size()) / grid_cols_;
    for (int64_t c = 0; c < grid_cols_; ++c)
      for (int64_t r = 0; r < grid_rows_; ++r) scales_.push_back(whole.scales[static_cast<size_t>(r * grid_cols_ + c)]);
  }

  HostMatrix operator()(const HostMatrix& m) {
    const size_t element = element_bytes(m.format);
    values_.resize(static_cast<size_t>(m.rows * m.cols) * element);
    for (int64_t r = 0; r < m.rows; ++r)
      for (int64_t c = 0; c < m.cols; ++c)
        std::memcpy(values_.data() + static_cast<size_t>(c * m.rows + r) * element,
                    m.data + static_cast<size_t>(r * m.row_stride + c) * element, element);
    HostMatrix t{.format = m.format, .activations = m.activations, .rows = m.cols, .cols = m.rows, .row_stride = m.rows,
                 .data = values_.data()};
    if (!scales_.empty()) {
      t.scales = scales_.data();
      t.scale_stride = grid_rows_;
      t.block_rows = m.block_cols, t.block_cols = m.block_rows;
      t.row_offset = m.col_offset, t.col_offset = m.row_offset;
    }
    return t;
  }

 private:
  std::vector<std::byte> values_;
  std::vector<float> scales_;
  int64_t grid_rows_ = 0, grid_cols_ = 0;
};

/// The list of things to load, in file order. Building it reads types only; each item then fills its own share of the arena.
class LoadPlan {
 public:
  LoadPlan(const ModelSpec& spec, const TensorSource& source, const Backend& backend, const LoadOptions& options, Weights& out)
      : spec_(spec), backend_(backend),
        reader_(spec, source, {options.arithmetic, options.bf16_activations, options.activations, options.int4_activations}), out_(out),
        rank_(options.rank ? *options.rank : plan_alone(spec)) {
    for_each_tensor(spec, [&](const TensorInfo& info) {
      if (info.part != Part::expert || rank_.layers.contains(info.layer)) cuts_.emplace(info.name, cut_of(spec, rank_, info));
    });
    out_.layers.resize(static_cast<size_t>(rank_.layers.size()));
    const bool tied = spec.tied_head && rank_.last_stage;
    if (rank_.first_stage || tied) matrix(out_.embed, spec.names.embed, MatrixRole::table, tied ? Layout::panels : Layout::table);
    for (int64_t l = rank_.layers.begin; l < rank_.layers.end; ++l) add_layer(static_cast<int>(l));
    if (!rank_.last_stage) return;
    vector(out_.final_norm, spec.names.final_norm);
    if (!spec.tied_head) matrix(out_.head, spec.names.head, MatrixRole::linear);
  }

  size_t bytes() const {
    size_t total = 0;
    for (const Item& item : items_)
      if (__builtin_add_overflow(total, item.bytes, &total))
        throw Error(Error::Kind::bad_model, "the model's weights exceed the address space");
    return total;
  }

  void load(ThreadPool& pool, const std::function<void(size_t, size_t)>& progress) {
    const size_t total = bytes();
    out_.arena = Buffer(total);
    std::vector<size_t> offsets;
    size_t offset = 0;
    for (const Item& item : items_) {
      offsets.push_back(offset);
      offset += item.bytes;
    }
    std::atomic<size_t> done{0};
    pool.parallel_for(static_cast<int64_t>(items_.size()), [&](int64_t i, int worker) {
      const Item& item = items_[static_cast<size_t>(i)];
      item.fill(std::span(out_.arena.data() + offsets[static_cast<size_t>(i)], item.bytes));
      done += item.bytes;
      if (worker == 0 && progress) progress(done, total);
    });
    if (spec_.tied_head && rank_.last_stage) out_.head = out_.embed;
    if (progress) progress(total, total);
  }

 private:
  struct Item {
    size_t bytes;
    std::function<void(std::span<std::byte>)> fill;
  };

  const TensorCut& cut(const std::string& name) const { return cuts_.at(name); }
  /// Shape of what this rank holds of a matrix.
  std::array<int64_t, 2> shape(const std::string& name) const {
    const auto& whole = reader_.shape(name);
    const TensorCut& part = cut(name);
    int64_t rows = 0;
    for (const IndexRange& range : part.rows) rows += range.size();
    return {part.rows.empty() ? whole[0] : rows, part.cols.size() > 0 ? part.cols.size() : whole[1]};
  }
  WeightStorage storage(const std::string& name, MatrixRole role) const {
    const WeightStorage stored = reader_.held(name, role).storage;
    return leaves_grid(stored.format, cut(name)) ? WeightStorage(WeightFormat::f32) : stored;
  }

  void matrix(Weight& out, const std::string& name, MatrixRole role = MatrixRole::linear, Layout layout = Layout::panels) {
    const auto [rows, cols] = shape(name);
    const size_t bytes = backend_.packed_bytes(storage(name, role), layout, rows, cols);
    items_.push_back({bytes, [this, &out, name, role, layout](std::span<std::byte> dst) {
                        const StoredMatrix m = reader_.matrix(name, role, cut(name));
                        out = backend_.pack(m.host, layout, dst);
                        reader_.release(m);
                      }});
  }

  void pair(Weight& out, const std::string& gate_name, const std::string& up_name) {
    const auto [rows, cols] = shape(gate_name);
    const auto gate_held = reader_.held(gate_name, MatrixRole::linear), up_held = reader_.held(up_name, MatrixRole::linear);
    if (gate_held != up_held)
      throw Error(Error::Kind::bad_model, fmt::format("{} is held as {} and {} as {}; gate and up must share one type and group size", gate_name,
                                                      name_of(gate_held.storage.format), up_name, name_of(up_held.storage.format)));
    const size_t bytes = backend_.packed_bytes(gate_held.storage, Layout::paired, 2 * rows, cols);
    items_.push_back({bytes, [this, &out, gate_name, up_name](std::span<std::byte> dst) {
                        const StoredMatrix gate = reader_.matrix(gate_name, MatrixRole::linear, cut(gate_name));
                        const StoredMatrix up = reader_.matrix(up_name, MatrixRole::linear, cut(up_name));
                        out = backend_.pack_pair(gate.host, up.host, dst);
                        reader_.release(gate);
                        reader_.release(up);
                      }});
  }

  void vector(Tensor& out, const std::string& name) {
    const auto n = static_cast<int64_t>(checked_product(reader_.shape(name), name));
    items_.push_back({padded(static_cast<size_t>(n) * sizeof(float)), [this, &out, name, n](std::span<std::byte> dst) {
                        out = view(dst.data(), {n}, DType::f32);
                        reader_.vector(name, {out.as<float>(), static_cast<size_t>(n)});
                      }});
  }

  void swiglu(SwiGluWeights& out, const std::string& gate, const std::string& up, const std::string& down) {
    pair(out.gate_up, gate, up);
    matrix(out.down, down);
  }

  /// kv_a_proj_with_mqa: the latent's rows, then the shared rope head's. One item, because it is one tensor.
  void split_kv_a(MlaWeights& out, const MlaSpec& spec, const std::string& name) {
    const auto& shape = reader_.shape(name);
    const WeightStorage format = reader_.held(name, MatrixRole::linear).storage;
    const size_t latent_bytes = backend_.packed_bytes(format, Layout::panels, spec.kv_lora_rank, shape[1]);
    const size_t rope_bytes = backend_.packed_bytes(format, Layout::panels, spec.rope_dim, shape[1]);
    items_.push_back({latent_bytes + rope_bytes, [=, this, &out](std::span<std::byte> dst) {
                        const StoredMatrix m = reader_.matrix(name, MatrixRole::linear);
                        Pieces pieces(dst);
                        const HostMatrix latent = row_range(m.host, 0, spec.kv_lora_rank);
                        const HostMatrix rope = row_range(m.host, spec.kv_lora_rank, spec.rope_dim);
                        out.kv_a_latent = backend_.pack(latent, Layout::panels, pieces.next(latent_bytes));
                        out.kv_a_rope = backend_.pack(rope, Layout::panels, pieces.next(rope_bytes));
                        reader_.release(m);
                      }});
  }

  /// Type in which kv_b is held. The absorbed form needs transposed heads, which scales of int8 rows and int4 groups do not allow, nor FP8
  /// blocks that straddle heads: such a kv_b is dequantised to f32, for both forms alike.
  WeightFormat kv_b_format(const MlaSpec& spec, const std::string& name) const {
    const WeightFormat format = reader_.held(name, MatrixRole::linear).storage.format;
    const bool whole_blocks = spec.nope_dim % kFp8Block == 0 && spec.v_dim % kFp8Block == 0;
    return format == WeightFormat::int8 || format == WeightFormat::int4 || (format == WeightFormat::f8e4m3 && !whole_blocks) ? WeightFormat::f32 : format;
  }

  void kv_up(MlaUpWeights& out, const MlaSpec& spec, const std::string& name) {
    const auto [rows, cols] = shape(name);
    const WeightFormat format = kv_b_format(spec, name);
    const auto heads = static_cast<size_t>(rank_.heads.size());
    const size_t plain = backend_.packed_bytes(format, Layout::panels, rows, cols);
    const size_t k_bytes = backend_.packed_bytes(format, Layout::panels, spec.kv_lora_rank, spec.nope_dim);
    const size_t v_bytes = backend_.packed_bytes(format, Layout::panels, spec.v_dim, spec.kv_lora_rank);
    out.k_up_t.resize(heads);
    out.v_up.resize(heads);
    items_.push_back({plain + heads * (k_bytes + v_bytes), [=, this, &out](std::span<std::byte> dst) {
                        StoredMatrix m = reader_.matrix(name, MatrixRole::linear, cut(name));
                        if (m.host.format != format) m = dequantised(m);
                        m.host.activations = Activations::floating;  // attention works on it in f32
                        Pieces pieces(dst);
                        out.kv_b = backend_.pack(m.host, Layout::panels, pieces.next(plain));
                        Transposer transposed(m);
                        for (size_t h = 0; h < heads; ++h) {
                          const int64_t first = static_cast<int64_t>(h) * (spec.nope_dim + spec.v_dim);
                          const HostMatrix k = row_range(m.host, first, spec.nope_dim);
                          const HostMatrix v = row_range(m.host, first + spec.nope_dim, spec.v_dim);
                          out.k_up_t[h] = backend_.pack(transposed(k), Layout::panels, pieces.next(k_bytes));
                          out.v_up[h] = backend_.pack(v, Layout::panels, pieces.next(v_bytes));
                        }
                        reader_.release(m);
                      }});
  }

  void add_attention(LayerWeights& layer, const GqaSpec&, const std::string& prefix) {
    auto& w = layer.attention.emplace<GqaWeights>();
    matrix(w.q, prefix + "q_proj.weight");
    matrix(w.k, prefix + "k_proj.weight");
    matrix(w.v, prefix + "v_proj.weight");
    matrix(w.o, prefix + "o_proj.weight");
  }

  void add_attention(LayerWeights& layer, const MlaSpec& spec, const std::string& prefix) {
    auto& w = layer.attention.emplace<MlaWeights>();
    if (spec.q_lora_rank > 0) {
      matrix(w.q_a, prefix + "q_a_proj.weight");
      vector(w.q_a_norm, prefix + "q_a_layernorm.weight");
      matrix(w.q, prefix + "q_b_proj.weight");
    } else {
      matrix(w.q, prefix + "q_proj.weight");
    }
    split_kv_a(w, spec, prefix + "kv_a_proj_with_mqa.weight");
    vector(w.kv_a_norm, prefix + "kv_a_layernorm.weight");
    kv_up(w.up, spec, prefix + "kv_b_proj.weight");
    matrix(w.o, prefix + "o_proj.weight");
  }

  void add_ffn(LayerWeights& layer, const DenseSpec&, const std::string& prefix) {
    const Names& n = spec_.names;
    swiglu(layer.ffn.emplace<SwiGluWeights>(), prefix + n.gate, prefix + n.up, prefix + n.down);
  }

  void add_ffn(LayerWeights& layer, const MoeSpec& spec, const std::string& prefix) {
    const Names& n = spec_.names;
    auto& w = layer.ffn.emplace<MoeWeights>();
    matrix(w.router, prefix + n.router, MatrixRole::router);
    if (spec.router.selection_bias) vector(w.selection_bias, prefix + n.router_bias);
    const std::vector<int> held = experts_of(rank_, spec);
    w.experts.resize(held.size());
    for (size_t e = 0; e < held.size(); ++e) {
      const std::string expert = prefix + substitute(n.expert, "{E}", held[e]);
      swiglu(w.experts[e], expert + n.expert_gate, expert + n.expert_up, expert + n.expert_down);
    }
    if (spec.shared_inner > 0) {
      const std::string shared = prefix + n.shared;
      swiglu(w.shared.emplace(), shared + n.gate, shared + n.up, shared + n.down);
    }
  }

  void add_layer(int l) {
    LayerWeights& layer = out_.layers[static_cast<size_t>(l - rank_.layers.begin)];
    const std::string prefix = substitute(spec_.names.layer, "{L}", l);
    vector(layer.attention_norm, prefix + "input_layernorm.weight");
    std::visit([&](const auto& spec) { add_attention(layer, spec, prefix + "self_attn."); }, spec_.attention);
    vector(layer.ffn_norm, prefix + "post_attention_layernorm.weight");
    std::visit([&](const auto& spec) { add_ffn(layer, spec, prefix + spec_.names.ffn); }, spec_.layers[static_cast<size_t>(l)]);
  }

  const ModelSpec& spec_;
  const Backend& backend_;
  TensorReader reader_;
  Weights& out_;
  RankPlan rank_;
  std::unordered_map<std::string, TensorCut> cuts_;
  std::vector<Item> items_;
};

size_t touched(const GqaWeights& w) { return w.q.bytes + w.k.bytes + w.v.bytes + w.o.bytes; }

size_t touched(const MlaWeights& w) {
  size_t bytes = w.q_a.bytes + w.q.bytes + w.kv_a_latent.bytes + w.kv_a_rope.bytes + w.o.bytes;
  for (size_t h = 0; h < w.up.k_up_t.size(); ++h) bytes += w.up.k_up_t[h].bytes + w.up.v_up[h].bytes;
  return bytes;
}

size_t touched(const SwiGluWeights& w) { return w.gate_up.bytes + w.down.bytes; }

}  // namespace

size_t weight_bytes(const ModelSpec& spec, const TensorSource& source, const Backend& backend, const LoadOptions& options) {
  Weights unused;
  return LoadPlan(spec, source, backend, options, unused).bytes();
}

Weights load_weights(const ModelSpec& spec, const TensorSource& source, const Backend& backend, ThreadPool& pool,
                     const LoadOptions& options) {
  Weights weights;
  LoadPlan(spec, source, backend, options, weights).load(pool, options.progress);
  return weights;
}

size_t bytes_touched_per_token(const ModelSpec& spec, const Weights& weights, size_t first_layer) {
  size_t bytes = weights.head.bytes;
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const LayerWeights& layer = weights.layers[l];
    bytes += std::visit([](const auto& w) { return touched(w); }, layer.attention);
    if (const auto* moe = std::get_if<MoeWeights>(&layer.ffn)) {
      const RouterSpec& router = std::get<MoeSpec>(spec.layers[first_layer + l]).router;
      const auto top_k = static_cast<size_t>(router.top_k), experts = static_cast<size_t>(router.num_experts);
      bytes += moe->router.bytes + top_k * moe->experts.size() * touched(moe->experts.front()) / experts;
      if (moe->shared) bytes += touched(*moe->shared);
    } else {
      bytes += touched(std::get<SwiGluWeights>(layer.ffn));
    }
  }
  return bytes;
}

}  // namespace conclave
