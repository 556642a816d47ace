#pragma once
// What templates can call: filters, tests, methods of values, global functions, operators and attribute access.
// All are pure but for the budget they charge; each throws Failure with jinja2's or Python's message.
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace conclave::jinja {

/// raise_exception: the text is the error, unchanged.
struct Raised : Failure {
  using Failure::Failure;
};

/// One rendering: its budget, its clock, and the bound on calls within calls.
struct Runtime {
  Budget budget;
  std::string now;
  int depth = 0;
};

/// Bounds recursion: construct one wherever evaluation nests.
struct Deeper {
  explicit Deeper(Runtime& r);
  ~Deeper() { --runtime.depth; }
  Runtime& runtime;
};

using Filter = Value (*)(Runtime&, const Value&, const CallArguments&);
using Test = bool (*)(Runtime&, const Value&, const CallArguments&);

Filter find_filter(std::string_view name);
Test find_test(std::string_view name);
Value call_filter(Runtime& runtime, std::string_view name, const Value& value, const CallArguments& arguments);
bool call_test(Runtime& runtime, std::string_view name, const Value& value, const CallArguments& arguments);

/// Python's argument binding: the values of `parameters` in order, absent ones empty. At least `required` must be there.
std::vector<std::optional<Value>> bind(std::string_view function, const CallArguments& arguments,
                                       const std::vector<std::string_view>& parameters, size_t required);
int64_t integer_argument(const Value& value, std::string_view what);
const Text& text_argument(const Value& value, std::string_view what);

/// obj.name and obj[key] as the sandboxed environment does them: missing is undefined, forbidden an error on use.
Value attribute_of(Runtime& runtime, const Value& object, std::string_view name);
Value item_of(Runtime& runtime, const Value& object, const Value& key);
Value slice_of(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step);
/// A method of a string, list, tuple, dict, ...; nothing when there is none of that name.
std::optional<Value> method_of(const Value& object, std::string_view name);
Value call(Runtime& runtime, const Value& callee, const CallArguments& arguments);

Value apply(Runtime& runtime, Op op, const Value& a, const Value& b);
bool apply_comparison(Runtime& runtime, Op op, const Value& a, const Value& b);
Value negate(const Value& value);

/// Methods of str, split by what they do; null when unknown.
using Method = Value (*)(Runtime&, const Value&, const CallArguments&);
Method find_string_method(std::string_view name);
Method find_text_method(std::string_view name);
Text strip(Budget& budget, const Text& text, const std::optional<Value>& chars, bool left, bool right);
Text replace(Runtime& runtime, const Text& text, const Text& old, const Text& fresh, int64_t count);
std::vector<Text> split_lines(const Text& text, bool keep_ends);
Text join(Runtime& runtime, const Text& separator, const std::vector<Value>& items);
Text pad(const Text& text, int64_t width, char align, const Text& fill);
/// str.format, "%" formatting and format specifications.
Text format_braces(Runtime& runtime, const Text& format, const CallArguments& arguments);
Text format_percent(Runtime& runtime, const Text& format, const Value& values);
Text format_spec(Runtime& runtime, const Value& value, const Text& spec);
Text repeat(Budget& budget, const Text& text, int64_t count);

/// json.dumps(value, ...) with the parameters of transformers' tojson.
Value to_json(Runtime& runtime, const Value& value, const CallArguments& arguments);
/// datetime.strftime of `now` ("YYYY-MM-DD HH:MM:SS", the present when empty).
Text format_time(const Text& format, const std::string& now);

Value make_function(std::string name, std::function<Value(Runtime&, const CallArguments&)> call, int nesting = 0);
std::map<std::string, Value, std::less<>> global_functions();

}  // namespace conclave::jinja
