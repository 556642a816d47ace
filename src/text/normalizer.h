#pragma once
// Normalizers of tokenizer.json. Each byte of the result carries the provenance of the bytes it was made from.
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "text/added_tokens.h"

namespace conclave {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(MarkedText& text) const = 0;
};

/// Reads the `normalizer` section; null gives one that does nothing. Throws unsupported naming `source` and the type.
std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& section, const std::string& source);

}  // namespace conclave
