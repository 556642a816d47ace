#pragma once
// A counter that threads of one process watch: waiters spin for a while and then sleep in the kernel, so that a busy neighbour gets its
// processor. Hides the futex. Any number of waiters and advancers; the counter wraps around.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <limits>

namespace conclave {

/// Tells the processor that this thread is in a loop that waits for another one.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Signal {
 public:
  using Clock = std::chrono::steady_clock;

  uint32_t load() const { return value_.load(std::memory_order_acquire); }

  void advance() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0)
      syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, std::numeric_limits<int>::max(), nullptr, nullptr, 0);
  }

  /// Returns when the value differs from `seen`, or at `end`. Spinning is for those who have a processor of their own.
  void wait(uint32_t seen, bool spin, Clock::time_point end = Clock::time_point::max()) {
    if (spin && spin_until_changed(seen)) return;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == seen) {
      if (end == Clock::time_point::max()) {
        syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
        continue;
      }
      const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(end - Clock::now()).count();
      if (left <= 0) break;
      const timespec limit{.tv_sec = static_cast<time_t>(left / 1'000'000'000), .tv_nsec = static_cast<long>(left % 1'000'000'000)};
      syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, &limit, nullptr, 0);
    }
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }

 private:
  /// Long enough to bridge the gaps between the regions of one step, short enough that a busy neighbour gets its core.
  static constexpr auto kSpin = std::chrono::microseconds(40);
  static constexpr int kPausesPerCheck = 32;

  bool spin_until_changed(uint32_t seen) const {
    const auto end = Clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerCheck; ++i) {
        if (load() != seen) return true;
        spin_pause();
      }
    } while (Clock::now() < end);
    return false;
  }

  alignas(64) std::atomic<uint32_t> value_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0};
};

}  // namespace conclave
