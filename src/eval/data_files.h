#pragma once
// Readers for data sets as they are published: JSON lines and CSV. Untrusted input: every error is bad_input and names file and line.
// Files are read whole; both forms must be UTF-8.
#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

/// One object of a .jsonl file; `where` is "file:line".
struct JsonRow {
  nlohmann::ordered_json value;
  std::string where;

  /// Members of the wanted kind; bad_input naming `where` and the key otherwise. text() also takes numbers, as they were written.
  std::string text(const char* key) const;
  bool boolean(const char* key) const;
  std::vector<std::string> texts(const char* key) const;
  int64_t integer(const char* key) const;
  bool has(const char* key) const { return value.contains(key) && !value[key].is_null(); }
};
/// Every non-blank line. An empty file is an error too.
std::vector<JsonRow> read_json_lines(const std::filesystem::path& file);

struct CsvRow {
  std::vector<std::string> fields;
  std::string where;  ///< "file:line" of its first line
};
/// RFC 4180: quoted fields may hold commas, doubled quotes and line ends; LF and CRLF. Blank lines are skipped. Refused: an open quote at the
/// end, text after a closing quote, a file without rows.
std::vector<CsvRow> parse_csv(std::string_view text, const std::string& file);
std::vector<CsvRow> read_csv(const std::filesystem::path& file);

/// A CSV file whose first row names the columns; rows must have as many fields.
struct CsvTable {
  std::vector<std::string> columns;
  std::vector<CsvRow> rows;
  /// Index of a column; bad_input naming the file and the columns there are.
  size_t column(std::string_view name) const;
  std::string file;
};
CsvTable read_csv_table(const std::filesystem::path& file);

/// A field as CSV: quoted where it must be.
std::string csv_field(std::string_view text);

/// Files of `folder` whose names end with `suffix`, sorted by name; empty when there is no such folder.
std::vector<std::filesystem::path> files_ending(const std::filesystem::path& folder, std::string_view suffix);

/// Throws bad_input: the data set `name` is not there; `expected` names its files, `source` says where it is published.
[[noreturn]] void missing_data(std::string_view name, const std::filesystem::path& folder, std::string_view expected, std::string_view source);

}  // namespace conclave
