#include "model/split.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"
#include "io/partial_file.h"
#include "model/split_entries.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Entry = SafetensorsWriter::Entry;

constexpr const char* kManifest = "conclave_split.json";
constexpr const char* kFormat = "conclave-split-1";

[[noreturn]] void damaged(const fs::path& where, const std::string& what) { throw Error(Error::Kind::bad_model, fmt::format("{}: {}", where.string(), what)); }

std::string rank_file(int rank) { return fmt::format("rank_{}/model.safetensors", rank); }
constexpr const char* kUnused = "rank_0/unused.safetensors";

/// FNV-1a of a file, 64 bits.
std::string checksum(const fs::path& file) {
  const std::unique_ptr<FILE, int (*)(FILE*)> in(std::fopen(file.c_str(), "rb"), &std::fclose);
  if (!in) damaged(file, "cannot be read; split the checkpoint again");
  std::vector<uint8_t> buffer(size_t{1} << 20);
  uint64_t hash = 0xcbf29ce484222325ull;
  for (size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), in.get())) > 0;)
    for (size_t i = 0; i < n; ++i) hash = (hash ^ buffer[i]) * 0x100000001b3ull;
  return fmt::format("{:016x}", hash);
}

Json layout_json(const ParallelLayout& l) {
  return {{"world", l.world()}, {"tp", l.tp}, {"dp", l.dp}, {"pp", l.pp}, {"moe_tp", l.moe_tp}, {"moe_ep", l.moe_ep}, {"stage_layers", l.stage_layers}};
}
std::string layout_text(const ParallelLayout& l) {
  return fmt::format("--tp {} --dp {} --pp {} --moe-tp {} --moe-ep {} ({} ranks)", l.tp, l.dp, l.pp, l.moe_tp, l.moe_ep, l.world());
}

DType dtype_named(const std::string& name, const fs::path& where) {
  for (int i = 0; i <= static_cast<int>(DType::boolean); ++i)
    if (name_of(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  damaged(where, fmt::format("\"{}\" is no tensor type; split the checkpoint again", name));
}

size_t bytes_of(const Entry& e) { return checked_product(e.shape, e.name) * size_of(e.dtype); }

struct Manifest {
  ParallelLayout layout;
  std::map<std::string, Entry, std::less<>> tensors;  ///< published ones that the model uses
  Json files = Json::object();

  static Manifest read(const fs::path& folder) {
    const fs::path file = folder / kManifest;
    const Json json = read_json_file(file);
    try {
      if (json.at("format") != kFormat) damaged(file, fmt::format("format is {}, wanted \"{}\"; split the checkpoint again", json.at("format").dump(), kFormat));
      Manifest m;
      const Json& l = json.at("layout");
      l.at("tp").get_to(m.layout.tp), l.at("dp").get_to(m.layout.dp), l.at("pp").get_to(m.layout.pp);
      l.at("moe_tp").get_to(m.layout.moe_tp), l.at("moe_ep").get_to(m.layout.moe_ep), l.at("stage_layers").get_to(m.layout.stage_layers);
      for (const auto& [name, t] : json.at("tensors").items())
        m.tensors[name] = {name, dtype_named(t.at("dtype"), file), t.at("shape").get<std::vector<int64_t>>()};
      m.files = json.at("files");
      return m;
    } catch (const Json::exception& e) {
      damaged(file, fmt::format("is no manifest of a split checkpoint ({}); split it again", e.what()));
    }
  }
  void write(const fs::path& folder) const {
    Json list = Json::object();
    for (const auto& [name, t] : tensors) list[name] = {{"dtype", name_of(t.dtype)}, {"shape", t.shape}};
    write_file(folder / kManifest, Json{{"format", kFormat}, {"layout", layout_json(layout)}, {"files", files}, {"tensors", list}}.dump(1) + "\n");
  }
  /// Throws bad_model unless the file has the checksum it was written with.
  void verify(const fs::path& folder, const std::string& file) const {
    const std::string wanted = files.contains(file) && files[file].is_object() ? files[file].value("fnv1a64", "") : "";
    if (wanted.empty()) damaged(folder / kManifest, fmt::format("{} is not listed as finished; run the same split again", file));
    if (const std::string found = checksum(folder / file); found != wanted)
      damaged(folder / file, fmt::format("its checksum is {}, wanted {}; copy it again", found, wanted));
  }
  /// Throws bad_input unless the layout obeys the rules for the model.
  void check(const ModelSpec& spec) const {
    resolve_layout(spec, {.tp = layout.tp, .dp = layout.dp, .pp = layout.pp, .moe_tp = layout.moe_tp, .moe_ep = layout.moe_ep, .stage_layers = layout.stage_layers});
  }
  bool has(const fs::path& folder, const std::string& file) const {
    std::error_code error;
    return files.contains(file) && fs::file_size(folder / file, error) == files[file].at("bytes").get<size_t>() && !error;
  }
  void add(const fs::path& folder, const std::string& file) {
    files[file] = {{"bytes", fs::file_size(folder / file)}, {"fnv1a64", checksum(folder / file)}};
    write(folder);
  }
};

/// The published tensors' types and shapes, without data.
class Shapes final : public TensorSource {
 public:
  explicit Shapes(const Manifest& manifest) : manifest_(manifest) {}
  std::optional<SourceTensor> find(std::string_view name) const override {
    const auto found = manifest_.tensors.find(name);
    if (found == manifest_.tensors.end()) return std::nullopt;
    return SourceTensor{found->first, found->second.dtype, found->second.shape, nullptr, kManifest, {}};
  }
  void release(const SourceTensor&) const override {}

 private:
  const Manifest& manifest_;
};

/// One rank's file under published names.
class RankSource final : public TensorSource {
 public:
  RankSource(const fs::path& folder, const ModelSpec& spec, const Manifest& manifest, int rank) : file_(folder / rank_file(rank)) {
    const Shapes shapes(manifest);
    for (SplitEntry& entry : split_entries(spec, shapes, plan_rank(spec, manifest.layout, rank))) {
      const auto found = file_.tensors().find(entry.stored.name);
      if (found == file_.tensors().end() || found->second.shape != entry.stored.shape || found->second.dtype != entry.stored.dtype)
        damaged(folder / rank_file(rank), fmt::format("{} is missing or does not fit config.json and {}; split the checkpoint again", entry.stored.name, kManifest));
      size_t offset = 0;
      for (SplitPart& part : entry.parts) {
        const size_t bytes = checked_product(part.shape, part.name) * size_of(entry.stored.dtype);
        const std::string name = part.name;
        places_[name].push_back({&found->second, offset, std::move(part)});
        offset += bytes;
      }
    }
  }

  std::optional<SourceTensor> find(std::string_view name) const override {
    const auto found = places_.find(name);
    if (found == places_.end()) return std::nullopt;
    const Place& first = found->second.front();
    SourceTensor tensor{found->first, first.record->dtype, first.part.shape, first.record->data + first.offset, first.record->file.string(), {}};
    if (first.part.head > 0) reassemble(tensor, found->second);
    return tensor;
  }
  std::optional<DType> dtype(std::string_view name) const override {
    const auto found = places_.find(name);
    return found == places_.end() ? std::nullopt : std::optional(found->second.front().record->dtype);
  }
  void release(const SourceTensor& tensor) const override {
    if (tensor.owner) return;
    TensorRecord part;
    part.data = tensor.data;
    part.bytes = checked_product(tensor.shape, tensor.name) * size_of(tensor.dtype);
    file_.release(part);
  }
  bool sliced() const override { return true; }

 private:
  struct Place {
    const TensorRecord* record;
    size_t offset;
    SplitPart part;
  };

  /// kv_b's rows out of w_k and w_v.
  static void reassemble(SourceTensor& tensor, const std::vector<Place>& places) {
    const size_t element = size_of(tensor.dtype);
    const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
    auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(rows * cols) * element);
    for (const Place& place : places) {
      const SplitPart& p = place.part;
      const int64_t n = p.head_rows.size();
      for (int64_t h = 0; h < rows / p.head; ++h)
        for (int64_t r = 0; r < n; ++r)
          for (int64_t c = 0; c < cols; ++c) {
            const int64_t from = p.transposed ? (h * cols + c) * n + r : (h * n + r) * cols + c;
            const int64_t to = (h * p.head + p.head_rows.begin + r) * cols + c;
            std::memcpy(bytes->data() + static_cast<size_t>(to) * element, place.record->data + static_cast<size_t>(from) * element, element);
          }
    }
    tensor.data = bytes->data();
    tensor.owner = std::move(bytes);
  }

  SafetensorsFile file_;
  std::map<std::string, std::vector<Place>, std::less<>> places_;
};

/// All ranks' files, each opened when its rank asks.
class SplitSource final : public TensorSource {
 public:
  SplitSource(fs::path folder, const ModelSpec& spec) : folder_(std::move(folder)), spec_(spec), manifest_(Manifest::read(folder_)) {
    manifest_.check(spec_);
  }
  std::optional<SourceTensor> find(std::string_view name) const override { return of_rank(0).find(name); }
  void release(const SourceTensor&) const override {}
  const TensorSource& of_rank(int rank) const override {
    const std::lock_guard lock(mutex_);
    auto& source = ranks_[rank];
    if (!source) source = std::make_unique<RankSource>(folder_, spec_, manifest_, rank);
    return *source;
  }
  void check_layout(const ParallelLayout& l) const override {
    if (l.whole_sums)
      throw Error(Error::Kind::bad_model, fmt::format("{} is split, and so are its sums; --deterministic=world needs the published folder, which conclave "
                                                      "split --join restores", folder_.string()));
    if (layout_json(l) == layout_json(manifest_.layout)) return;
    throw Error(Error::Kind::bad_model, fmt::format("{} is split for {}, but {} was asked for; start with the options it is split for, load the published "
                                                    "folder, or restore that with conclave split --join and split it again",
                                                    folder_.string(), layout_text(manifest_.layout), layout_text(l)));
  }

 private:
  fs::path folder_;
  ModelSpec spec_;
  Manifest manifest_;
  mutable std::mutex mutex_;
  mutable std::map<int, std::unique_ptr<TensorSource>> ranks_;
};

/// Everything beside weights and their index.
void copy_side_files(const fs::path& in, const fs::path& out) {
  constexpr size_t kMost = size_t{1} << 30;
  static constexpr std::array<std::string_view, 9> kWeights{".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".onnx", ".partial"};
  for (const fs::directory_entry& entry : fs::directory_iterator(in)) {
    const std::string name = entry.path().filename().string(), kind = entry.path().extension().string();
    if (!entry.is_regular_file() || name.ends_with(".index.json") || name == kManifest || std::find(kWeights.begin(), kWeights.end(), kind) != kWeights.end()) continue;
    write_file(out / name, read_text_file(entry.path(), kMost));
  }
}

void refuse_same(const fs::path& in, const fs::path& out) {
  std::error_code error;
  if (fs::equivalent(in, out, error)) throw Error(Error::Kind::bad_input, fmt::format("--in and --out are the same folder {}; write to another one", in.string()));
}

/// Weights with their scales, in the order of for_each_tensor.
std::vector<Entry> published(const ModelSpec& spec, const TensorSource& source) {
  std::vector<Entry> all;
  for_each_tensor(spec, [&](const TensorInfo& info) {
    for (const std::string& suffix : {std::string(), std::string("_scale_inv"), std::string("_scale")})
      if (const auto tensor = source.find(info.name + suffix)) all.push_back({tensor->name, tensor->dtype, tensor->shape});
  });
  return all;
}

void write_unused(const Checkpoint& checkpoint, const ModelSpec& spec, Manifest& manifest, const fs::path& out) {
  std::vector<Entry> entries;
  for (const auto& [name, record] : checkpoint.tensors())
    if (is_ignored(spec, name)) entries.push_back({name, record.dtype, record.shape});
  if (entries.empty() || manifest.has(out, kUnused)) return;
  SafetensorsWriter writer(out / kUnused, entries);
  for (const Entry& e : entries) {
    const TensorRecord& record = *checkpoint.find(e.name);
    writer.write({record.data, record.bytes});
    checkpoint.release(record);
  }
  writer.finish();
  manifest.add(out, kUnused);
}

}  // namespace

bool is_split(const fs::path& folder) { return fs::exists(folder / kManifest); }
ParallelLayout split_layout(const fs::path& folder) { return Manifest::read(folder).layout; }
std::unique_ptr<TensorSource> split_source(const fs::path& folder, const ModelSpec& spec) { return std::make_unique<SplitSource>(folder, spec); }

SplitReport split_folder(const Checkpoint& checkpoint, const ModelSpec& spec, const SplitOptions& o) {
  refuse_same(o.in, o.out);
  const auto source = checkpoint_source(checkpoint, spec);
  Manifest manifest;
  manifest.layout = o.layout;
  for (const Entry& e : published(spec, *source)) manifest.tensors.emplace(e.name, e);
  if (is_split(o.out)) {
    Manifest old = Manifest::read(o.out);
    if (layout_json(old.layout) != layout_json(o.layout))
      throw Error(Error::Kind::bad_input, fmt::format("{} holds a split for {}, not for {}; give another --out", o.out.string(), layout_text(old.layout), layout_text(o.layout)));
    manifest.files = std::move(old.files);
  } else if (fs::exists(o.out) && !fs::is_empty(o.out)) {
    throw Error(Error::Kind::bad_input, fmt::format("{} is not empty and holds no split checkpoint; give another --out", o.out.string()));
  }
  std::vector<std::vector<SplitEntry>> ranks;
  size_t total = 0, done = 0;
  SplitReport report;
  for (int r = 0; r < o.layout.world(); ++r) {
    ranks.push_back(split_entries(spec, *source, plan_rank(spec, o.layout, r)));
    for (const SplitEntry& e : ranks.back()) total += bytes_of(e.stored);
    fs::create_directories((o.out / rank_file(r)).parent_path());
  }
  manifest.write(o.out);
  for (int r = 0; r < o.layout.world(); ++r) {
    const std::string name = rank_file(r);
    const bool finished = manifest.has(o.out, name);
    std::vector<Entry> declared;
    for (const SplitEntry& e : ranks[static_cast<size_t>(r)]) declared.push_back(e.stored);
    if (finished) {
      for (const Entry& e : declared) done += bytes_of(e);
      ++report.resumed;
      continue;
    }
    SafetensorsWriter writer(o.out / name, declared);
    for (const SplitEntry& e : ranks[static_cast<size_t>(r)])
      for (const SplitPart& part : e.parts) {
        const SourceTensor tensor = *source->find(part.name);
        const auto bytes = read_part(part, tensor);
        writer.write(bytes);
        source->release(tensor);
        done += bytes.size();
        if (o.progress) o.progress(done, total);
      }
    writer.finish();
    manifest.add(o.out, name);
    ++report.files;
  }
  write_unused(checkpoint, spec, manifest, o.out);
  copy_side_files(o.in, o.out);
  report.bytes = total;
  return report;
}

SplitReport join_folder(const fs::path& in, const fs::path& out, const std::function<void(size_t, size_t)>& progress) {
  refuse_same(in, out);
  if (fs::exists(out) && !fs::is_empty(out)) throw Error(Error::Kind::bad_input, fmt::format("{} is not empty; give another --out", out.string()));
  const Manifest manifest = Manifest::read(in);
  const ModelSpec spec = parse_spec(read_config(in), (in / "config.json").string());
  const SplitSource source(in, spec);  // checks the layout
  std::vector<std::string> files;
  for (int r = 0; r < manifest.layout.world(); ++r) files.push_back(rank_file(r));
  if (manifest.files.contains(kUnused)) files.emplace_back(kUnused);
  for (const std::string& file : files) manifest.verify(in, file);
  std::map<std::string, TensorInfo> infos;
  for_each_tensor(spec, [&](const TensorInfo& info) { infos.emplace(info.name, info); });
  std::vector<Entry> entries;
  size_t total = 0, done = 0;
  for (const auto& [name, entry] : manifest.tensors) entries.push_back(entry), total += bytes_of(entry);
  const bool extra = manifest.files.contains(kUnused);
  const auto unused = extra ? std::make_unique<SafetensorsFile>(in / kUnused) : nullptr;
  if (unused) for (const auto& [name, record] : unused->tensors()) entries.push_back({name, record.dtype, record.shape});
  fs::create_directories(out);
  SafetensorsWriter writer(out / "model.safetensors", entries, {{"format", "pt"}});
  std::vector<std::byte> whole;
  for (const auto& [name, entry] : manifest.tensors) {
    std::string weight = name;
    for (const char* suffix : {"_scale_inv", "_scale"})
      if (!infos.contains(weight) && weight.ends_with(suffix)) weight.resize(weight.size() - std::strlen(suffix));
    const auto info = infos.find(weight);
    if (info == infos.end()) damaged(in / kManifest, fmt::format("{} is no tensor of config.json's model; restore the files that belong together", name));
    whole.assign(bytes_of(entry), std::byte{0});
    for (int r = 0; r < manifest.layout.world(); ++r) {
      TensorCut cut = cut_of(spec, plan_rank(spec, manifest.layout, r), info->second);
      if (!cut.held) continue;
      if (weight != name) cut = scale_cut(cut, manifest.tensors.at(weight).dtype, entry.shape);
      const auto part = source.of_rank(r).find(name);
      if (!part) damaged(in / rank_file(r), fmt::format("{} is missing; copy the file again", name));
      put_back(whole, entry.shape, size_of(entry.dtype), cut, part->data);
      source.of_rank(r).release(*part);
    }
    writer.write(whole);
    if (progress) progress(done += whole.size(), total);
  }
  if (unused) for (const auto& [name, record] : unused->tensors()) writer.write({record.data, record.bytes});
  writer.finish();
  copy_side_files(in, out);
  return {.files = 1, .resumed = 0, .bytes = total};
}

}  // namespace conclave
