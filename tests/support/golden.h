#pragma once
// A golden checkpoint folder: the model as published plus reference outputs (golden.safetensors, golden.json) of an independent
// implementation. See tests/data/golden/README.md.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/json.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "model/decoder.h"
#include "model/spec.h"
#include "model/tensor_source.h"

namespace conclave::testing_support {

inline std::filesystem::path golden_root() { return std::filesystem::path(CONCLAVE_TEST_DATA) / "golden"; }

/// Names of all golden cases, sorted.
inline std::vector<std::string> golden_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_root()))
    if (std::filesystem::exists(entry.path() / "golden.json")) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// A model folder opened for loading.
struct OpenModel {
  explicit OpenModel(const std::filesystem::path& folder)
      : checkpoint(folder), spec(parse_spec(checkpoint.config(), (folder / "config.json").string())),
        source(checkpoint_source(checkpoint, spec)) {}
  Checkpoint checkpoint;
  ModelSpec spec;
  std::unique_ptr<TensorSource> source;
};

struct Golden {
  explicit Golden(const std::string& name)
      : folder(golden_root() / name), info(read_json_file(folder / "golden.json")), file(folder / "golden.safetensors") {}

  template <class T>
  std::vector<T> values(const std::string& name) const {
    const TensorRecord& record = file.tensors().at(name);
    std::vector<T> out(record.bytes / sizeof(T));
    std::copy_n(record.data, record.bytes, reinterpret_cast<std::byte*>(out.data()));
    return out;
  }
  std::vector<int32_t> prompt(const std::string& name) const { return info["prompts"][name]["ids"].get<std::vector<int32_t>>(); }
  std::vector<int32_t> greedy_tokens(const std::string& name) const {
    const auto tokens = values<int64_t>(name + ".greedy.tokens");
    return {tokens.begin(), tokens.end()};
  }
  double tolerance() const { return info["tolerance"]["logits_max_rel"].get<double>(); }
  /// The rule whose breaking moves the logits by about this much.
  std::string nearest_rule(double error) const {
    std::string best = "none";
    double distance = 1e30;
    for (const auto& [rule, size] : info["sensitivity"].items())
      if (const double d = std::fabs(std::log(size.get<double>() / error)); d < distance) distance = d, best = rule;
    return best;
  }

  std::filesystem::path folder;
  nlohmann::ordered_json info;
  SafetensorsFile file;
};

/// max|a - b| / max|b|; infinite when the sizes differ or a value is not a number.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || b.empty()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (std::isnan(d)) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, d);
    size = std::max(size, std::fabs(static_cast<double>(b[i])));
  }
  return difference / size;
}

/// Collects taps under the names that golden.safetensors uses; chunks of a prompt are appended.
class TapCollector {
 public:
  Tap tap() {
    return [this](std::string_view point, int layer, const Tensor& t) {
      const std::string name = layer < 0 ? std::string(point) : "layer." + std::to_string(layer) + "." + std::string(point);
      if (t.dtype == DType::i32) append(integers[name], t);
      else append(floats[name], t);
    };
  }
  std::map<std::string, std::vector<float>> floats;
  std::map<std::string, std::vector<int32_t>> integers;

 private:
  template <class T>
  static void append(std::vector<T>& out, const Tensor& t) {
    for (int64_t r = 0; r < t.dim[0]; ++r) out.insert(out.end(), t.row<T>(r), t.row<T>(r) + t.dim[1]);
  }
};

}  // namespace conclave::testing_support
