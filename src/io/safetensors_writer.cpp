#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/error.h"
#include "io/partial_file.h"
#include "io/safetensors.h"

namespace conclave {
namespace {

std::string shown(std::string_view text) { return nlohmann::json(text).dump(); }

/// Header text of the entries, padded with spaces so that the data begins on a multiple of 8.
std::string header_text(const std::vector<SafetensorsWriter::Entry>& entries, const std::vector<size_t>& ends,
                        const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> members;
  if (!metadata.empty()) members.push_back(fmt::format("\"__metadata__\":{}", nlohmann::json(metadata).dump()));
  for (size_t i = 0; i < entries.size(); ++i)
    members.push_back(fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                                  shown(entries[i].name), name_of(entries[i].dtype), fmt::join(entries[i].shape, ","),
                                  i ? ends[i - 1] : 0, ends[i]));
  std::string text = fmt::format("{{{}}}", fmt::join(members, ","));
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

struct SafetensorsWriter::State {
  State(std::filesystem::path name, std::vector<Entry> declared)
      : file(std::move(name)), entries(std::move(declared)) {}

  PartialFile file;
  std::vector<Entry> entries;
  std::vector<size_t> ends;  ///< data byte at which each entry ends
  size_t written = 0;

  size_t total() const { return ends.empty() ? 0 : ends.back(); }
};

SafetensorsWriter::SafetensorsWriter(std::filesystem::path file, std::vector<Entry> entries,
                                     std::map<std::string, std::string> metadata)
    : state_(std::make_unique<State>(std::move(file), std::move(entries))) {
  State& s = *state_;
  const std::string name = s.file.final_name().string();
  std::set<std::string_view> names{"__metadata__"};
  size_t total = 0;
  for (const Entry& entry : s.entries) {
    if (!names.insert(entry.name).second)
      throw Error(Error::Kind::internal, fmt::format("{}: tensor {} is declared twice", name, entry.name));
    std::vector<int64_t> factors = entry.shape;
    factors.push_back(static_cast<int64_t>(size_of(entry.dtype)));
    if (__builtin_add_overflow(total, checked_product(factors, entry.name), &total))
      throw Error(Error::Kind::internal, fmt::format("{}: the tensors exceed the address space", name));
    s.ends.push_back(total);
  }
  const std::string header = header_text(s.entries, s.ends, metadata);
  std::array<unsigned char, 8> length{};
  for (size_t i = 0; i < length.size(); ++i) length[i] = static_cast<unsigned char>(uint64_t{header.size()} >> (8 * i));
  s.file.write(length.data(), length.size());
  s.file.write(header.data(), header.size());
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  State& s = *state_;
  if (!s.file.is_open() || bytes.size() > s.total() - s.written)
    throw Error(Error::Kind::internal,
                fmt::format("{}: more data than the {} declared bytes", s.file.final_name().string(), s.total()));
  s.file.write(bytes.data(), bytes.size());
  s.written += bytes.size();
}

void SafetensorsWriter::finish() {
  State& s = *state_;
  for (size_t i = 0; i < s.ends.size(); ++i)
    if (s.written < s.ends[i])
      throw Error(Error::Kind::internal,
                  fmt::format("{}: data of tensor {} is incomplete", s.file.final_name().string(), s.entries[i].name));
  s.file.commit();
}

}  // namespace conclave
