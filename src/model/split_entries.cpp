#include "model/split_entries.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "core/error.h"

namespace conclave {
namespace {

std::vector<IndexRange> rows_of(const TensorCut& cut, int64_t rows) { return cut.rows.empty() ? std::vector<IndexRange>{{0, rows}} : cut.rows; }
IndexRange cols_of(const TensorCut& cut, int64_t cols) { return cut.cols.size() > 0 ? cut.cols : IndexRange{0, cols}; }
int64_t width_of(const std::vector<int64_t>& shape) { return shape.size() > 1 ? shape[1] : 1; }

std::string renamed(const std::string& name, const std::string& from, const std::string& to) {
  return name.substr(0, name.size() - from.size()) + to;
}

class Lister {
 public:
  Lister(const ModelSpec& spec, const TensorSource& source, const RankPlan& plan) : spec_(spec), source_(source), plan_(plan) {}

  std::vector<SplitEntry> all() {
    for_each_tensor(spec_, [&](const TensorInfo& info) {
      const TensorCut cut = cut_of(spec_, plan_, info);
      if (!cut.held) return;
      const Names& n = spec_.names;
      const bool pair = info.part == Part::dense_ffn || info.part == Part::shared_expert;
      if (info.part == Part::kv_up) kv_up(info, cut);
      else if (info.part == Part::expert) expert(info, cut);
      else if (pair && info.name.ends_with(n.gate)) add(renamed(info.name, n.gate, "merge_up_gate_proj.weight"), {part_of(info.name, cut)});
      else if (pair && info.name.ends_with(n.up)) merge(renamed(info.name, n.up, "merge_up_gate_proj.weight"), part_of(info.name, cut));
      else add(info.name, {part_of(info.name, cut)});
    });
    for (auto& [name, parts] : grouped_) add(name, std::move(parts), true);
    for (SplitEntry& entry : entries_) finish(entry);
    return std::move(entries_);
  }

 private:
  SourceTensor found(const std::string& name) const {
    auto tensor = source_.find(name);
    if (!tensor)
      throw Error(Error::Kind::unsupported, fmt::format("{} is stored in packed words, which cannot be split; load the published folder with the same "
                                                        "options: each rank reads its part alone", name));
    return *tensor;
  }

  SplitPart part_of(const std::string& name, const TensorCut& cut) const { return {.name = name, .cut = cut, .shape = {}, .head_rows = {}}; }

  void add(const std::string& name, std::vector<SplitPart> parts, bool group = false) {
    SplitEntry entry;
    entry.stored.name = name;
    entry.stored.dtype = found(parts.front().name).dtype;
    if (group) entry.stored.shape = {static_cast<int64_t>(parts.size()) / (name.ends_with("w1_w3") ? 2 : 1)};
    entry.parts = std::move(parts);
    index_[name] = entries_.size();
    entries_.push_back(std::move(entry));
  }
  void merge(const std::string& name, SplitPart up) { entries_.at(index_.at(name)).parts.push_back(std::move(up)); }

  void kv_up(const TensorInfo& info, const TensorCut& cut) {
    const auto& mla = std::get<MlaSpec>(spec_.attention);
    const std::string prefix = renamed(info.name, "kv_b_proj.weight", "");
    SplitPart k = part_of(info.name, cut), v = k;
    k.head = v.head = mla.nope_dim + mla.v_dim;
    k.head_rows = {0, mla.nope_dim}, v.head_rows = {mla.nope_dim, k.head};
    v.transposed = true;
    add(prefix + "w_k", {std::move(k)});
    add(prefix + "w_v", {std::move(v)});
  }

  void expert(const TensorInfo& info, const TensorCut& cut) {
    const bool down = info.name.ends_with(spec_.names.expert_down);
    const std::string prefix = substitute(spec_.names.layer, "{L}", info.layer) + spec_.names.ffn + "experts.";
    grouped_[prefix + (down ? "group_w2" : "group_w1_w3")].push_back(part_of(info.name, cut));
  }

  /// Shapes, and an entry for the scales of a quantised one.
  void finish(SplitEntry& entry) {
    SplitEntry scales;
    int64_t rows = 0, cols = 0;
    for (SplitPart& part : entry.parts) {
      const SourceTensor tensor = found(part.name);
      if (tensor.dtype != entry.stored.dtype)
        throw Error(Error::Kind::unsupported, fmt::format("{}: {} is {} and {} is {}, which cannot be merged into {}; load the published folder instead",
                                                          tensor.origin, part.name, name_of(tensor.dtype), entry.parts.front().name,
                                                          name_of(entry.stored.dtype), entry.stored.name));
      if (tensor.dtype == DType::f8e4m3 && part.cut.rows.size() > 1)
        throw Error(Error::Kind::unsupported, fmt::format("{}: {} is FP8, and this layout gives a rank some of its rows twice; choose a --tp that divides "
                                                          "the key/value heads, or load the published folder", tensor.origin, part.name));
      part.shape = shape_of(tensor.shape, part.cut);
      rows += part.shape.front(), cols = width_of(part.shape);
      const std::string suffix = scale_suffix(tensor.dtype);
      if (suffix.empty() || part.transposed) continue;
      SplitPart scale = part_of(part.name + suffix, {});
      const SourceTensor stored = found(scale.name);
      scale.cut = scale_cut(part.cut, tensor.dtype, stored.shape);
      scale.shape = shape_of(stored.shape, scale.cut);
      scales.stored.dtype = stored.dtype;
      scales.parts.push_back(std::move(scale));
    }
    const SplitPart& first = entry.parts.front();
    auto& shape = entry.stored.shape;
    if (first.head > 0) {
      const int64_t heads = rows / first.head, n = first.head_rows.size();
      shape = first.transposed ? std::vector<int64_t>{heads, cols, n} : std::vector<int64_t>{heads, n, cols};
    } else if (!shape.empty()) {
      shape = {shape.front(), rows / shape.front(), cols};
    } else {
      shape = entry.parts.size() > 1 ? std::vector<int64_t>{rows, cols} : first.shape;
    }
    if (scales.parts.empty()) return;
    const bool head = first.head > 0;
    scales.stored.name = head ? scales.parts.front().name : entry.stored.name + scale_suffix(entry.stored.dtype);
    int64_t scale_rows = 0;
    for (const SplitPart& part : scales.parts) scale_rows += part.shape.front();
    scales.stored.shape = scales.parts.size() > 1 ? std::vector<int64_t>{scale_rows, width_of(scales.parts.front().shape)} : scales.parts.front().shape;
    scale_entries_.push_back(std::move(scales));
  }

 public:
  std::vector<SplitEntry> scale_entries_;

 private:
  const ModelSpec& spec_;
  const TensorSource& source_;
  const RankPlan& plan_;
  std::vector<SplitEntry> entries_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::vector<SplitPart>> grouped_;
};

}  // namespace

std::string scale_suffix(DType dtype) { return dtype == DType::f8e4m3 ? "_scale_inv" : dtype == DType::i8 ? "_scale" : ""; }

TensorCut scale_cut(const TensorCut& weight, DType dtype, const std::vector<int64_t>& scale_shape) {
  TensorCut cut;
  const int64_t block = dtype == DType::i8 ? 1 : kFp8Block;
  for (const IndexRange& r : weight.rows) cut.rows.push_back({r.begin / block, std::min(scale_shape.front(), (r.end + block - 1) / block)});
  if (dtype != DType::i8 && weight.cols.size() > 0)
    cut.cols = {weight.cols.begin / block, std::min(width_of(scale_shape), (weight.cols.end + block - 1) / block)};
  return cut;
}

std::vector<int64_t> shape_of(const std::vector<int64_t>& whole, const TensorCut& cut) {
  std::vector<int64_t> shape = whole;
  if (!cut.rows.empty()) {
    shape[0] = 0;
    for (const IndexRange& r : cut.rows) shape[0] += r.size();
  }
  if (cut.cols.size() > 0) shape[1] = cut.cols.size();
  return shape;
}

std::vector<SplitEntry> split_entries(const ModelSpec& spec, const TensorSource& source, const RankPlan& plan) {
  Lister lister(spec, source, plan);
  std::vector<SplitEntry> entries = lister.all();
  for (SplitEntry& scales : lister.scale_entries_) entries.push_back(std::move(scales));
  return entries;
}

std::vector<std::byte> read_part(const SplitPart& part, const SourceTensor& tensor) {
  const size_t element = size_of(tensor.dtype);
  const int64_t width = width_of(tensor.shape);
  const IndexRange cols = cols_of(part.cut, width);
  std::vector<std::byte> bytes;
  for (const IndexRange& range : rows_of(part.cut, tensor.shape.front()))
    for (int64_t r = range.begin; r < range.end; ++r) {
      const std::byte* row = tensor.data + static_cast<size_t>(r * width + cols.begin) * element;
      bytes.insert(bytes.end(), row, row + static_cast<size_t>(cols.size()) * element);
    }
  if (part.head == 0) return bytes;
  const auto row_bytes = static_cast<size_t>(cols.size()) * element;
  const int64_t heads = static_cast<int64_t>(bytes.size() / row_bytes) / part.head, n = part.head_rows.size();
  std::vector<std::byte> out(static_cast<size_t>(heads * n) * row_bytes);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t r = 0; r < n; ++r) {
      const std::byte* from = bytes.data() + static_cast<size_t>(h * part.head + part.head_rows.begin + r) * row_bytes;
      if (!part.transposed) std::memcpy(out.data() + static_cast<size_t>(h * n + r) * row_bytes, from, row_bytes);
      else
        for (int64_t c = 0; c < cols.size(); ++c)
          std::memcpy(out.data() + static_cast<size_t>((h * cols.size() + c) * n + r) * element, from + static_cast<size_t>(c) * element, element);
    }
  return out;
}

void put_back(std::span<std::byte> whole, const std::vector<int64_t>& shape, size_t element, const TensorCut& cut, const std::byte* bytes) {
  const int64_t width = width_of(shape);
  const IndexRange cols = cols_of(cut, width);
  const auto row_bytes = static_cast<size_t>(cols.size()) * element;
  for (const IndexRange& range : rows_of(cut, shape.front()))
    for (int64_t r = range.begin; r < range.end; ++r, bytes += row_bytes)
      std::memcpy(whole.data() + static_cast<size_t>(r * width + cols.begin) * element, bytes, row_bytes);
}

}  // namespace conclave
