#include "io/partial_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace conclave {

PartialFile::PartialFile(std::filesystem::path file) : file_(std::move(file)), partial_(file_.string() + ".partial") {
  fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd_ < 0) fail("be created", errno);
}

PartialFile::~PartialFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

void PartialFile::write(const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("be written", n < 0 ? errno : EIO);
    p += n;
    bytes -= static_cast<size_t>(n);
  }
}

void PartialFile::commit() {
  if (fsync(fd_) != 0) fail("be written", errno);
  if (::rename(partial_.c_str(), file_.c_str()) != 0) fail("be renamed", errno);
  ::close(std::exchange(fd_, -1));
  const std::filesystem::path folder = file_.has_parent_path() ? file_.parent_path() : ".";
  if (const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); fd >= 0) {
    fsync(fd);  // makes the new name durable; some file systems cannot, and the data is safe without
    ::close(fd);
  }
}

void PartialFile::fail(std::string_view action, int cause) const {
  throw Error(Error::Kind::internal, fmt::format("{}: cannot {}: {}; free space or choose another folder",
                                                 partial_.string(), action, std::strerror(cause)));
}

void write_file(const std::filesystem::path& file, std::string_view text) {
  PartialFile out(file);
  out.write(text.data(), text.size());
  out.commit();
}

}  // namespace conclave
