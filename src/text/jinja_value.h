#pragma once
// Values of the template language: Python's data model as far as chat templates see it, and text with the provenance of
// every byte. Values are immutable but for namespaces, loops, iterators and cyclers; objects are reference counted.
// Invariant: containers nest at most kMaxNesting deep, so that walking and destroying them never exhausts the stack.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/jinja.h"

namespace conclave::jinja {

constexpr int kMaxNesting = 200;
constexpr size_t kMaxTextBytes = size_t{8} << 20;
constexpr size_t kMaxLiveBytes = size_t{64} << 20;

/// An error of the template; whoever knows the line adds it.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Counts work and live memory of one rendering; both ends of the bound give a Failure.
class Budget {
 public:
  explicit Budget(const TemplateLimits& limits) : limits_(limits), steps_left_(limits.max_steps) {}
  void charge(size_t steps);
  /// Work proportional to `bytes` of text touched.
  void charge_text(size_t bytes) { charge(1 + bytes / 64); }
  /// The same for work that decodes every character.
  void charge_characters(size_t bytes) { charge(1 + bytes / 16); }
  void hold(size_t bytes);
  void release(size_t bytes) noexcept { live_bytes_ -= bytes; }
  const TemplateLimits& limits() const { return limits_; }

 private:
  TemplateLimits limits_;
  size_t steps_left_;
  size_t live_bytes_ = 0;
};

/// UTF-8 text and, byte by byte, whether it comes from the template (trusted) or from a variable.
class Text {
 public:
  Text() = default;
  Text(std::string_view bytes, bool trusted) { append(bytes, trusted); }

  void append(std::string_view bytes, bool trusted);
  void append(const Text& other) { append(other, 0, other.size()); }
  void append(const Text& other, size_t begin, size_t end);
  Text slice(size_t begin, size_t end) const;

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool trusted(size_t i) const { return trust_[i] != 0; }
  std::vector<TextSpan> spans() const;

 private:
  std::string bytes_;
  std::string trust_;
};

class Value;
struct Runtime;

struct Object {
  int nesting = 1;
  virtual ~Object() = default;
};
using ObjectPtr = std::shared_ptr<const Object>;

enum class Kind : uint8_t {
  undefined, none, boolean, integer, number, string, list, tuple, dict,
  space, range, view, iterator, function, loop, cycler,
};

class Value {
 public:
  Value() = default;
  static Value none();
  /// `trusted`: the value was written by the template, so its digits may count as template text.
  static Value boolean(bool value, bool trusted = false);
  static Value integer(int64_t value, bool trusted = false);
  static Value number(double value, bool trusted = false);
  static Value string(Text text, Budget* budget = nullptr);
  static Value list(std::vector<Value> items, Budget* budget = nullptr);
  static Value tuple(std::vector<Value> items, Budget* budget = nullptr);
  static Value dict(std::vector<std::pair<Value, Value>> entries, Budget& budget);
  static Value undefined(std::string message, bool forbidden = false);
  static Value object(Kind kind, ObjectPtr object);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_number() const { return kind_ == Kind::boolean || kind_ == Kind::integer || kind_ == Kind::number; }
  bool is_integral() const { return kind_ == Kind::boolean || kind_ == Kind::integer; }
  bool trusted() const { return trusted_; }

  int64_t as_integer() const { return kind_ == Kind::boolean ? int64_t{boolean_} : integer_; }
  double as_number() const { return kind_ == Kind::number ? number_ : static_cast<double>(as_integer()); }
  bool as_boolean() const { return boolean_; }
  const Text& text() const;
  const std::vector<Value>& items() const;
  template <class T>
  const T& as() const { return static_cast<const T&>(*object_); }
  const ObjectPtr& object() const { return object_; }

 private:
  Kind kind_ = Kind::undefined;
  bool trusted_ = false;
  union {
    bool boolean_;
    int64_t integer_ = 0;
    double number_;
  };
  ObjectPtr object_;
};

/// Gives back to the budget what it held, when the object that carries it goes.
struct Held {
  Held(Budget* owner, size_t size);
  ~Held() { if (budget) budget->release(bytes); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  Budget* budget;
  size_t bytes;
};

struct StringObject : Object {
  StringObject(Text t, Budget* budget) : text(std::move(t)), held(budget, 2 * text.size() + 64) {}
  Text text;
  Held held;
};

struct SequenceObject : Object {
  SequenceObject(std::vector<Value> v, Budget* budget);
  std::vector<Value> items;
  bool group = false;  ///< a groupby pair: also answers to .grouper and .list
  Held held;
};

struct DictObject : Object {
  DictObject(std::vector<std::pair<Value, Value>> pairs, Budget& budget);
  /// The value stored under an equal key, or null. Throws for unhashable keys.
  const Value* find(const Value& key, Budget& budget) const;
  const Value* find(std::string_view key) const;
  std::vector<std::pair<Value, Value>> entries;  ///< in insertion order, keys unique

 private:
  std::unordered_multimap<size_t, size_t> index_;
  Held held_;
};

struct UndefinedObject : Object {
  std::string message;
  bool forbidden = false;
};

struct SpaceObject : Object {
  mutable std::vector<std::pair<std::string, Value>> attributes;
};

struct RangeObject : Object {
  int64_t start = 0, stop = 0, step = 1;
  int64_t size() const;
  Value at(int64_t i) const { return Value::integer(start + i * step); }
};

struct ViewObject : Object {
  enum class Part { keys, values, items } part = Part::items;
  Value dict;
};

/// A generator: consumed once, always true, without length.
struct IteratorObject : Object {
  using Next = std::function<std::optional<Value>()>;
  std::string type_name = "generator";
  Next next;
};

struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

/// Anything that can be called: builtins, bound methods, macros.
struct FunctionObject : Object {
  std::string name;
  std::string description;  ///< what printing it shows
  std::function<Value(Runtime&, const CallArguments&)> call;
  std::function<std::optional<Value>(std::string_view)> attribute;
};

struct CyclerObject : Object {
  std::vector<Value> items;
  mutable size_t position = 0;
};

/// What a `for` body sees as `loop`.
struct LoopObject : Object {
  std::vector<Value> items;
  mutable size_t index0 = 0;
  int depth0 = 0;
  mutable std::optional<Value> last_checked;
  std::function<Value(Runtime&, const Value&)> recurse;  ///< empty unless the loop is recursive
};

int nesting_of(const Value& value);
/// Throws when nesting more than kMaxNesting deep.
int nest(const std::vector<Value>& items);

bool truthy(const Value& value);
bool equal(const Value& a, const Value& b, Budget& budget);
/// <0, 0, >0; `op` names the operator in the error for values without an order.
int compare(const Value& a, const Value& b, std::string_view op, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);
size_t hash_of(const Value& value, Budget& budget);
/// First occurrence at or after `from`, in linear time; npos when there is none.
size_t find_bytes(std::string_view text, std::string_view needle, size_t from, Budget& budget);

/// Python's str() and repr().
Text to_text(const Value& value, Budget& budget);
Text repr(const Value& value, Budget& budget);
std::string repr_of_number(double value);
/// Python's type name ("str", "dict", ...).
std::string_view type_name(const Value& value);
/// How jinja2 names a value in messages about attributes ("dict object", "None").
std::string object_name(const Value& value);

/// iter(value): throws Failure when the value cannot be iterated.
IteratorObject::Next iterate(const Value& value, Budget& budget);
bool iterable(const Value& value);
/// list(value)
std::vector<Value> to_list(const Value& value, Budget& budget);
std::optional<int64_t> length_of(const Value& value);
Value make_iterator(IteratorObject::Next next, int nesting, std::string type_name = "generator");
/// Throws the error that using an undefined value gives.
[[noreturn]] void fail_undefined(const Value& value);

inline Value make_string(std::string_view bytes, bool trusted, Budget& budget) {
  return Value::string(Text(bytes, trusted), &budget);
}

}  // namespace conclave::jinja
