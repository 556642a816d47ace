#pragma once
// Text for a model that has none (random weights without tokenizer files): an id is its number in decimal digits behind a space. Any other
// word of a text stands for some id of the vocabulary, always the same.
#include <memory>

#include "text/tokenizer.h"

namespace conclave {

std::unique_ptr<Tokenizer> number_tokenizer(int32_t vocab_size);

}  // namespace conclave
