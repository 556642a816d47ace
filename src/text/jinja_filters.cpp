// Filters over sequences, and the filter table. Filters over text live in jinja_text_filters.cpp.
#include "text/jinja_filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "text/jinja_unicode.h"

namespace conclave::jinja {
namespace {

using R = Runtime&;
using V = const Value&;
using A = const CallArguments&;
using Getter = std::function<Value(R, V)>;

Value lower_case(R r, V value) {
  if (!value.is(Kind::string)) return value;
  r.budget.charge_characters(value.text().size() * 2);
  return Value::string(lower(value.text()), &r.budget);
}

/// "a.b.0" -> the value found by following the parts; none gives the item itself.
Getter attribute_getter(R r, const std::optional<Value>& attribute, std::optional<Value> fallback = {}, bool ignore_case = false) {
  std::vector<Value> parts;
  if (attribute && attribute->is(Kind::string)) {
    const std::string& path = attribute->text().bytes();
    for (size_t begin = 0; begin <= path.size();) {
      const size_t end = std::min(path.find('.', begin), path.size());
      r.budget.charge(2);
      const std::string part = path.substr(begin, end - begin);
      const bool number = !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string::npos;
      parts.push_back(number ? Value::integer(std::stoll(part)) : Value::string(Text(part, true)));
      begin = end + 1;
    }
  } else if (attribute && !attribute->is(Kind::none)) {
    parts.push_back(*attribute);
  }
  return [parts, fallback, ignore_case](R r, V item) {
    Value value = item;
    for (const Value& part : parts) {
      value = item_of(r, value, part);
      if (fallback && !fallback->is(Kind::none) && value.is(Kind::undefined)) value = *fallback;
    }
    return ignore_case ? lower_case(r, value) : value;
  };
}

/// Wraps a step over the items of `value` into a generator; the step gives nothing to skip an item. Like Python's, it looks
/// at `value` only when it is first asked. None and other false values count as empty, as jinja2's map and select have it.
Value generate(R r, V value, std::function<std::optional<Value>(const Value&)> step) {
  return make_iterator([value, next = IteratorObject::Next(), step, &r]() mutable -> std::optional<Value> {
    const Deeper deeper(r);
    if (!truthy(value)) return std::nullopt;
    if (!next) next = iterate(value, r.budget);
    while (const auto item = next()) {
      r.budget.charge(1);
      if (auto result = step(*item)) return result;
    }
    return std::nullopt;
  }, nesting_of(value));
}

CallArguments rest(A arguments, size_t skip) {
  return {{arguments.positional.begin() + static_cast<long>(skip), arguments.positional.end()}, arguments.keyword};
}

Value map_filter(R r, V value, A a) {
  const auto attribute = std::find_if(a.keyword.begin(), a.keyword.end(), [](const auto& k) { return k.first == "attribute"; });
  if (a.positional.empty() && attribute != a.keyword.end()) {
    const auto v = bind("map", a, {"attribute", "default"}, 1);
    const Getter getter = attribute_getter(r, v[0], v[1]);
    return generate(r, value, [getter, &r](V item) { return std::optional(getter(r, item)); });
  }
  if (a.positional.empty()) throw Failure("map requires a filter argument");
  const std::string name = text_argument(a.positional[0], "filter name").bytes();
  return generate(r, value, [name, arguments = rest(a, 1), &r](V item) { return std::optional(call_filter(r, name, item, arguments)); });
}

Value choose(R r, V value, A a, bool wanted, bool by_attribute) {
  const size_t skip = by_attribute ? 1 : 0;
  if (a.positional.size() < skip) throw Failure("Missing parameter for attribute name");
  const Getter getter = attribute_getter(r, by_attribute ? std::optional(a.positional[0]) : std::nullopt);
  if (a.positional.size() == skip) {
    return generate(r, value, [=, &r](V item) { return truthy(getter(r, item)) == wanted ? std::optional(item) : std::nullopt; });
  }
  const std::string name = text_argument(a.positional[skip], "test name").bytes();
  return generate(r, value, [=, &r, arguments = rest(a, skip + 1)](V item) {
    return call_test(r, name, getter(r, item), arguments) == wanted ? std::optional(item) : std::nullopt;
  });
}

/// Stable sort by precomputed keys.
std::vector<Value> sorted(R r, const std::vector<Value>& items, const std::function<Value(V)>& key_of, bool reverse) {
  std::vector<Value> keys;
  for (const Value& item : items) keys.push_back(key_of(item));
  std::vector<size_t> order(items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto less = [&](size_t a, size_t b) { return compare(keys[a], keys[b], "<", r.budget) == -1; };
  // Reversed twice around a stable sort, equal items keep their order, as sorted(reverse=True) does.
  if (reverse) std::reverse(order.begin(), order.end());
  std::stable_sort(order.begin(), order.end(), less);
  if (reverse) std::reverse(order.begin(), order.end());
  std::vector<Value> out;
  for (const size_t i : order) out.push_back(items[i]);
  return out;
}

Value sort_filter(R r, V value, A a) {
  const auto v = bind("sort", a, {"reverse", "case_sensitive", "attribute"}, 0);
  const bool ignore_case = !v[1] || !truthy(*v[1]);
  std::vector<Getter> getters;
  if (v[2] && v[2]->is(Kind::string)) {
    const std::string& paths = v[2]->text().bytes();
    for (size_t begin = 0; begin <= paths.size();) {
      const size_t end = std::min(paths.find(',', begin), paths.size());
      getters.push_back(attribute_getter(r, Value::string(Text(paths.substr(begin, end - begin), true)), {}, ignore_case));
      begin = end + 1;
    }
  } else {
    getters.push_back(attribute_getter(r, v[2], {}, ignore_case));
  }
  const auto key_of = [&](V item) {
    std::vector<Value> keys;
    for (const Getter& getter : getters) keys.push_back(getter(r, item));
    return Value::list(std::move(keys), &r.budget);
  };
  return Value::list(sorted(r, to_list(value, r.budget), key_of, v[0] && truthy(*v[0])), &r.budget);
}

Value dictsort_filter(R r, V value, A a) {
  const auto v = bind("dictsort", a, {"case_sensitive", "by", "reverse"}, 0);
  const std::string by = v[1] ? text_argument(*v[1], "by").bytes() : "key";
  if (by != "key" && by != "value") throw Failure("You can only sort by either \"key\" or \"value\"");
  if (!value.is(Kind::dict)) throw Failure(fmt::format("'{}' has no attribute 'items'", object_name(value)));
  std::vector<Value> items;
  for (const auto& [key, entry] : value.as<DictObject>().entries) items.push_back(Value::tuple({key, entry}, &r.budget));
  const bool ignore_case = !v[0] || !truthy(*v[0]);
  const auto key_of = [&](V item) {
    const Value& key = item.items()[by == "value"];
    return ignore_case ? lower_case(r, key) : key;
  };
  return Value::list(sorted(r, items, key_of, v[2] && truthy(*v[2])), &r.budget);
}

Value unique_filter(R r, V value, A a) {
  const auto v = bind("unique", a, {"case_sensitive", "attribute"}, 0);
  const Getter getter = attribute_getter(r, v[1], {}, !v[0] || !truthy(*v[0]));
  if (!iterable(value)) iterate(value, r.budget);
  auto seen = std::make_shared<std::unordered_multimap<size_t, Value>>();
  return generate(r, value, [getter, seen, &r](V item) -> std::optional<Value> {
    const Value key = getter(r, item);
    const size_t hash = hash_of(key, r.budget);
    const auto [begin, end] = seen->equal_range(hash);
    for (auto it = begin; it != end; ++it) {
      if (equal(it->second, key, r.budget)) return std::nullopt;
    }
    seen->emplace(hash, key);
    return item;
  });
}

Value extreme(R r, V value, A a, bool largest) {
  const auto v = bind(largest ? "max" : "min", a, {"case_sensitive", "attribute"}, 0);
  const Getter getter = attribute_getter(r, v[1], {}, !v[0] || !truthy(*v[0]));
  std::optional<Value> best, best_key;
  for (const Value& item : to_list(value, r.budget)) {
    Value key = getter(r, item);
    if (best && compare(key, *best_key, largest ? ">" : "<", r.budget) != (largest ? 1 : -1)) continue;
    best = item;
    best_key = std::move(key);
  }
  return best.value_or(Value::undefined("No aggregated item, sequence was empty."));
}

Value groupby_filter(R r, V value, A a) {
  const auto v = bind("groupby", a, {"attribute", "default", "case_sensitive"}, 1);
  const bool ignore_case = !v[2] || !truthy(*v[2]);
  const Getter getter = attribute_getter(r, v[0], v[1], ignore_case), shown = attribute_getter(r, v[0], v[1]);
  std::vector<Value> items = sorted(r, to_list(value, r.budget), [&](V item) { return getter(r, item); }, false), groups;
  for (size_t begin = 0; begin < items.size();) {
    const Value key = getter(r, items[begin]);
    size_t end = begin + 1;
    while (end < items.size() && equal(getter(r, items[end]), key, r.budget)) ++end;
    Value members = Value::list({items.begin() + static_cast<long>(begin), items.begin() + static_cast<long>(end)}, &r.budget);
    auto group = std::make_shared<SequenceObject>(std::vector<Value>{shown(r, items[begin]), std::move(members)}, &r.budget);
    group->group = true;
    groups.push_back(Value::object(Kind::tuple, std::move(group)));
    begin = end;
  }
  return Value::list(std::move(groups), &r.budget);
}

Value first_filter(R r, V value, A a) {
  bind("first", a, {}, 0);
  const auto item = iterate(value, r.budget)();
  return item ? *item : Value::undefined("No first item, sequence was empty.");
}

Value last_filter(R r, V value, A a) {
  bind("last", a, {}, 0);
  if (value.is(Kind::iterator)) throw Failure(fmt::format("'{}' object is not reversible", type_name(value)));
  const std::vector<Value> items = to_list(value, r.budget);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value reverse_filter(R r, V value, A a) {
  bind("reverse", a, {}, 0);
  if (value.is(Kind::string)) return slice_of(r, value, Value::none(), Value::none(), Value::integer(-1));
  std::vector<Value> items = to_list(value, r.budget);
  std::reverse(items.begin(), items.end());
  if (value.is(Kind::iterator)) return Value::list(std::move(items), &r.budget);
  const Value reversed = Value::list(std::move(items), &r.budget);
  return make_iterator(iterate(reversed, r.budget), nesting_of(reversed), fmt::format("{}_reverseiterator", type_name(value)));
}

Value length_filter(R r, V value, A a) {
  bind("length", a, {}, 0);
  if (value.is(Kind::string)) r.budget.charge_text(value.text().size());
  const auto length = length_of(value);
  if (!length) throw Failure(fmt::format("object of type '{}' has no len()", type_name(value)));
  return Value::integer(*length);
}

Value list_filter(R r, V value, A a) {
  bind("list", a, {}, 0);
  return Value::list(to_list(value, r.budget), &r.budget);
}

Value items_filter(R r, V value, A a) {
  bind("items", a, {}, 0);
  if (!value.is(Kind::dict) && !value.is(Kind::undefined)) throw Failure("Can only get item pairs from a mapping.");
  const Value view = value.is(Kind::dict) ? call(r, *method_of(value, "items"), {}) : Value::list({}, &r.budget);
  return make_iterator(iterate(view, r.budget), nesting_of(view));
}

Value sum_filter(R r, V value, A a) {
  const auto v = bind("sum", a, {"attribute", "start"}, 0);
  const Getter getter = attribute_getter(r, v[0]);
  Value total = v[1].value_or(Value::integer(0, true));
  if (total.is(Kind::string)) throw Failure("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : to_list(value, r.budget)) total = apply(r, Op::add, total, getter(r, item));
  return total;
}

Value batch_filter(R r, V value, A a) {
  const auto v = bind("batch", a, {"linecount", "fill_with"}, 1);
  const int64_t size = integer_argument(*v[0], "linecount");
  std::vector<Value> rows, row;
  const auto flush = [&] { rows.push_back(Value::list(std::exchange(row, {}), &r.budget)); };
  for (const Value& item : to_list(value, r.budget)) {
    if (static_cast<int64_t>(row.size()) == size) flush();
    row.push_back(item);
  }
  if (!row.empty()) {
    if (v[1] && !v[1]->is(Kind::none)) {
      while (static_cast<int64_t>(row.size()) < size) { r.budget.charge(1); row.push_back(*v[1]); }
    }
    flush();
  }
  const Value all = Value::list(std::move(rows), &r.budget);
  return make_iterator(iterate(all, r.budget), nesting_of(all));
}

Value slice_filter(R r, V value, A a) {
  const auto v = bind("slice", a, {"slices", "fill_with"}, 1);
  const int64_t count = integer_argument(*v[0], "slices");
  if (count == 0) throw Failure("integer division or modulo by zero");
  const std::vector<Value> items = to_list(value, r.budget);
  const auto size = static_cast<int64_t>(items.size());
  std::vector<Value> columns;
  int64_t begin = 0;
  for (int64_t k = 0; k < count; ++k) {
    r.budget.charge(1);
    const int64_t end = begin + size / count + (k < size % count);
    std::vector<Value> column(items.begin() + begin, items.begin() + end);
    if (v[1] && !v[1]->is(Kind::none) && k >= size % count) column.push_back(*v[1]);
    columns.push_back(Value::list(std::move(column), &r.budget));
    begin = end;
  }
  const Value all = Value::list(std::move(columns), &r.budget);
  return make_iterator(iterate(all, r.budget), nesting_of(all));
}

Value attr_filter(R r, V value, A a) {
  const auto v = bind("attr", a, {"name"}, 1);
  if (value.is(Kind::undefined)) fail_undefined(value);
  const std::string& name = text_argument(*v[0], "attribute name").bytes();
  if (value.is(Kind::dict) && !method_of(value, name)) {
    return Value::undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return attribute_of(r, value, name);
}

Value default_filter(R, V value, A a) {
  const auto v = bind("default", a, {"default_value", "boolean"}, 0);
  const bool absent = value.is(Kind::undefined) || (v[1] && truthy(*v[1]) && !truthy(value));
  return absent ? v[0].value_or(Value::string({})) : value;
}

Value join_filter(R r, V value, A a) {
  const auto v = bind("join", a, {"d", "attribute"}, 0);
  const Text separator = v[0] ? to_text(*v[0], r.budget) : Text();
  std::vector<Value> items = to_list(value, r.budget);
  if (v[1] && !v[1]->is(Kind::none)) {
    const Getter getter = attribute_getter(r, v[1]);
    for (Value& item : items) item = getter(r, item);
  }
  return Value::string(join(r, separator, items), &r.budget);
}

}  // namespace

Filter find_filter(std::string_view name) {
  static constexpr std::pair<std::string_view, Filter> kFilters[] = {
      {"map", map_filter}, {"sort", sort_filter}, {"dictsort", dictsort_filter}, {"unique", unique_filter},
      {"select", [](R r, V v, A a) { return choose(r, v, a, true, false); }},
      {"reject", [](R r, V v, A a) { return choose(r, v, a, false, false); }},
      {"selectattr", [](R r, V v, A a) { return choose(r, v, a, true, true); }},
      {"rejectattr", [](R r, V v, A a) { return choose(r, v, a, false, true); }},
      {"min", [](R r, V v, A a) { return extreme(r, v, a, false); }},
      {"max", [](R r, V v, A a) { return extreme(r, v, a, true); }},
      {"groupby", groupby_filter}, {"first", first_filter}, {"last", last_filter}, {"reverse", reverse_filter},
      {"length", length_filter}, {"count", length_filter}, {"list", list_filter}, {"items", items_filter},
      {"sum", sum_filter}, {"batch", batch_filter}, {"slice", slice_filter}, {"attr", attr_filter},
      {"default", default_filter}, {"d", default_filter}, {"join", join_filter}, {"tojson", to_json},
  };
  for (const auto& [key, filter] : kFilters) {
    if (key == name) return filter;
  }
  return find_text_filter(name);
}

Value call_filter(Runtime& runtime, std::string_view name, const Value& value, const CallArguments& arguments) {
  const Filter filter = find_filter(name);
  if (!filter) throw Failure(fmt::format("No filter named '{}' found.", name));
  const Deeper deeper(runtime);
  runtime.budget.charge(1);
  return filter(runtime, value, arguments);
}

}  // namespace conclave::jinja
