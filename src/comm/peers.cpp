// Ranks as processes: collectives over messages, and a thread in each process that tells the others that it is alive, what it does and why
// it ends. A peer that ends, stops or is cut off therefore ends every call of everybody within PeerLimits::silence_ms, also while it computes.
#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "comm/checks.h"
#include "comm/transport.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kBeat = milliseconds(250);
constexpr auto kTick = milliseconds(20);
/// A message may overtake its sender's farewell by no more than this.
constexpr auto kFarewell = milliseconds(500);
constexpr size_t kMaxText = 1000;
/// Rows up to this size go to everybody whole; longer ones in shares, which takes two exchanges.
constexpr size_t kWholeBytes = 32 << 10;

/// First letter of a control message; the rest is text.
enum class News : char { beat = 'b', end = 'e', bye = 'y' };

struct Peer {
  Clock::time_point heard;
  std::optional<Clock::time_point> lost;  // its connection ended
  std::optional<Clock::time_point> left;  // it said that it ends
  std::string phase;
};

/// One process of the job: its transport, its peers and the end of it all.
class World {
 public:
  World(std::unique_ptr<Transport> transport, PeerLimits limits)
      : transport_(std::move(transport)), limits_(limits), peers_(static_cast<size_t>(transport_->size())), exceptions_(std::uncaught_exceptions()) {
    for (Peer& peer : peers_) peer.heard = Clock::now();
    watcher_ = std::thread([this] {
      try {
        watch();
      } catch (const Error& e) {
        end(e.kind, e.what());
      }
    });
  }
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Transport& transport() { return *transport_; }
  void send(int to, uint32_t tag, Bytes head, Bytes body, std::string_view call);
  Bytes receive(int from, uint32_t tag, std::string_view call);
  void flush(uint32_t tag);
  void check() {
    if (!ended_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex_);
    throw Error(kind_, reason_);
  }
  [[noreturn]] void fail(Error::Kind kind, const std::string& text) {
    end(kind, text);
    check();
    throw Error(kind, text);
  }
  void end(Error::Kind kind, std::string_view text);
  void phase(std::string_view what) {
    const std::lock_guard lock(mutex_);
    peers_[static_cast<size_t>(transport_->rank())].phase = what.substr(0, kMaxText);
    wake_.notify_one();
  }
  std::string describe(int rank) {
    const std::lock_guard lock(mutex_);
    return describe_locked(rank);
  }

  uint32_t next_group = 1;

 private:
  std::string describe_locked(int rank) const {
    const std::string& phase = peers_[static_cast<size_t>(rank)].phase;
    return phase.empty() ? fmt::format("rank {}", rank) : fmt::format("rank {} (phase {})", rank, phase);
  }
  void watch();
  void listen();
  void judge(Clock::time_point now);
  void tell_all(News news, const std::string& text);
  bool all_left();
  void take_leave();
  void end_locked(Error::Kind kind, std::string_view text);

  std::unique_ptr<Transport> transport_;
  PeerLimits limits_;
  std::atomic<bool> ended_{false};
  std::mutex mutex_;  // of everything below
  std::condition_variable wake_;
  std::vector<Peer> peers_;
  std::string reason_;
  Error::Kind kind_ = Error::Kind::network;
  bool stop_ = false;
  int exceptions_;
  std::thread watcher_;
};

void World::end_locked(Error::Kind kind, std::string_view text) {
  if (ended_.load(std::memory_order_relaxed)) return;
  reason_ = text.substr(0, kMaxText);
  kind_ = kind;
  ended_.store(true, std::memory_order_release);
  wake_.notify_one();
}

void World::end(Error::Kind kind, std::string_view text) {
  const std::lock_guard lock(mutex_);
  end_locked(kind, text);
}

void World::tell_all(News news, const std::string& text) {
  for (int r = 0; r < transport_->size(); ++r)
    if (r != transport_->rank()) transport_->tell(r, static_cast<char>(news) + text);
}

/// Reads the others' news.
void World::listen() {
  while (const auto message = transport_->hear()) {
    if (message->text.empty() || message->from < 0 || message->from >= transport_->size()) continue;
    const std::lock_guard lock(mutex_);
    Peer& peer = peers_[static_cast<size_t>(message->from)];
    peer.heard = Clock::now();
    const std::string text = message->text.substr(1, kMaxText);
    switch (static_cast<News>(message->text.front())) {
      case News::beat: peer.phase = text; break;
      case News::end: end_locked(Error::Kind::network, text); break;
      case News::bye: peer.left = Clock::now(); break;
    }
  }
  while (const auto rank = transport_->lost()) {
    const std::lock_guard lock(mutex_);
    peers_[static_cast<size_t>(*rank)].lost = Clock::now();
  }
}

void World::judge(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  for (int r = 0; r < transport_->size(); ++r) {
    const Peer& peer = peers_[static_cast<size_t>(r)];
    if (r == transport_->rank() || peer.left) continue;
    if (peer.lost && now - *peer.lost > kFarewell)
      end_locked(Error::Kind::network, fmt::format("{} is gone: its process or its connection has ended; see its own message", describe_locked(r)));
    else if (now - peer.heard > milliseconds(limits_.silence_ms))
      end_locked(Error::Kind::network, fmt::format("{} has not been heard of for {} ms: its process is stopped, or its host is down or cut off",
                                                   describe_locked(r), limits_.silence_ms));
  }
}

void World::watch() {
  Clock::time_point beaten{}, looked = Clock::now();
  std::string phase;
  bool told = false;
  std::unique_lock lock(mutex_);
  while (true) {
    const bool stop = stop_, ended = ended_.load(std::memory_order_relaxed);
    const std::string current = peers_[static_cast<size_t>(transport_->rank())].phase, reason = reason_;
    lock.unlock();
    const auto now = Clock::now();
    if (ended && !told) tell_all(News::end, reason);
    told = told || ended;
    if (!ended && (now - beaten >= kBeat || current != phase)) {
      tell_all(News::beat, current);
      beaten = now;
      phase = current;
    }
    // A process that was stopped itself has heard nobody for a while; that says nothing about the others.
    if (now - looked > milliseconds(limits_.silence_ms) / 2) {
      const std::lock_guard relock(mutex_);
      for (Peer& peer : peers_) peer.heard = now;
    }
    looked = now;
    listen();
    if (!ended) judge(now);
    const bool busy = transport_->pending();
    lock.lock();
    if (stop) return;
    if (stop_ || (ended_.load(std::memory_order_relaxed) && !told)) continue;
    wake_.wait_for(lock, busy ? milliseconds(1) : kTick);
  }
}

bool World::all_left() {
  const std::lock_guard lock(mutex_);
  for (int r = 0; r < transport_->size(); ++r)
    if (r != transport_->rank() && !peers_[static_cast<size_t>(r)].left) return false;
  return true;
}

/// Every rank says that it ends. Where all have to end together it waits for the others, who are watched meanwhile.
World::~World() {
  if (std::uncaught_exceptions() > exceptions_)
    end(Error::Kind::network, fmt::format("{} ended by an error: see its own message", describe(transport_->rank())));
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  watcher_.join();
  try {
    if (!ended_.load()) take_leave();
    transport_->finish(!ended_.load());
  } catch (const Error&) {  // nobody is left to be told
  }
}

void World::take_leave() {
  tell_all(News::bye, "");
  for (auto told = Clock::now(); transport_->ends_together() && !ended_.load() && !all_left(); std::this_thread::sleep_for(milliseconds(1))) {
    listen();
    judge(Clock::now());
    if (Clock::now() - told < kBeat) continue;
    tell_all(News::bye, "");
    told = Clock::now();
  }
}

void World::send(int to, uint32_t tag, Bytes head, Bytes body, std::string_view call) {
  const auto start = Clock::now();
  while (!transport_->send(to, tag, head, body)) {
    check();
    if (limits_.call_ms > 0 && Clock::now() - start > milliseconds(limits_.call_ms))
      fail(Error::Kind::network, fmt::format("{} did not take the messages of {} within {} ms of {}: it hangs, or its work takes longer than the limit",
                                             describe(to), call, limits_.call_ms, describe(transport_->rank())));
    std::this_thread::sleep_for(milliseconds(1));
  }
}

Bytes World::receive(int from, uint32_t tag, std::string_view call) {
  const auto start = Clock::now();
  while (true) {
    if (const auto message = transport_->receive(from, tag, kTick)) return *message;
    check();
    const auto now = Clock::now();
    std::unique_lock lock(mutex_);
    const auto left = peers_[static_cast<size_t>(from)].left;
    lock.unlock();
    if (left && now - *left > kFarewell)
      fail(Error::Kind::network, fmt::format("{} left while {} waited for it in {}: see its own message", describe(from),
                                             describe(transport_->rank()), call));
    if (limits_.call_ms > 0 && now - start > milliseconds(limits_.call_ms))
      fail(Error::Kind::network, fmt::format("{} did not come to {} within {} ms of {}: it hangs, or its work takes longer than the limit",
                                             describe(from), call, limits_.call_ms, describe(transport_->rank())));
  }
}

/// Waits until this rank's messages have gone to their receivers, which are waiting for them.
void World::flush(uint32_t tag) {
  while (transport_->pending(tag)) check();
}

/// Opens every message: enough to see that the ranks are in the same call.
struct Head {
  std::array<char, 20> call{};
  uint32_t number = 0;
  uint64_t bytes = 0;
};
static_assert(sizeof(Head) == 32);

class PeersCommunicator final : public Communicator {
 public:
  PeersCommunicator(std::shared_ptr<World> world, std::vector<int> members, int rank, uint32_t group)
      : world_(std::move(world)), members_(std::move(members)), rank_(rank), tag_(group * 2) {}

  std::string_view name() const override { return world_->transport().name(); }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  void all_reduce_sum(std::span<float> inout) override { all_reduce("all_reduce_sum", inout, add); }
  void all_reduce_max(std::span<float> inout) override { all_reduce("all_reduce_max", inout, keep_greater); }
  void all_gather(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> counts) override;
  void reduce_scatter_sum(std::span<float> out, std::span<const float> in, std::span<const int64_t> counts) override;
  void all_to_all(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> send,
                  std::span<const int64_t> receive) override;
  void broadcast(std::vector<std::byte>& bytes, int root) override;
  void send(std::span<const std::byte> bytes, int to) override;
  void receive(std::span<std::byte> bytes, int from) override;
  void barrier() override {
    begin("barrier");
    for_others([&](int r) { put(r, {}); });
    for_others([&](int r) { take(r, 0); });
    world_->flush(tag_);
  }
  std::unique_ptr<Communicator> split(int color, int key) override;
  void phase(std::string_view what) override { world_->phase(what); }
  void abort(std::string_view reason) override {
    world_->end(Error::Kind::network, fmt::format("{} ended: {}", describe(rank_), reason));
  }

 private:
  void all_reduce(std::string_view call, std::span<float> inout, Combine combine);
  void all_reduce_shares(std::span<float> inout, Combine combine);
  /// out = the sum over all ranks, in rank order, of what arrives from them; `own` is this rank's.
  void combine_all(std::span<float> out, std::span<const float> own, Combine combine);

  void begin(std::string_view call) {
    world_->check();
    head_ = Head{.number = head_.number + 1};
    call.copy(head_.call.data(), head_.call.size() - 1);
  }
  template <class F>
  void for_others(F f) {
    for (int i = 1; i < size(); ++i) f((rank_ + i) % size());
  }
  void put(int to, Bytes bytes) {
    head_.bytes = bytes.size();
    world_->send(members_[static_cast<size_t>(to)], tag_, std::as_bytes(std::span(&head_, 1)), bytes, head_.call.data());
  }
  /// The body of the next message of `from`: `wanted` bytes, or any number.
  Bytes take(int from, std::optional<size_t> wanted);
  Bytes open(Bytes message, int from, std::string_view call, uint32_t number, std::optional<size_t> wanted);
  std::string describe(int rank) { return world_->describe(members_[static_cast<size_t>(rank)]); }

  std::shared_ptr<World> world_;
  std::vector<int> members_;  // ranks of the job
  int rank_;
  uint32_t tag_;  // messages between two ranks have the next one
  Head head_;     // of the call under way
  std::vector<float> own_;
};

Bytes PeersCommunicator::open(Bytes message, int from, std::string_view call, uint32_t number, std::optional<size_t> wanted) {
  Head head;
  if (message.size() < sizeof head) world_->fail(Error::Kind::network, fmt::format("{} sent a message of {} bytes; wanted: at least {}", describe(from), message.size(), sizeof head));
  std::memcpy(&head, message.data(), sizeof head);
  head.call.back() = '\0';
  const Bytes body = message.subspan(sizeof head);
  if (head.bytes != body.size()) world_->fail(Error::Kind::network, fmt::format("{} sent {} bytes and announced {}", describe(from), body.size(), head.bytes));
  if (head.call.data() != call || head.number != number)
    world_->fail(Error::Kind::internal, fmt::format("{} calls {} (its call {}) while {} calls {} (its call {}): all ranks of a group make the same calls in the same order",
                                                    describe(from), head.call.data(), head.number, describe(rank_), call, number));
  if (wanted && *wanted != body.size())
    world_->fail(Error::Kind::internal, fmt::format("{}: {} brings {} bytes, {} expects {}; wanted: equal sizes", call, describe(from), body.size(),
                                                    describe(rank_), *wanted));
  return body;
}

Bytes PeersCommunicator::take(int from, std::optional<size_t> wanted) {
  const std::string_view call = head_.call.data();
  return open(world_->receive(members_[static_cast<size_t>(from)], tag_, call), from, call, head_.number, wanted);
}

void PeersCommunicator::combine_all(std::span<float> out, std::span<const float> own, Combine combine) {
  for (int r = 0; r < size(); ++r) {
    const Bytes row = r == rank_ ? std::as_bytes(own) : take(r, out.size_bytes());
    if (r > 0) combine(out, row.data());
    else if (!row.empty()) std::memcpy(out.data(), row.data(), row.size());
  }
}

void PeersCommunicator::all_reduce(std::string_view call, std::span<float> inout, Combine combine) {
  begin(call);
  if (inout.size_bytes() > kWholeBytes && size() > 2) return all_reduce_shares(inout, combine);
  own_.assign(inout.begin(), inout.end());
  for_others([&](int r) { put(r, std::as_bytes(std::span(own_))); });
  combine_all(inout, own_, combine);
  world_->flush(tag_);
}

/// Rank r adds up everybody's r-th share and sends it to all.
void PeersCommunicator::all_reduce_shares(std::span<float> inout, Combine combine) {
  for_others([&](int r) { put(r, std::as_bytes(share_of(inout, r, size()))); });
  const std::span<float> mine = share_of(inout, rank_, size());
  own_.assign(mine.begin(), mine.end());
  combine_all(mine, own_, combine);
  for_others([&](int r) { put(r, std::as_bytes(mine)); });
  for_others([&](int r) {
    const std::span<float> theirs = share_of(inout, r, size());
    const Bytes sum = take(r, theirs.size_bytes());
    if (!sum.empty()) std::memcpy(theirs.data(), sum.data(), sum.size());
  });
  world_->flush(tag_);
}

void PeersCommunicator::all_gather(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> counts) {
  check_counts("all_gather", "byte", counts, size(), out.size());
  if (std::cmp_not_equal(in.size(), counts[static_cast<size_t>(rank_)]))
    throw Error(Error::Kind::internal, fmt::format("all_gather: rank {} brings {} bytes and counts {}; wanted: equal sizes", rank_, in.size(),
                                                   counts[static_cast<size_t>(rank_)]));
  begin("all_gather");
  for_others([&](int r) { put(r, in); });
  const auto part = [&](int r) { return out.subspan(static_cast<size_t>(offset_of(counts, r)), static_cast<size_t>(counts[static_cast<size_t>(r)])); };
  if (!in.empty() && part(rank_).data() != in.data()) std::memcpy(part(rank_).data(), in.data(), in.size());
  for_others([&](int r) { std::ranges::copy(take(r, part(r).size()), part(r).begin()); });
  world_->flush(tag_);
}

void PeersCommunicator::reduce_scatter_sum(std::span<float> out, std::span<const float> in, std::span<const int64_t> counts) {
  check_counts("reduce_scatter_sum", "float", counts, size(), in.size());
  if (std::cmp_not_equal(out.size(), counts[static_cast<size_t>(rank_)]))
    throw Error(Error::Kind::internal, fmt::format("reduce_scatter_sum: rank {} gets {} floats in a buffer of {}; wanted: equal sizes", rank_,
                                                   counts[static_cast<size_t>(rank_)], out.size()));
  begin("reduce_scatter_sum");
  const auto part = [&](int r) { return in.subspan(static_cast<size_t>(offset_of(counts, r)), static_cast<size_t>(counts[static_cast<size_t>(r)])); };
  for_others([&](int r) { put(r, std::as_bytes(part(r))); });
  combine_all(out, part(rank_), add);
  world_->flush(tag_);
}

void PeersCommunicator::all_to_all(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> send,
                                   std::span<const int64_t> receive) {
  check_counts("all_to_all", "send", send, size(), in.size());
  check_counts("all_to_all", "receive", receive, size(), out.size());
  if (send[static_cast<size_t>(rank_)] != receive[static_cast<size_t>(rank_)])
    throw Error(Error::Kind::internal, fmt::format("all_to_all: rank {} sends {} bytes to itself and expects {}; wanted: equal sizes", rank_,
                                                   send[static_cast<size_t>(rank_)], receive[static_cast<size_t>(rank_)]));
  begin("all_to_all");
  const auto from = [&](int r) { return in.subspan(static_cast<size_t>(offset_of(send, r)), static_cast<size_t>(send[static_cast<size_t>(r)])); };
  const auto to = [&](int r) { return out.subspan(static_cast<size_t>(offset_of(receive, r)), static_cast<size_t>(receive[static_cast<size_t>(r)])); };
  for_others([&](int r) { put(r, from(r)); });
  std::ranges::copy(from(rank_), to(rank_).begin());
  for_others([&](int r) { std::ranges::copy(take(r, to(r).size()), to(r).begin()); });
  world_->flush(tag_);
}

void PeersCommunicator::broadcast(std::vector<std::byte>& bytes, int root) {
  check_rank("broadcast", root, size());
  begin("broadcast");
  if (rank_ == root) {
    for_others([&](int r) { put(r, bytes); });
    return world_->flush(tag_);
  }
  const Bytes got = take(root, std::nullopt);
  bytes.assign(got.begin(), got.end());
}

void PeersCommunicator::send(std::span<const std::byte> bytes, int to) {
  check_peer("send", to, rank_, size());
  world_->check();
  Head head{.bytes = bytes.size()};
  std::string_view("send").copy(head.call.data(), head.call.size() - 1);
  world_->send(members_[static_cast<size_t>(to)], tag_ + 1, std::as_bytes(std::span(&head, 1)), bytes, "receive");
}

void PeersCommunicator::receive(std::span<std::byte> bytes, int from) {
  check_peer("receive", from, rank_, size());
  world_->check();
  std::ranges::copy(open(world_->receive(members_[static_cast<size_t>(from)], tag_ + 1, "send"), from, "send", 0, bytes.size()), bytes.begin());
}

/// A new group's number is above every number that one of its ranks knows: no two groups of a pair of ranks have the same.
std::unique_ptr<Communicator> PeersCommunicator::split(int color, int key) {
  struct Wish {
    int color, key;
    uint32_t next_group;
  };
  const Wish mine{color, key, world_->next_group};
  std::vector<Wish> wishes(members_.size());
  const std::vector<int64_t> counts(members_.size(), sizeof mine);
  all_gather(std::as_writable_bytes(std::span(wishes)), std::as_bytes(std::span(&mine, 1)), counts);

  uint32_t first = 0;
  std::vector<int> colors;
  std::vector<std::pair<int, int>> order;  // key, rank here
  for (int r = 0; r < size(); ++r) {
    const Wish& wish = wishes[static_cast<size_t>(r)];
    first = std::max(first, wish.next_group);
    if (std::ranges::find(colors, wish.color) == colors.end()) colors.push_back(wish.color);
    if (wish.color == color) order.emplace_back(wish.key, r);
  }
  std::ranges::sort(order);
  world_->next_group = first + static_cast<uint32_t>(colors.size());
  if (world_->next_group >= 1u << 30) world_->fail(Error::Kind::internal, "split: more than 2^30 groups in one job");
  std::vector<int> members;
  for (const auto& [_, r] : order) members.push_back(members_[static_cast<size_t>(r)]);
  const int place = static_cast<int>(std::ranges::find(order, std::pair(key, rank_)) - order.begin());
  const auto index = static_cast<uint32_t>(std::ranges::find(colors, color) - colors.begin());
  return std::make_unique<PeersCommunicator>(world_, std::move(members), place, first + index);
}

}  // namespace

std::unique_ptr<Communicator> make_peers(std::unique_ptr<Transport> transport, PeerLimits limits) {
  const int rank = transport->rank();
  std::vector<int> members(static_cast<size_t>(transport->size()));
  std::iota(members.begin(), members.end(), 0);
  return std::make_unique<PeersCommunicator>(std::make_shared<World>(std::move(transport), limits), std::move(members), rank, 0);
}

}  // namespace conclave::comm
