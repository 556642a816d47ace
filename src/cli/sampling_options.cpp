#include "cli/sampling_options.h"

namespace conclave {

void declare_sampling_options(OptionTable& table, Sampling& s) {
  table.group("Sampling");
  table.add("temperature", &s.temperature, "randomness; 0 is greedy").placeholder("X").range(0, 100);
  table.add("top-k", &s.top_k, "keep the k most likely tokens; 0 is all").placeholder("K").range(0, 1 << 30);
  table.add("top-p", &s.top_p, "keep the most likely tokens that together reach this probability; 1 is all")
      .placeholder("P")
      .range(0, 1);
  table.add("min-p", &s.min_p, "drop tokens below this share of the most likely one's probability")
      .placeholder("P")
      .range(0, 1);
  table.add("repetition-penalty", &s.repetition_penalty, "above 1: tokens seen before become less likely; 1 is off")
      .placeholder("X")
      .range(0.01, 100);
  table.add("presence-penalty", &s.presence_penalty, "subtracted once from the logit of every token generated before")
      .placeholder("X")
      .range(-2, 2);
  table.add("frequency-penalty", &s.frequency_penalty, "subtracted per earlier occurrence of a generated token")
      .placeholder("X")
      .range(-2, 2);
  table.add("seed", &s.seed, "of the sampler; the same seed gives the same text").placeholder("N");
}

}  // namespace conclave
