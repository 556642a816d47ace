#include "core/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/error.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

/// Line of a byte offset, counted from 1.
size_t line_of(std::string_view text, size_t offset) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(offset, text.size()));
  return 1 + static_cast<size_t>(std::count(text.begin(), end, '\n'));
}

/// The parser's own words, short and printable: they quote the input, which may be long or no UTF-8.
std::string printable(std::string_view message) {
  constexpr size_t kLongest = 300;
  std::string text(message.substr(0, kLongest));
  for (char& c : text)
    if (c < 0x20 || c > 0x7e) c = '?';
  return message.size() > kLongest ? text + "..." : text;
}

/// Builds values from the parser's events. The library's own builder searches all earlier members for each new one,
/// which is quadratic for vocabularies; here members are collected first and duplicates found by sorting.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, std::string_view source, int max_depth)
      : text_(text), source_(source), max_depth_(max_depth) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { refuse("binary values are not JSON"); }
  bool start_object(size_t) override { return open(true); }
  bool start_array(size_t) override { return open(false); }
  bool key(string_t& name) override {
    frames_.back().key = std::move(name);
    return true;
  }
  bool end_array() override {
    Json::array_t values = std::move(frames_.back().values);
    frames_.pop_back();
    return add(std::move(values));
  }
  bool end_object() override {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    refuse_duplicates(frame.names);
    Json::object_t object;
    object.reserve(frame.values.size());
    for (size_t i = 0; i < frame.values.size(); ++i)
      object.Json::object_t::Container::emplace_back(std::move(frame.names[i]), std::move(frame.values[i]));
    return add(std::move(object));
  }
  bool parse_error(size_t position, const std::string&, const Json::exception& e) override {
    refuse(fmt::format("malformed JSON at byte {} (line {}): {}", position, line_of(text_, position),
                       printable(e.what())));
  }

 private:
  struct Frame {
    bool is_object = false;
    std::string key;
    std::vector<std::string> names;
    Json::array_t values;
  };

  [[noreturn]] void refuse(const std::string& message) const {
    throw Error(Error::Kind::bad_input, fmt::format("{}: {}", source_, message));
  }
  bool open(bool is_object) {
    if (frames_.size() >= static_cast<size_t>(max_depth_))
      refuse(fmt::format("JSON nested deeper than {} levels", max_depth_));
    frames_.emplace_back().is_object = is_object;
    return true;
  }
  template <class Value>
  bool add(Value&& value) {
    if (frames_.empty()) {
      root_ = std::forward<Value>(value);
      return true;
    }
    Frame& frame = frames_.back();
    if (frame.is_object) frame.names.push_back(std::move(frame.key));
    frame.values.emplace_back(std::forward<Value>(value));
    return true;
  }
  void refuse_duplicates(const std::vector<std::string>& names) const {
    std::vector<std::string_view> sorted(names.begin(), names.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) refuse(fmt::format("key \"{}\" occurs twice in one object; keep one of them", *twice));
  }

  std::string_view text_, source_;
  int max_depth_;
  std::vector<Frame> frames_;
  Json root_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view source, JsonLimits limits) {
  if (text.size() > limits.max_bytes)
    throw Error(Error::Kind::bad_input,
                fmt::format("{}: {} bytes of JSON, at most {} are read", source, text.size(), limits.max_bytes));
  if (const size_t nul = text.find('\0');
      nul != std::string_view::npos)  // the library would take it for the end of the text
    throw Error(Error::Kind::bad_input, fmt::format("{}: malformed JSON at byte {} (line {}): a NUL byte", source,
                                                    nul + 1, line_of(text, nul)));
  Builder builder(text, source, limits.max_depth);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string read_text_file(const std::filesystem::path& file, size_t max_bytes) {
  std::error_code status;
  if (!std::filesystem::is_regular_file(file, status))
    throw Error(Error::Kind::bad_model, fmt::format("{}: no such file", file.string()));
  const auto size = std::filesystem::file_size(file, status);
  if (status) throw Error(Error::Kind::bad_model, fmt::format("{}: {}", file.string(), status.message()));
  if (size > max_bytes)
    throw Error(Error::Kind::bad_model,
                fmt::format("{}: {} bytes, at most {} are read", file.string(), size, max_bytes));
  std::ifstream in(file, std::ios::binary);
  std::string text(size, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(size)))
    throw Error(Error::Kind::bad_model, fmt::format("{}: cannot be read; check its permissions", file.string()));
  return text;
}

Json read_json_file(const std::filesystem::path& file, JsonLimits limits) {
  const std::string text = read_text_file(file, limits.max_bytes);
  try {
    return parse_json(text, file.string(), limits);
  } catch (const Error& e) {
    throw Error(Error::Kind::bad_model, e.what());
  }
}

}  // namespace conclave
