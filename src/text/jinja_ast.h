#pragma once
// Syntax tree of a template. Chains (a + b + c, x | f | g) are flat, so depth is bounded by the parser's nesting limit.
// Immutable after parsing; owned by the Template and shared by concurrent renderings.
#include <memory>
#include <string>
#include <vector>

#include "text/jinja_value.h"

namespace conclave::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct ArgumentExprs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> keyword;
  ExprPtr star, star_star;
};

enum class Op : uint8_t {
  add, sub, mul, div, floor_div, mod, power, concat, logical_and, logical_or,
  eq, ne, lt, le, gt, ge, in, not_in,
};

/// One link of a postfix chain: attribute, subscript, slice, call, filter or test.
struct Link {
  enum class Type : uint8_t { attribute, item, slice, call, filter, test } type;
  int line;
  std::string name;               ///< attribute, filter, test
  ExprPtr index;                  ///< item
  ExprPtr start, stop, step;      ///< slice; absent parts are null
  ArgumentExprs arguments;        ///< call, filter, test
  bool negated = false;           ///< test
};

struct Expr {
  enum class Type : uint8_t { constant, name, list, tuple, dict, chain, postfix, negate, plus, logical_not, conditional } type;
  int line;
  Value value;                    ///< constant
  std::string name;               ///< name
  std::vector<ExprPtr> children;  ///< items; dict: key, value, ...; chain: operands; conditional: test, then, else (or null)
  std::vector<Op> ops;            ///< chain: between children
  std::vector<Link> links;        ///< postfix, applied to children[0]
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

/// Assignment target: a name, namespace.attribute, or a tuple of targets.
struct Target {
  std::string name, attribute;
  std::vector<Target> parts;
  bool is_tuple = false;
};

struct MacroDefinition {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  ///< of the last parameters
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
  Body body;
};

struct Stmt {
  enum class Type : uint8_t {
    data, print, branch, loop, set, set_block, macro, call_block, filter_block, with, scope, break_loop, continue_loop,
  } type;
  int line;
  Text data;
  std::vector<ExprPtr> exprs;    ///< print; branch: tests; loop: iterable, filter (or null); set: value; call_block: call; with: values
  std::vector<Body> bodies;      ///< branch: one per test and else; loop: body, else
  std::vector<Target> targets;   ///< loop, set, set_block, with
  std::vector<Link> filters;     ///< set_block, filter_block
  bool recursive = false;
  std::unique_ptr<MacroDefinition> macro;
};

/// Throws SyntaxFailure.
Body parse_template(std::string_view source, int max_depth);

}  // namespace conclave::jinja
