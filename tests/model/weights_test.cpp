#include "model/weights.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/float_types.h"
#include "model/decoder.h"
#include "support/edited_source.h"
#include "support/golden.h"

namespace conclave {
namespace {

using namespace testing_support;

/// [rows, cols] values of a packed weight, read back exactly: the reference backend times the identity.
std::vector<float> values_of(Backend& reference, const Weight& w) {
  std::vector<float> identity(static_cast<size_t>(w.cols * w.cols)), columns(static_cast<size_t>(w.cols * w.rows)), rows(columns.size());
  for (int64_t i = 0; i < w.cols; ++i) identity[static_cast<size_t>(i * w.cols + i)] = 1.0f;
  reference.linear(view(columns.data(), {w.cols, w.rows}), view(identity.data(), {w.cols, w.cols}), w);
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t c = 0; c < w.cols; ++c) rows[static_cast<size_t>(r * w.cols + c)] = columns[static_cast<size_t>(c * w.rows + r)];
  return rows;
}

struct Dense {
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  std::vector<float> part(int64_t first, int64_t count) const {
    return {values.begin() + first * cols, values.begin() + (first + count) * cols};
  }
};

/// A stored tensor dequantised from the format's definition: e4m3 times the scale of its 128 x 128 block, counted over the whole tensor.
Dense stored(const TensorSource& source, const std::string& name) {
  const SourceTensor t = source.find(name).value();
  Dense d{t.shape[0], t.shape[1], {}};
  const auto scale = t.dtype == DType::f8e4m3 ? source.find(name + "_scale_inv") : std::nullopt;
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t c = 0; c < d.cols; ++c) {
      const auto i = static_cast<size_t>(r * d.cols + c);
      if (t.dtype == DType::bf16) d.values.push_back(bf16_to_f32(reinterpret_cast<const uint16_t*>(t.data)[i]));
      else if (t.dtype == DType::f16) d.values.push_back(f16_to_f32(reinterpret_cast<const uint16_t*>(t.data)[i]));
      else if (t.dtype == DType::f32) d.values.push_back(reinterpret_cast<const float*>(t.data)[i]);
      else
        d.values.push_back(f8e4m3_to_f32(reinterpret_cast<const uint8_t*>(t.data)[i]) *
                           reinterpret_cast<const float*>(scale->data)[r / 128 * ((d.cols + 127) / 128) + c / 128]);
    }
  return d;
}

/// Both forms of the up-projections hold `kv_b` [H * (nope + v), rank] exactly.
void expect_kv_b(Backend& backend, const MlaUpWeights& up, const MlaSpec& mla, const Dense& kv_b) {
  EXPECT_EQ(values_of(backend, up.kv_b), kv_b.values);
  for (int h = 0; h < mla.num_heads; ++h) {
    const int64_t first = int64_t{h} * (mla.nope_dim + mla.v_dim);
    EXPECT_EQ(values_of(backend, up.v_up[static_cast<size_t>(h)]), kv_b.part(first + mla.nope_dim, mla.v_dim)) << h;
    const auto k_t = values_of(backend, up.k_up_t[static_cast<size_t>(h)]), k = kv_b.part(first, mla.nope_dim);
    for (int64_t i = 0; i < mla.nope_dim; ++i)
      for (int64_t r = 0; r < mla.kv_lora_rank; ++r)
        ASSERT_EQ(k_t[static_cast<size_t>(r * mla.nope_dim + i)], k[static_cast<size_t>(i * mla.kv_lora_rank + r)]) << h;
  }
}

Weights load(const OpenModel& model, const TensorSource& source, const LoadOptions& options = {}) {
  ThreadPool pool(2, false);
  return load_weights(model.spec, source, *make_reference(), pool, options);
}

/// Message of the refusal, checked to be a bad_model.
std::string refusal(const OpenModel& model, const TensorSource& source, const LoadOptions& options = {}) {
  try {
    load(model, source, options);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::bad_model) << e.what();
    return e.what();
  }
  return "nothing was refused";
}

class MlaWeightsTest : public testing::TestWithParam<std::string> {};

TEST_P(MlaWeightsTest, SplitAndTransposedFormsHoldTheStoredValues) {
  const OpenModel model(golden_root() / GetParam());
  const auto& mla = std::get<MlaSpec>(model.spec.attention);
  const auto reference = make_reference();
  const Weights weights = load(model, *model.source);
  for (int l = 0; l < model.spec.num_layers(); ++l) {
    const auto& w = std::get<MlaWeights>(weights.layers[static_cast<size_t>(l)].attention);
    const std::string prefix = "model.layers." + std::to_string(l) + ".self_attn.";
    const Dense kv_a = stored(*model.source, prefix + "kv_a_proj_with_mqa.weight");
    EXPECT_EQ(values_of(*reference, w.kv_a_latent), kv_a.part(0, mla.kv_lora_rank));
    EXPECT_EQ(values_of(*reference, w.kv_a_rope), kv_a.part(mla.kv_lora_rank, mla.rope_dim));
    ASSERT_EQ(w.up.k_up_t.size(), static_cast<size_t>(mla.num_heads));
    expect_kv_b(*reference, w.up, mla, stored(*model.source, prefix + "kv_b_proj.weight"));
  }
}

INSTANTIATE_TEST_SUITE_P(All, MlaWeightsTest, testing::Values("deepseek_v2-groups", "deepseek_v2-lite-yarn", "deepseek_v3-bf16", "deepseek_v3-fp8"),
                         [](const auto& info) { std::string s = info.param; std::replace(s.begin(), s.end(), '-', '_'); return s; });

TEST(Weights, FillExactlyThePlannedArena) {
  for (const std::string& name : golden_cases()) {
    const OpenModel model(golden_root() / name);
    const auto reference = make_reference();
    const size_t planned = weight_bytes(model.spec, *model.source, *reference, {});
    size_t last = 0, total = 0;
    LoadOptions options;
    options.progress = [&](size_t done, size_t of) { last = done, total = of; };
    const Weights weights = load(model, *model.source, options);
    EXPECT_EQ(weights.arena.size(), planned) << name;
    EXPECT_EQ(last, planned);
    EXPECT_EQ(total, planned);
    const auto inside = [&](const std::byte* p) { return p >= weights.arena.data() && p < weights.arena.data() + planned; };
    EXPECT_TRUE(inside(weights.embed.data));
    EXPECT_TRUE(inside(static_cast<std::byte*>(weights.final_norm.data)));
    EXPECT_EQ(model.spec.tied_head, weights.embed.data == weights.head.data) << name;
  }
}

TEST(Weights, FloatingTypesAreKeptUnlessAnArithmeticTypeIsAsked) {
  const OpenModel model(golden_root() / "deepseek_moe-bf16");
  const auto reference = make_reference();
  const auto q_of = [](const Weights& w) -> const Weight& { return std::get<GqaWeights>(w.layers[0].attention).q; };
  const Dense q = stored(*model.source, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(q_of(load(model, *model.source)).format, WeightFormat::bf16);
  const Weights f32 = load(model, *model.source, {.arithmetic = DType::f32, .progress = {}});
  EXPECT_EQ(q_of(f32).format, WeightFormat::f32);
  EXPECT_EQ(values_of(*reference, q_of(f32)), q.values);
  const Weights f16 = load(model, *model.source, {.arithmetic = DType::f16, .progress = {}});
  EXPECT_EQ(q_of(f16).format, WeightFormat::f16);
  auto rounded = q.values;
  for (float& v : rounded) v = f16_to_f32(f32_to_f16(v));
  EXPECT_EQ(values_of(*reference, q_of(f16)), rounded);
  EXPECT_EQ(std::get<MoeWeights>(f16.layers[1].ffn).router.format, WeightFormat::bf16) << "the router keeps its stored type";
}

TEST(Weights, AValueBeyondF16IsRefusedByTensor) {
  const OpenModel model(golden_root() / "deepseek_moe-bf16");
  EditedSource source(*model.source);
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  source.edit(name);
  source.data<uint16_t>(name)[5] = f32_to_bf16(70000.0f);
  const std::string message = refusal(model, source, {.arithmetic = DType::f16, .progress = {}});
  EXPECT_NE(message.find(name), std::string::npos) << message;
  EXPECT_NE(message.find("65504"), std::string::npos);
  EXPECT_EQ(refusal(model, source), "nothing was refused");
}

TEST(Weights, DamageIsRefusedByName) {
  const OpenModel model(golden_root() / "mixtral-gqa");
  const std::string name = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
  {
    EditedSource source(*model.source);
    source.remove(name);
    EXPECT_NE(refusal(model, source).find(name + " is missing"), std::string::npos);
  }
  {
    EditedSource source(*model.source);
    SourceTensor& t = source.edit(name);
    std::swap(t.shape[0], t.shape[1]);
    const std::string message = refusal(model, source);
    EXPECT_NE(message.find(name), std::string::npos) << message;
    EXPECT_NE(message.find("has shape [96, 64], wanted [64, 96]"), std::string::npos) << message;
  }
  {
    EditedSource source(*model.source);
    source.edit(name).dtype = DType::i16;
    const std::string message = refusal(model, source);
    EXPECT_NE(message.find(name + " is I16, wanted BF16"), std::string::npos) << message;
  }
  {
    EditedSource source(*model.source);
    source.edit(name).dtype = DType::f8e4m3;
    EXPECT_NE(refusal(model, source).find("quantization_config"), std::string::npos);
  }
}

TEST(Weights, QuantisedTensorsNeedTheirScales) {
  const OpenModel fp8(golden_root() / "deepseek_v3-fp8"), int8(golden_root() / "mixtral-w8a8");
  const std::string o_proj = "model.layers.0.self_attn.o_proj.weight";
  EditedSource a(*fp8.source);
  a.remove(o_proj + "_scale_inv");
  EXPECT_NE(refusal(fp8, a).find(o_proj + "_scale_inv are missing"), std::string::npos);
  EditedSource b(*int8.source);
  b.remove(o_proj + "_scale");
  EXPECT_NE(refusal(int8, b).find(o_proj + "_scale are missing"), std::string::npos);
  EditedSource c(*fp8.source);
  c.edit(o_proj + "_scale_inv").shape[0] += 1;
  EXPECT_NE(refusal(fp8, c).find("one scale per 128 x 128 block"), std::string::npos);
}

TEST(Weights, QuantisedKvBIsHeldDequantisedWhereHeadsCannotBeTransposed) {
  const OpenModel model(golden_root() / "deepseek_v3-fp8");  // heads of 16 + 24 rows straddle the 128-blocks
  const Weights weights = load(model, *model.source);
  const auto& up = std::get<MlaWeights>(weights.layers[0].attention).up;
  EXPECT_EQ(up.kv_b.format, WeightFormat::f32);
  EXPECT_EQ(up.k_up_t[0].format, WeightFormat::f32);
  EXPECT_EQ(std::get<MlaWeights>(weights.layers[0].attention).o.format, WeightFormat::f8e4m3);
}

template <class T>
std::vector<std::byte> as_bytes(const std::vector<T>& values) {
  const auto* first = reinterpret_cast<const std::byte*>(values.data());
  return {first, first + values.size() * sizeof(T)};
}

TEST(Weights, Fp8KvBWithHeadsOfWholeBlocksStaysFp8InBothForms) {
  ModelSpec spec = OpenModel(golden_root() / "deepseek_v3-fp8").spec;
  spec.layers.resize(1);
  auto& mla = std::get<MlaSpec>(spec.attention);
  mla.num_heads = 2, mla.nope_dim = mla.v_dim = 128, mla.kv_lora_rank = 200;
  const auto base = random_source(spec, RandomFormat::fp8, 1);
  EditedSource source(*base);
  const std::string name = "model.layers.0.self_attn.kv_b_proj.weight";
  std::vector<uint8_t> stored_values(512 * 200);
  for (size_t i = 0; i < stored_values.size(); ++i) stored_values[i] = static_cast<uint8_t>(i * 37 % 251 % 127 + (i % 2) * 128);
  const std::vector<float> scales{0.5f, 0.25f, 1.5f, 2.0f, 0.125f, 3.0f, 0.75f, 1.0f};  // 4 x 2 blocks
  source.put(name, DType::f8e4m3, {512, 200}, as_bytes(stored_values));
  source.put(name + "_scale_inv", DType::f32, {4, 2}, as_bytes(scales));
  ThreadPool pool(2, false);
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(make_reference());
  for (const std::string& isa : available_isas()) backends.push_back(make_cpu(pool, isa));
  for (const auto& backend : backends) {
    SCOPED_TRACE(backend->isa());
    const Weights weights = load_weights(spec, source, *backend, pool);
    backend->reserve(step_limits(spec, 256, 1, 256));
    const auto& up = std::get<MlaWeights>(weights.layers[0].attention).up;
    EXPECT_EQ(up.k_up_t[1].format, WeightFormat::f8e4m3);
    expect_kv_b(*backend, up, mla, stored(source, name));
  }
}

TEST(Weights, Int8KvBIsHeldDequantised) {
  OpenModel model(golden_root() / "deepseek_v2-lite-yarn");
  model.spec.quant = {WeightScheme::int8_channel, Activations::int8_token};
  const auto& mla = std::get<MlaSpec>(model.spec.attention);
  const std::string name = "model.layers.0.self_attn.kv_b_proj.weight";
  const int64_t rows = int64_t{mla.num_heads} * (mla.nope_dim + mla.v_dim), cols = mla.kv_lora_rank;
  std::vector<int8_t> q;
  std::vector<float> scales;
  Dense want{rows, cols, {}};
  for (int64_t r = 0; r < rows; ++r) {
    scales.push_back(0.01f * static_cast<float>(r + 1));
    for (int64_t c = 0; c < cols; ++c) {
      q.push_back(static_cast<int8_t>((r * 31 + c * 17) % 255 - 127));
      want.values.push_back(static_cast<float>(q.back()) * scales.back());
    }
  }
  EditedSource source(*model.source);
  source.put(name, DType::i8, {rows, cols}, as_bytes(q));
  source.put(name + "_scale", DType::f32, {rows, 1}, as_bytes(scales));
  const Weights weights = load(model, source);
  const auto& up = std::get<MlaWeights>(weights.layers[0].attention).up;
  EXPECT_EQ(up.kv_b.format, WeightFormat::f32);
  expect_kv_b(*make_reference(), up, mla, want);
}

TEST(Weights, TouchedBytesCountTopKExpertsAndTheHead) {
  const OpenModel model(golden_root() / "mixtral-gqa");
  const Weights weights = load(model, *model.source);
  const int64_t d = 64, inner = 96, vocab = model.spec.vocab_size, kv = 32;  // bf16: 2 bytes; sizes are multiples of 64 bytes
  const int64_t per_layer = 2 * (2 * d * d + 2 * kv * d) + 2 * 8 * d + 2 * 2 * 3 * inner * d;
  EXPECT_EQ(bytes_touched_per_token(model.spec, weights), static_cast<size_t>(2 * vocab * d + model.spec.num_layers() * per_layer));
}

}  // namespace
}  // namespace conclave
