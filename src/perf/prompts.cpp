#include "perf/prompts.h"

#include <algorithm>
#include <random>

namespace conclave {

PromptRuns random_prompts(const PerfCase& what, int vocab_size, int runs) {
  std::mt19937_64 random(1);
  Prompts prompts(static_cast<size_t>(what.batch), std::vector<int32_t>(static_cast<size_t>(what.input)));
  for (auto& prompt : prompts)
    for (int32_t& id : prompt) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
  return {what, std::vector<Prompts>(static_cast<size_t>(runs), prompts)};
}

std::vector<PromptRuns> dataset_prompts(const PerfCase& what, const Prompts& dataset, size_t most, bool pad) {
  const auto batch = static_cast<size_t>(what.batch), length = static_cast<size_t>(what.input);
  const auto slice = [&](size_t first, size_t count) {
    Prompts prompts;
    for (size_t i = 0; i < count; ++i) {
      std::vector<int32_t> ids = dataset[(first + i) % dataset.size()];
      const size_t own = ids.size();
      while (pad && ids.size() < length) ids.push_back(ids[ids.size() - own]);
      ids.resize(std::min(ids.size(), length));
      prompts.push_back(std::move(ids));
    }
    return prompts;
  };
  const size_t full = std::max<size_t>(1, dataset.size() / batch), left = dataset.size() < batch ? 0 : dataset.size() % batch;
  std::vector<PromptRuns> all{{what, {}}};
  for (size_t i = 0; i < std::min(full, most); ++i) all[0].runs.push_back(slice(i * batch, batch));
  if (left == 0 || full >= most) return all;
  all.push_back({what, {slice(full * batch, left)}});
  all.back().what.batch = static_cast<int>(left);
  return all;
}

}  // namespace conclave
