// conclave dump against the golden tensors: names, types, shapes and values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/process.h"
#include "io/safetensors.h"

namespace conclave::testing {
namespace {

using Json = nlohmann::json;

double relative_error(const TensorRecord& got, const TensorRecord& wanted) {
  const auto* a = reinterpret_cast<const float*>(got.data);
  const auto* b = reinterpret_cast<const float*>(wanted.data);
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < wanted.bytes / sizeof(float); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::fabs(static_cast<double>(b[i])));
  }
  return worst / largest;
}

class Dump : public ::testing::TestWithParam<const char*> {};

TEST_P(Dump, WritesTheGoldenTensorsWithoutPrefix) {
  const Json info = Json::parse(std::ifstream(golden(GetParam()) + "/golden.json"));
  const double tolerance = info["tolerance"]["logits_max_rel"];
  std::string ids;
  for (const Json& id : info["prompts"]["mid"]["ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
  const TemporaryFolder folder;
  const std::string out = (folder.path / "d.safetensors").string();
  const ProcessResult r =
      conclave({"dump", golden(GetParam()), "--prompt-ids", ids, "--max-new-tokens", "12", "--out", out, "--taps"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(r.out, "");

  const SafetensorsFile got(out), wanted(golden(GetParam()) + "/golden.safetensors");
  size_t compared = 0;
  for (const auto& [name, tensor] : wanted.tensors()) {
    if (!name.starts_with("mid.") || name == "mid.ids") continue;
    const auto found = got.tensors().find(name.substr(4));
    ASSERT_NE(found, got.tensors().end()) << name;
    EXPECT_EQ(found->second.dtype, tensor.dtype) << name;
    EXPECT_EQ(found->second.shape, tensor.shape) << name;
    if (found->second.shape != tensor.shape || found->second.dtype != tensor.dtype) continue;
    if (tensor.dtype == DType::f32)
      EXPECT_LE(relative_error(found->second, tensor), tolerance) << name;
    else
      EXPECT_EQ(std::memcmp(found->second.data, tensor.data, tensor.bytes), 0) << name;
    ++compared;
  }
  EXPECT_EQ(compared, got.tensors().size()) << "tensors that the golden file does not have";
}
INSTANTIATE_TEST_SUITE_P(Families, Dump,
                         ::testing::Values("mixtral-sharded", "deepseek_moe-fp16", "deepseek_v2-groups",
                                           "deepseek_v3-mtp", "ernie-untied-start-end"),
                         [](const auto& info) {
                           std::string s = info.param;
                           std::replace(s.begin(), s.end(), '-', '_');
                           return s;
                         });

TEST(DumpCommand, UnwritableOutputIsRefusedBeforeLoading) {
  const auto refused = [](const std::string& out, const std::string& cause) {
    const ProcessResult r = conclave({"dump", golden("mixtral-gqa"), "--prompt-ids", "1,2", "--out", out});
    EXPECT_EQ(r.exit_code, 1) << r.err;
    EXPECT_NE(r.err.find("--out"), std::string::npos) << r.err;
    EXPECT_NE(r.err.find(cause), std::string::npos) << r.err;
  };
  const TemporaryFolder folder;
  refused("/nonexistent/d.safetensors", "/nonexistent");
  refused(folder.path.string(), "folder");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path));
}

TEST(DumpCommand, FailureLeavesNoFile) {
  const TemporaryFolder folder;
  const std::string out = (folder.path / "d.safetensors").string();
  const ProcessResult r = conclave({"dump", golden("mixtral-gqa"), "--prompt-ids", "1,600", "--out", out});
  EXPECT_EQ(r.exit_code, 2) << r.err;
  EXPECT_NE(r.err.find("600"), std::string::npos) << r.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path));
}

TEST(DumpCommand, OnePromptOnly) {
  EXPECT_EQ(conclave({"dump", golden("mixtral-gqa"), "--prompt-ids", "1 2", "--out", "/tmp/conclave_unused"}).exit_code,
            2);
  EXPECT_EQ(conclave({"dump", golden("mixtral-gqa"), "--out", "/tmp/conclave_unused"}).exit_code, 2);
  EXPECT_EQ(conclave({"dump", golden("mixtral-gqa"), "--prompt-ids", "1"}).exit_code, 2);
  const ProcessResult tooLong = conclave({"dump", golden("mixtral-gqa"), "--prompt-ids", "1", "--max-new-tokens",
                                          "40000", "--out", "/tmp/conclave_unused"});
  EXPECT_EQ(tooLong.exit_code, 2);
  EXPECT_NE(tooLong.err.find("32768"), std::string::npos) << tooLong.err;
}

}  // namespace
}  // namespace conclave::testing
