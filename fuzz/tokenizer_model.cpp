// Any bytes as tokenizer.model: an Error or a tokenizer that encodes and decodes without crashing.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "text/tokenizer_policy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  try {
    const auto tokenizer = make_sentencepiece_tokenizer({reinterpret_cast<const char*>(data), size}, "fuzz", {});
    for (const bool parse : {false, true})
      tokenizer->decode(tokenizer->encode("ab  <s>1 2\n\xC3\xA9 \xE4\xBD\xA0\xFF", {true, parse}), !parse);
  } catch (const Error&) {
  }
  return 0;
}
