#pragma once
// Progress of long work on standard error: a bar on a terminal, plain lines elsewhere, nothing for work of less than a
// moment.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/log.h"

namespace conclave {

class Progress {
 public:
  enum class Unit : uint8_t { bytes, items };
  /// `label`: what is being done ("loading"). Rate and remaining time are shown too.
  Progress(std::string label, const Log& log, Unit unit = Unit::bytes);
  ~Progress();  ///< removes an unfinished bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(size_t done, size_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  const Log& log_;
  Unit unit_;
  bool terminal_, drawn_ = false;
  Clock::time_point start_, next_;
};

}  // namespace conclave
