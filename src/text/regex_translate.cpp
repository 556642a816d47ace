#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "core/error.h"
#include "text/regex.h"
#include "text/unicode_additions.h"

namespace conclave {
namespace {

constexpr int kMaxNesting = 50;
constexpr std::string_view kWordInClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}";

/// Long names of general categories, as Oniguruma spells them without '_', '-' and spaces.
constexpr std::array<std::pair<std::string_view, std::string_view>, 40> kCategoryNames{{
    {"letter", "L"},              {"mark", "M"},               {"number", "N"},            {"punctuation", "P"},
    {"symbol", "S"},              {"separator", "Z"},          {"other", "C"},             {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},    {"titlecaseletter", "Lt"},   {"modifierletter", "Lm"},   {"otherletter", "Lo"},
    {"nonspacingmark", "Mn"},     {"spacingmark", "Mc"},       {"enclosingmark", "Me"},    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},       {"othernumber", "No"},       {"connectorpunctuation", "Pc"}, {"dashpunctuation", "Pd"},
    {"openpunctuation", "Ps"},    {"closepunctuation", "Pe"},  {"initialpunctuation", "Pi"},   {"finalpunctuation", "Pf"},
    {"otherpunctuation", "Po"},   {"mathsymbol", "Sm"},        {"currencysymbol", "Sc"},   {"modifiersymbol", "Sk"},
    {"othersymbol", "So"},        {"spaceseparator", "Zs"},    {"lineseparator", "Zl"},    {"paragraphseparator", "Zp"},
    {"control", "Cc"},            {"format", "Cf"},            {"privateuse", "Co"},       {"unassigned", "Cn"},
    {"alpha", "Alphabetic"},      {"digit", "Nd"},             {"space", "White_Space"},   {"any", "Any"},
}};
constexpr std::string_view kShortCategories =
    " L M N P S Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn Cs ";
constexpr std::string_view kBinaryProperties =
    " alphabetic lowercase uppercase whitespace ideographic math emoji emojipresentation extendedpictographic hexdigit "
    "idstart idcontinue xidstart xidcontinue cased dash diacritic unifiedideograph ";

/// What to add to a class for a category, so that it covers Unicode 16; empty for other properties.
std::string additions_to(std::string_view property) {
  std::string ranges;
  for (const UnicodeAddition& a : kUnicodeAdditions) {
    const bool han = property == "sc:Han" && a.category == "Lo" && a.first >= 0x2B739;
    if (han || property == a.category || property == a.category.substr(0, 1))
      ranges += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<uint32_t>(a.first), static_cast<uint32_t>(a.last));
  }
  return ranges;
}

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view source) : in_(pattern), source_(source) {}

  std::string run() {
    // Linear on long runs of spaces: when no end follows a run, no later start inside it can match either.
    if (in_ == "\\s+$") return "(?:\\p{White_Space}+$|\\p{White_Space}++(*SKIP)(*F))";
    while (at_ < in_.size()) step();
    return out_;
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw Error(Error::Kind::unsupported, fmt::format("{}: the pattern \"{}\" is not supported: {} at byte {}", source_, in_, what, at_));
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void step() {
    const char c = in_[at_];
    if (c == '{' || c == '*' || c == '+' || c == '?') return quantifier();
    if (c == ')') {
      if (groups_.empty()) refuse("an unmatched ')'");
      atom_ = groups_.back();
      groups_.pop_back();
      out_ += in_[at_++];
      return;
    }
    atom_ = out_.size();
    if (c == '(') return group();
    if (c == '[') {
      out_ += char_class(0);
    } else if (c == '\\') {
      out_ += escape();
    } else {
      out_ += c;
      for (++at_; at_ < in_.size() && (in_[at_] & 0xC0) == 0x80; ++at_) out_ += in_[at_];
    }
  }

  void group() {
    groups_.push_back(out_.size());
    out_ += '(';
    ++at_;
    if (peek() == '*') refuse("a verb or '*' after '('");
    if (peek() != '?') return;
    out_ += '?';
    ++at_;
    if (peek() == '~') refuse("the absence operator (?~");
    // In Ruby syntax the flag m lets the dot match newlines: PCRE2's s.
    while (std::isalpha(static_cast<unsigned char>(peek())) || peek() == '-') {
      if (peek() != 'i' && peek() != 'm' && peek() != 'x' && peek() != '-') refuse("a group flag other than i, m, x");
      out_ += peek() == 'm' ? 's' : peek();
      ++at_;
    }
  }

  void quantifier() {
    if (in_[at_] != '{') {
      const size_t start = at_;
      out_ += in_[at_++];
      if (peek() == '?' || (peek() == '+')) out_ += in_[at_++];
      if (at_ - start == 2 && (peek() == '+' || peek() == '?' || peek() == '*')) refuse("three quantifiers in a row");
      return;
    }
    const size_t close = in_.find('}', at_);
    const std::string_view body = close == std::string_view::npos ? std::string_view() : in_.substr(at_ + 1, close - at_ - 1);
    if (body.empty() || body.find_first_not_of("0123456789,") != std::string_view::npos || body == ",") {
      out_ += "\\{";
      ++at_;
      return;
    }
    out_ += body.front() == ',' ? fmt::format("{{0{}}}", body) : fmt::format("{{{}}}", body);
    at_ = close + 1;
    if (peek() == '?') {
      out_ += in_[at_++];
    } else if (peek() == '+') {  // not possessive in Ruby syntax: one or more of the interval
      out_.insert(atom_, "(?:");
      out_ += ")+";
      ++at_;
    }
  }

  std::string property() {  // at the letter p or P of an escape
    const bool negated_letter = in_[at_] == 'P';
    if (peek(1) != '{') refuse("a property without braces");
    const size_t close = in_.find('}', at_);
    if (close == std::string_view::npos) refuse("an unclosed property");
    std::string_view name = in_.substr(at_ + 2, close - at_ - 2);
    bool negated = negated_letter;
    if (!name.empty() && name.front() == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    at_ = close + 1;
    std::string folded;
    for (const char c : name)
      if (c != '_' && c != '-' && c != ' ') folded += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const auto known = std::find_if(kCategoryNames.begin(), kCategoryNames.end(), [&](const auto& n) { return n.first == folded; });
    std::string resolved(name);
    if (known != kCategoryNames.end()) resolved = known->second;
    else if (kShortCategories.find(fmt::format(" {} ", name)) == std::string_view::npos &&
             kBinaryProperties.find(fmt::format(" {} ", folded)) == std::string_view::npos)
      resolved = fmt::format("sc:{}", name);  // a bare script name would mean script extensions in PCRE2
    const std::string additions = additions_to(resolved);
    if (additions.empty()) return fmt::format("\\{}{{{}}}", negated ? 'P' : 'p', resolved);
    return fmt::format("[{}\\p{{{}}}{}]", negated ? "^" : "", resolved, additions);
  }

  std::string escape() {  // outside a class; at the backslash
    ++at_;
    const char c = peek();
    const std::string word = fmt::format("[{}]", kWordInClass), other = fmt::format("[^{}]", kWordInClass);
    if (c == 'p' || c == 'P') return property();
    if (c == '\0' && at_ >= in_.size()) refuse("a lone backslash");
    ++at_;
    switch (c) {
      case 's': return "\\p{White_Space}";
      case 'S': return "\\P{White_Space}";
      case 'w': return word;
      case 'W': return other;
      case 'h': return "[0-9A-Fa-f]";
      case 'H': return "[^0-9A-Fa-f]";
      case 'b': return fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", word);
      case 'B': return fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", word);
      case 'u': return code_point();
      default: break;
    }
    if (std::isalpha(static_cast<unsigned char>(c)) && std::string_view("dDnrtfvaexAzZ").find(c) == std::string_view::npos)
      refuse(fmt::format("the escape \\{}", c));
    if (c == 'v') return "\\x0B";
    return fmt::format("\\{}", c);
  }

  std::string code_point() {
    const std::string_view digits = in_.substr(at_, 4);
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) refuse("a short \\u");
    at_ += 4;
    return fmt::format("\\x{{{}}}", digits);
  }

  struct Operand {
    std::string plain;                ///< what goes between the brackets
    std::vector<std::string> nested;  ///< expressions that match one character each
    std::string expression() const {
      std::vector<std::string> parts = nested;
      if (!plain.empty()) parts.insert(parts.begin(), fmt::format("[{}]", plain));
      return parts.size() == 1 ? parts[0] : fmt::format("(?:{})", fmt::join(parts, "|"));
    }
  };

  /// Translates a class to an expression that matches one character: unions, intersections and negated parts become groups.
  std::string char_class(int depth) {
    if (depth > kMaxNesting) refuse("a class nested too deep");
    ++at_;
    const bool negated = peek() == '^';
    if (negated) ++at_;
    std::vector<Operand> operands(1);
    bool first = true;
    for (; at_ < in_.size() && (in_[at_] != ']' || first); first = false) class_item(operands, depth);
    if (at_ >= in_.size()) refuse("an unclosed class");
    ++at_;
    for (const Operand& o : operands)
      if (o.plain.empty() && o.nested.empty()) refuse("an empty class");
    if (operands.size() == 1 && operands[0].nested.empty()) return fmt::format("[{}{}]", negated ? "^" : "", operands[0].plain);
    std::string joined = operands.back().expression();
    for (size_t i = 0; i + 1 < operands.size(); ++i) joined = fmt::format("(?={}){}", operands[i].expression(), joined);
    return negated ? fmt::format("(?:(?!{})(?s:.))", joined) : fmt::format("(?:{})", joined);
  }

  void class_item(std::vector<Operand>& operands, int depth) {
    Operand& now = operands.back();
    if (in_.substr(at_, 2) == "&&") {
      at_ += 2;
      operands.emplace_back();
    } else if (in_.substr(at_, 2) == "[:") {
      const size_t close = in_.find(":]", at_);
      if (close == std::string_view::npos) refuse("an unclosed [:");
      refuse(fmt::format("the class {}", in_.substr(at_, close + 2 - at_)));
    } else if (in_[at_] == '[') {
      now.nested.push_back(char_class(depth + 1));
    } else if (in_[at_] == '\\') {
      const char c = peek(1);
      if (c == 'b') now.plain += "\\x08", at_ += 2;
      else if (const std::string one = escape(); one.starts_with("[^")) now.nested.push_back(one);
      else if (one.starts_with('[')) now.plain += one.substr(1, one.size() - 2);
      else now.plain += one;
    } else {
      now.plain += in_[at_++];
    }
  }

  std::string_view in_, source_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             ///< where the last atom begins in out_
  std::vector<size_t> groups_;  ///< where the open groups begin in out_
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern, std::string_view source) { return Translator(pattern, source).run(); }

}  // namespace conclave
