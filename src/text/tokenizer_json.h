#pragma once
// Reads tokenizer.json as a stream: the large tables (model.vocab, model.merges) go straight to flat lists, the rest to a small
// JSON tree. Hides the parser; bounds nesting and refuses duplicate keys.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conclave {

struct TokenizerJson {
  nlohmann::json rest;                                       ///< the file without the two tables below
  std::vector<std::pair<std::string, int64_t>> vocab;        ///< model.vocab where it is an object
  std::vector<std::pair<std::string, std::string>> merges;   ///< model.merges: "a b" strings or pairs
};

/// Throws bad_model naming `source` and the position or key.
TokenizerJson read_tokenizer_json(std::string_view bytes, const std::string& source);

}  // namespace conclave
