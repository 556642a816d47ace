#include <algorithm>
#include <mutex>
#include <string>

#include <fmt/format.h>

#include "comm/checks.h"
#include "comm/communicator.h"

namespace conclave {
namespace {

using namespace comm;

class SelfCommunicator final : public Communicator {
 public:
  std::string_view name() const override { return "self"; }
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void all_reduce_sum(std::span<float>) override { check_alive(); }
  void all_reduce_max(std::span<float>) override { check_alive(); }
  void all_gather(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> counts) override {
    check_alive();
    check_counts("all_gather", "byte", counts, 1, out.size());
    copy("all_gather", out, in);
  }
  void reduce_scatter_sum(std::span<float> out, std::span<const float> in, std::span<const int64_t> counts) override {
    check_alive();
    check_counts("reduce_scatter_sum", "float", counts, 1, in.size());
    copy("reduce_scatter_sum", std::as_writable_bytes(out), std::as_bytes(in));
  }
  void all_to_all(std::span<std::byte> out, std::span<const std::byte> in, std::span<const int64_t> send,
                  std::span<const int64_t> receive) override {
    check_alive();
    check_counts("all_to_all", "send", send, 1, in.size());
    check_counts("all_to_all", "receive", receive, 1, out.size());
    copy("all_to_all", out, in);
  }
  void broadcast(std::vector<std::byte>&, int root) override {
    check_alive();
    check_rank("broadcast", root, 1);
  }
  void send(std::span<const std::byte>, int to) override { check_peer("send", to, 0, 1); }
  void receive(std::span<std::byte>, int from) override { check_peer("receive", from, 0, 1); }
  void barrier() override { check_alive(); }

  std::unique_ptr<Communicator> split(int, int) override {
    check_alive();
    return make_self();
  }
  void phase(std::string_view) override {}
  void abort(std::string_view reason) override {
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = fmt::format("rank 0 ended: {}", reason);
  }

 private:
  void check_alive() const {
    const std::lock_guard lock(mutex_);
    if (!reason_.empty()) throw Error(Error::Kind::network, reason_);
  }
  static void copy(std::string_view call, std::span<std::byte> out, std::span<const std::byte> in) {
    if (out.size() != in.size())
      throw Error(Error::Kind::internal, fmt::format("{}: {} bytes go to {} bytes; wanted: equal sizes", call, in.size(), out.size()));
    if (out.data() != in.data()) std::ranges::copy(in, out.begin());
  }
  mutable std::mutex mutex_;
  std::string reason_;
};

}  // namespace

std::unique_ptr<Communicator> make_self() { return std::make_unique<SelfCommunicator>(); }

}  // namespace conclave
