#pragma once
// Sandboxed subset of Jinja2 with the semantics of the environment that transformers renders chat templates in
// (trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now, tojson without ASCII/HTML escaping, undefined
// renders empty). No I/O, no attribute access beyond a fixed list, bounded in steps, depth, output and memory.
// Output keeps the provenance of each byte: template text is trusted, text that came in through variables is not.
#include <cstddef>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace conclave {

struct TemplateLimits {
  size_t max_source_bytes = size_t{256} << 10;
  size_t max_steps = 1'000'000;
  size_t max_output_bytes = size_t{4} << 20;
  int max_depth = 64;
};

/// What a template sees. `variables` is a JSON object (messages, tools, documents, add_generation_prompt, ...): untrusted
/// text. `special_tokens` (bos_token, ...) are bound as trusted strings.
struct TemplateInput {
  const nlohmann::ordered_json& variables;
  std::map<std::string, std::string> special_tokens;
  /// What strftime_now formats: "YYYY-MM-DD HH:MM:SS"; empty = the local time of rendering.
  std::string now;
};

class Template {
 public:
  /// Parses; throws bad_model with the line and what was expected.
  explicit Template(std::string_view source, TemplateLimits limits = {});
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  /// Renders to spans whose concatenation is the text. Throws bad_input with the line for errors of the template, exceeded
  /// limits, and raise_exception (whose text is the message, unchanged, when raised() would be of interest to a caller).
  std::vector<TextSpan> render(const TemplateInput& input) const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

/// Concatenated text of the spans.
std::string concatenate(const std::vector<TextSpan>& spans);

}  // namespace conclave
