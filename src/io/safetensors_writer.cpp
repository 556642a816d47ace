#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/error.h"
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
    members.push_back(fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", shown(entries[i].name),
                                  name_of(entries[i].dtype), fmt::join(entries[i].shape, ","), i ? ends[i - 1] : 0, ends[i]));
  std::string text = fmt::format("{{{}}}", fmt::join(members, ","));
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

struct SafetensorsWriter::State {
  std::filesystem::path file, partial;
  std::vector<Entry> entries;
  std::vector<size_t> ends;  ///< data byte at which each entry ends
  size_t written = 0;
  int fd = -1;

  [[noreturn]] void fail(std::string_view action, int cause) const {
    throw Error(Error::Kind::internal, fmt::format("{}: cannot {}: {}; free space or choose another folder", partial.string(), action,
                                                   std::strerror(cause)));
  }
  void put(const void* data, size_t bytes) const {
    const char* p = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::write(fd, p, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail("write", n < 0 ? errno : EIO);
      p += n;
      bytes -= static_cast<size_t>(n);
    }
  }
  void close() {
    if (fd >= 0) ::close(std::exchange(fd, -1));
  }
  ~State() {
    if (fd < 0) return;
    close();
    ::unlink(partial.c_str());
  }
};

SafetensorsWriter::SafetensorsWriter(std::filesystem::path file, std::vector<Entry> entries,
                                     std::map<std::string, std::string> metadata)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.file = std::move(file);
  s.partial = s.file.string() + ".partial";
  s.entries = std::move(entries);
  std::set<std::string_view> names{"__metadata__"};
  size_t total = 0;
  for (const Entry& entry : s.entries) {
    if (!names.insert(entry.name).second)
      throw Error(Error::Kind::internal, fmt::format("{}: tensor {} is declared twice", s.file.string(), entry.name));
    std::vector<int64_t> factors = entry.shape;
    factors.push_back(static_cast<int64_t>(size_of(entry.dtype)));
    if (__builtin_add_overflow(total, checked_product(factors, entry.name), &total))
      throw Error(Error::Kind::internal, fmt::format("{}: the tensors exceed the address space", s.file.string()));
    s.ends.push_back(total);
  }
  s.fd = ::open(s.partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (s.fd < 0) s.fail("create", errno);
  const std::string header = header_text(s.entries, s.ends, metadata);
  std::array<unsigned char, 8> length{};
  for (size_t i = 0; i < length.size(); ++i) length[i] = static_cast<unsigned char>(uint64_t{header.size()} >> (8 * i));
  s.put(length.data(), length.size());
  s.put(header.data(), header.size());
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  State& s = *state_;
  const size_t total = s.ends.empty() ? 0 : s.ends.back();
  if (s.fd < 0 || bytes.size() > total - s.written)
    throw Error(Error::Kind::internal, fmt::format("{}: more data than the {} declared bytes", s.file.string(), total));
  s.put(bytes.data(), bytes.size());
  s.written += bytes.size();
}

void SafetensorsWriter::finish() {
  State& s = *state_;
  for (size_t i = 0; i < s.ends.size(); ++i)
    if (s.written < s.ends[i])
      throw Error(Error::Kind::internal, fmt::format("{}: data of tensor {} is incomplete", s.file.string(), s.entries[i].name));
  if (fsync(s.fd) != 0) s.fail("write", errno);
  if (::rename(s.partial.c_str(), s.file.c_str()) != 0) s.fail("rename", errno);
  s.close();
  const std::filesystem::path folder = s.file.has_parent_path() ? s.file.parent_path() : ".";
  if (const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); fd >= 0) {
    fsync(fd);  // makes the new name durable; some file systems cannot, and the data is safe without
    ::close(fd);
  }
}

}  // namespace conclave
