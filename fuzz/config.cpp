// Any bytes as config.json: a model that all arithmetic accepts, or a refusal.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"
#include "model/inspect.h"
#include "model/rope.h"
#include "model/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  try {
    const ModelSpec spec = parse_spec(parse_json({reinterpret_cast<const char*>(data), size}, "input"), "input");
    const ParameterCounts counts = count_parameters(spec);
    if (counts.total <= 0 || counts.active > counts.total || counts.touched_per_token > counts.active) std::abort();
    if (kv_bytes_per_token(spec, DType::f32) <= 0) std::abort();
    const RopeSpec& rope = std::visit([](const auto& a) -> const RopeSpec& { return a.rope; }, spec.attention);
    if (inverse_frequencies(rope).size() != static_cast<size_t>(rope.dim / 2)) std::abort();
    constexpr int64_t kListed = 10'000'000;  // listing every expert of a model of the largest allowed shape takes too long here
    if (counts.total < kListed) to_text(inspect_model(spec, nullptr, {.tensors = true}));
  } catch (const Error&) {
  }
  return 0;
}
