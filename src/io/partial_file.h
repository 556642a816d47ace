#pragma once
// A file that is being written: `<file>.partial` until commit() has synced and renamed it; removed when it never comes
// to that.
#include <cstddef>
#include <filesystem>
#include <string_view>

namespace conclave {

class PartialFile {
 public:
  /// Throws internal naming path and cause when it cannot be created; so do the other calls when the disk is full.
  explicit PartialFile(std::filesystem::path file);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  void write(const void* data, size_t bytes);
  void commit();
  bool is_open() const { return fd_ >= 0; }
  const std::filesystem::path& final_name() const { return file_; }

 private:
  [[noreturn]] void fail(std::string_view action, int cause) const;

  std::filesystem::path file_, partial_;
  int fd_ = -1;
};

/// A small file in one go. Throws as PartialFile does; nothing is left behind then.
void write_file(const std::filesystem::path& file, std::string_view text);

}  // namespace conclave
