// Messages through ZeroMQ. Each rank listens on two addresses, for data and for control, and has one connection to each of the other ranks'.
// Rank 0 also listens at the rendezvous, where the others tell their addresses and learn everybody's and the job's token: a message without
// the token is dropped.
#include <zmq.h>

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/launch.h"
#include "comm/transport.h"
#include "core/error.h"
#include "core/json.h"

namespace conclave {
namespace {

using namespace comm;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int64_t kMaxMessage = int64_t{1} << 31;
constexpr int64_t kMaxControl = 8 << 10;
constexpr int kUnread = 256;  // messages, at each end of a connection
constexpr int kFarewellMs = 500;

[[noreturn]] void refuse(std::string_view what) {
  throw Error(Error::Kind::network, fmt::format("{}: {}", what, zmq_strerror(zmq_errno())));
}

class Socket {
 public:
  Socket(void* context, int type) : socket_(zmq_socket(context, type)) {
    if (!socket_) refuse("zmq_socket");
    set(ZMQ_LINGER, 0);
    set(ZMQ_SNDHWM, kUnread);
    set(ZMQ_RCVHWM, kUnread);
  }
  ~Socket() {
    if (socket_) zmq_close(socket_);
  }
  Socket(Socket&& other) noexcept : socket_(std::exchange(other.socket_, nullptr)) {}
  Socket& operator=(Socket&&) = delete;

  void* handle() const { return socket_; }
  void set(int option, int value) { zmq_setsockopt(socket_, option, &value, sizeof value); }
  void limit(int64_t bytes) { zmq_setsockopt(socket_, ZMQ_MAXMSGSIZE, &bytes, sizeof bytes); }
  bool bind(const std::string& endpoint) { return zmq_bind(socket_, endpoint.c_str()) == 0; }
  void connect(const std::string& endpoint) {
    if (zmq_connect(socket_, endpoint.c_str()) != 0) refuse(fmt::format("cannot connect to {}", endpoint));
  }
  std::string endpoint() const {
    std::array<char, 256> text{};
    size_t size = text.size();
    if (zmq_getsockopt(socket_, ZMQ_LAST_ENDPOINT, text.data(), &size) != 0) refuse("zmq_getsockopt");
    return text.data();
  }
  bool send(std::string_view text, int flags = 0) { return zmq_send(socket_, text.data(), text.size(), flags | ZMQ_DONTWAIT) >= 0; }
  bool readable(int wait_ms) const {
    zmq_pollitem_t item{socket_, 0, ZMQ_POLLIN, 0};
    return zmq_poll(&item, 1, wait_ms) > 0;
  }

 private:
  void* socket_;
};

class Message {
 public:
  Message() { zmq_msg_init(&message_); }
  explicit Message(size_t size) {
    if (zmq_msg_init_size(&message_, size) != 0) refuse(fmt::format("a message of {} bytes", size));
  }
  ~Message() { zmq_msg_close(&message_); }
  Message(Message&& other) noexcept {
    zmq_msg_init(&message_);
    zmq_msg_move(&message_, &other.message_);
  }
  Message& operator=(Message&& other) noexcept {
    zmq_msg_move(&message_, &other.message_);
    return *this;
  }
  std::byte* data() { return static_cast<std::byte*>(zmq_msg_data(&message_)); }
  Bytes bytes() const {
    auto* message = const_cast<zmq_msg_t*>(&message_);
    return {static_cast<const std::byte*>(zmq_msg_data(message)), zmq_msg_size(message)};
  }
  std::string text() const { return {reinterpret_cast<const char*>(bytes().data()), bytes().size()}; }
  bool more() const { return zmq_msg_more(const_cast<zmq_msg_t*>(&message_)) != 0; }
  bool receive(const Socket& from) { return zmq_msg_recv(&message_, from.handle(), ZMQ_DONTWAIT) >= 0; }
  bool send(const Socket& to) { return zmq_msg_send(&message_, to.handle(), ZMQ_DONTWAIT) >= 0; }

 private:
  zmq_msg_t message_;
};

/// The owner of the library's threads; outlives all sockets.
struct Context {
  Context() : handle(zmq_ctx_new()) {
    if (!handle) refuse("zmq_ctx_new");
  }
  ~Context() { zmq_ctx_term(handle); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  void* handle;
};

struct Envelope {
  uint64_t token = 0;
  int32_t from = 0;
  uint32_t tag = 0;
};

struct Address {
  std::string data, control;
};

/// IPv4 address of `host`, as text.
std::string resolve(const std::string& host) {
  const addrinfo hints{.ai_flags = 0, .ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_protocol = 0, .ai_addrlen = 0, .ai_addr = nullptr,
                       .ai_canonname = nullptr, .ai_next = nullptr};
  addrinfo* found = nullptr;
  if (const int status = getaddrinfo(host.c_str(), nullptr, &hints, &found); status != 0)
    throw Error(Error::Kind::network, fmt::format("MASTER_ADDR {}: {}; wanted: the name or the address of rank 0's host", host, gai_strerror(status)));
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(found->ai_addr)->sin_addr, text.data(), text.size());
  freeaddrinfo(found);
  return text.data();
}

/// The address by which this host reaches `address`.
std::string own_address(const std::string& address) {
  sockaddr_in there{}, here{};
  there.sin_family = AF_INET;
  there.sin_port = htons(9);
  inet_pton(AF_INET, address.c_str(), &there.sin_addr);
  socklen_t size = sizeof here;
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const bool known = fd >= 0 && connect(fd, reinterpret_cast<sockaddr*>(&there), sizeof there) == 0 &&
                     getsockname(fd, reinterpret_cast<sockaddr*>(&here), &size) == 0;
  if (fd >= 0) close(fd);
  if (!known) throw Error(Error::Kind::network, fmt::format("this host has no route to MASTER_ADDR {}: {}", address, std::strerror(errno)));
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, &here.sin_addr, text.data(), text.size());
  return text.data();
}

/// Binds to a free port of `address`, or of all addresses where it is not one of this host's; gives the endpoint for others.
std::string listen_on(Socket& socket, const std::string& address) {
  if (socket.bind(fmt::format("tcp://{}:*", address))) return socket.endpoint();
  if (!socket.bind("tcp://*:*")) refuse("cannot listen on any port");
  const std::string endpoint = socket.endpoint();
  return fmt::format("tcp://{}{}", address, endpoint.substr(endpoint.rfind(':')));
}

class SocketTransport final : public Transport {
 public:
  explicit SocketTransport(const Rendezvous& place);

  std::string_view name() const override { return "sockets"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool ends_together() const override { return false; }
  bool send(int to, uint32_t tag, Bytes head, Bytes body) override;
  std::optional<Bytes> receive(int from, uint32_t tag, milliseconds wait) override;
  bool pending(std::optional<uint32_t>) override { return false; }
  void tell(int to, std::string_view text) override;
  std::optional<ControlMessage> hear() override;
  std::optional<int> lost() override;
  void finish(bool) override {
    for (std::vector<Socket>* sockets : {&data_out_, &control_out_})
      for (Socket& socket : *sockets) socket.set(ZMQ_LINGER, kFarewellMs);
    if (meeting_) meeting_->set(ZMQ_LINGER, kFarewellMs);
  }

 private:
  void gather(const Rendezvous& place, const std::string& address, const Address& own);
  void report(const Rendezvous& place, const std::string& address, const Address& own);
  void connect();
  Message pack(uint32_t tag, Bytes head, Bytes body) const;
  std::optional<Envelope> unpack(const Message& message) const;

  int rank_, size_;
  Context context_;
  Socket data_in_{context_.handle, ZMQ_PULL}, control_in_{context_.handle, ZMQ_PULL};
  std::optional<Socket> meeting_;  // of rank 0; open until the end, so that every answer arrives
  std::vector<Socket> data_out_, control_out_, monitors_;
  std::vector<Address> addresses_;
  uint64_t token_ = 0;
  std::map<std::pair<int, uint32_t>, std::deque<Message>> inbox_;
  Message current_;
};

SocketTransport::SocketTransport(const Rendezvous& place) : rank_(place.rank), size_(place.size), addresses_(static_cast<size_t>(place.size)) {
  data_in_.limit(kMaxMessage);
  control_in_.limit(kMaxControl);
  const std::string master = resolve(place.address), mine = rank_ == 0 ? master : own_address(master);
  const Address own{listen_on(data_in_, mine), listen_on(control_in_, mine)};
  if (rank_ == 0) gather(place, master, own);
  else report(place, master, own);
  connect();
}

/// Rank 0: waits for the others, then tells everybody all addresses.
void SocketTransport::gather(const Rendezvous& place, const std::string& address, const Address& own) {
  meeting_.emplace(context_.handle, ZMQ_ROUTER);
  meeting_->limit(kMaxControl);
  bool bound = false;
  for (int port = place.port; !bound && port < place.port + kPortsTried; ++port)
    bound = meeting_->bind(fmt::format("tcp://{}:{}", address, port)) || (zmq_errno() != EADDRINUSE && meeting_->bind(fmt::format("tcp://*:{}", port)));
  if (!bound) refuse(fmt::format("no free port for the rendezvous at {}:{} to {}", address, place.port, place.port + kPortsTried - 1));

  std::random_device random;
  token_ = uint64_t{random()} << 32 | random();
  addresses_[0] = own;
  std::vector<std::string> guests(static_cast<size_t>(size_));  // how to answer them
  const auto end = Clock::now() + milliseconds(place.start_ms);
  for (int missing = size_ - 1; missing > 0;) {
    if (Clock::now() >= end) {
      std::vector<int> absent;
      for (int r = 1; r < size_; ++r)
        if (guests[static_cast<size_t>(r)].empty()) absent.push_back(r);
      throw Error(Error::Kind::network, fmt::format("ranks {} of {} did not come to the rendezvous at {} within {} ms: see their own messages, and check "
                                                    "that all have the same WORLD_SIZE, MASTER_ADDR, MASTER_PORT and job name",
                                                    fmt::join(absent, ", "), size_, meeting_->endpoint(), place.start_ms));
    }
    if (!meeting_->readable(50)) continue;
    Message guest, text;
    if (!guest.receive(*meeting_) || !guest.more() || !text.receive(*meeting_)) continue;
    while (text.more() && Message().receive(*meeting_)) {
    }
    const auto answer = [&](const nlohmann::ordered_json& json) {
      meeting_->send(guest.text(), ZMQ_SNDMORE);
      meeting_->send(json.dump());
    };
    try {
      const auto hello = parse_json(text.text(), "rendezvous", {.max_bytes = size_t{kMaxControl}, .max_depth = 4});
      if (hello.at("job") != place.job || hello.at("size") != size_) {
        answer({{"other", true}});
        continue;
      }
      const auto r = hello.at("rank").get<size_t>();
      if (r < guests.size() && guests[r] == guest.text()) continue;  // it has asked again
      if (r == 0 || r >= guests.size() || !guests[r].empty()) {
        answer({{"error", fmt::format("rank {} came to the rendezvous of {} ranks {}", r, size_, r > 0 && r < guests.size() ? "twice: two jobs without names of "
                                      "their own (CONCLAVE_JOB), or RANK is the same in two processes" : "; wanted: RANK below WORLD_SIZE, each once")}});
        continue;
      }
      addresses_[r] = {hello.at("data").get<std::string>(), hello.at("control").get<std::string>()};
      guests[r] = guest.text();
      --missing;
    } catch (const std::exception&) {  // somebody else's message
    }
  }
  nlohmann::ordered_json all{{"token", token_}, {"ranks", nlohmann::ordered_json::array()}};
  for (const Address& a : addresses_) all["ranks"].push_back({{"data", a.data}, {"control", a.control}});
  for (size_t r = 1; r < guests.size(); ++r) {
    meeting_->send(guests[r], ZMQ_SNDMORE);
    meeting_->send(all.dump());
  }
}

/// Other ranks: ask at all ports where rank 0 may be; the one that knows the job answers.
void SocketTransport::report(const Rendezvous& place, const std::string& address, const Address& own) {
  const std::string hello = nlohmann::ordered_json{{"job", place.job}, {"size", size_}, {"rank", rank_}, {"data", own.data}, {"control", own.control}}.dump();
  std::vector<Socket> doors;
  std::vector<zmq_pollitem_t> items;
  for (int port = place.port; port < place.port + kPortsTried; ++port) {
    Socket& door = doors.emplace_back(context_.handle, ZMQ_DEALER);
    door.set(ZMQ_RECONNECT_IVL, 100);
    door.connect(fmt::format("tcp://{}:{}", address, port));
    items.push_back({door.handle(), 0, ZMQ_POLLIN, 0});
  }
  const auto end = Clock::now() + milliseconds(place.start_ms);
  for (Clock::time_point now = Clock::now(), asked{}; now < end; now = Clock::now()) {
    if (now - asked > milliseconds(500)) {  // again and again: who sits at a port may change
      for (Socket& door : doors) door.send(hello);
      asked = now;
    }
    zmq_poll(items.data(), static_cast<int>(items.size()), 50);
    for (Socket& door : doors) {
      Message answer;
      if (!answer.receive(door)) continue;
      nlohmann::ordered_json json;
      try {
        json = parse_json(answer.text(), "rendezvous", {.max_depth = 4});
        if (json.contains("other")) continue;
        if (!json.contains("error")) {
          token_ = json.at("token").get<uint64_t>();
          if (json.at("ranks").size() != addresses_.size()) continue;
          for (size_t r = 0; r < addresses_.size(); ++r)
            addresses_[r] = {json["ranks"][r].at("data").get<std::string>(), json["ranks"][r].at("control").get<std::string>()};
          return;
        }
      } catch (const std::exception&) {  // somebody else's message
        continue;
      }
      throw Error(Error::Kind::bad_input, json["error"].is_string() ? json["error"].get<std::string>() : "rank 0 refuses this rank");
    }
  }
  throw Error(Error::Kind::network, fmt::format("rank 0 of job \"{}\" with {} ranks did not answer rank {} at {}:{} to {} within {} ms: see its own message, "
                                                "and check MASTER_ADDR, MASTER_PORT, WORLD_SIZE and the job's name",
                                                place.job, size_, rank_, place.address, place.port, place.port + kPortsTried - 1, place.start_ms));
}

void SocketTransport::connect() {
  for (int r = 0; r < size_; ++r) {
    Socket& data = data_out_.emplace_back(context_.handle, ZMQ_PUSH);
    Socket& control = control_out_.emplace_back(context_.handle, ZMQ_PUSH);
    Socket& monitor = monitors_.emplace_back(context_.handle, ZMQ_PAIR);
    if (r == rank_) continue;
    const std::string events = fmt::format("inproc://monitor-{}", r);
    zmq_socket_monitor(control.handle(), events.c_str(), ZMQ_EVENT_DISCONNECTED);
    monitor.connect(events);
    for (Socket* socket : {&data, &control}) socket->set(ZMQ_RECONNECT_IVL, -1);  // a lost connection is a lost rank
    data.connect(addresses_[static_cast<size_t>(r)].data);
    control.connect(addresses_[static_cast<size_t>(r)].control);
  }
}

Message SocketTransport::pack(uint32_t tag, Bytes head, Bytes body) const {
  const Envelope envelope{token_, rank_, tag};
  Message message(sizeof envelope + head.size() + body.size());
  std::memcpy(message.data(), &envelope, sizeof envelope);
  std::ranges::copy(head, message.data() + sizeof envelope);
  std::ranges::copy(body, message.data() + sizeof envelope + head.size());
  return message;
}

std::optional<Envelope> SocketTransport::unpack(const Message& message) const {
  Envelope envelope;
  if (message.bytes().size() < sizeof envelope || message.more()) return std::nullopt;
  std::memcpy(&envelope, message.bytes().data(), sizeof envelope);
  if (envelope.token != token_ || envelope.from < 0 || envelope.from >= size_ || envelope.from == rank_) return std::nullopt;
  return envelope;
}

bool SocketTransport::send(int to, uint32_t tag, Bytes head, Bytes body) {
  return pack(tag, head, body).send(data_out_[static_cast<size_t>(to)]);
}

std::optional<Bytes> SocketTransport::receive(int from, uint32_t tag, milliseconds wait) {
  const auto end = Clock::now() + wait;
  while (true) {
    if (const auto found = inbox_.find({from, tag}); found != inbox_.end() && !found->second.empty()) {
      current_ = std::move(found->second.front());
      found->second.pop_front();
      return current_.bytes().subspan(sizeof(Envelope));
    }
    const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now()).count();
    if (left < 0 || !data_in_.readable(static_cast<int>(left))) return std::nullopt;
    for (Message message; message.receive(data_in_); message = Message())
      if (const auto envelope = unpack(message)) inbox_[{envelope->from, envelope->tag}].push_back(std::move(message));
  }
}

void SocketTransport::tell(int to, std::string_view text) { pack(0, std::as_bytes(std::span(text)), {}).send(control_out_[static_cast<size_t>(to)]); }

std::optional<ControlMessage> SocketTransport::hear() {
  for (Message message; message.receive(control_in_); message = Message())
    if (const auto envelope = unpack(message)) return ControlMessage{envelope->from, message.text().substr(sizeof(Envelope))};
  return std::nullopt;
}

std::optional<int> SocketTransport::lost() {
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    Message event, address;
    if (!event.receive(monitors_[static_cast<size_t>(r)])) continue;
    if (event.more()) address.receive(monitors_[static_cast<size_t>(r)]);
    return r;
  }
  return std::nullopt;
}

}  // namespace

std::unique_ptr<Communicator> make_sockets(const Rendezvous& place) {
  if (place.size == 1) return make_self();
  return make_peers(std::make_unique<SocketTransport>(place), {.call_ms = place.timeout_ms, .silence_ms = place.silence_ms});
}

}  // namespace conclave
