#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "core/error.h"
#include "core/json.h"
#include "eval/data_files.h"
#include "eval/evaluate.h"
#include "io/partial_file.h"

namespace conclave {
namespace {

constexpr size_t kMostLineBytes = size_t{64} << 20;

[[noreturn]] void fail(const std::filesystem::path& file, std::string_view action, int cause) {
  throw Error(Error::Kind::internal, fmt::format("{}: cannot {}: {}", file.string(), action, std::strerror(cause)));
}

void write_all(int fd, std::string_view text, const std::filesystem::path& file) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(file, "write", errno);
    text.remove_prefix(static_cast<size_t>(written));
  }
}

/// Throws naming the first member in which the two descriptions differ.
void require_same_run(const std::filesystem::path& partial, const nlohmann::ordered_json& there, const nlohmann::ordered_json& here) {
  for (const auto& [key, value] : here.items()) {
    const auto found = there.find(key);
    if (found != there.end() && *found == value) continue;
    throw Error(Error::Kind::bad_input,
                fmt::format("{} is the beginning of another run: its {} is {}, now it is {}; remove the file or give another --items",
                            partial.string(), key, found == there.end() ? "missing" : found->dump(), value.dump()));
  }
}

}  // namespace

std::string item_text(const ItemLine& line) { return line.dump(-1, ' ', true, ItemLine::error_handler_t::replace); }

ItemLog::ItemLog(std::filesystem::path file, nlohmann::ordered_json run) : file_(std::move(file)), partial_(file_.string() + ".partial") {
  size_t keep = 0;
  std::ifstream in(partial_, std::ios::binary);
  std::string line;
  for (size_t number = 1; std::getline(in, line) && !in.eof(); ++number) {  // a line without its end was cut off
    nlohmann::ordered_json value = parse_json(line, fmt::format("{}:{}", partial_.string(), number), {.max_bytes = kMostLineBytes});
    if (number == 1) require_same_run(partial_, value.is_object() && value.contains("run") ? value["run"] : value, run);
    else earlier_.push_back(std::move(value));
    keep += line.size() + 1;
  }
  in.close();
  all_ = earlier_;
  fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(partial_, "create", errno);
  if (::ftruncate(fd_, static_cast<off_t>(keep)) != 0 || ::lseek(fd_, 0, SEEK_END) < 0) fail(partial_, "continue", errno);
  if (keep == 0) write_all(fd_, item_text({{"run", run}}) + "\n", partial_);
}

ItemLog::~ItemLog() {
  if (fd_ >= 0) ::close(fd_);
}

std::vector<ItemLine> ItemLog::finished(std::string_view task) {
  std::vector<ItemLine> lines;
  for (ItemLine& line : earlier_) {
    if (!line.is_object() || !line.contains("task") || line["task"] != task) continue;
    if (line.value("index", lines.size() + 1) != lines.size())
      throw Error(Error::Kind::bad_input, fmt::format("{}: the items of {} are not in order; remove the file", partial_.string(), task));
    lines.push_back(std::move(line));
  }
  std::erase_if(earlier_, [](const ItemLine& line) { return line.is_null(); });
  return lines;
}

void ItemLog::add(const ItemLine& line) {
  write_all(fd_, item_text(line) + "\n", partial_);
  all_.push_back(line);
}

void ItemLog::finish() {
  PartialFile out(file_.string() + ".complete");
  for (const ItemLine& line : all_) {
    const std::string text = item_text(line) + "\n";
    out.write(text.data(), text.size());
  }
  out.commit();
  std::error_code error;
  std::filesystem::rename(file_.string() + ".complete", file_, error);
  if (error) fail(file_, "rename", error.value());
  std::filesystem::remove(partial_, error);
}

std::vector<ItemLine> read_items(const std::filesystem::path& file) {
  std::vector<ItemLine> lines;
  for (JsonRow& row : read_json_lines(file)) {
    row.text("task");
    row.integer("index");
    lines.push_back(std::move(row.value));
  }
  return lines;
}

}  // namespace conclave
