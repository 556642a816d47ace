// Every golden checkpoint over several ranks (threads): the logits of one rank within 1e-4, the same greedy tokens.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/error.h"
#include "engine/engine.h"
#include "model/parallel_plan.h"
#include "support/golden.h"

namespace conclave {
namespace {

using namespace testing_support;

struct Case {
  const char* name;
  LayoutRequest asked;
  bool equal_bits = false;  ///< to one rank's
};

const Case kCases[] = {
    {"tp2", {.tp = 2}},
    {"tp3", {.tp = 3}},
    {"tp4", {.tp = 4}},
    {"ep2", {.tp = 2, .moe_ep = 2}},
    {"ep4", {.tp = 4, .moe_ep = 4}},
    {"ep3", {.tp = 3, .moe_ep = 3}},
    {"tp4ep2", {.tp = 4, .moe_ep = 2}},
    {"ep2exchange", {.tp = 2, .moe_ep = 2, .dispatch = Dispatch::exchange}},
    {"tp4ep2exchange", {.tp = 4, .moe_ep = 2, .dispatch = Dispatch::exchange}},
    {"pp2", {.pp = 2}, true},
    {"tp2pp2", {.tp = 2, .pp = 2}},
    {"tp2sp2", {.tp = 2, .sp = 2}},
    {"tp2sp2pp2ep2", {.tp = 2, .pp = 2, .sp = 2, .moe_ep = 2}},
    {"dp2ep2", {.tp = 1, .dp = 2, .moe_ep = 2}},
    {"dp2tp2ep2", {.tp = 2, .dp = 2, .moe_ep = 2}},
    {"dp2moetp2", {.tp = 1, .dp = 2, .moe_tp = 2}},
};

EngineOptions options_of(const ParallelLayout& layout) {
  EngineOptions o;
  o.threads = 1;
  o.pin_threads = false;
  o.precision = Precision::exact;
  o.block_size = 16;
  o.max_context = o.max_step_tokens = 64;
  o.max_sequences = 3;
  o.layout = layout;
  return o;
}

/// Layouts with --deterministic=world: the bits of one rank.
const Case kWhole[] = {
    {"tp2", {.tp = 2}}, {"tp3", {.tp = 3}}, {"tp4", {.tp = 4}}, {"ep2", {.tp = 2, .moe_ep = 2}}, {"ep4", {.tp = 4, .moe_ep = 4}},
    {"tp4ep2", {.tp = 4, .moe_ep = 2}}, {"tp2pp2", {.tp = 2, .pp = 2}}, {"dp2", {.tp = 1, .dp = 2, .moe_ep = 2}}, {"dp2tp2", {.tp = 2, .dp = 2, .moe_ep = 4}},
};

class Parallel : public testing::TestWithParam<std::string> {};

TEST_P(Parallel, LayoutsGiveTheLogitsAndTokensOfOneRank) {
  const Golden golden(GetParam());
  const OpenModel model(golden.folder);
  const auto trace = [&](const ParallelLayout& layout, const std::string& prompt) {
    Engine engine(model.spec, *model.source, options_of(layout));
    return engine.trace(golden.prompt(prompt), static_cast<int>(golden.greedy_tokens(prompt).size()));
  };
  const auto alone = trace({}, "long"), short_alone = trace({}, "one");
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    ParallelLayout layout;
    try {
      layout = resolve_layout(model.spec, c.asked);
    } catch (const Error& e) {
      ADD_FAILURE() << e.what();
      continue;
    }
    for (const std::string prompt : {"long", "one"}) {
      const auto& want = prompt == "long" ? alone : short_alone;
      const auto got = trace(layout, prompt);
      EXPECT_EQ(got.greedy_tokens, golden.greedy_tokens(prompt)) << prompt;
      EXPECT_LE(relative_error(got.logits, want.logits), c.equal_bits ? 0 : 1e-4) << prompt;
      EXPECT_LE(relative_error(got.greedy_logits, want.greedy_logits), c.equal_bits ? 0 : 1e-4) << prompt;
    }
  }
}

TEST_P(Parallel, WholeSumsGiveTheBitsOfOneRank) {
  const Golden golden(GetParam());
  const OpenModel model(golden.folder);
  for (const Precision precision : {Precision::exact, Precision::fast}) {
    const auto trace = [&](const ParallelLayout& layout) {
      EngineOptions o = options_of(layout);
      o.precision = precision;
      return Engine(model.spec, *model.source, o).trace(golden.prompt("long"), 6);
    };
    const auto want = trace({});
    for (const Case& c : kWhole) {
      SCOPED_TRACE(c.name);
      LayoutRequest asked = c.asked;
      asked.fixed_sums = true;
      const auto got = trace(resolve_layout(model.spec, asked));
      EXPECT_EQ(got.logits, want.logits);
      EXPECT_EQ(got.greedy_logits, want.greedy_logits);
    }
  }
}

std::string plain_name(const testing::TestParamInfo<std::string>& info) {
  std::string text = info.param;
  std::replace_if(text.begin(), text.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(All, Parallel, testing::ValuesIn(golden_cases()), plain_name);

}  // namespace
}  // namespace conclave
