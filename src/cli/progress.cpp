#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace conclave {
namespace {
constexpr auto kQuiet = std::chrono::milliseconds(300), kBarInterval = std::chrono::milliseconds(100),
               kLineInterval = std::chrono::milliseconds(2000);
constexpr size_t kBarWidth = 30;
}  // namespace

Progress::Progress(std::string label, const Log& log, Unit unit)
    : label_(std::move(label)), log_(log), unit_(unit), terminal_(::isatty(STDERR_FILENO) == 1), start_(Clock::now()), next_(start_ + kQuiet) {}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void Progress::update(size_t done, size_t total) {
  const auto now = Clock::now();
  if (now < next_ || total == 0 || !log_.shows_info()) return;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const double seconds = std::chrono::duration<double>(now - start_).count(), rate = static_cast<double>(done) / seconds;
  const double left = done > 0 ? static_cast<double>(total - std::min(done, total)) / rate : 0;
  const std::string text =
      unit_ == Unit::items ? fmt::format("{} {:3.0f} % ({} of {} items, {:.2f} items/s, {:.0f} s left)", label_, share * 100, done, total, rate, left)
                           : fmt::format("{} {:3.0f} % ({:.2f} of {:.2f} GB, {:.2f} GB/s, {:.0f} s left)", label_, share * 100,
                                         static_cast<double>(done) / 1e9, static_cast<double>(total) / 1e9, rate / 1e9, left);
  next_ = now + (terminal_ ? kBarInterval : kLineInterval);
  if (!terminal_) return log_.info(text);
  const auto filled = static_cast<size_t>(share * kBarWidth);
  fmt::print(stderr, "\r[{}{}] {}\033[K", std::string(filled, '#'), std::string(kBarWidth - filled, '.'), text);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace conclave
