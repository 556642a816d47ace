#pragma once
// Tokens -> syntax tree. The grammar, precedences and messages are those of jinja2's parser. Expressions live in
// jinja_parse_expr.cpp, statements in jinja_parser.cpp. Nesting is bounded; one Parser parses one template.
#include <initializer_list>
#include <string>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace conclave::jinja {

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : tokens_(std::move(tokens)), max_depth_(max_depth) {}
  Body parse();

 private:
  using Names = std::initializer_list<std::string_view>;
  using StmtPtr = std::unique_ptr<Stmt>;

  /// Refuses templates nested deeper than the limit.
  struct Nest {
    explicit Nest(Parser& p);
    ~Nest() { --parser.depth_; }
    Parser& parser;
  };
  /// A filter or test that does not exist. Inside `if` it only matters when it runs, as in jinja2.
  struct Unknown {
    int line;
    std::string message;
    bool fatal = false;
  };

  const Token& current() const { return tokens_[pos_]; }
  const Token& look() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  Token next();
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  std::string expect_name();
  void expect_end(Token::Type type);
  [[noreturn]] void fail(const std::string& message) const;
  static std::string describe(const Token& token);

  Body parse_body(Names ends);
  Body parse_statements(Names ends);
  Body parse_hard(Names ends);
  StmtPtr parse_statement();
  StmtPtr parse_print();
  StmtPtr parse_if();
  StmtPtr parse_for();
  StmtPtr parse_set();
  StmtPtr parse_macro();
  StmtPtr parse_call_block();
  StmtPtr parse_filter_block();
  StmtPtr parse_with();
  StmtPtr parse_scope(std::string_view end, bool named);
  StmtPtr parse_loop_control(Stmt::Type type);
  StmtPtr make(Stmt::Type type) const;
  Target parse_target(bool with_attribute, bool with_tuple);
  void parse_signature(MacroDefinition& macro);
  Body parse_macro_body(MacroDefinition& macro, std::string_view end);

  ExprPtr parse_expression(bool with_conditional = true);
  ExprPtr parse_conditional();
  ExprPtr parse_tuple(bool with_conditional, Names ends, bool parenthesised);
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filter);
  ExprPtr parse_primary();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  void parse_postfix(ExprPtr& expr);
  void parse_filters(ExprPtr& expr);
  Link parse_subscript();
  Link parse_filter();
  Link parse_test();
  ArgumentExprs parse_arguments();
  ExprPtr make(Expr::Type type) const;
  bool tuple_ends(Names ends) const;
  void check_known(const Link& link);
  void note_name(std::string_view name);

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int max_depth_;
  int depth_ = 0;
  int loops_ = 0;
  std::vector<MacroDefinition*> macros_;
  std::vector<Unknown> unknown_;
};

}  // namespace conclave::jinja
