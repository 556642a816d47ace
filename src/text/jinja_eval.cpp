#include "text/jinja_eval.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave::jinja {
namespace {

constexpr size_t kIterationSteps = 4;  // opening a scope costs more than a step

}  // namespace

Evaluator::Evaluator(const TemplateLimits& limits, std::string now)
    : runtime_{Budget(limits), std::move(now)}, globals_(global_functions()), root_(std::make_shared<Scope>()), scope_(root_) {
  captured_.push_back(root_);
  globals_["namespace"] = make_function("namespace", [this](Runtime& r, const CallArguments& a) {
    auto space = std::make_shared<SpaceObject>();
    for (const Value& source : a.positional) {
      if (!source.is(Kind::dict)) throw Failure(fmt::format("namespace() takes a mapping, not {}", type_name(source)));
      for (const auto& [key, value] : source.as<DictObject>().entries) {
        space->attributes.emplace_back(to_text(key, r.budget).bytes(), value);
      }
    }
    for (const auto& [name, value] : a.keyword) space->attributes.emplace_back(name, value);
    spaces_.push_back(space);
    return Value::object(Kind::space, std::move(space));
  });
}

Evaluator::~Evaluator() {
  // Values are dropped while the scopes and namespaces are still held from here, so no destructor chain grows long.
  for (const auto& space : spaces_) {
    auto attributes = std::move(space->attributes);
    space->attributes.clear();
  }
  for (const ScopePtr& scope : captured_) {
    auto variables = std::move(scope->variables);
    scope->variables.clear();
  }
  // Innermost first: a scope may be the only owner of a long chain of parents.
  while (!captured_.empty()) captured_.pop_back();
}

Text Evaluator::render(const Body& body) {
  Text text;
  out_ = &text;
  run(body);
  out_ = nullptr;
  return text;
}

void Evaluator::append(const Text& text) {
  runtime_.budget.charge_text(text.size());
  const size_t limit = runtime_.budget.limits().max_output_bytes;
  if (text.size() > limit - std::min(limit, out_->size())) throw Failure(fmt::format("the template writes more than {} bytes", limit));
  out_->append(text);
}

void Evaluator::print(const Value& value) {
  if (value.is(Kind::string)) return append(value.text());
  append(to_text(value, runtime_.budget));
}

Evaluator::Flow Evaluator::run(const Body& body) {
  const Deeper deeper(runtime_);
  for (const auto& stmt : body) {
    const Flow flow = run(*stmt);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Evaluator::Flow Evaluator::run(const Stmt& stmt) {
  line_ = stmt.line;
  runtime_.budget.charge(1);
  switch (stmt.type) {
    case Stmt::Type::data: append(stmt.data); break;
    case Stmt::Type::print: print(evaluate(*stmt.exprs[0])); break;
    case Stmt::Type::branch: return run_branch(stmt);
    case Stmt::Type::loop: return run_loop(stmt);
    case Stmt::Type::set: assign(stmt.targets[0], evaluate(*stmt.exprs[0])); break;
    case Stmt::Type::set_block: return run_set_block(stmt);
    case Stmt::Type::macro: set(stmt.macro->name, make_macro(*stmt.macro)); break;
    case Stmt::Type::call_block: run_call_block(stmt); break;
    case Stmt::Type::filter_block: case Stmt::Type::with: case Stmt::Type::scope: return run_scoped(stmt);
    case Stmt::Type::break_loop: return Flow::break_loop;
    case Stmt::Type::continue_loop: return Flow::continue_loop;
  }
  return Flow::normal;
}

Evaluator::Flow Evaluator::run_branch(const Stmt& stmt) {
  for (size_t i = 0; i < stmt.exprs.size(); ++i) {
    if (truthy(evaluate(*stmt.exprs[i]))) return run(stmt.bodies[i]);
  }
  return stmt.bodies.size() > stmt.exprs.size() ? run(stmt.bodies.back()) : Flow::normal;
}

std::vector<Value> Evaluator::loop_items(const Stmt& stmt, const Value& iterable, const ScopePtr& outer) {
  if (!stmt.exprs[1]) return to_list(iterable, runtime_.budget);
  std::vector<Value> kept;
  const auto next = iterate(iterable, runtime_.budget);
  while (const auto item = next()) {
    runtime_.budget.charge(kIterationSteps);
    const Enter enter(*this, std::make_shared<Scope>(Scope{outer, {}}));
    assign(stmt.targets[0], *item);
    if (truthy(evaluate(*stmt.exprs[1]))) kept.push_back(*item);
  }
  return kept;
}

void Evaluator::loop_over(const Stmt& stmt, const Value& iterable, int depth0, const ScopePtr& outer, Flow& flow) {
  auto loop = std::make_shared<LoopObject>();
  loop->items = loop_items(stmt, iterable, outer);
  loop->nesting = nest(loop->items);
  loop->depth0 = depth0;
  if (stmt.recursive) {
    loop->recurse = [this, &stmt, outer, depth0](Runtime& r, const Value& inner) {
      Capture capture(*this);
      Flow ignored = Flow::normal;
      loop_over(stmt, inner, depth0 + 1, outer, ignored);
      return Value::string(std::move(capture.text), &r.budget);
    };
    captured_.push_back(outer);
  }
  const Value loop_value = Value::object(Kind::loop, loop);
  for (size_t i = 0; i < loop->items.size() && flow != Flow::break_loop; ++i) {
    runtime_.budget.charge(kIterationSteps);
    const Enter enter(*this, std::make_shared<Scope>(Scope{outer, {}}));
    loop->index0 = i;
    set("loop", loop_value);
    assign(stmt.targets[0], loop->items[i]);
    flow = run(stmt.bodies[0]);
  }
  flow = Flow::normal;
  if (loop->items.empty()) {
    const Enter enter(*this, std::make_shared<Scope>(Scope{outer, {}}));
    flow = run(stmt.bodies[1]);
  }
}

Evaluator::Flow Evaluator::run_loop(const Stmt& stmt) {
  Flow flow = Flow::normal;
  loop_over(stmt, evaluate(*stmt.exprs[0]), 0, scope_, flow);
  return flow;
}

Evaluator::Flow Evaluator::run_scoped(const Stmt& stmt) {
  std::vector<Value> values = evaluate_all(stmt.exprs);
  const Enter enter(*this, std::make_shared<Scope>(Scope{scope_, {}}));
  for (size_t i = 0; i < values.size(); ++i) assign(stmt.targets[i], values[i]);
  if (stmt.type != Stmt::Type::filter_block) return run(stmt.bodies[0]);
  Value text;
  Flow flow;
  {
    Capture capture(*this);
    flow = run(stmt.bodies[0]);
    text = Value::string(std::move(capture.text), &runtime_.budget);
  }
  if (flow == Flow::normal) print(filtered(text, stmt.filters));
  return flow;
}

Evaluator::Flow Evaluator::run_set_block(const Stmt& stmt) {
  Value text;
  Flow flow;
  {
    const Enter enter(*this, std::make_shared<Scope>(Scope{scope_, {}}));
    Capture capture(*this);
    flow = run(stmt.bodies[0]);
    text = filtered(Value::string(std::move(capture.text), &runtime_.budget), stmt.filters);
  }
  if (flow == Flow::normal) assign(stmt.targets[0], text);
  return flow;
}

Value Evaluator::filtered(Value value, const std::vector<Link>& filters) {
  for (const Link& link : filters) value = follow(value, link);
  return value;
}

void Evaluator::assign(const Target& target, const Value& value) {
  if (!target.is_tuple && target.attribute.empty()) return set(target.name, value);
  if (!target.is_tuple) {
    const Value space = lookup(target.name);
    if (!space.is(Kind::space)) throw Failure("cannot assign attribute on non-namespace object");
    auto& attributes = space.as<SpaceObject>().attributes;
    const auto at = std::find_if(attributes.begin(), attributes.end(), [&](const auto& a) { return a.first == target.attribute; });
    runtime_.budget.charge(1 + attributes.size() / 16);
    if (at != attributes.end()) at->second = value;
    else attributes.emplace_back(target.attribute, value);
    return;
  }
  if (!iterable(value)) throw Failure(fmt::format("cannot unpack non-iterable {} object", type_name(value)));
  const std::vector<Value> items = to_list(value, runtime_.budget);
  if (items.size() < target.parts.size()) {
    throw Failure(fmt::format("not enough values to unpack (expected {}, got {})", target.parts.size(), items.size()));
  }
  if (items.size() > target.parts.size()) throw Failure(fmt::format("too many values to unpack (expected {})", target.parts.size()));
  for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i]);
}

Value Evaluator::make_macro(const MacroDefinition& macro) {
  captured_.push_back(scope_);
  runtime_.budget.hold(64);
  auto function = std::make_shared<FunctionObject>();
  function->name = macro.name;
  function->description = fmt::format("<Macro '{}'>", macro.name);
  function->call = [this, &macro, scope = scope_](Runtime&, const CallArguments& a) { return call_macro(macro, scope, a); };
  function->attribute = [this, &macro](std::string_view name) -> std::optional<Value> {
    if (name == "name") return Value::string(Text(macro.name, true), &runtime_.budget);
    if (name == "catch_kwargs") return Value::boolean(macro.uses_kwargs);
    if (name == "catch_varargs") return Value::boolean(macro.uses_varargs);
    if (name == "caller") return Value::boolean(macro.uses_caller);
    if (name != "arguments") return std::nullopt;
    std::vector<Value> names;
    for (const std::string& parameter : macro.parameters) names.push_back(Value::string(Text(parameter, true), &runtime_.budget));
    return Value::tuple(std::move(names), &runtime_.budget);
  };
  return Value::object(Kind::function, std::move(function));
}

Value Evaluator::call_macro(const MacroDefinition& macro, const ScopePtr& scope, const CallArguments& arguments) {
  if (macro_depth_ >= runtime_.budget.limits().max_depth) {
    throw Failure(fmt::format("macros call each other deeper than {} levels", runtime_.budget.limits().max_depth));
  }
  const int line = line_;
  const Enter enter(*this, std::make_shared<Scope>(Scope{scope, {}}));
  Capture capture(*this);
  bind_macro(macro, arguments);
  ++macro_depth_;
  run(macro.body);
  --macro_depth_;
  line_ = line;
  return Value::string(std::move(capture.text), &runtime_.budget);
}

/// Sets the parameters (and caller, kwargs, varargs where the body uses them) in the current scope.
void Evaluator::bind_macro(const MacroDefinition& macro, CallArguments arguments) {
  const auto take = [&](std::string_view name) -> std::optional<Value> {
    const auto at = std::find_if(arguments.keyword.begin(), arguments.keyword.end(), [&](const auto& k) { return k.first == name; });
    if (at == arguments.keyword.end()) return std::nullopt;
    std::optional<Value> value = std::move(at->second);
    arguments.keyword.erase(at);
    return value;
  };
  const size_t count = macro.parameters.size(), given = std::min(count, arguments.positional.size());
  const bool own_caller = std::find(macro.parameters.begin(), macro.parameters.end(), "caller") != macro.parameters.end();
  for (size_t i = 0; i < count; ++i) {
    const std::string& name = macro.parameters[i];
    runtime_.budget.charge(kIterationSteps + arguments.keyword.size() / 4);
    const size_t first_default = count - macro.defaults.size();
    std::optional<Value> value = i < given ? std::optional(arguments.positional[i]) : take(name);
    if (!value && i >= first_default) value = evaluate(*macro.defaults[i - first_default]);
    set(name, value ? *value : Value::undefined(fmt::format("parameter '{}' was not provided", name)));
  }
  if (macro.uses_caller && !own_caller) {
    const auto caller = take("caller");
    set("caller", caller && !caller->is(Kind::none) ? *caller : Value::undefined("No caller defined"));
  }
  if (macro.uses_kwargs) {
    std::vector<std::pair<Value, Value>> entries;
    for (auto& [name, value] : arguments.keyword) entries.emplace_back(make_string(name, true, runtime_.budget), value);
    set("kwargs", Value::dict(std::move(entries), runtime_.budget));
  } else if (!arguments.keyword.empty()) {
    throw Failure(fmt::format("macro '{}' takes no keyword argument '{}'", macro.name, arguments.keyword.front().first));
  }
  if (macro.uses_varargs) {
    set("varargs", Value::tuple({arguments.positional.begin() + static_cast<long>(given), arguments.positional.end()}, &runtime_.budget));
  } else if (arguments.positional.size() > count) {
    throw Failure(fmt::format("macro '{}' takes not more than {} argument(s)", macro.name, count));
  }
}

void Evaluator::run_call_block(const Stmt& stmt) {
  const Expr& expr = *stmt.exprs[0];
  Value callee = evaluate(*expr.children[0]);
  for (size_t i = 0; i + 1 < expr.links.size(); ++i) callee = follow(callee, expr.links[i]);
  CallArguments arguments = arguments_of(expr.links.back().arguments);
  arguments.keyword.emplace_back("caller", make_macro(*stmt.macro));
  print(call(runtime_, callee, arguments));
}

}  // namespace conclave::jinja
