// The trained demo models, whole: template, tokenizer, forward pass and greedy decoding give what transformers gave on the same folders
// (tests/data/demo/greedy-*.jsonl, fp32 arithmetic on the stored BF16 weights, made by tools/demo/evaluate.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/json.h"
#include "engine/engine.h"
#include "io/checkpoint.h"
#include "model/spec.h"
#include "model/tensor_source.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

std::vector<Json> read_lines(const std::string& file) {
  std::ifstream in(file);
  std::vector<Json> rows;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) rows.push_back(parse_json(line, file));
  return rows;
}

class DemoModel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::filesystem::path folder = std::filesystem::path(CONCLAVE_MODELS) / GetParam();
    checkpoint_.emplace(folder);
    tokenizer_ = Tokenizer::load(folder);
    chat_ = ChatTemplate::from_folder(folder);
    spec_ = parse_spec(checkpoint_->config(), folder.string());
    source_ = checkpoint_source(*checkpoint_, spec_);
    rows_ = read_lines(std::string(CONCLAVE_TEST_DATA) + "/demo/greedy-" + GetParam() + ".jsonl");
    ASSERT_EQ(rows_.size(), 20u);
  }

  Engine engine(int max_sequences) const {
    EngineOptions options;
    options.precision = Precision::exact;
    options.max_sequences = max_sequences;
    options.max_context = 512;
    return Engine(spec_, *source_, options);
  }

  std::vector<int32_t> prompt_ids(const Json& row) const {
    if (!row.contains("messages")) return tokenizer_->encode(row.at("prompt").get<std::string>(), EncodeOptions{});
    ChatTemplate::Request request{row.at("messages"), true, nullptr, nullptr, nullptr, ""};
    return tokenizer_->encode(chat_->render(request));
  }

  std::optional<Checkpoint> checkpoint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_;
  ModelSpec spec_;
  std::unique_ptr<TensorSource> source_;
  std::vector<Json> rows_;
};

TEST_P(DemoModel, EncodesPromptsAsTheReferenceDid) {
  ASSERT_TRUE(chat_.has_value());
  for (const Json& row : rows_) EXPECT_EQ(prompt_ids(row), row.at("prompt_ids").get<std::vector<int32_t>>()) << row.at("text");
}

TEST_P(DemoModel, GeneratesTheReferenceTokensInOneBatch) {
  Engine engine = this->engine(7);
  std::map<RequestId, std::vector<int32_t>> output;
  std::map<RequestId, const Json*> asked;
  for (const Json& row : rows_) {
    Request request;
    request.prompt = row.at("prompt_ids").get<std::vector<int32_t>>();
    request.max_new_tokens = 24;
    request.eos_ids = spec_.eos_ids;
    asked[engine.submit(request)] = &row;
  }
  while (!engine.idle())
    for (const Delta& delta : engine.step()) {
      auto& ids = output[delta.id];
      ids.insert(ids.end(), delta.tokens.begin(), delta.tokens.end());
      ASSERT_NE(delta.finish, FinishReason::error) << delta.error;
    }
  for (const auto& [id, row] : asked) {
    auto wanted = row->at("output_ids").get<std::vector<int32_t>>();
    if (std::find(spec_.eos_ids.begin(), spec_.eos_ids.end(), wanted.back()) != spec_.eos_ids.end()) wanted.pop_back();
    EXPECT_EQ(output[id], wanted) << row->dump();
    EXPECT_EQ(tokenizer_->decode(output[id], true), tokenizer_->decode(wanted, true));
  }
}

TEST_P(DemoModel, MatchesReferenceLogits) {
  Engine engine = this->engine(1);
  int compared = 0;
  for (const Json& row : rows_) {
    if (!row.contains("last_logits")) continue;
    const auto trace = engine.trace(row.at("prompt_ids").get<std::vector<int32_t>>(), 1);
    const Json& wanted = row.at("last_logits");
    const float tolerance = 1e-4f * wanted.at("max_abs").get<float>();
    const float* last = trace.logits.data() + trace.logits.size() - static_cast<size_t>(spec_.vocab_size);
    const auto first = wanted.at("first").get<std::vector<float>>();
    for (size_t i = 0; i < first.size(); ++i) EXPECT_NEAR(last[i], first[i], tolerance) << "logit " << i;
    EXPECT_EQ(std::max_element(last, last + spec_.vocab_size) - last, wanted.at("argmax").get<int>());
    ++compared;
  }
  EXPECT_EQ(compared, 3);
}

INSTANTIATE_TEST_SUITE_P(All, DemoModel,
                         testing::Values("demo-mixtral", "demo-deepseek-v2", "demo-deepseek-v3", "demo-deepseek-moe", "demo-ernie"),
                         [](const auto& info) {
                           std::string name = info.param.substr(5);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace conclave
