// GET /expert_load and /expert_load/{layer}: the figures behind the page's chart of load over time.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "server/app.h"
#include "server/utility.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

const ExpertLoad& counted(const Call& call) {
  const ExpertLoad* load = call.model->engine->expert_load();
  if (!load || load->layers().empty())
    throw ApiError(ApiCode::endpoint_not_supported,
                   call.model->moe_layers.empty() ? "the model has no layers with experts"
                                                  : "the experts' load is not counted; start the server with --expert-sampling above 0");
  return *load;
}

Json ratio_json(std::optional<double> ratio) { return ratio ? Json(*ratio) : Json(nullptr); }

/// Index of the layer that the path names.
size_t layer_of(const Call& call, const ExpertLoad& load) {
  const std::string& text = call.arguments.front();
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto found = std::find_if(load.layers().begin(), load.layers().end(), [&](const MoeLayer& l) { return l.layer == number; });
  if (error != std::errc{} || end != text.data() + text.size() || found == load.layers().end())
    throw ApiError(ApiCode::invalid_value,
                   fmt::format("the layer is {}, wanted a layer with experts; /expert_load lists them, from {} to {}", shown(Json(text)),
                               load.layers().front().layer, load.layers().back().layer),
                   "layer");
  return static_cast<size_t>(found - load.layers().begin());
}

}  // namespace

void expert_load(Call& call) {
  const ExpertLoad& load = counted(call);
  const ExpertLoad::Counts counts = load.counts(Clock::now());
  Json layers = Json::array();
  for (size_t i = 0; i < load.layers().size(); ++i) {
    const MoeLayer& l = load.layers()[i];
    layers.push_back({{"layer", l.layer},
                      {"num_experts", l.num_experts},
                      {"top_k", l.top_k},
                      {"imbalance", ratio_json(imbalance(load.of_layer(counts.recent, i)))}});
  }
  call.answer({{"every_steps", load.every_steps()},
               {"sampled_steps", counts.steps},
               {"window_s", ExpertLoad::kSpanSeconds * ExpertLoad::kSpans},
               {"layers", std::move(layers)}},
              {{"Cache-Control", "no-store"}});
}

void expert_load_of_layer(Call& call) {
  const ExpertLoad& load = counted(call);
  const size_t at = layer_of(call, load);
  const auto now = Clock::now();
  const ExpertLoad::Counts counts = load.counts(now);
  const auto total = load.of_layer(counts.total, at), recent = load.of_layer(counts.recent, at);
  Json history = Json::array();
  for (ExpertLoad::Span& span : load.history(at, now)) history.push_back({{"age_s", span.age_s}, {"tokens", std::move(span.counts)}});
  const MoeLayer& l = load.layers()[at];
  call.answer({{"layer", l.layer},
               {"num_experts", l.num_experts},
               {"top_k", l.top_k},
               {"every_steps", load.every_steps()},
               {"imbalance", ratio_json(imbalance(recent))},
               {"total", std::vector<uint64_t>(total.begin(), total.end())},
               {"recent", std::vector<uint64_t>(recent.begin(), recent.end())},
               {"window_s", ExpertLoad::kSpanSeconds * ExpertLoad::kSpans},
               {"span_s", ExpertLoad::kSpanSeconds},
               {"history", std::move(history)}},
              {{"Cache-Control", "no-store"}});
}

}  // namespace conclave
