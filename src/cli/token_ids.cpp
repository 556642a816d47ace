#include "cli/token_ids.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>

#include "core/error.h"

namespace conclave {
namespace {

int32_t parse_id(std::string_view piece, std::string_view option, size_t position) {
  int32_t id = 0;
  const auto [end, error] = std::from_chars(piece.data(), piece.data() + piece.size(), id);
  if (piece.empty() || error != std::errc{} || end != piece.data() + piece.size() || id < 0) {
    throw Error(Error::Kind::bad_input,
                fmt::format("{}: \"{}\" at position {} is not a token id; wanted whole numbers from 0, \"1,2,3\"",
                            option, piece, position));
  }
  return id;
}

}  // namespace

std::vector<std::vector<int32_t>> parse_id_lists(std::string_view text, std::string_view option) {
  constexpr std::string_view kSpace = " \t\r\n";
  std::vector<std::vector<int32_t>> lists;
  size_t at = 0;
  while ((at = text.find_first_not_of(kSpace, at)) != std::string_view::npos) {
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    std::vector<int32_t> ids;
    for (size_t begin = at; begin <= end;) {
      const size_t comma = std::min(text.find(',', begin), end);
      ids.push_back(parse_id(text.substr(begin, comma - begin), option, begin));
      begin = comma + 1;
    }
    lists.push_back(std::move(ids));
    at = end;
  }
  return lists;
}

std::string join_ids(std::span<const int32_t> ids) { return fmt::format("{}", fmt::join(ids, ",")); }

}  // namespace conclave
