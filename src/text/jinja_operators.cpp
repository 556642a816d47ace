// Python's operators over template values; integers are 64 bit and overflow is an error.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "text/jinja_library.h"

namespace conclave::jinja {
namespace {

std::string_view symbol(Op op) {
  switch (op) {
    case Op::add: return "+";
    case Op::sub: return "-";
    case Op::mul: return "*";
    case Op::div: return "/";
    case Op::floor_div: return "//";
    case Op::mod: return "%";
    case Op::power: return "** or pow()";
    case Op::lt: return "<";
    case Op::le: return "<=";
    case Op::gt: return ">";
    case Op::ge: return ">=";
    default: return "~";
  }
}

[[noreturn]] void fail_types(Op op, const Value& a, const Value& b) {
  throw Failure(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", symbol(op), type_name(a), type_name(b)));
}

[[noreturn]] void fail_range() { throw Failure("integer result does not fit 64 bits"); }

int64_t floor_div(int64_t a, int64_t b) {
  if (b == 0) throw Failure("integer division or modulo by zero");
  if (b == -1) {
    if (a == std::numeric_limits<int64_t>::min()) fail_range();
    return -a;
  }
  const int64_t q = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

int64_t floor_mod(int64_t a, int64_t b) {
  if (b == 0) throw Failure("integer modulo by zero");
  if (b == -1) return 0;
  const int64_t r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) fail_range();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      fail_range();
    }
  }
  return result;
}

Value integer_op(Op op, int64_t a, int64_t b, bool trusted) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case Op::add: overflow = __builtin_add_overflow(a, b, &result); break;
    case Op::sub: overflow = __builtin_sub_overflow(a, b, &result); break;
    case Op::mul: overflow = __builtin_mul_overflow(a, b, &result); break;
    case Op::floor_div: result = floor_div(a, b); break;
    case Op::mod: result = floor_mod(a, b); break;
    case Op::div:
      if (b == 0) throw Failure("division by zero");
      return Value::number(static_cast<double>(a) / static_cast<double>(b), trusted);
    default:
      if (b < 0) {
        if (a == 0) throw Failure("0.0 cannot be raised to a negative power");
        return Value::number(std::pow(static_cast<double>(a), static_cast<double>(b)), trusted);
      }
      result = a == 0 || a == 1 ? (b == 0 ? 1 : a) : a == -1 ? (b % 2 ? -1 : 1) : power(a, b);
  }
  if (overflow) fail_range();
  return Value::integer(result, trusted);
}

double float_mod(double a, double b) {
  if (b == 0) throw Failure("float modulo");
  double r = std::fmod(a, b);
  if (r == 0) return std::copysign(0.0, b);
  return (r < 0) != (b < 0) ? r + b : r;
}

double float_floor_div(double a, double b) {
  if (b == 0) throw Failure("float floor division by zero");
  const double r = float_mod(a, b);
  const double q = (a - r) / b;
  if (q == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(q);
  return q - floored > 0.5 ? floored + 1 : floored;
}

Value float_op(Op op, double a, double b, bool trusted) {
  double result = 0;
  switch (op) {
    case Op::add: result = a + b; break;
    case Op::sub: result = a - b; break;
    case Op::mul: result = a * b; break;
    case Op::div:
      if (b == 0) throw Failure("float division by zero");
      result = a / b;
      break;
    case Op::floor_div: result = float_floor_div(a, b); break;
    case Op::mod: result = float_mod(a, b); break;
    default:
      if (a == 0 && b < 0) throw Failure("0.0 cannot be raised to a negative power");
      result = std::pow(a, b);
      if (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) throw Failure("complex numbers are not supported");
      if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) throw Failure("(34, 'Numerical result out of range')");
  }
  return Value::number(result, trusted);
}

Value repeat_items(Runtime& runtime, const Value& sequence, int64_t count) {
  const size_t times = count < 0 ? 0 : static_cast<size_t>(count);
  const auto& items = sequence.items();
  if (!items.empty() && times > kMaxLiveBytes / sizeof(Value) / items.size()) {
    throw Failure(fmt::format("repeating {} items {} times takes too much memory", items.size(), times));
  }
  runtime.budget.charge(items.size() * times);
  std::vector<Value> out;
  if (!items.empty()) {
    for (size_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
  }
  return sequence.is(Kind::list) ? Value::list(std::move(out), &runtime.budget) : Value::tuple(std::move(out), &runtime.budget);
}

Value add_objects(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is(Kind::string) && b.is(Kind::string)) {
    runtime.budget.charge_text(a.text().size() + b.text().size());
    Text out = a.text();
    out.append(b.text());
    return Value::string(std::move(out), &runtime.budget);
  }
  if (a.kind() == b.kind() && (a.is(Kind::list) || a.is(Kind::tuple))) {
    runtime.budget.charge(1 + (a.items().size() + b.items().size()) / 4);
    std::vector<Value> items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is(Kind::list) ? Value::list(std::move(items), &runtime.budget) : Value::tuple(std::move(items), &runtime.budget);
  }
  if (a.is(Kind::string)) throw Failure(fmt::format("can only concatenate str (not \"{}\") to str", type_name(b)));
  if (a.is(Kind::list) || a.is(Kind::tuple)) {
    throw Failure(fmt::format("can only concatenate {} (not \"{}\") to {}", type_name(a), type_name(b), type_name(a)));
  }
  fail_types(Op::add, a, b);
}

Value multiply_objects(Runtime& runtime, const Value& a, const Value& b) {
  const Value& sequence = a.is_integral() ? b : a;
  const Value& count = a.is_integral() ? a : b;
  if (!count.is_integral()) {
    if (a.is(Kind::string) || a.is(Kind::list) || a.is(Kind::tuple)) {
      throw Failure(fmt::format("can't multiply sequence by non-int of type '{}'", type_name(b)));
    }
    fail_types(Op::mul, a, b);
  }
  if (sequence.is(Kind::string)) return Value::string(repeat(runtime.budget, sequence.text(), count.as_integer()), &runtime.budget);
  if (sequence.is(Kind::list) || sequence.is(Kind::tuple)) return repeat_items(runtime, sequence, count.as_integer());
  fail_types(Op::mul, a, b);
}

}  // namespace

Text repeat(Budget& budget, const Text& text, int64_t count) {
  const size_t times = count < 0 ? 0 : static_cast<size_t>(count);
  if (!text.empty() && times > kMaxTextBytes / text.size()) {
    throw Failure(fmt::format("repeating {} bytes {} times gives more than {} bytes", text.size(), times, kMaxTextBytes));
  }
  budget.charge_text(text.size() * times);
  Text out;
  if (text.empty()) return out;
  for (size_t i = 0; i < times; ++i) out.append(text);
  return out;
}

Value apply(Runtime& runtime, Op op, const Value& a, const Value& b) {
  if (op == Op::concat) {
    Text out = to_text(a, runtime.budget);
    out.append(to_text(b, runtime.budget));
    return Value::string(std::move(out), &runtime.budget);
  }
  if (a.is(Kind::undefined)) fail_undefined(a);
  if (op == Op::mod && a.is(Kind::string)) return Value::string(format_percent(runtime, a.text(), b), &runtime.budget);
  if (b.is(Kind::undefined)) fail_undefined(b);
  if (a.is_number() && b.is_number()) {
    const bool trusted = a.trusted() && b.trusted();
    return a.is_integral() && b.is_integral() ? integer_op(op, a.as_integer(), b.as_integer(), trusted)
                                              : float_op(op, a.as_number(), b.as_number(), trusted);
  }
  if (op == Op::add) return add_objects(runtime, a, b);
  if (op == Op::mul) return multiply_objects(runtime, a, b);
  fail_types(op, a, b);
}

bool apply_comparison(Runtime& runtime, Op op, const Value& a, const Value& b) {
  Budget& budget = runtime.budget;
  if (op == Op::eq) return equal(a, b, budget);
  if (op == Op::ne) return !equal(a, b, budget);
  if (op == Op::in) return contains(b, a, budget);
  if (op == Op::not_in) return !contains(b, a, budget);
  const int order = compare(a, b, symbol(op), budget);
  if (order == 2) return false;  // not a number
  if (op == Op::lt) return order < 0;
  if (op == Op::le) return order <= 0;
  return op == Op::gt ? order > 0 : order >= 0;
}

Value negate(const Value& value) {
  if (value.is(Kind::undefined)) fail_undefined(value);
  if (value.is(Kind::number)) return Value::number(-value.as_number(), value.trusted());
  if (!value.is_integral()) throw Failure(fmt::format("bad operand type for unary -: '{}'", type_name(value)));
  if (value.as_integer() == std::numeric_limits<int64_t>::min()) fail_range();
  return Value::integer(-value.as_integer(), value.trusted());
}

}  // namespace conclave::jinja
