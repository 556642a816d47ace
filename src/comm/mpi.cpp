// Messages through MPI. One lock serialises all calls, so that MPI itself needs none; nothing here waits inside MPI, so that a dead or
// stopped peer can be noticed. Messages longer than the eager limit move on in pending().
#include <mpi.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "comm/transport.h"
#include "core/error.h"
#include "core/signal.h"
#include "core/thread_pool.h"

namespace conclave {
namespace {

using namespace comm;
using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(100);
constexpr auto kYield = std::chrono::milliseconds(2);
constexpr auto kNap = std::chrono::microseconds(50);

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int size = 0;
  MPI_Error_string(status, text, &size);
  throw Error(Error::Kind::network, fmt::format("{} failed: {}", call, std::string_view(text, static_cast<size_t>(size))));
}

/// Bytes without the cost of zeros.
struct Block {
  std::unique_ptr<std::byte[]> bytes;
  size_t capacity = 0;
  void reserve(size_t size) {
    if (size <= capacity) return;
    bytes.reset(new std::byte[size]);
    capacity = size;
  }
};

struct Sending {
  MPI_Request request = MPI_REQUEST_NULL;
  std::optional<uint32_t> tag;  // none: a control message
  Block block;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport() {
    int provided = 0, ready = 0;
    check(MPI_Initialized(&ready), "MPI_Initialized");
    if (!ready) check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
    else check(MPI_Query_thread(&provided), "MPI_Query_thread");
    if (provided < MPI_THREAD_SERIALIZED)
      throw Error(Error::Kind::unsupported, fmt::format("this MPI offers thread level {}; wanted: MPI_THREAD_SERIALIZED ({})", provided, MPI_THREAD_SERIALIZED));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
    for (MPI_Comm* comm : {&data_, &control_}) {
      check(MPI_Comm_dup(MPI_COMM_WORLD, comm), "MPI_Comm_dup");
      MPI_Comm_set_errhandler(*comm, MPI_ERRORS_RETURN);
    }
    MPI_Comm host = MPI_COMM_NULL;
    int neighbours = 1;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host), "MPI_Comm_split_type");
    MPI_Comm_size(host, &neighbours);
    MPI_Comm_free(&host);
    spin_ = neighbours <= available_processors();
  }

  std::string_view name() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool ends_together() const override { return true; }

  bool send(int to, uint32_t tag, Bytes head, Bytes body) override {
    const std::lock_guard lock(mutex_);
    start(data_, to, tag, head, body);
    return true;
  }
  std::optional<Bytes> receive(int from, uint32_t tag, std::chrono::milliseconds wait) override;
  bool pending(std::optional<uint32_t> tag) override {
    const std::lock_guard lock(mutex_);
    reap();
    for (const Sending& sending : sendings_)
      if (!tag || sending.tag == tag) return true;
    return false;
  }

  void tell(int to, std::string_view text) override {
    const std::lock_guard lock(mutex_);
    if (sendings_.size() > kMaxUnread) return;
    start(control_, to, std::nullopt, std::as_bytes(std::span(text)), {});
  }
  std::optional<ControlMessage> hear() override;
  void finish(bool clean) override;

 private:
  static constexpr size_t kMaxUnread = 10'000;

  void start(MPI_Comm comm, int to, std::optional<uint32_t> tag, Bytes head, Bytes body);
  void reap();
  bool try_receive(int from, uint32_t tag);
  static int int_of(size_t bytes) {
    if (bytes > static_cast<size_t>(std::numeric_limits<int>::max()))
      throw Error(Error::Kind::unsupported, fmt::format("a message of {} bytes; MPI takes up to {}: cut the batch", bytes, std::numeric_limits<int>::max()));
    return static_cast<int>(bytes);
  }

  int rank_ = 0, size_ = 1;
  MPI_Comm data_ = MPI_COMM_NULL, control_ = MPI_COMM_NULL;
  bool spin_ = true;
  std::mutex mutex_;  // of all MPI calls and of everything below
  std::deque<Sending> sendings_;
  std::vector<Block> spare_;
  Block received_;
  size_t received_size_ = 0;
  MPI_Request receiving_ = MPI_REQUEST_NULL;  // a message that has been matched and is on its way
};

void MpiTransport::start(MPI_Comm comm, int to, std::optional<uint32_t> tag, Bytes head, Bytes body) {
  const int count = int_of(head.size() + body.size());
  reap();
  Sending sending;
  sending.tag = tag;
  if (!spare_.empty()) {
    sending.block = std::move(spare_.back());
    spare_.pop_back();
  }
  sending.block.reserve(head.size() + body.size());
  std::ranges::copy(head, sending.block.bytes.get());
  std::ranges::copy(body, sending.block.bytes.get() + head.size());
  check(MPI_Isend(sending.block.bytes.get(), count, MPI_BYTE, to, static_cast<int>(tag.value_or(0)), comm, &sending.request), "MPI_Isend");
  int done = 0;
  check(MPI_Test(&sending.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
  if (done) spare_.push_back(std::move(sending.block));
  else sendings_.push_back(std::move(sending));
}

void MpiTransport::reap() {
  for (size_t i = 0; i < sendings_.size();) {
    int done = 0;
    check(MPI_Test(&sendings_[i].request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (!done) {
      ++i;
      continue;
    }
    spare_.push_back(std::move(sendings_[i].block));
    sendings_.erase(sendings_.begin() + static_cast<ptrdiff_t>(i));
  }
}

bool MpiTransport::try_receive(int from, uint32_t tag) {
  const std::lock_guard lock(mutex_);
  int done = 0;
  if (receiving_ == MPI_REQUEST_NULL) {
    MPI_Message message;
    MPI_Status status;
    check(MPI_Improbe(from, static_cast<int>(tag), data_, &done, &message, &status), "MPI_Improbe");
    if (!done) return false;
    int count = 0;
    check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
    received_size_ = static_cast<size_t>(count);
    received_.reserve(received_size_);
    check(MPI_Imrecv(received_.bytes.get(), count, MPI_BYTE, &message, &receiving_), "MPI_Imrecv");
  }
  check(MPI_Test(&receiving_, &done, MPI_STATUS_IGNORE), "MPI_Test");
  return done != 0;
}

std::optional<Bytes> MpiTransport::receive(int from, uint32_t tag, std::chrono::milliseconds wait) {
  if (try_receive(from, tag)) return Bytes(received_.bytes.get(), received_size_);
  const auto begin = Clock::now();
  for (auto now = begin; now - begin < wait; now = Clock::now()) {
    if (try_receive(from, tag)) return Bytes(received_.bytes.get(), received_size_);
    if (spin_ && now - begin < kSpin) spin_pause();
    else if (now - begin < kYield) std::this_thread::yield();
    else std::this_thread::sleep_for(kNap);
  }
  return std::nullopt;
}

std::optional<ControlMessage> MpiTransport::hear() {
  constexpr int kMaxBytes = 4096;
  const std::lock_guard lock(mutex_);
  int found = 0, count = 0;
  MPI_Message message;
  MPI_Status status;
  check(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, control_, &found, &message, &status), "MPI_Improbe");
  if (!found) return std::nullopt;
  check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
  if (count > kMaxBytes) throw Error(Error::Kind::network, fmt::format("rank {} sent a control message of {} bytes; wanted: at most {}", status.MPI_SOURCE, count, kMaxBytes));
  ControlMessage heard{.from = status.MPI_SOURCE, .text = std::string(static_cast<size_t>(count), '\0')};
  check(MPI_Mrecv(heard.text.data(), count, MPI_BYTE, &message, MPI_STATUS_IGNORE), "MPI_Mrecv");  // short: it is here already
  return heard;
}

/// After a failure MPI is left as it is: its own end would wait for the dead.
void MpiTransport::finish(bool clean) {
  if (!clean) return;
  constexpr auto kLimit = std::chrono::seconds(2);
  for (const auto begin = Clock::now(); pending(std::nullopt) && Clock::now() - begin < kLimit;) {
    hear();
    std::this_thread::yield();
  }
  const std::lock_guard lock(mutex_);
  MPI_Comm_free(&data_);
  MPI_Comm_free(&control_);
  MPI_Finalize();
}

}  // namespace

std::unique_ptr<Communicator> make_mpi(int timeout_ms) {
  int ended = 0;
  MPI_Finalized(&ended);
  if (ended) throw Error(Error::Kind::internal, "make_mpi: MPI has ended in this process; one communicator per process");
  auto transport = std::make_unique<MpiTransport>();
  if (transport->size() == 1) {
    transport->finish(true);
    return make_self();
  }
  return make_peers(std::move(transport), {.call_ms = timeout_ms});
}

}  // namespace conclave
