#include "cli/json_lines.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"

namespace conclave {
namespace {
constexpr size_t kMaxLineBytes = size_t{64} << 20;

[[noreturn]] void refuse(const std::string& where, const char* key, const nlohmann::ordered_json& found,
                         std::string_view wanted) {
  throw Error(Error::Kind::bad_input,
              fmt::format("{}: \"{}\" is {}, wanted {}", where, key, found.type_name(), wanted));
}
void open_input(const std::string& file, std::ifstream& in, std::string_view option) {
  if (file == "-") return;
  std::error_code error;
  if (std::filesystem::is_directory(file, error))
    throw Error(Error::Kind::bad_input, fmt::format("{}: {} is a folder, wanted a file", option, file));
  in.open(file, std::ios::binary);
  if (!in)
    throw Error(Error::Kind::bad_input, fmt::format("{}: {} cannot be read: {}", option, file, std::strerror(errno)));
}

}  // namespace

void for_each_json_line(const std::string& file,
                        const std::function<void(const nlohmann::ordered_json&, const std::string&)>& visit) {
  std::ifstream opened;
  open_input(file, opened, "input");
  std::istream& in = file == "-" ? std::cin : opened;
  const std::string source = file == "-" ? "standard input" : file;
  std::string line;
  for (size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", source, number);
    visit(parse_json(line, where, {.max_bytes = kMaxLineBytes}), where);
  }
}

std::string read_input(const std::string& file, std::string_view option, size_t max_bytes) {
  std::ifstream opened;
  open_input(file, opened, option);
  std::istream& in = file == "-" ? std::cin : opened;
  std::string text;
  for (char block[1 << 16]; in.read(block, sizeof block), in.gcount() > 0;) {
    text.append(block, static_cast<size_t>(in.gcount()));
    if (text.size() > max_bytes)
      throw Error(Error::Kind::bad_input,
                  fmt::format("{}: {} has more than the {} bytes that are read", option, file, max_bytes));
  }
  if (in.bad())
    throw Error(Error::Kind::bad_input, fmt::format("{}: {} cannot be read: {}", option, file, std::strerror(errno)));
  return text;
}

void require_object(const nlohmann::ordered_json& value, const std::string& where) {
  if (!value.is_object()) {
    throw Error(Error::Kind::bad_input,
                fmt::format("{}: found {}, wanted an object {{...}}", where, value.type_name()));
  }
}

bool boolean_or(const nlohmann::ordered_json& object, const char* key, bool fallback, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_boolean()) refuse(where, key, *found, "true or false");
  return found->get<bool>();
}

std::string text_or(const nlohmann::ordered_json& object, const char* key, std::string fallback,
                    const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_string()) refuse(where, key, *found, "a string");
  return found->get<std::string>();
}

}  // namespace conclave
