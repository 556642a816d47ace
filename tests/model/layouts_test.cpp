// Other spellings of one model: fused expert tensors and the newer generation of config.json keys give the same bits.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "engine/engine.h"
#include "support/golden.h"

namespace conclave {
namespace {

using namespace testing_support;
using Json = nlohmann::ordered_json;

std::vector<std::byte> bytes_of(const TensorRecord& r) { return {r.data, r.data + r.bytes}; }

void append(std::vector<std::byte>& to, const std::vector<std::byte>& from) { to.insert(to.end(), from.begin(), from.end()); }

/// Copies a checkpoint, joining each layer's experts into experts.gate_up_proj [E, 2I, H] (gate rows first) and experts.down_proj [E, H, I].
class FusedCopy {
 public:
  FusedCopy(const std::filesystem::path& from, std::filesystem::path to) : to_(std::move(to)), checkpoint_(from) {
    std::filesystem::remove_all(to_);
    std::filesystem::create_directories(to_);
    collect();
    std::vector<SafetensorsWriter::Entry> entries;
    for (const auto& [name, t] : tensors_) entries.push_back({name, t.dtype, t.shape});
    SafetensorsWriter writer(to_ / "model.safetensors", entries);
    for (const auto& [name, t] : tensors_) writer.write(t.bytes);
    writer.finish();
  }

  void write_config(const Json& config) const { std::ofstream(to_ / "config.json") << config.dump(); }
  const Json& config() const { return checkpoint_.config(); }
  int fused() const { return fused_; }

 private:
  struct Stored {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };

  void collect() {
    const ModelSpec spec = parse_spec(checkpoint_.config(), "config.json");
    for (const auto& [name, record] : checkpoint_.tensors())
      if (name.find(".experts.") == std::string::npos) tensors_[name] = {record.dtype, record.shape, bytes_of(record)};
    for (int l = 0; l < spec.num_layers(); ++l)
      if (const auto* moe = std::get_if<MoeSpec>(&spec.layers[static_cast<size_t>(l)])) fuse(spec, l, moe->router.num_experts);
  }

  void fuse(const ModelSpec& spec, int l, int num_experts) {
    const std::string prefix = "model.layers." + std::to_string(l) + "." + spec.names.ffn + "experts.";
    Stored gate_up{}, down{};
    for (int e = 0; e < num_experts; ++e) {
      const std::string expert = prefix + std::to_string(e) + ".";
      const TensorRecord &gate = *checkpoint_.find(expert + spec.names.expert_gate), &up = *checkpoint_.find(expert + spec.names.expert_up),
                         &d = *checkpoint_.find(expert + spec.names.expert_down);
      append(gate_up.bytes, bytes_of(gate));
      append(gate_up.bytes, bytes_of(up));
      append(down.bytes, bytes_of(d));
      gate_up.dtype = down.dtype = gate.dtype;
      gate_up.shape = {num_experts, 2 * gate.shape[0], gate.shape[1]};
      down.shape = {num_experts, d.shape[0], d.shape[1]};
    }
    tensors_[prefix + "gate_up_proj"] = std::move(gate_up);
    tensors_[prefix + "down_proj"] = std::move(down);
    ++fused_;
  }

  std::filesystem::path to_;
  Checkpoint checkpoint_;
  std::map<std::string, Stored> tensors_;
  int fused_ = 0;
};

Engine::Trace trace_of(const std::filesystem::path& folder, const std::vector<int32_t>& prompt) {
  const OpenModel model(folder);
  EngineOptions o;
  o.backend = "reference";
  o.precision = Precision::exact;
  o.max_context = 64;
  return Engine(model.spec, *model.source, o).trace(prompt, 4);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class OtherLayout : public testing::TestWithParam<std::string> {
 protected:
  OtherLayout() : golden_(GetParam()), folder_(std::filesystem::path(testing::TempDir()) / ("layout_" + GetParam())), copy_(golden_.folder, folder_) {}
  ~OtherLayout() override { std::filesystem::remove_all(folder_); }

  void expect_same() {
    const auto want = trace_of(golden_.folder, golden_.prompt("mid")), got = trace_of(folder_, golden_.prompt("mid"));
    EXPECT_TRUE(same_bits(got.logits, want.logits));
    EXPECT_TRUE(same_bits(got.greedy_logits, want.greedy_logits));
  }

  Golden golden_;
  std::filesystem::path folder_;
  FusedCopy copy_;
};

TEST_P(OtherLayout, FusedExpertsGiveTheSameBits) {
  ASSERT_GT(copy_.fused(), 0);
  copy_.write_config(copy_.config());
  expect_same();
}

TEST_P(OtherLayout, NewerConfigKeysGiveTheSameBits) {
  Json config = copy_.config();
  Json rope = config.contains("rope_scaling") && !config["rope_scaling"].is_null() ? config["rope_scaling"] : Json::object();
  if (config.contains("rope_parameters")) rope = config["rope_parameters"];
  const std::string type = rope.value("rope_type", rope.value("type", "default"));
  rope.erase("type");
  rope["rope_type"] = type;
  if (config.contains("rope_theta")) rope["rope_theta"] = config["rope_theta"];
  config.erase("rope_scaling");
  config.erase("rope_theta");
  config["rope_parameters"] = rope;
  if (config.contains("torch_dtype")) config["dtype"] = config["torch_dtype"];
  config.erase("torch_dtype");
  for (auto& [key, value] : config.items())  // counts as floats, as some tools write them
    if (value.is_number_integer() && key.starts_with("num_")) value = value.get<double>();
  copy_.write_config(config);
  expect_same();
}

INSTANTIATE_TEST_SUITE_P(All, OtherLayout, testing::Values("deepseek_moe-bf16", "deepseek_v2-lite-yarn", "deepseek_v3-bf16", "mixtral-gqa", "ernie-tied"),
                         [](const auto& info) { std::string s = info.param; std::replace(s.begin(), s.end(), '-', '_'); return s; });

}  // namespace
}  // namespace conclave
