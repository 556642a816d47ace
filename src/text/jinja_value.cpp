#include "text/jinja_value.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "text/jinja_unicode.h"

namespace conclave::jinja {

void Budget::charge(size_t steps) {
  if (steps > steps_left_) {
    throw Failure(fmt::format("the template takes more than {} steps; shorten its loops or the conversation",
                              limits_.max_steps));
  }
  steps_left_ -= steps;
}

void Budget::hold(size_t bytes) {
  charge_text(bytes);
  if (bytes > kMaxLiveBytes - live_bytes_) {
    throw Failure(fmt::format("the template holds more than {} bytes of values at once", kMaxLiveBytes));
  }
  live_bytes_ += bytes;
}

void Text::append(std::string_view bytes, bool trusted) {
  if (bytes.size() > kMaxTextBytes - bytes_.size()) {
    throw Failure(fmt::format("a text of the template grows beyond {} bytes", kMaxTextBytes));
  }
  bytes_.append(bytes);
  trust_.append(bytes.size(), static_cast<char>(trusted));
}

void Text::append(const Text& other, size_t begin, size_t end) {
  if (end - begin > kMaxTextBytes - bytes_.size()) {
    throw Failure(fmt::format("a text of the template grows beyond {} bytes", kMaxTextBytes));
  }
  bytes_.append(other.bytes_, begin, end - begin);
  trust_.append(other.trust_, begin, end - begin);
}

Text Text::slice(size_t begin, size_t end) const {
  Text out;
  if (begin < end) out.append(*this, begin, end);
  return out;
}

std::vector<TextSpan> Text::spans() const {
  std::vector<TextSpan> spans;
  for (size_t begin = 0; begin < size();) {
    const size_t change = trust_.find(trust_[begin] ? '\0' : '\1', begin);
    const size_t end = change == std::string::npos ? size() : change;
    spans.push_back({bytes_.substr(begin, end - begin), trusted(begin)});
    begin = end;
  }
  return spans;
}

Held::Held(Budget* owner, size_t size) : budget(owner), bytes(size) {
  if (budget) budget->hold(bytes);
}

SequenceObject::SequenceObject(std::vector<Value> v, Budget* budget)
    : items(std::move(v)), held(budget, 64 + sizeof(Value) * items.size()) {
  nesting = nest(items);
}

DictObject::DictObject(std::vector<std::pair<Value, Value>> pairs, Budget& budget)
    : held_(&budget, 128 + 128 * pairs.size()) {
  for (auto& [key, value] : pairs) {
    const size_t hash = hash_of(key, budget);
    if (const Value* found = find(key, budget)) {
      const_cast<Value&>(*found) = std::move(value);
    } else {
      index_.emplace(hash, entries.size());
      entries.emplace_back(std::move(key), std::move(value));
    }
  }
  int deepest = 0;
  for (const auto& [key, value] : entries) deepest = std::max({deepest, nesting_of(key), nesting_of(value)});
  if (deepest >= kMaxNesting) throw Failure(fmt::format("values nested deeper than {} levels", kMaxNesting));
  nesting = deepest + 1;
}

const Value* DictObject::find(const Value& key, Budget& budget) const {
  const auto [begin, end] = index_.equal_range(hash_of(key, budget));
  for (auto it = begin; it != end; ++it) {
    if (equal(entries[it->second].first, key, budget)) return &entries[it->second].second;
  }
  return nullptr;
}

const Value* DictObject::find(std::string_view key) const {
  const auto [begin, end] = index_.equal_range(std::hash<std::string_view>()(key));
  for (auto it = begin; it != end; ++it) {
    const Value& candidate = entries[it->second].first;
    if (candidate.is(Kind::string) && candidate.text().bytes() == key) return &entries[it->second].second;
  }
  return nullptr;
}

int64_t RangeObject::size() const {
  if (step > 0) return start >= stop ? 0 : (stop - start - 1) / step + 1;
  return start <= stop ? 0 : (start - stop - 1) / -step + 1;
}

Value Value::none() {
  Value v;
  v.kind_ = Kind::none;
  v.trusted_ = true;
  return v;
}

Value Value::boolean(bool value, bool trusted) {
  Value v;
  v.kind_ = Kind::boolean;
  v.boolean_ = value;
  v.trusted_ = trusted;
  return v;
}

Value Value::integer(int64_t value, bool trusted) {
  Value v;
  v.kind_ = Kind::integer;
  v.integer_ = value;
  v.trusted_ = trusted;
  return v;
}

Value Value::number(double value, bool trusted) {
  Value v;
  v.kind_ = Kind::number;
  v.number_ = value;
  v.trusted_ = trusted;
  return v;
}

Value Value::object(Kind kind, ObjectPtr object) {
  Value v;
  v.kind_ = kind;
  v.object_ = std::move(object);
  return v;
}

Value Value::string(Text text, Budget* budget) {
  return object(Kind::string, std::make_shared<StringObject>(std::move(text), budget));
}

Value Value::list(std::vector<Value> items, Budget* budget) {
  return object(Kind::list, std::make_shared<SequenceObject>(std::move(items), budget));
}

Value Value::tuple(std::vector<Value> items, Budget* budget) {
  return object(Kind::tuple, std::make_shared<SequenceObject>(std::move(items), budget));
}

Value Value::dict(std::vector<std::pair<Value, Value>> entries, Budget& budget) {
  return object(Kind::dict, std::make_shared<DictObject>(std::move(entries), budget));
}

Value Value::undefined(std::string message, bool forbidden) {
  auto o = std::make_shared<UndefinedObject>();
  o->message = std::move(message);
  o->forbidden = forbidden;
  return object(Kind::undefined, std::move(o));
}

const Text& Value::text() const { return as<StringObject>().text; }
const std::vector<Value>& Value::items() const { return as<SequenceObject>().items; }

int nesting_of(const Value& value) {
  // Namespaces are taken apart at the end of rendering, so what hangs below them does not count.
  return value.object() && !value.is(Kind::space) ? value.object()->nesting : 0;
}

int nest(const std::vector<Value>& items) {
  int deepest = 0;
  for (const Value& item : items) deepest = std::max(deepest, nesting_of(item));
  if (deepest >= kMaxNesting) throw Failure(fmt::format("values nested deeper than {} levels", kMaxNesting));
  return deepest + 1;
}

void fail_undefined(const Value& value) {
  throw Failure(value.object() ? value.as<UndefinedObject>().message : "the value is undefined");
}

bool truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: case Kind::none: return false;
    case Kind::boolean: return value.as_boolean();
    case Kind::integer: return value.as_integer() != 0;
    case Kind::number: return value.as_number() != 0;
    case Kind::string: return !value.text().empty();
    case Kind::list: case Kind::tuple: case Kind::dict: case Kind::range: case Kind::view:
      return *length_of(value) != 0;
    default: return true;
  }
}

namespace {

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b, Budget& budget) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equal(a[i], b[i], budget)) return false;
  }
  return true;
}

bool equal_dicts(const DictObject& a, const DictObject& b, Budget& budget) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(key, budget);
    if (!other || !equal(value, *other, budget)) return false;
  }
  return true;
}

/// Exact comparison of an integer with a double.
int compare_mixed(int64_t a, double b) {
  if (b >= 9223372036854775808.0) return -1;
  if (b < -9223372036854775808.0) return 1;
  const double whole = std::floor(b);
  const auto floor_of_b = static_cast<int64_t>(whole);
  if (a != floor_of_b) return a < floor_of_b ? -1 : 1;
  return b > whole ? -1 : 0;
}

template <class T>
int order(const T& a, const T& b) { return a < b ? -1 : b < a ? 1 : 0; }

int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return order(a.as_integer(), b.as_integer());
  if (a.is_integral()) return compare_mixed(a.as_integer(), b.as_number());
  if (b.is_integral()) return -compare_mixed(b.as_integer(), a.as_number());
  return order(a.as_number(), b.as_number());
}

bool has_nan(const Value& a, const Value& b) { return std::isnan(a.as_number()) || std::isnan(b.as_number()); }

}  // namespace

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.charge(1);
  if (a.is_number() && b.is_number()) return !has_nan(a, b) && compare_numbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::undefined: case Kind::none: return true;
    case Kind::string:
      budget.charge(a.text().size() / 64);
      return a.text().bytes() == b.text().bytes();
    case Kind::list: case Kind::tuple:
      return a.object() == b.object() || equal_items(a.items(), b.items(), budget);
    case Kind::dict:
      return a.object() == b.object() || equal_dicts(a.as<DictObject>(), b.as<DictObject>(), budget);
    case Kind::range: return equal_items(to_list(a, budget), to_list(b, budget), budget);
    default: return a.object() == b.object();
  }
}

int compare(const Value& a, const Value& b, std::string_view op, Budget& budget) {
  budget.charge(1);
  if (a.is_number() && b.is_number()) return has_nan(a, b) ? 2 : compare_numbers(a, b);
  if (a.is(Kind::undefined)) fail_undefined(a);
  if (b.is(Kind::undefined)) fail_undefined(b);
  if (a.is(Kind::string) && b.is(Kind::string)) {
    budget.charge(a.text().size() / 64);
    const int c = a.text().bytes().compare(b.text().bytes());
    return c < 0 ? -1 : c > 0;
  }
  if (a.kind() == b.kind() && (a.is(Kind::list) || a.is(Kind::tuple))) {
    const auto &x = a.items(), &y = b.items();
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(x[i], y[i], budget)) return compare(x[i], y[i], op, budget);
    }
    return order(x.size(), y.size());
  }
  throw Failure(fmt::format("'{}' not supported between instances of '{}' and '{}'", op, type_name(a), type_name(b)));
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is(Kind::string)) {
    if (!item.is(Kind::string)) {
      throw Failure(fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
    }
    return find_bytes(container.text().bytes(), item.text().bytes(), 0, budget) != std::string::npos;
  }
  if (container.is(Kind::dict)) return container.as<DictObject>().find(item, budget) != nullptr;
  if (!iterable(container)) throw Failure(fmt::format("argument of type '{}' is not iterable", type_name(container)));
  const auto next = iterate(container, budget);
  while (const auto candidate = next()) {
    if (equal(*candidate, item, budget)) return true;
  }
  return false;
}

size_t find_bytes(std::string_view text, std::string_view needle, size_t from, Budget& budget) {
  if (from > text.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  const size_t at = found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
  budget.charge(1 + ((found ? at : text.size()) - from + needle.size()) / 32);
  return at;
}

size_t hash_of(const Value& value, Budget& budget) {
  budget.charge(1);
  switch (value.kind()) {
    case Kind::list: case Kind::dict: throw Failure(fmt::format("unhashable type: '{}'", type_name(value)));
    case Kind::boolean: case Kind::integer: return std::hash<int64_t>()(value.as_integer());
    case Kind::number: {
      const double d = value.as_number();
      if (std::abs(d) < 9e18 && d == std::floor(d)) return std::hash<int64_t>()(static_cast<int64_t>(d));
      return std::hash<double>()(d);
    }
    case Kind::string:
      budget.charge(value.text().size() / 64);
      return std::hash<std::string_view>()(value.text().bytes());
    case Kind::tuple: {
      size_t hash = 7;
      for (const Value& item : value.items()) hash = hash * 1000003 ^ hash_of(item, budget);
      return hash;
    }
    default: return std::hash<const void*>()(value.object().get());
  }
}

std::optional<int64_t> length_of(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return 0;
    case Kind::string: return static_cast<int64_t>(count_code_points(value.text().bytes()));
    case Kind::list: case Kind::tuple: return static_cast<int64_t>(value.items().size());
    case Kind::dict: return static_cast<int64_t>(value.as<DictObject>().entries.size());
    case Kind::range: return value.as<RangeObject>().size();
    case Kind::view: return length_of(value.as<ViewObject>().dict);
    case Kind::loop: return static_cast<int64_t>(value.as<LoopObject>().items.size());
    default: return std::nullopt;
  }
}

bool iterable(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: case Kind::string: case Kind::list: case Kind::tuple: case Kind::dict:
    case Kind::range: case Kind::view: case Kind::iterator: return true;
    default: return false;
  }
}

namespace {

Value view_item(const ViewObject& view, const std::pair<Value, Value>& entry, Budget& budget) {
  switch (view.part) {
    case ViewObject::Part::keys: return entry.first;
    case ViewObject::Part::values: return entry.second;
    default: return Value::tuple({entry.first, entry.second}, &budget);
  }
}

IteratorObject::Next iterate_dict(const Value& dict, const ViewObject& view, Budget& budget) {
  return [dict, part = view.part, &budget, i = size_t{0}]() mutable -> std::optional<Value> {
    const auto& entries = dict.as<DictObject>().entries;
    budget.charge(1);
    if (i == entries.size()) return std::nullopt;
    ViewObject shape;
    shape.part = part;
    return view_item(shape, entries[i++], budget);
  };
}

IteratorObject::Next iterate_string(const Value& string, Budget& budget) {
  return [string, &budget, i = size_t{0}]() mutable -> std::optional<Value> {
    const Text& text = string.text();
    budget.charge(1);
    if (i >= text.size()) return std::nullopt;
    const size_t begin = i;
    next_code_point(text.bytes(), i);
    return Value::string(text.slice(begin, i), &budget);
  };
}

}  // namespace

IteratorObject::Next iterate(const Value& value, Budget& budget) {
  switch (value.kind()) {
    case Kind::undefined: return [] { return std::optional<Value>(); };
    case Kind::string: return iterate_string(value, budget);
    case Kind::list: case Kind::tuple:
      return [value, &budget, i = size_t{0}]() mutable -> std::optional<Value> {
        budget.charge(1);
        if (i == value.items().size()) return std::nullopt;
        return value.items()[i++];
      };
    case Kind::dict: {
      ViewObject keys;
      keys.part = ViewObject::Part::keys;
      return iterate_dict(value, keys, budget);
    }
    case Kind::view: return iterate_dict(value.as<ViewObject>().dict, value.as<ViewObject>(), budget);
    case Kind::range:
      return [value, &budget, i = int64_t{0}]() mutable -> std::optional<Value> {
        budget.charge(1);
        const auto& range = value.as<RangeObject>();
        if (i == range.size()) return std::nullopt;
        return range.at(i++);
      };
    case Kind::iterator: return [value] { return value.as<IteratorObject>().next(); };
    default: throw Failure(fmt::format("'{}' object is not iterable", type_name(value)));
  }
}

std::vector<Value> to_list(const Value& value, Budget& budget) {
  if (value.is(Kind::list) || value.is(Kind::tuple)) {
    budget.charge(1 + value.items().size() / 4);
    return value.items();
  }
  std::vector<Value> items;
  const auto next = iterate(value, budget);
  while (auto item = next()) items.push_back(std::move(*item));
  return items;
}

Value make_iterator(IteratorObject::Next next, int nesting, std::string type_name) {
  if (nesting >= kMaxNesting) throw Failure(fmt::format("values nested deeper than {} levels", kMaxNesting));
  auto o = std::make_shared<IteratorObject>();
  o->next = std::move(next);
  o->nesting = nesting + 1;
  o->type_name = std::move(type_name);
  return Value::object(Kind::iterator, std::move(o));
}

}  // namespace conclave::jinja
