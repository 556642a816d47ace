#include "eval/data_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>

#include "core/error.h"
#include "core/json.h"
#include "text/unicode.h"

namespace conclave {
namespace {

constexpr size_t kMostFileBytes = size_t{1} << 30, kMostLineBytes = size_t{64} << 20;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

std::string read_whole(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::error_code error;
  if (!in || std::filesystem::is_directory(file, error)) refuse(fmt::format("{} cannot be read", file.string()));
  std::string text;
  for (char block[1 << 16]; in.read(block, sizeof block), in.gcount() > 0;) {
    text.append(block, static_cast<size_t>(in.gcount()));
    if (text.size() > kMostFileBytes) refuse(fmt::format("{} has more than the {} bytes that are read", file.string(), kMostFileBytes));
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  return text;
}

const nlohmann::ordered_json& member(const JsonRow& row, const char* key, std::string_view wanted) {
  const auto found = row.value.find(key);
  if (found == row.value.end()) refuse(fmt::format("{}: there is no \"{}\", wanted {}", row.where, key, wanted));
  return *found;
}
[[noreturn]] void wrong_kind(const JsonRow& row, const char* key, std::string_view wanted) {
  refuse(fmt::format("{}: \"{}\" is {}, wanted {}", row.where, key, row.value[key].type_name(), wanted));
}

}  // namespace

std::string JsonRow::text(const char* key) const {
  const auto& found = member(*this, key, "text");
  if (found.is_string()) return found.get<std::string>();
  if (found.is_number()) return found.dump();
  wrong_kind(*this, key, "text");
}

bool JsonRow::boolean(const char* key) const {
  const auto& found = member(*this, key, "true or false");
  if (!found.is_boolean()) wrong_kind(*this, key, "true or false");
  return found.get<bool>();
}

int64_t JsonRow::integer(const char* key) const {
  const auto& found = member(*this, key, "an integer");
  if (!found.is_number_integer()) wrong_kind(*this, key, "an integer");
  return found.get<int64_t>();
}

std::vector<std::string> JsonRow::texts(const char* key) const {
  const auto& found = member(*this, key, "a list of texts");
  if (!found.is_array()) wrong_kind(*this, key, "a list of texts");
  std::vector<std::string> out;
  for (const auto& one : found) {
    if (!one.is_string()) wrong_kind(*this, key, "a list of texts");
    out.push_back(one.get<std::string>());
  }
  return out;
}

std::vector<JsonRow> read_json_lines(const std::filesystem::path& file) {
  const std::string text = read_whole(file);
  std::vector<JsonRow> rows;
  size_t number = 1;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    std::string where = fmt::format("{}:{}", file.string(), number);
    nlohmann::ordered_json value = parse_json(line, where, {.max_bytes = kMostLineBytes});
    if (!value.is_object()) refuse(fmt::format("{}: the line is {}, wanted an object", where, value.type_name()));
    rows.push_back({std::move(value), std::move(where)});
  }
  if (rows.empty()) refuse(fmt::format("{} is empty, wanted one JSON object per line", file.string()));
  return rows;
}

std::vector<CsvRow> parse_csv(std::string_view text, const std::string& file) {
  std::vector<CsvRow> rows;
  if (!is_valid_utf8(text)) refuse(fmt::format("{} is not UTF-8", file));
  size_t line = 1, at = 0;
  while (at < text.size()) {
    CsvRow row{{}, fmt::format("{}:{}", file, line)};
    for (bool more = true; more;) {
      std::string field;
      if (at < text.size() && text[at] == '"') {
        for (++at;; ++at) {
          if (at >= text.size()) refuse(fmt::format("{}: a quoted field is not closed", row.where));
          if (text[at] == '\n') ++line;
          if (text[at] == '"' && at + 1 < text.size() && text[at + 1] == '"') ++at;
          else if (text[at] == '"') break;
          field += text[at];
        }
        ++at;
      } else {
        for (; at < text.size() && text[at] != ',' && text[at] != '\n' && text[at] != '\r'; ++at) field += text[at];
      }
      row.fields.push_back(std::move(field));
      if (at < text.size() && text[at] == '\r') ++at;
      more = at < text.size() && text[at] == ',';
      if (!more && at < text.size() && text[at] != '\n')
        refuse(fmt::format("{}:{}: text follows the closing quote of field {}", file, line, row.fields.size()));
      if (at < text.size()) ++at;
    }
    ++line;
    if (row.fields.size() > 1 || !row.fields[0].empty()) rows.push_back(std::move(row));
  }
  if (rows.empty()) refuse(fmt::format("{} has no rows", file));
  return rows;
}

std::vector<CsvRow> read_csv(const std::filesystem::path& file) { return parse_csv(read_whole(file), file.string()); }

CsvTable read_csv_table(const std::filesystem::path& file) {
  CsvTable table{{}, read_csv(file), file.string()};
  table.columns = table.rows.front().fields;
  table.rows.erase(table.rows.begin());
  for (const CsvRow& row : table.rows) {
    if (row.fields.size() != table.columns.size())
      refuse(fmt::format("{}: the row has {} fields, the header {}", row.where, row.fields.size(), table.columns.size()));
  }
  return table;
}

size_t CsvTable::column(std::string_view name) const {
  const auto found = std::find(columns.begin(), columns.end(), name);
  if (found == columns.end()) refuse(fmt::format("{}:1: there is no column \"{}\"; the columns are {}", file, name, fmt::join(columns, ", ")));
  return static_cast<size_t>(found - columns.begin());
}

std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + '"';
}

std::vector<std::filesystem::path> files_ending(const std::filesystem::path& folder, std::string_view suffix) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (it->is_regular_file() && it->path().filename().string().ends_with(suffix)) files.push_back(it->path());
  std::sort(files.begin(), files.end());
  return files;
}

void missing_data(std::string_view name, const std::filesystem::path& folder, std::string_view expected, std::string_view source) {
  refuse(fmt::format("{}: no data in {}; wanted {}. It is published at {}", name, folder.string(), expected, source));
}

}  // namespace conclave
