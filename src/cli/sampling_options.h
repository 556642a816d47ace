#pragma once
// Sampling options of the commands that generate text. Greedy unless a temperature is set.
#include "core/options.h"
#include "engine/request.h"

namespace conclave {

void declare_sampling_options(OptionTable& table, Sampling& sampling);

}  // namespace conclave
