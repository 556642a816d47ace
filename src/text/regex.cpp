#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <fmt/format.h>
#include <pcre2.h>

#include "core/error.h"

namespace conclave {
namespace {

constexpr uint32_t kMatchLimit = 50'000'000;
constexpr size_t kJitStackBytes = size_t{16} << 20;

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};

}  // namespace

struct RegexScratch::State {
  std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>> data{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>> stack{
      pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr)};
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {
  if (!state_->data || !state_->context || !state_->stack) throw std::bad_alloc();
  pcre2_set_match_limit(state_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(state_->context.get(), 256 << 10);
  pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->stack.get());
}
RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>> compiled;
};

Regex::Regex(std::string_view pattern, std::string source) : code_(std::make_unique<Code>()), source_(std::move(source)) {
  const std::string translated = translate_oniguruma(pattern, source_);
  const std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->compiled.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                      context.get()));
  if (!code_->compiled) {
    PCRE2_UCHAR message[128] = {};
    pcre2_get_error_message(error, message, sizeof message);
    throw Error(Error::Kind::unsupported,
                fmt::format("{}: the pattern \"{}\" is not supported: {} (at byte {} of its PCRE2 form \"{}\")", source_, pattern,
                            reinterpret_cast<const char*>(message), offset, translated));
  }
  pcre2_jit_compile(code_->compiled.get(), PCRE2_JIT_COMPLETE);  // without JIT the interpreter gives the same matches
}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

void Regex::find_all(std::string_view text, RegexScratch& scratch, std::vector<Range>& matches) const {
  const RegexScratch::State& s = *scratch.state_;
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(s.data.get());
  size_t start = 0;
  uint32_t options = PCRE2_NO_UTF_CHECK;
  while (start <= text.size()) {
    const int found = pcre2_match(code_->compiled.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start, options,
                                  s.data.get(), s.context.get());
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0)
      throw Error(Error::Kind::bad_input,
                  fmt::format("{}: matching the pattern on a text of {} bytes exceeds the limits (PCRE2 error {}); split the text",
                              source_, text.size(), found));
    const size_t end = std::max(bounds[0], bounds[1]);  // \K in a lookahead can put the start behind the end
    matches.emplace_back(std::min(bounds[0], end), end);
    start = end;
    if (bounds[0] < end) continue;
    if (start >= text.size()) return;
    do ++start;
    while (start < text.size() && (text[start] & 0xC0) == 0x80);
  }
}

std::string escape_regex(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}-#&~/").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace conclave
