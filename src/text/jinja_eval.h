#pragma once
// Runs a syntax tree against variables. Names resolve through nested scopes (macros and loop bodies see the scopes they were
// written in), then variables, then global functions. One Evaluator serves one rendering.
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/jinja_library.h"

namespace conclave::jinja {

class Evaluator {
 public:
  Evaluator(const TemplateLimits& limits, std::string now);
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  Runtime& runtime() { return runtime_; }
  void define(std::string name, Value value) { root_->variables.insert_or_assign(std::move(name), std::move(value)); }
  /// Throws Failure; line() then tells where.
  Text render(const Body& body);
  int line() const { return line_; }

 private:
  struct Scope {
    std::shared_ptr<Scope> parent;
    std::unordered_map<std::string, Value> variables;
  };
  using ScopePtr = std::shared_ptr<Scope>;
  enum class Flow { normal, break_loop, continue_loop };
  /// Enters a scope for the lifetime of the object.
  struct Enter {
    Enter(Evaluator& e, ScopePtr scope) : evaluator(e), outer(std::exchange(e.scope_, std::move(scope))) {}
    ~Enter() { evaluator.scope_ = std::move(outer); }
    Evaluator& evaluator;
    ScopePtr outer;
  };
  /// Collects output in a text of its own for the lifetime of the object.
  struct Capture {
    explicit Capture(Evaluator& e) : evaluator(e), outer(std::exchange(e.out_, &text)) {}
    ~Capture() { evaluator.out_ = outer; }
    Evaluator& evaluator;
    Text text;
    Text* outer;
  };

  Flow run(const Body& body);
  Flow run(const Stmt& stmt);
  Flow run_branch(const Stmt& stmt);
  Flow run_loop(const Stmt& stmt);
  Flow run_scoped(const Stmt& stmt);
  Flow run_set_block(const Stmt& stmt);
  void run_call_block(const Stmt& stmt);
  void loop_over(const Stmt& stmt, const Value& iterable, int depth0, const ScopePtr& outer, Flow& flow);
  std::vector<Value> loop_items(const Stmt& stmt, const Value& iterable, const ScopePtr& outer);
  void print(const Value& value);
  void append(const Text& text);
  void assign(const Target& target, const Value& value);
  void set(const std::string& name, Value value) { scope_->variables.insert_or_assign(name, std::move(value)); }
  Value make_macro(const MacroDefinition& macro);
  Value call_macro(const MacroDefinition& macro, const ScopePtr& scope, const CallArguments& arguments);
  void bind_macro(const MacroDefinition& macro, CallArguments arguments);
  Value filtered(Value value, const std::vector<Link>& filters);

  Value evaluate(const Expr& expr);
  Value evaluate_chain(const Expr& expr);
  Value evaluate_logic(const Expr& expr);
  Value evaluate_comparison(const Expr& expr);
  Value evaluate_concat(const Expr& expr);
  Value evaluate_dict(const Expr& expr);
  std::vector<Value> evaluate_all(const std::vector<ExprPtr>& exprs);
  Value follow(const Value& value, const Link& link);
  Value lookup(const std::string& name) const;
  CallArguments arguments_of(const ArgumentExprs& exprs);

  Runtime runtime_;
  std::map<std::string, Value, std::less<>> globals_;
  ScopePtr root_;
  ScopePtr scope_;
  std::vector<ScopePtr> captured_;  ///< scopes that macros hold on to: emptied at the end, so that no cycle survives
  std::vector<std::shared_ptr<const SpaceObject>> spaces_;  ///< likewise
  Text* out_ = nullptr;
  int line_ = 1;
  int macro_depth_ = 0;
};

}  // namespace conclave::jinja
