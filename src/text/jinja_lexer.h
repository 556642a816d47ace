#pragma once
// Template source -> tokens, with the whitespace rules of trim_blocks and lstrip_blocks. Newlines are normalised and one
// trailing newline is dropped, as jinja2 does with keep_trailing_newline off. Throws SyntaxFailure.
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::jinja {

/// A malformed template, with the line where it was noticed.
struct SyntaxFailure : std::runtime_error {
  SyntaxFailure(int l, const std::string& message) : std::runtime_error(message), line(l) {}
  int line;
};

struct Token {
  enum class Type { data, print_begin, print_end, block_begin, block_end, name, string, integer, number, op, end };
  Type type = Type::end;
  std::string text;  ///< decoded for strings, without `_` for numbers
  int line = 1;

  bool is_op(std::string_view op) const { return type == Type::op && text == op; }
  bool is_name(std::string_view name) const { return type == Type::name && text == name; }
};

std::vector<Token> tokenize(std::string_view source);

}  // namespace conclave::jinja
