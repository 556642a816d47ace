#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "core/error.h"
#include "core/signal.h"

namespace conclave {
namespace {

/// Indices that a worker still has to do: it takes them from the front, others who have nothing left from the back.
class alignas(64) Range {
 public:
  void set(uint32_t begin, uint32_t end) { bounds_.store(join(begin, end), std::memory_order_relaxed); }

  std::optional<uint32_t> take_front() {
    uint64_t seen = bounds_.load(std::memory_order_relaxed);
    while (begin(seen) < end(seen))
      if (bounds_.compare_exchange_weak(seen, join(begin(seen) + 1, end(seen)), std::memory_order_relaxed)) return begin(seen);
    return std::nullopt;
  }

  std::optional<uint32_t> take_back() {
    uint64_t seen = bounds_.load(std::memory_order_relaxed);
    while (begin(seen) < end(seen))
      if (bounds_.compare_exchange_weak(seen, join(begin(seen), end(seen) - 1), std::memory_order_relaxed)) return end(seen) - 1;
    return std::nullopt;
  }

 private:
  static uint64_t join(uint32_t begin, uint32_t end) { return uint64_t{end} << 32 | begin; }
  static uint32_t begin(uint64_t bounds) { return static_cast<uint32_t>(bounds); }
  static uint32_t end(uint64_t bounds) { return static_cast<uint32_t>(bounds >> 32); }

  std::atomic<uint64_t> bounds_{0};
};

std::vector<int> allowed_processors() {
  std::vector<int> processors;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int i = 0; i < CPU_SETSIZE; ++i)
      if (CPU_ISSET(i, &set)) processors.push_back(i);
  if (processors.empty()) processors.push_back(0);
  return processors;
}

/// Processors that the cgroup's quota pays for ("max 100000" or "150000 100000"); infinity where there is none.
double quota_of(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return std::numeric_limits<double>::infinity();
  const double value = std::strtod(quota.c_str(), nullptr);
  return value > 0 ? value / period : std::numeric_limits<double>::infinity();
}

/// The smallest quota of this process's cgroup (version 2) and its ancestors.
double cgroup_quota() {
  const std::string root = "/sys/fs/cgroup";
  double quota = quota_of(root);
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("0::/")) continue;
    std::string path = line.substr(3);
    while (path.size() > 1) {
      quota = std::min(quota, quota_of(root + path));
      path.resize(path.find_last_of('/'));
    }
  }
  return quota;
}

void pin_to(pthread_t thread, int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(processor), &set);
  pthread_setaffinity_np(thread, sizeof set, &set);  // a refusal costs speed only
}

}  // namespace

int available_processors() {
  const auto allowed = static_cast<double>(allowed_processors().size());
  return std::max(1, static_cast<int>(std::ceil(std::min(allowed, cgroup_quota()))));
}

struct ThreadPool::State {
  int size = 1;
  bool spin = true;
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};

  Signal start, finish, meeting;
  alignas(64) std::atomic<int> running{0};
  alignas(64) std::atomic<int> arrived{0};
  std::unique_ptr<Range[]> ranges;  // one per worker
  const FunctionRef<void(int)>* body = nullptr;

  std::mutex error_mutex;
  std::exception_ptr error;
  std::atomic<bool> failed{false};

  void keep_error() {
    const std::lock_guard lock(error_mutex);
    if (!error) error = std::current_exception();
    failed.store(true, std::memory_order_relaxed);
  }

  /// The next index of a parallel_for for this worker: its own range first, then the others'.
  std::optional<uint32_t> next_index(int worker) {
    if (const auto own = ranges[static_cast<size_t>(worker)].take_front()) return own;
    for (int other = 1; other < size; ++other)
      if (const auto stolen = ranges[static_cast<size_t>((worker + other) % size)].take_back()) return stolen;
    return std::nullopt;
  }

  void work(int worker) {
    try {
      (*body)(worker);
    } catch (...) {
      keep_error();
    }
  }

  void serve(int worker, uint32_t seen) {
    while (true) {
      start.wait(seen, spin);
      ++seen;
      if (stop.load(std::memory_order_acquire)) return;
      work(worker);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) finish.advance();
    }
  }

  void run(const FunctionRef<void(int)>& f) {
    body = &f;
    error = nullptr;
    failed.store(false, std::memory_order_relaxed);
    running.store(size - 1, std::memory_order_release);
    if (size > 1) start.advance();
    work(0);
    for (uint32_t seen = finish.load(); running.load(std::memory_order_acquire) > 0; seen = finish.load()) finish.wait(seen, spin);
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }
};

ThreadPool::ThreadPool(int threads, bool pin) : state_(std::make_unique<State>()) {
  const std::vector<int> processors = allowed_processors();
  state_->size = threads > 0 ? threads : available_processors();
  state_->spin = state_->size <= available_processors();
  state_->ranges = std::make_unique<Range[]>(static_cast<size_t>(state_->size));
  for (int worker = 1; worker < state_->size; ++worker) {
    State& state = *state_;
    state.threads.emplace_back([&state, worker] { state.serve(worker, 0); });
    if (pin && state.size <= static_cast<int>(processors.size()))
      pin_to(state.threads.back().native_handle(), processors[static_cast<size_t>(worker)]);
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->start.advance();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::size() const { return state_->size; }

void ThreadPool::run(FunctionRef<void(int worker)> body) { state_->run(body); }

void ThreadPool::parallel_for(int64_t count, FunctionRef<void(int64_t index, int worker)> task) {
  State& state = *state_;
  if (count <= 0) return;
  if (count == 1 || state.size == 1) {
    for (int64_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
  if (count > std::numeric_limits<uint32_t>::max())
    throw Error(Error::Kind::internal, fmt::format("{} tasks in one parallel region; at most 2^32 - 1 are possible", count));
  for (int64_t w = 0; w < state.size; ++w)
    state.ranges[static_cast<size_t>(w)].set(static_cast<uint32_t>(count * w / state.size), static_cast<uint32_t>(count * (w + 1) / state.size));
  run([&](int worker) {
    while (!state.failed.load(std::memory_order_relaxed)) {
      const std::optional<uint32_t> index = state.next_index(worker);
      if (!index) return;
      task(*index, worker);
    }
  });
}

void ThreadPool::barrier() {
  State& state = *state_;
  if (state.size == 1) return;
  const uint32_t seen = state.meeting.load();
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == state.size) {
    state.arrived.store(0, std::memory_order_relaxed);
    state.meeting.advance();
  } else {
    state.meeting.wait(seen, state.spin);
  }
}

}  // namespace conclave
