#include "text/normalizer.h"

#include <fmt/format.h>

#include <vector>

#include "text/json_section.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace conclave {
namespace {

constexpr std::string_view kSupported =
    "Sequence, NFC, NFD, NFKC, NFKD, Replace, Prepend, Strip, StripAccents, Lowercase";

/// Rebuilds a text part by part, carrying provenance along.
class Rewriter {
 public:
  explicit Rewriter(MarkedText& text) : text_(text) { result_.trusted = text.trusted; }
  /// Appends `part`, made from the bytes [begin, end) of the old text.
  void append(std::string_view part, size_t begin, size_t end) {
    result_.bytes += part;
    if (!text_.trust.empty()) result_.trust.append(part.size(), text_.trusted_range(begin, end) ? '\1' : '\0');
  }
  void keep(size_t begin, size_t end) {
    result_.bytes.append(text_.bytes, begin, end - begin);
    if (!text_.trust.empty()) result_.trust.append(text_.trust, begin, end - begin);
  }
  void finish() { text_ = std::move(result_); }

 private:
  MarkedText& text_;
  MarkedText result_;
};

/// NFC and relatives. With provenance per byte the text is normalized in chunks that begin at ASCII characters, which never
/// combine with what stands before them.
class FormNormalizer : public Normalizer {
 public:
  explicit FormNormalizer(NormalForm form) : form_(form) {}
  void apply(MarkedText& text) const override {
    if (is_ascii(text.bytes)) return;
    if (text.trust.empty()) return void(text.bytes = normalize(text.bytes, form_));
    Rewriter out(text);
    for (size_t begin = 0; begin < text.bytes.size();) {
      size_t end = begin + 1;
      while (end < text.bytes.size() && static_cast<unsigned char>(text.bytes[end]) >= 0x80) ++end;
      const std::string_view chunk = std::string_view(text.bytes).substr(begin, end - begin);
      const std::string changed = normalize(chunk, form_);
      changed == chunk ? out.keep(begin, end) : out.append(changed, begin, end);
      begin = end;
    }
    out.finish();
  }

 private:
  NormalForm form_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  explicit ReplaceNormalizer(const JsonSection& s)
      : pattern_(pattern_of(s, "pattern"), s.where()), content_(s.text("content")) {}
  void apply(MarkedText& text) const override {
    RegexScratch scratch;
    std::vector<Range> matches;
    pattern_.find_all(text.bytes, scratch, matches);
    if (matches.empty()) return;
    Rewriter out(text);
    size_t done = 0;
    for (const auto& [begin, end] : matches) {
      out.keep(done, begin);
      out.append(content_, begin, end);
      done = end;
    }
    out.keep(done, text.bytes.size());
    out.finish();
  }

 private:
  Regex pattern_;
  std::string content_;
};

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(MarkedText& text) const override {
    if (text.bytes.empty()) return;
    if (!text.trust.empty()) text.trust.insert(0, prefix_.size(), text.trust[0]);
    text.bytes.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  void apply(MarkedText& text) const override {
    size_t begin = 0, end = text.bytes.size();
    while (left_ && begin < end) {
      const Utf8Char c = decode_utf8(text.bytes, begin);
      if (!is_white_space(c.code)) break;
      begin += c.bytes;
    }
    while (right_ && end > begin) {
      size_t last = end - 1;
      while (last > begin && (text.bytes[last] & 0xC0) == 0x80) --last;
      if (!is_white_space(decode_utf8(text.bytes, last).code)) break;
      end = last;
    }
    text = text.slice(begin, end);
  }

 private:
  bool left_, right_;
};

/// Maps each character to a text.
class CharacterNormalizer : public Normalizer {
 public:
  using Map = void (*)(std::string& out, char32_t code);
  explicit CharacterNormalizer(Map map) : map_(map) {}
  void apply(MarkedText& text) const override {
    Rewriter out(text);
    std::string mapped;
    for (size_t i = 0; i < text.bytes.size();) {
      const Utf8Char c = decode_utf8(text.bytes, i);
      mapped.clear();
      map_(mapped, c.code);
      out.append(mapped, i, i + c.bytes);
      i += c.bytes;
    }
    out.finish();
  }

 private:
  Map map_;
};

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void apply(MarkedText& text) const override {
    for (const auto& step : steps_) step->apply(text);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

std::unique_ptr<Normalizer> make_sequence(const JsonSection& s) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const auto& [index, step] : s.array("normalizers").items())
    steps.push_back(make_normalizer(step, fmt::format("{}.normalizers[{}]", s.where(), index)));
  return std::make_unique<SequenceNormalizer>(std::move(steps));
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& section, const std::string& source) {
  if (section.is_null()) return std::make_unique<SequenceNormalizer>(std::vector<std::unique_ptr<Normalizer>>());
  const JsonSection s(section, source);
  const std::string type = s.type();
  if (type == "Sequence") return make_sequence(s);
  if (type == "NFC") return std::make_unique<FormNormalizer>(NormalForm::nfc);
  if (type == "NFD") return std::make_unique<FormNormalizer>(NormalForm::nfd);
  if (type == "NFKC") return std::make_unique<FormNormalizer>(NormalForm::nfkc);
  if (type == "NFKD") return std::make_unique<FormNormalizer>(NormalForm::nfkd);
  if (type == "Replace") return std::make_unique<ReplaceNormalizer>(s);
  if (type == "Prepend") return std::make_unique<PrependNormalizer>(s.text("prepend"));
  if (type == "Strip") return std::make_unique<StripNormalizer>(s.flag_or("strip_left", true), s.flag_or("strip_right", true));
  if (type == "Lowercase") return std::make_unique<CharacterNormalizer>(&append_lower);
  if (type == "StripAccents")
    return std::make_unique<CharacterNormalizer>([](std::string& out, char32_t c) {
      if (!is_mark(c)) append_utf8(out, c);
    });
  s.unsupported_type(kSupported);
}

}  // namespace conclave
