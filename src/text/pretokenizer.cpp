#include "text/pretokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "text/json_section.h"
#include "text/unicode.h"

namespace conclave {
namespace {

constexpr std::string_view kSupported =
    "Sequence, Split, Digits, ByteLevel, Metaspace, Whitespace, WhitespaceSplit, Punctuation, CharDelimiterSplit";
constexpr std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior behavior_of(const JsonSection& s, std::string fallback) {
  const std::string name = s.text_or("behavior", std::move(fallback));
  constexpr std::array<std::pair<std::string_view, Behavior>, 5> kNames{{{"Removed", Behavior::removed},
                                                                         {"Isolated", Behavior::isolated},
                                                                         {"MergedWithPrevious", Behavior::merged_with_previous},
                                                                         {"MergedWithNext", Behavior::merged_with_next},
                                                                         {"Contiguous", Behavior::contiguous}}};
  for (const auto& [known, behavior] : kNames)
    if (name == known) return behavior;
  s.wrong("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

struct Part {
  Range range;
  bool match;
};

/// Matches of one piece plus the gaps between them.
void parts_of(const std::vector<Range>& matches, Range piece, bool invert, std::vector<Part>& parts) {
  parts.clear();
  size_t done = piece.first;
  for (const auto& [begin, end] : matches) {
    if (piece.first + begin > done) parts.push_back({{done, piece.first + begin}, invert});
    parts.push_back({{piece.first + begin, piece.first + end}, !invert});
    done = piece.first + end;
  }
  if (done < piece.second) parts.push_back({{done, piece.second}, invert});
}

void join_parts(const std::vector<Part>& parts, Behavior behavior, std::vector<Range>& out) {
  const size_t first = out.size();
  bool previous = false;
  const auto keep = [&](const Range& r) { out.push_back(r); };
  if (behavior == Behavior::merged_with_next) {
    for (auto p = parts.rbegin(); p != parts.rend(); previous = p->match, ++p)
      p->match && !previous && out.size() > first ? void(out.back().first = p->range.first) : keep(p->range);
    std::reverse(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
  } else {
    for (size_t i = 0; i < parts.size(); previous = parts[i].match, ++i) {
      const bool joins = out.size() > first && ((behavior == Behavior::merged_with_previous && parts[i].match && !previous) ||
                                                (behavior == Behavior::contiguous && parts[i].match == previous));
      if (joins) out.back().second = parts[i].range.second;
      else if (behavior != Behavior::removed || !parts[i].match) keep(parts[i].range);
    }
  }
  out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(), [](const Range& r) { return r.first == r.second; }),
            out.end());
}

/// Cuts every piece; `find(piece, matches)` gives the matches as ranges inside the piece.
template <typename Find>
void split_pieces(PieceList& list, Behavior behavior, bool invert, const Find& find) {
  std::vector<Range> pieces, matches;
  std::vector<Part> parts;
  pieces.reserve(list.pieces.size() * 2);
  for (const Range& piece : list.pieces) {
    matches.clear();
    find(std::string_view(list.text).substr(piece.first, piece.second - piece.first), matches);
    if (matches.empty() && !invert) {
      pieces.push_back(piece);
      continue;
    }
    parts_of(matches, piece, invert, parts);
    join_parts(parts, behavior, pieces);
  }
  list.pieces = std::move(pieces);
}

class Split : public Pretokenizer {
 public:
  Split(std::string_view pattern, Behavior behavior, bool invert, const std::string& source)
      : regex_(pattern, source), behavior_(behavior), invert_(invert) {}
  void apply(PieceList& list) const override {
    split_pieces(list, behavior_, invert_,
                 [&](std::string_view piece, std::vector<Range>& matches) { regex_.find_all(piece, list.scratch, matches); });
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

/// Splits at characters with a property.
class CharacterSplit : public Pretokenizer {
 public:
  using Predicate = bool (*)(char32_t);
  CharacterSplit(Predicate predicate, Behavior behavior) : predicate_(predicate), behavior_(behavior) {}
  void apply(PieceList& list) const override {
    split_pieces(list, behavior_, false, [&](std::string_view piece, std::vector<Range>& matches) {
      for (size_t i = 0; i < piece.size();) {
        const Utf8Char c = decode_utf8(piece, i);
        if (predicate_(c.code)) matches.emplace_back(i, i + c.bytes);
        i += c.bytes;
      }
    });
  }

 private:
  Predicate predicate_;
  Behavior behavior_;
};

/// Rewrites the text piece by piece: `write(piece, index, out)` appends the new form.
template <typename Write>
void rewrite_pieces(PieceList& list, const Write& write) {
  std::string text;
  text.reserve(list.text.size() * 2);
  for (size_t i = 0; i < list.pieces.size(); ++i) {
    Range& piece = list.pieces[i];
    const size_t begin = text.size();
    write(std::string_view(list.text).substr(piece.first, piece.second - piece.first), piece.first, text);
    piece = {begin, text.size()};
  }
  list.text = std::move(text);
}

class ByteLevel : public Pretokenizer {
 public:
  explicit ByteLevel(const JsonSection& s) : prefix_space_(s.flag_or("add_prefix_space", true)) {
    if (s.flag_or("use_regex", true)) split_ = std::make_unique<Split>(kGpt2Pattern, Behavior::isolated, false, s.where());
  }
  void apply(PieceList& list) const override {
    if (prefix_space_)
      rewrite_pieces(list, [](std::string_view piece, size_t, std::string& out) {
        if (!piece.starts_with(' ')) out += ' ';
        out += piece;
      });
    if (split_) split_->apply(list);
    rewrite_pieces(list, [](std::string_view piece, size_t, std::string& out) {
      for (const char c : piece) out += byte_level_character(static_cast<unsigned char>(c));
    });
  }

 private:
  bool prefix_space_;
  std::unique_ptr<Split> split_;
};

class Metaspace : public Pretokenizer {
 public:
  explicit Metaspace(const JsonSection& s)
      : mark_(s.character_or("replacement", "▁")),
        scheme_(s.text_or("prepend_scheme", "always")),
        split_(escape_regex(mark_), Behavior::merged_with_next, false, s.where()),
        splits_(s.flag_or("split", true)) {
    if (scheme_ != "always" && scheme_ != "first" && scheme_ != "never") s.wrong("prepend_scheme", "always, first or never");
    if (!s.flag_or("add_prefix_space", true)) scheme_ = "never";
  }
  void apply(PieceList& list) const override {
    rewrite_pieces(list, [&](std::string_view piece, size_t begin, std::string& out) {
      const bool prepend = scheme_ == "always" || (scheme_ == "first" && list.starts_input && begin == 0);
      if (prepend && !piece.starts_with(' ') && !piece.starts_with(mark_)) out += mark_;
      for (const char c : piece)
        if (c == ' ') out += mark_;
        else out += c;
    });
    if (splits_) split_.apply(list);
  }

 private:
  std::string mark_, scheme_;
  Split split_;
  bool splits_;
};

class Sequence : public Pretokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Pretokenizer>> steps) : steps_(std::move(steps)) {}
  void apply(PieceList& list) const override {
    for (const auto& step : steps_) step->apply(list);
  }

 private:
  std::vector<std::unique_ptr<Pretokenizer>> steps_;
};

std::unique_ptr<Pretokenizer> make_sequence(const JsonSection& s) {
  std::vector<std::unique_ptr<Pretokenizer>> steps;
  for (const auto& [index, step] : s.array("pretokenizers").items())
    steps.push_back(make_pretokenizer(step, fmt::format("{}.pretokenizers[{}]", s.where(), index)));
  return std::make_unique<Sequence>(std::move(steps));
}

}  // namespace

std::unique_ptr<Pretokenizer> make_pretokenizer(const nlohmann::json& section, const std::string& source) {
  if (section.is_null()) return std::make_unique<Sequence>(std::vector<std::unique_ptr<Pretokenizer>>());
  const JsonSection s(section, source);
  const std::string type = s.type();
  if (type == "Sequence") return make_sequence(s);
  if (type == "Split")
    return std::make_unique<Split>(pattern_of(s, "pattern"), behavior_of(s, s.text("behavior")), s.flag_or("invert", false), source);
  if (type == "Digits")
    return std::make_unique<CharacterSplit>(&is_numeric,
                                            s.flag_or("individual_digits", false) ? Behavior::isolated : Behavior::contiguous);
  if (type == "ByteLevel") return std::make_unique<ByteLevel>(s);
  if (type == "Metaspace") return std::make_unique<Metaspace>(s);
  if (type == "Whitespace") return std::make_unique<Split>("\\w+|[^\\w\\s]+", Behavior::removed, true, source);
  if (type == "WhitespaceSplit") return std::make_unique<CharacterSplit>(&is_white_space, Behavior::removed);
  if (type == "Punctuation") return std::make_unique<CharacterSplit>(&is_punctuation, behavior_of(s, "Isolated"));
  if (type == "CharDelimiterSplit")
    return std::make_unique<Split>(escape_regex(s.character_or("delimiter", "")), Behavior::removed, false, source);
  s.unsupported_type(kSupported);
}

}  // namespace conclave
