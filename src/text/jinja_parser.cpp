#include "text/jinja_parser.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave::jinja {

Parser::Nest::Nest(Parser& p) : parser(p) {
  if (p.depth_ >= p.max_depth_) p.fail(fmt::format("nested deeper than {} levels", p.max_depth_));
  ++p.depth_;
}

void Parser::fail(const std::string& message) const { throw SyntaxFailure(current().line, message); }

Token Parser::next() {
  const Token token = current();
  if (pos_ + 1 < tokens_.size()) ++pos_;
  return token;
}

bool Parser::skip_op(std::string_view op) {
  const bool found = current().is_op(op);
  if (found) next();
  return found;
}

bool Parser::skip_name(std::string_view name) {
  const bool found = current().is_name(name);
  if (found) next();
  return found;
}

std::string Parser::describe(const Token& token) {
  switch (token.type) {
    case Token::Type::data: return "template data / text";
    case Token::Type::print_begin: return "begin of print statement";
    case Token::Type::print_end: return "end of print statement";
    case Token::Type::block_begin: return "begin of statement block";
    case Token::Type::block_end: return "end of statement block";
    case Token::Type::string: return "string";
    case Token::Type::integer: return "integer";
    case Token::Type::number: return "float";
    case Token::Type::end: return "end of template";
    default: return token.text;
  }
}

void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) fail(fmt::format("expected token '{}', got '{}'", op, describe(current())));
}

std::string Parser::expect_name() {
  if (current().type != Token::Type::name) fail(fmt::format("expected token 'name', got '{}'", describe(current())));
  return next().text;
}

void Parser::expect_end(Token::Type type) {
  if (current().type != type) {
    fail(fmt::format("expected token '{}', got '{}'", describe({type, "", 0}), describe(current())));
  }
  next();
}

Parser::StmtPtr Parser::make(Stmt::Type type) const {
  auto stmt = std::make_unique<Stmt>();
  stmt->type = type;
  stmt->line = current().line;
  return stmt;
}

Body Parser::parse() {
  Body body = parse_body({});
  if (!unknown_.empty()) throw SyntaxFailure(unknown_.front().line, unknown_.front().message);
  return body;
}

/// Data, prints and statements up to a tag named in `ends` (or the end of the template), which stays current.
Body Parser::parse_body(Names ends) {
  const Nest nest(*this);
  Body body;
  for (;;) {
    const Token& token = current();
    if (token.type == Token::Type::end) return body;
    if (token.type == Token::Type::data) {
      auto stmt = make(Stmt::Type::data);
      stmt->data = Text(token.text, true);
      body.push_back(std::move(stmt));
      next();
    } else if (token.type == Token::Type::print_begin) {
      body.push_back(parse_print());
    } else {
      expect_end(Token::Type::block_begin);
      const bool done = std::any_of(ends.begin(), ends.end(), [&](auto name) { return current().is_name(name); });
      if (done) return body;
      body.push_back(parse_statement());
      expect_end(Token::Type::block_end);
    }
  }
}

Body Parser::parse_statements(Names ends) {
  skip_op(":");
  expect_end(Token::Type::block_end);
  const int line = current().line;
  Body body = parse_body(ends);
  if (current().type == Token::Type::end) {
    throw SyntaxFailure(line, fmt::format("unexpected end of template: the block that begins here lacks its '{}'", *(ends.end() - 1)));
  }
  return body;
}

/// A body whose unknown filters are errors even inside an `if`; skips the end tag's name.
Body Parser::parse_hard(Names ends) {
  const size_t mark = unknown_.size();
  Body body = parse_statements(ends);
  for (size_t i = mark; i < unknown_.size(); ++i) unknown_[i].fatal = true;
  return body;
}

Parser::StmtPtr Parser::parse_statement() {
  if (current().type != Token::Type::name) fail("tag name expected");
  const std::string tag = current().text;
  if (tag == "if") return parse_if();
  if (tag == "for") return parse_for();
  if (tag == "set") return parse_set();
  if (tag == "macro") return parse_macro();
  if (tag == "call") return parse_call_block();
  if (tag == "filter") return parse_filter_block();
  if (tag == "with") return parse_with();
  if (tag == "generation") return parse_scope("endgeneration", false);
  if (tag == "block") return parse_scope("endblock", true);
  if (tag == "break") return parse_loop_control(Stmt::Type::break_loop);
  if (tag == "continue") return parse_loop_control(Stmt::Type::continue_loop);
  if (tag == "print") {
    next();
    auto stmt = make(Stmt::Type::print);
    stmt->exprs.push_back(parse_tuple(true, {}, false));
    return stmt;
  }
  for (const std::string_view refused : {"include", "import", "from", "extends", "autoescape"}) {
    if (tag == refused) fail(fmt::format("'{}' is not allowed in a chat template: write its content into the template", tag));
  }
  fail(fmt::format("Encountered unknown tag '{}'.", tag));
}

Parser::StmtPtr Parser::parse_print() {
  auto stmt = make(Stmt::Type::print);
  next();
  stmt->exprs.push_back(parse_tuple(true, {}, false));
  expect_end(Token::Type::print_end);
  return stmt;
}

Parser::StmtPtr Parser::parse_if() {
  auto stmt = make(Stmt::Type::branch);
  const size_t mark = unknown_.size();
  for (;;) {
    next();  // if, elif
    stmt->exprs.push_back(parse_tuple(false, {}, false));
    stmt->bodies.push_back(parse_statements({"elif", "else", "endif"}));
    if (current().is_name("elif")) continue;
    if (skip_name("else")) stmt->bodies.push_back(parse_statements({"endif"}));
    next();
    break;
  }
  const auto soft = [](const Unknown& u) { return !u.fatal; };
  unknown_.erase(std::remove_if(unknown_.begin() + static_cast<long>(mark), unknown_.end(), soft), unknown_.end());
  return stmt;
}

Parser::StmtPtr Parser::parse_for() {
  auto stmt = make(Stmt::Type::loop);
  next();
  stmt->targets.push_back(parse_target(false, true));
  if (stmt->targets[0].name == "loop") fail("Can't assign to special loop variable in for-loop target");
  if (!skip_name("in")) fail(fmt::format("expected token 'in', got '{}'", describe(current())));
  stmt->exprs.push_back(parse_tuple(false, {"recursive"}, false));
  stmt->exprs.push_back(skip_name("if") ? parse_expression() : nullptr);
  stmt->recursive = skip_name("recursive");
  ++loops_;
  stmt->bodies.push_back(parse_hard({"else", "endfor"}));
  --loops_;
  stmt->bodies.emplace_back();
  if (skip_name("else")) stmt->bodies.back() = parse_hard({"endfor"});
  next();
  return stmt;
}

Target Parser::parse_target(bool with_attribute, bool with_tuple) {
  const Nest nest(*this);
  Target whole;
  const auto one = [&] {
    Target target;
    if (skip_op("(")) {
      target = parse_target(false, true);
      expect_op(")");
      return target;
    }
    target.name = expect_name();
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (target.name == constant) fail("can't assign to 'const'");
    }
    if (with_attribute && skip_op(".")) target.attribute = expect_name();
    return target;
  };
  whole.parts.push_back(one());
  while (with_tuple && skip_op(",")) {
    whole.is_tuple = true;
    if (current().is_name("in") || current().is_op(")") || current().type == Token::Type::block_end) break;
    whole.parts.push_back(one());
  }
  if (whole.is_tuple) return whole;
  Target single = std::move(whole.parts.front());
  return single;
}

Parser::StmtPtr Parser::parse_set() {
  next();
  auto stmt = make(Stmt::Type::set);
  stmt->targets.push_back(parse_target(true, true));
  if (skip_op("=")) {
    stmt->exprs.push_back(parse_tuple(true, {}, false));
    return stmt;
  }
  stmt->type = Stmt::Type::set_block;
  while (skip_op("|")) stmt->filters.push_back(parse_filter());
  stmt->bodies.push_back(parse_hard({"endset"}));
  next();
  return stmt;
}

void Parser::parse_signature(MacroDefinition& macro) {
  expect_op("(");
  while (!current().is_op(")")) {
    if (!macro.parameters.empty()) expect_op(",");
    macro.parameters.push_back(expect_name());
    if (skip_op("=")) macro.defaults.push_back(parse_expression());
    else if (!macro.defaults.empty()) fail("non-default argument follows default argument");
  }
  expect_op(")");
}

Body Parser::parse_macro_body(MacroDefinition& macro, std::string_view end) {
  const int loops = std::exchange(loops_, 0);
  macros_.push_back(&macro);
  Body body = parse_hard({end});
  macros_.pop_back();
  loops_ = loops;
  next();
  return body;
}

Parser::StmtPtr Parser::parse_macro() {
  next();
  auto stmt = make(Stmt::Type::macro);
  stmt->macro = std::make_unique<MacroDefinition>();
  stmt->macro->name = expect_name();
  parse_signature(*stmt->macro);
  stmt->macro->body = parse_macro_body(*stmt->macro, "endmacro");
  return stmt;
}

Parser::StmtPtr Parser::parse_call_block() {
  next();
  auto stmt = make(Stmt::Type::call_block);
  stmt->macro = std::make_unique<MacroDefinition>();
  stmt->macro->name = "caller";
  if (current().is_op("(")) parse_signature(*stmt->macro);
  stmt->exprs.push_back(parse_expression());
  const Expr& call = *stmt->exprs.back();
  if (call.type != Expr::Type::postfix || call.links.back().type != Link::Type::call) fail("expected call");
  stmt->macro->body = parse_macro_body(*stmt->macro, "endcall");
  return stmt;
}

Parser::StmtPtr Parser::parse_filter_block() {
  next();
  auto stmt = make(Stmt::Type::filter_block);
  do stmt->filters.push_back(parse_filter()); while (skip_op("|"));
  stmt->bodies.push_back(parse_hard({"endfilter"}));
  next();
  return stmt;
}

Parser::StmtPtr Parser::parse_with() {
  next();
  auto stmt = make(Stmt::Type::with);
  while (current().type != Token::Type::block_end) {
    if (!stmt->targets.empty()) expect_op(",");
    stmt->targets.push_back(parse_target(false, false));
    expect_op("=");
    stmt->exprs.push_back(parse_expression());
  }
  stmt->bodies.push_back(parse_hard({"endwith"}));
  next();
  return stmt;
}

/// A tag pair that only opens a scope: `generation` marks assistant text for training, `block` is inheritance.
Parser::StmtPtr Parser::parse_scope(std::string_view end, bool named) {
  next();
  auto stmt = make(Stmt::Type::scope);
  std::string name;
  if (named) {
    name = expect_name();
    skip_name("scoped");
    skip_name("required");
  }
  const int loops = std::exchange(loops_, 0);
  stmt->bodies.push_back(parse_hard({end}));
  loops_ = loops;
  next();
  if (named) skip_name(name);
  return stmt;
}

Parser::StmtPtr Parser::parse_loop_control(Stmt::Type type) {
  auto stmt = make(type);
  if (loops_ == 0) fail(fmt::format("'{}' outside loop", current().text));
  next();
  return stmt;
}

Body parse_template(std::string_view source, int max_depth) { return Parser(tokenize(source), max_depth).parse(); }

}  // namespace conclave::jinja
