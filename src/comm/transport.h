#pragma once
// How bytes travel between processes: the part of a communicator that differs between MPI and sockets. Everything above it (order of sums,
// groups, time limits, watching the peers) is peers.cpp. Private to comm.
// Data calls come from one thread at a time; tell() and hear() from the watching thread alone. Ranks are those of the whole job.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"

namespace conclave::comm {

using Bytes = std::span<const std::byte>;

struct ControlMessage {
  int from = 0;
  std::string text;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Sends `head` and `body` as one message; keeps a copy and does not wait for the receiver. False: `to` has too many unread messages, ask again.
  virtual bool send(int to, uint32_t tag, Bytes head, Bytes body) = 0;
  /// The next message of `from` with `tag`, in the order it was sent; nothing after `wait`. Valid until the next call.
  virtual std::optional<Bytes> receive(int from, uint32_t tag, std::chrono::milliseconds wait) = 0;
  /// Whether messages of this rank, those with `tag` or all, need this process to move on.
  virtual bool pending(std::optional<uint32_t> tag = std::nullopt) = 0;

  /// Small messages besides the data; tell() never waits, and may lose a message to a rank that does not read.
  virtual void tell(int to, std::string_view text) = 0;
  virtual std::optional<ControlMessage> hear() = 0;
  /// A rank whose connection has ended, each once.
  virtual std::optional<int> lost() { return std::nullopt; }
  /// Whether all ranks have to end together.
  virtual bool ends_together() const = 0;
  /// The last call. `clean`: no rank has failed.
  virtual void finish(bool clean) = 0;
};

struct PeerLimits {
  int call_ms = 0;        ///< longest wait for a peer that is alive; 0: for ever
  int silence_ms = 4000;  ///< a peer that has not been heard of for so long is dead
};

std::unique_ptr<Communicator> make_peers(std::unique_ptr<Transport> transport, PeerLimits limits);

}  // namespace conclave::comm
