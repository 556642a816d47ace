#pragma once
// The chat formats that the families' model cards and published tokenizer files document, for folders that ship none.
// Plain data: a Jinja template per model_type and the special tokens it needs when the folder names none.
#include <string_view>
#include <utility>
#include <vector>

namespace conclave {

struct FamilyTemplate {
  std::string_view model_type;
  std::string_view source;
  std::vector<std::pair<std::string_view, std::string_view>> special_tokens;
};

/// Null when no format is documented for `model_type`.
const FamilyTemplate* find_family_template(std::string_view model_type);

}  // namespace conclave
