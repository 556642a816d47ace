// Ranks as threads of one process. Every collective is: post where my bytes are, wait until everybody has posted, read the others' bytes.
// Small ones are copied to a staging buffer first, of which each rank has two: a rank can be one call ahead of the slowest, never two,
// so that no second meeting is needed before its memory changes. Large ones are read in place, with a meeting at the end.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "comm/checks.h"
#include "comm/communicator.h"
#include "core/error.h"
#include "core/signal.h"
#include "core/thread_pool.h"

namespace conclave {
namespace {

using namespace comm;
using Clock = Signal::Clock;

/// Copying costs less than a second meeting up to about here.
constexpr size_t kStagedBytes = 16 << 10;
/// Messages that a sender may be ahead of the receiver.
constexpr uint32_t kMessagesAhead = 4;
/// A sleeping waiter looks this often for the end of the job.
constexpr auto kLook = std::chrono::milliseconds(20);

/// What all groups of one job share: its end and what each rank is doing.
struct Job {
  Job(int size, int timeout) : timeout_ms(timeout), spin(size <= available_processors()), phases(static_cast<size_t>(size)) {}

  const int timeout_ms;
  const bool spin;
  std::atomic<bool> ended{false};
  std::mutex mutex;  // of everything below
  std::string reason;
  Error::Kind kind = Error::Kind::network;
  std::vector<std::string> phases;

  void end(Error::Kind why, const std::string& text) {
    const std::lock_guard lock(mutex);
    if (ended.load(std::memory_order_relaxed)) return;
    reason = text;
    kind = why;
    ended.store(true, std::memory_order_seq_cst);
  }
  void check() {
    if (!ended.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex);
    throw Error(kind, reason);
  }
  std::string describe(int rank) {
    const std::lock_guard lock(mutex);
    const std::string& phase = phases[static_cast<size_t>(rank)];
    return phase.empty() ? fmt::format("rank {}", rank) : fmt::format("rank {} (phase {})", rank, phase);
  }
};

/// What one rank brings to a collective.
struct Post {
  std::string_view call;
  std::span<const std::byte> bytes;
  bool in_place = false;        ///< `bytes` is the caller's own memory
  std::vector<int64_t> counts;  ///< how `bytes` is cut, where that matters
};

struct Slot {
  Signal arrived;
  std::atomic<bool> left{false};
  alignas(64) std::atomic<int> readers{0};  // ranks that read this one's memory in place
  std::array<Post, 2> posts;
  std::array<std::vector<std::byte>, 2> staging{std::vector<std::byte>(kStagedBytes), std::vector<std::byte>(kStagedBytes)};
};

/// Holds memory of other ranks in place: a rank that fails waits for its readers before it lets go of its memory.
class Reading {
 public:
  Reading(Job& job, std::span<Slot> slots) : slots_(slots) {
    for (Slot& slot : slots_) slot.readers.fetch_add(1, std::memory_order_seq_cst);
    if (!job.ended.load(std::memory_order_seq_cst)) return;
    release();
    job.check();
  }
  ~Reading() { release(); }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

 private:
  void release() {
    for (Slot& slot : slots_) slot.readers.fetch_sub(1, std::memory_order_release);
  }
  std::span<Slot> slots_;
};

/// Messages from one rank to another.
struct Channel {
  Signal sent, received;
  std::array<std::vector<std::byte>, kMessagesAhead> messages;
};

struct Group {
  Group(std::shared_ptr<Job> owner, std::vector<int> ranks)
      : job(std::move(owner)), members(std::move(ranks)), slots(members.size()), channels(members.size() * members.size()) {
    for (Slot& slot : slots)
      for (Post& post : slot.posts) post.counts.reserve(members.size());
  }
  std::shared_ptr<Job> job;
  std::vector<int> members;  // ranks of the job
  std::vector<Slot> slots;
  std::vector<Channel> channels;  // [from][to]
  std::mutex mutex;               // of `children`: groups that some of their ranks still have to fetch
  std::map<std::pair<uint32_t, int>, std::pair<std::shared_ptr<Group>, int>> children;

  std::string describe(int rank) { return job->describe(members[static_cast<size_t>(rank)]); }
};

class ThreadsCommunicator final : public Communicator {
 public:
  ThreadsCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), job_(*group_->job), rank_(rank) {}
  ~ThreadsCommunicator() override {
    slot(rank_).left.store(true, std::memory_order_release);
  }

  std::string_view name() const override { return "threads"; }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_->members.size()); }

  void all_reduce_sum(std::span<float> inout) override { all_reduce("all_reduce_sum", inout, add); }
  void all_reduce_max(std::span<float> inout) override { all_reduce("all_reduce_max", inout, keep_greater); }
  void all_gather(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> counts) override;
  void reduce_scatter_sum(std::span<float> out, std::span<const float> in, std::span<const int64_t> counts) override;
  void all_to_all(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> send,
                  std::span<const int64_t> receive) override;
  void broadcast(std::vector<std::byte>& bytes, int root) override;
  void send(std::span<const std::byte> bytes, int to) override;
  void receive(std::span<std::byte> bytes, int from) override;
  void barrier() override { meet("barrier"); }
  std::unique_ptr<Communicator> split(int color, int key) override;

  void phase(std::string_view what) override {
    const std::lock_guard lock(job_.mutex);
    job_.phases[static_cast<size_t>(group_->members[static_cast<size_t>(rank_)])] = what;
  }
  void abort(std::string_view reason) override {
    job_.end(Error::Kind::network, fmt::format("{} ended: {}", group_->describe(rank_), reason));
  }

 private:
  Slot& slot(int rank) { return group_->slots[static_cast<size_t>(rank)]; }
  void all_reduce(std::string_view call, std::span<float> inout, Combine combine);
  void all_reduce_shares(std::span<float> inout, Combine combine);
  void post(std::string_view call, std::span<const std::byte> bytes, std::span<const int64_t> counts = {});
  const Post& other(int rank);
  template <class Read>
  void reading(int first, int end, Read read);
  void close();
  void meet(std::string_view call) {
    post(call, {});
    for (int r = 0; r < size(); ++r) other(r);
  }
  /// Waits until `signal` has reached `target`, which `peer` brings about.
  void wait(Signal& signal, uint32_t target, int peer, std::string_view call);
  void check_alive() {
    if (job_.ended.load(std::memory_order_seq_cst)) await_readers();
    job_.check();
  }
  /// After the end of the job nobody starts to read this rank's memory; those who do already are not kept waiting by anybody.
  void await_readers() {
    while (slot(rank_).readers.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }
  [[noreturn]] void fail(Error::Kind kind, const std::string& text) {
    job_.end(kind, text);
    check_alive();
    throw Error(kind, text);
  }

  std::shared_ptr<Group> group_;
  Job& job_;
  int rank_;
  uint32_t calls_ = 0;   // collectives posted
  uint32_t splits_ = 0;
  bool in_place_ = false;  // somebody's memory is read in the call under way
};

void ThreadsCommunicator::wait(Signal& signal, uint32_t target, int peer, std::string_view call) {
  const auto reached = [&](uint32_t value) { return static_cast<int32_t>(value - target) >= 0; };
  if (reached(signal.load())) return;
  const auto end = job_.timeout_ms > 0 ? Clock::now() + std::chrono::milliseconds(job_.timeout_ms) : Clock::time_point::max();
  while (true) {
    // `left` is read before the counter: a rank that arrived and then left has arrived.
    const bool left = slot(peer).left.load(std::memory_order_acquire);
    const uint32_t value = signal.load();
    if (reached(value)) return;
    check_alive();
    if (left)
      fail(Error::Kind::network, fmt::format("{} left while {} waited for it in {}: see its own message", group_->describe(peer),
                                             group_->describe(rank_), call));
    const auto now = Clock::now();
    if (now >= end)
      fail(Error::Kind::network, fmt::format("{} did not come to {} within {} ms of {}: it hangs, or its work takes longer than the limit",
                                             group_->describe(peer), call, job_.timeout_ms, group_->describe(rank_)));
    signal.wait(value, job_.spin, std::min(end, now + kLook));
  }
}

void ThreadsCommunicator::post(std::string_view call, std::span<const std::byte> bytes, std::span<const int64_t> counts) {
  check_alive();
  Slot& own = slot(rank_);
  Post& mine = own.posts[calls_ % 2];
  mine.call = call;
  mine.counts.assign(counts.begin(), counts.end());
  mine.in_place = bytes.size() > kStagedBytes;
  mine.bytes = bytes;
  if (!mine.in_place && !bytes.empty()) {
    std::vector<std::byte>& staging = own.staging[calls_ % 2];
    std::memcpy(staging.data(), bytes.data(), bytes.size());
    mine.bytes = std::span(staging).first(bytes.size());
  }
  in_place_ = false;
  ++calls_;
  own.arrived.advance();
}

/// What `rank` has brought to the call under way. Every rank asks for all the others', in rank order.
const Post& ThreadsCommunicator::other(int rank) {
  const Post& mine = slot(rank_).posts[(calls_ - 1) % 2];
  if (rank != rank_) wait(slot(rank).arrived, calls_, rank, mine.call);
  const Post& post = slot(rank).posts[(calls_ - 1) % 2];
  if (post.call != mine.call)
    fail(Error::Kind::internal, fmt::format("{} calls {} while {} calls {}: all ranks of a group make the same calls in the same order",
                                            group_->describe(rank_), mine.call, group_->describe(rank), post.call));
  in_place_ = in_place_ || post.in_place;
  return post;
}

/// Calls `read`, which looks at what the ranks from `first` to before `end` have posted.
template <class Read>
void ThreadsCommunicator::reading(int first, int end, Read read) {
  std::optional<Reading> guard;
  if (in_place_) guard.emplace(job_, std::span(group_->slots).subspan(static_cast<size_t>(first), static_cast<size_t>(end - first)));
  read();
}

/// The end of a call: nobody may change memory that others still read.
void ThreadsCommunicator::close() {
  if (in_place_) meet("end of a collective");
}

void ThreadsCommunicator::all_reduce(std::string_view call, std::span<float> inout, Combine combine) {
  const std::span<const std::byte> bytes = std::as_bytes(inout);
  post(call, bytes);
  for (int r = 0; r < size(); ++r) {
    const Post& theirs = other(r);
    if (theirs.bytes.size() != bytes.size())
      fail(Error::Kind::internal, fmt::format("{}: {} brings {} bytes, {} brings {}; wanted: equal sizes", call, group_->describe(rank_),
                                              bytes.size(), group_->describe(r), theirs.bytes.size()));
    if (in_place_ || inout.empty()) continue;
    if (r == 0) std::memcpy(inout.data(), theirs.bytes.data(), bytes.size());
    else combine(inout, theirs.bytes.data());
  }
  if (in_place_) all_reduce_shares(inout, combine);
}

/// Rank r adds up everybody's r-th share in its own memory; then the shares are copied.
void ThreadsCommunicator::all_reduce_shares(std::span<float> inout, Combine combine) {
  std::vector<const std::byte*> rows(static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) rows[static_cast<size_t>(r)] = slot(r).posts[(calls_ - 1) % 2].bytes.data();
  const std::span<float> mine = share_of(inout, rank_, size());
  const size_t begin = static_cast<size_t>(mine.data() - inout.data());
  constexpr size_t kBlock = 1024;  // stays in the first-level cache while all ranks' parts are added to it
  std::array<float, kBlock> sum;
  reading(0, size(), [&] {
    for (size_t at = 0; at < mine.size(); at += kBlock) {
      const std::span<float> block = std::span(sum).first(std::min(kBlock, mine.size() - at));
      const size_t offset = (begin + at) * sizeof(float);
      std::memcpy(block.data(), rows[0] + offset, block.size_bytes());
      for (int r = 1; r < size(); ++r) combine(block, rows[static_cast<size_t>(r)] + offset);
      std::ranges::copy(block, mine.begin() + static_cast<ptrdiff_t>(at));
    }
  });
  meet("all_reduce, second half");
  in_place_ = true;
  reading(0, size(), [&] {
    for (int r = 0; r < size(); ++r) {
      const std::span<float> theirs = share_of(inout, r, size());
      if (r != rank_ && !theirs.empty())
        std::memcpy(theirs.data(), rows[static_cast<size_t>(r)] + (theirs.data() - inout.data()) * static_cast<ptrdiff_t>(sizeof(float)), theirs.size_bytes());
    }
  });
  meet("end of a collective");
}

void ThreadsCommunicator::all_gather(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> counts) {
  check_counts("all_gather", "byte", counts, size(), out.size());
  post("all_gather", in);
  int64_t at = 0;
  for (int r = 0; r < size(); ++r) {
    const Post& theirs = other(r);
    const int64_t count = counts[static_cast<size_t>(r)];
    if (std::cmp_not_equal(theirs.bytes.size(), count))
      fail(Error::Kind::internal, fmt::format("all_gather: {} brings {} bytes, {} expects {}; wanted: the same counts on every rank",
                                              group_->describe(r), theirs.bytes.size(), group_->describe(rank_), count));
    if (count > 0 && out.data() + at != theirs.bytes.data())
      reading(r, r + 1, [&] { std::memcpy(out.data() + at, theirs.bytes.data(), static_cast<size_t>(count)); });
    at += count;
  }
  close();
}

void ThreadsCommunicator::reduce_scatter_sum(std::span<float> out, std::span<const float> in, std::span<const int64_t> counts) {
  check_counts("reduce_scatter_sum", "float", counts, size(), in.size());
  if (std::cmp_not_equal(out.size(), counts[static_cast<size_t>(rank_)]))
    throw Error(Error::Kind::internal, fmt::format("reduce_scatter_sum: rank {} gets {} floats in a buffer of {}; wanted: equal sizes", rank_,
                                                   counts[static_cast<size_t>(rank_)], out.size()));
  post("reduce_scatter_sum", std::as_bytes(in), counts);
  const int64_t begin = offset_of(counts, rank_);
  for (int r = 0; r < size(); ++r) {
    const Post& theirs = other(r);
    if (!std::ranges::equal(theirs.counts, counts))
      fail(Error::Kind::internal, fmt::format("reduce_scatter_sum: {} cuts its row at [{}], {} at [{}]; wanted: the same counts on every rank",
                                              group_->describe(r), fmt::join(theirs.counts, ", "), group_->describe(rank_), fmt::join(counts, ", ")));
    const std::byte* row = theirs.bytes.data() + begin * static_cast<int64_t>(sizeof(float));
    reading(r, r + 1, [&] {
      if (r > 0) add(out, row);
      else if (!out.empty()) std::memcpy(out.data(), row, out.size_bytes());
    });
  }
  close();
}

void ThreadsCommunicator::all_to_all(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> send,
                                     std::span<const int64_t> receive) {
  check_counts("all_to_all", "send", send, size(), in.size());
  check_counts("all_to_all", "receive", receive, size(), out.size());
  post("all_to_all", in, send);
  int64_t at = 0;
  for (int r = 0; r < size(); ++r) {
    const Post& theirs = other(r);
    const int64_t count = receive[static_cast<size_t>(r)];
    if (theirs.counts[static_cast<size_t>(rank_)] != count)
      fail(Error::Kind::internal, fmt::format("all_to_all: {} sends {} bytes to {}, which expects {}; wanted: equal sizes", group_->describe(r),
                                              theirs.counts[static_cast<size_t>(rank_)], group_->describe(rank_), count));
    if (count > 0)
      reading(r, r + 1, [&] { std::memcpy(out.data() + at, theirs.bytes.data() + offset_of(theirs.counts, rank_), static_cast<size_t>(count)); });
    at += count;
  }
  close();
}

void ThreadsCommunicator::broadcast(std::vector<std::byte>& bytes, int root) {
  check_rank("broadcast", root, size());
  post("broadcast", rank_ == root ? std::span<const std::byte>(bytes) : std::span<const std::byte>());
  for (int r = 0; r < size(); ++r) {
    const Post& theirs = other(r);
    if (r == root && r != rank_) reading(r, r + 1, [&] { bytes.assign(theirs.bytes.begin(), theirs.bytes.end()); });
  }
  close();
}

void ThreadsCommunicator::send(std::span<const std::byte> bytes, int to) {
  check_peer("send", to, rank_, size());
  check_alive();
  Channel& channel = group_->channels[static_cast<size_t>(rank_ * size() + to)];
  const uint32_t number = channel.sent.load();
  wait(channel.received, number + 1 - kMessagesAhead, to, "receive");
  channel.messages[number % kMessagesAhead].assign(bytes.begin(), bytes.end());
  channel.sent.advance();
}

void ThreadsCommunicator::receive(std::span<std::byte> bytes, int from) {
  check_peer("receive", from, rank_, size());
  check_alive();
  Channel& channel = group_->channels[static_cast<size_t>(from * size() + rank_)];
  const uint32_t number = channel.received.load();
  wait(channel.sent, number + 1, from, "send");
  const std::vector<std::byte>& message = channel.messages[number % kMessagesAhead];
  if (message.size() != bytes.size())
    fail(Error::Kind::internal, fmt::format("receive: {} sent {} bytes to {}, which expects {}; wanted: equal sizes", group_->describe(from),
                                            message.size(), group_->describe(rank_), bytes.size()));
  std::ranges::copy(message, bytes.begin());
  channel.received.advance();
}

std::unique_ptr<Communicator> ThreadsCommunicator::split(int color, int key) {
  const std::array<int, 2> mine{color, key};
  const std::vector<int64_t> counts(static_cast<size_t>(size()), sizeof mine);
  std::vector<std::array<int, 2>> all(static_cast<size_t>(size()));
  all_gather(std::as_writable_bytes(std::span(all)), std::as_bytes(std::span(mine)), counts);

  std::vector<std::pair<int, int>> order;  // key, rank here
  for (int r = 0; r < size(); ++r)
    if (all[static_cast<size_t>(r)][0] == color) order.emplace_back(all[static_cast<size_t>(r)][1], r);
  std::ranges::sort(order);
  std::vector<int> members;
  for (const auto& [_, r] : order) members.push_back(group_->members[static_cast<size_t>(r)]);
  const int place = static_cast<int>(std::ranges::find(order, std::pair(key, rank_)) - order.begin());

  const std::lock_guard lock(group_->mutex);
  const std::pair name(splits_++, color);
  auto& [child, fetched] = group_->children[name];
  if (!child) child = std::make_shared<Group>(group_->job, members);
  std::shared_ptr<Group> group = child;
  if (++fetched == static_cast<int>(members.size())) group_->children.erase(name);
  return std::make_unique<ThreadsCommunicator>(std::move(group), place);
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_threads(int size, int timeout_ms) {
  constexpr int kMaxSize = 1024;
  if (size < 1 || size > kMaxSize)
    throw Error(Error::Kind::bad_input, fmt::format("{} ranks in one process; wanted: 1 to {}", size, kMaxSize));
  std::vector<int> members(static_cast<size_t>(size));
  std::iota(members.begin(), members.end(), 0);
  const auto group = std::make_shared<Group>(std::make_shared<Job>(size, timeout_ms), std::move(members));
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<ThreadsCommunicator>(group, r));
  return ranks;
}

}  // namespace conclave
