#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "text/jinja_library.h"
#include "text/jinja_parser.h"

namespace conclave::jinja {

ExprPtr Parser::make(Expr::Type type) const {
  auto expr = std::make_unique<Expr>();
  expr->type = type;
  expr->line = current().line;
  return expr;
}

ExprPtr Parser::parse_expression(bool with_conditional) {
  const Nest nest(*this);
  return with_conditional ? parse_conditional() : parse_or();
}

ExprPtr Parser::parse_conditional() {
  const size_t mark = unknown_.size();
  ExprPtr expr = parse_or();
  while (skip_name("if")) {
    auto conditional = make(Expr::Type::conditional);
    conditional->children.push_back(parse_or());
    conditional->children.push_back(std::move(expr));
    conditional->children.push_back(nullptr);
    if (skip_name("else")) conditional->children.back() = parse_expression();
    else if (current().is_name("if")) fail("an inline if without else cannot be followed by another");
    expr = std::move(conditional);
    unknown_.resize(mark);
  }
  return expr;
}

bool Parser::tuple_ends(Names ends) const {
  const Token& token = current();
  if (token.type == Token::Type::print_end || token.type == Token::Type::block_end || token.is_op(")")) return true;
  return std::any_of(ends.begin(), ends.end(), [&](auto name) { return token.is_name(name); });
}

ExprPtr Parser::parse_tuple(bool with_conditional, Names ends, bool parenthesised) {
  auto tuple = make(Expr::Type::tuple);
  bool is_tuple = false;
  for (;;) {
    if (!tuple->children.empty()) expect_op(",");
    if (tuple_ends(ends)) break;
    tuple->children.push_back(parse_expression(with_conditional));
    if (!current().is_op(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !tuple->children.empty()) {
    ExprPtr only = std::move(tuple->children.front());
    return only;
  }
  if (!is_tuple && !parenthesised) fail(fmt::format("Expected an expression, got '{}'", describe(current())));
  return tuple;
}

namespace {

/// Adds one more operand to a flat chain, making one of `first` when it is none yet.
void chain(ExprPtr& chain, ExprPtr first, Op op, ExprPtr operand) {
  if (!chain) {
    chain = std::make_unique<Expr>();
    chain->type = Expr::Type::chain;
    chain->line = first->line;
    chain->children.push_back(std::move(first));
  }
  chain->ops.push_back(op);
  chain->children.push_back(std::move(operand));
}

std::optional<Op> comparison(const Token& token) {
  static constexpr std::pair<std::string_view, Op> kOps[] = {{"==", Op::eq}, {"!=", Op::ne}, {"<", Op::lt},
                                                             {"<=", Op::le}, {">", Op::gt},  {">=", Op::ge}};
  for (const auto& [text, op] : kOps) {
    if (token.is_op(text)) return op;
  }
  if (token.is_name("in")) return Op::in;
  return std::nullopt;
}

}  // namespace

ExprPtr Parser::parse_or() {
  ExprPtr first = parse_and(), whole;
  while (skip_name("or")) chain(whole, std::move(first), Op::logical_or, parse_and());
  return whole ? std::move(whole) : std::move(first);
}

ExprPtr Parser::parse_and() {
  ExprPtr first = parse_not(), whole;
  while (skip_name("and")) chain(whole, std::move(first), Op::logical_and, parse_not());
  return whole ? std::move(whole) : std::move(first);
}

ExprPtr Parser::parse_not() {
  if (!current().is_name("not")) return parse_compare();
  const Nest nest(*this);
  auto expr = make(Expr::Type::logical_not);
  next();
  expr->children.push_back(parse_not());
  return expr;
}

ExprPtr Parser::parse_compare() {
  ExprPtr first = parse_sum(), whole;
  for (;;) {
    std::optional<Op> op = comparison(current());
    if (!op && current().is_name("not") && look().is_name("in")) {
      next();
      op = Op::not_in;
    }
    if (!op) return whole ? std::move(whole) : std::move(first);
    next();
    chain(whole, std::move(first), *op, parse_sum());
  }
}

ExprPtr Parser::parse_sum() {
  ExprPtr first = parse_concat(), whole;
  while (current().is_op("+") || current().is_op("-")) {
    const Op op = next().text == "+" ? Op::add : Op::sub;
    chain(whole, std::move(first), op, parse_concat());
  }
  return whole ? std::move(whole) : std::move(first);
}

ExprPtr Parser::parse_concat() {
  ExprPtr first = parse_product(), whole;
  while (skip_op("~")) chain(whole, std::move(first), Op::concat, parse_product());
  return whole ? std::move(whole) : std::move(first);
}

ExprPtr Parser::parse_product() {
  ExprPtr first = parse_power(), whole;
  for (;;) {
    const Op op = current().is_op("*") ? Op::mul : current().is_op("/") ? Op::div : current().is_op("//") ? Op::floor_div : Op::mod;
    if (op == Op::mod && !current().is_op("%")) return whole ? std::move(whole) : std::move(first);
    next();
    chain(whole, std::move(first), op, parse_power());
  }
}

ExprPtr Parser::parse_power() {
  ExprPtr first = parse_unary(true), whole;
  while (skip_op("**")) chain(whole, std::move(first), Op::power, parse_unary(true));
  return whole ? std::move(whole) : std::move(first);
}

ExprPtr Parser::parse_unary(bool with_filter) {
  const Nest nest(*this);
  ExprPtr expr;
  if (current().is_op("-") || current().is_op("+")) {
    expr = make(current().is_op("-") ? Expr::Type::negate : Expr::Type::plus);
    next();
    expr->children.push_back(parse_unary(false));
  } else {
    expr = parse_primary();
  }
  parse_postfix(expr);
  if (with_filter) parse_filters(expr);
  return expr;
}

void Parser::note_name(std::string_view name) {
  for (MacroDefinition* macro : macros_) {
    macro->uses_caller |= name == "caller";
    macro->uses_varargs |= name == "varargs";
    macro->uses_kwargs |= name == "kwargs";
  }
}

namespace {

Value number_of(const Token& token) {
  if (token.type == Token::Type::number) {
    double value = 0;
    const auto result = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    if (result.ec == std::errc::result_out_of_range) throw SyntaxFailure(token.line, fmt::format("number {} is out of range", token.text));
    return Value::number(value, true);
  }
  const bool radix = token.text.size() > 2 && !std::isdigit(static_cast<unsigned char>(token.text[1]));
  const int base = !radix ? 10 : token.text[1] == 'x' ? 16 : token.text[1] == 'o' ? 8 : 2;
  int64_t value = 0;
  const char* begin = token.text.data() + (radix ? 2 : 0);
  const auto result = std::from_chars(begin, token.text.data() + token.text.size(), value, base);
  if (result.ec != std::errc()) throw SyntaxFailure(token.line, fmt::format("integer {} is out of range", token.text));
  return Value::integer(value, true);
}

}  // namespace

ExprPtr Parser::parse_primary() {
  const Token token = current();
  ExprPtr expr = make(Expr::Type::constant);
  if (token.type == Token::Type::name) {
    next();
    if (token.text == "true" || token.text == "True") expr->value = Value::boolean(true, true);
    else if (token.text == "false" || token.text == "False") expr->value = Value::boolean(false, true);
    else if (token.text == "none" || token.text == "None") expr->value = Value::none();
    else {
      expr->type = Expr::Type::name;
      expr->name = token.text;
      note_name(token.text);
    }
    return expr;
  }
  if (token.type == Token::Type::string) {
    std::string joined;
    while (current().type == Token::Type::string) joined += next().text;
    expr->value = Value::string(Text(joined, true));
    return expr;
  }
  if (token.type == Token::Type::integer || token.type == Token::Type::number) {
    expr->value = number_of(next());
    return expr;
  }
  if (token.is_op("[")) return parse_list();
  if (token.is_op("{")) return parse_dict();
  if (!skip_op("(")) fail(fmt::format("unexpected '{}'", describe(token)));
  expr = parse_tuple(true, {}, true);
  expect_op(")");
  return expr;
}

ExprPtr Parser::parse_list() {
  ExprPtr list = make(Expr::Type::list);
  next();
  while (!current().is_op("]")) {
    if (!list->children.empty()) expect_op(",");
    if (current().is_op("]")) break;
    list->children.push_back(parse_expression());
  }
  expect_op("]");
  return list;
}

ExprPtr Parser::parse_dict() {
  ExprPtr dict = make(Expr::Type::dict);
  next();
  while (!current().is_op("}")) {
    if (!dict->children.empty()) expect_op(",");
    if (current().is_op("}")) break;
    dict->children.push_back(parse_expression());
    expect_op(":");
    dict->children.push_back(parse_expression());
  }
  expect_op("}");
  return dict;
}

namespace {

void add_link(ExprPtr& expr, Link link) {
  if (expr->type != Expr::Type::postfix) {
    auto postfix = std::make_unique<Expr>();
    postfix->type = Expr::Type::postfix;
    postfix->line = expr->line;
    postfix->children.push_back(std::move(expr));
    expr = std::move(postfix);
  }
  expr->links.push_back(std::move(link));
}

}  // namespace

void Parser::parse_postfix(ExprPtr& expr) {
  for (;;) {
    const int line = current().line;
    if (current().is_op(".") || current().is_op("[")) {
      add_link(expr, parse_subscript());
    } else if (current().is_op("(")) {
      Link call{Link::Type::call, line, "", nullptr, nullptr, nullptr, nullptr, parse_arguments()};
      add_link(expr, std::move(call));
    } else {
      return;
    }
  }
}

void Parser::parse_filters(ExprPtr& expr) {
  for (;;) {
    const int line = current().line;
    if (skip_op("|")) {
      add_link(expr, parse_filter());
    } else if (current().is_name("is")) {
      add_link(expr, parse_test());
    } else if (current().is_op("(")) {
      Link call{Link::Type::call, line, "", nullptr, nullptr, nullptr, nullptr, parse_arguments()};
      add_link(expr, std::move(call));
    } else {
      return;
    }
  }
}

Link Parser::parse_subscript() {
  Link link{Link::Type::item, current().line, "", nullptr, nullptr, nullptr, nullptr, {}};
  if (skip_op(".")) {
    if (current().type == Token::Type::name) {
      link.type = Link::Type::attribute;
      link.name = next().text;
      return link;
    }
    if (current().type != Token::Type::integer) fail("expected name or number");
    link.index = parse_primary();
    return link;
  }
  next();
  const auto part = [&]() -> ExprPtr {
    const bool absent = current().is_op(":") || current().is_op("]");
    return absent ? nullptr : parse_expression();
  };
  link.index = current().is_op(":") ? nullptr : parse_expression();
  if (link.index && current().is_op(",")) {
    auto tuple = make(Expr::Type::tuple);
    tuple->children.push_back(std::move(link.index));
    while (skip_op(",")) tuple->children.push_back(parse_expression());
    link.index = std::move(tuple);
  }
  if (skip_op(":")) {
    link.type = Link::Type::slice;
    link.start = std::move(link.index);
    link.stop = part();
    if (skip_op(":")) link.step = part();
  }
  expect_op("]");
  return link;
}

ArgumentExprs Parser::parse_arguments() {
  ArgumentExprs arguments;
  std::set<std::string> names;
  expect_op("(");
  const auto ensure = [&](bool ok) {
    if (!ok) fail("invalid syntax for function call expression");
  };
  for (bool first = true; !current().is_op(")"); first = false) {
    if (!first) expect_op(",");
    if (current().is_op(")")) break;
    if (skip_op("*")) {
      ensure(!arguments.star && !arguments.star_star);
      arguments.star = parse_expression();
    } else if (skip_op("**")) {
      ensure(!arguments.star_star);
      arguments.star_star = parse_expression();
    } else if (current().type == Token::Type::name && look().is_op("=")) {
      ensure(!arguments.star_star);
      std::string name = next().text;
      next();
      if (!names.insert(name).second) fail(fmt::format("keyword argument repeated: {}", name));
      arguments.keyword.emplace_back(std::move(name), parse_expression());
    } else {
      ensure(!arguments.star && !arguments.star_star && arguments.keyword.empty());
      arguments.positional.push_back(parse_expression());
    }
  }
  expect_op(")");
  return arguments;
}

void Parser::check_known(const Link& link) {
  const bool is_filter = link.type == Link::Type::filter;
  if (is_filter ? find_filter(link.name) != nullptr : find_test(link.name) != nullptr) return;
  unknown_.push_back({link.line, fmt::format("No {} named '{}'.", is_filter ? "filter" : "test", link.name)});
}

Link Parser::parse_filter() {
  Link link{Link::Type::filter, current().line, "", nullptr, nullptr, nullptr, nullptr, {}};
  link.name = expect_name();
  while (skip_op(".")) link.name += "." + expect_name();
  if (current().is_op("(")) link.arguments = parse_arguments();
  check_known(link);
  return link;
}

Link Parser::parse_test() {
  Link link{Link::Type::test, next().line, "", nullptr, nullptr, nullptr, nullptr, {}};
  link.negated = skip_name("not");
  link.name = expect_name();
  while (skip_op(".")) link.name += "." + expect_name();
  const Token& token = current();
  if (token.is_op("(")) {
    link.arguments = parse_arguments();
  } else if (token.is_name("is")) {
    fail("You cannot chain multiple tests with is");
  } else if (token.is_op("[") || token.is_op("{") || token.type == Token::Type::string || token.type == Token::Type::integer ||
             token.type == Token::Type::number ||
             (token.type == Token::Type::name && !token.is_name("else") && !token.is_name("or") && !token.is_name("and"))) {
    ExprPtr argument = parse_primary();
    parse_postfix(argument);
    link.arguments.positional.push_back(std::move(argument));
  }
  check_known(link);
  return link;
}

}  // namespace conclave::jinja
