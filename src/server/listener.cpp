#include "server/listener.h"

#include <fmt/format.h>

#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "core/error.h"
#include "server/connection.h"
#include "server/wire.h"

namespace conclave {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;
using Executor = asio::strand<asio::io_context::executor_type>;
using Socket = asio::basic_stream_socket<tcp, Executor>;
using Timer = asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, Executor>;
using TlsContext = std::shared_ptr<asio::ssl::context>;

/// Stream: Socket itself or TLS over it.
template <class Stream>
class StreamWire final : public Wire {
 public:
  StreamWire(Stream stream, TlsContext tls, std::shared_ptr<void> slot)
      : tls_(std::move(tls)), slot_(std::move(slot)), stream_(std::move(stream)), timer_(socket().get_executor()) {}

  void handshake(std::function<void(bool)> done) override {
    if constexpr (std::is_same_v<Stream, Socket>) asio::post(socket().get_executor(), [done = std::move(done)] { done(true); });
    else stream_.async_handshake(asio::ssl::stream_base::server, [done = std::move(done)](ErrorCode e) { done(!e); });
  }
  void read(std::span<char> into, std::function<void(size_t)> done) override {
    stream_.async_read_some(asio::buffer(into.data(), into.size()),
                            [done = std::move(done)](ErrorCode e, size_t n) { done(e ? 0 : n); });
  }
  void write(std::string_view bytes, std::function<void(bool)> done) override {
    asio::async_write(stream_, asio::buffer(bytes.data(), bytes.size()),
                      [done = std::move(done)](ErrorCode e, size_t) { done(!e); });
  }
  void alarm(Clock::time_point when, std::function<void()> ring) override {
    timer_.expires_at(when);
    timer_.async_wait([ring = std::move(ring)](ErrorCode e) {
      if (!e) ring();
    });
  }
  void post(std::function<void()> work) override { asio::post(socket().get_executor(), std::move(work)); }
  void shut_down_sending() override {
    ErrorCode ignored;
    socket().shutdown(tcp::socket::shutdown_send, ignored);
  }
  void close() override {
    ErrorCode ignored;
    timer_.cancel(ignored);
    socket().close(ignored);
    slot_.reset();
  }

 private:
  Socket& socket() {
    if constexpr (std::is_same_v<Stream, Socket>) return stream_;
    else return stream_.next_layer();
  }
  TlsContext tls_;
  std::shared_ptr<void> slot_;  ///< counts this connection while it lives
  Stream stream_;
  Timer timer_;
};

TlsContext make_context(const TlsFiles& files) {
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  const auto check = [](const ErrorCode& e, const char* what, const std::string& file) {
    if (e)
      throw Error(Error::Kind::bad_input, fmt::format("{}: {} cannot be used: {}; wanted a PEM file", file, what, e.message()));
  };
  ErrorCode e;
  context->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 | asio::ssl::context::no_sslv3 |
                       asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1 | asio::ssl::context::no_compression);
  context->use_certificate_chain_file(files.certificate, e);
  check(e, "the certificate", files.certificate);
  context->use_private_key_file(files.key.empty() ? files.certificate : files.key, asio::ssl::context::pem, e);
  check(e, "the private key", files.key.empty() ? files.certificate : files.key);
  if (!files.client_ca.empty()) {
    context->load_verify_file(files.client_ca, e);
    check(e, "the clients' authority", files.client_ca);
    context->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
  }
  return context;
}

std::string full_answer() {
  constexpr std::string_view kBody =
      R"({"error":{"message":"too many connections; try again later","type":"server_error","param":null,"code":"server_is_overloaded"}})";
  return fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n"
      "Content-Length: {}\r\n\r\n{}",
      kBody.size(), kBody);
}

}  // namespace

struct Listener::State {
  struct Door {
    tcp::acceptor acceptor;
    Plane plane;
    bool tls;
    asio::steady_timer pause;
  };
  const ServerLimits& limits;
  const HttpHandlers& handlers;
  const Log& log;
  mutable std::mutex mutex;  // guards these
  TlsContext tls;
  std::map<std::string, int> per_address;
  std::map<Connection*, std::weak_ptr<Connection>> connections;
  ListenerCounts counts;
  bool retired = false;

  asio::io_context io;
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  std::vector<std::unique_ptr<Door>> doors;
  std::vector<std::unique_ptr<asio::steady_timer>> timers;
  std::unique_ptr<asio::signal_set> signals;
  std::vector<std::thread> threads;

  State(const ServerLimits& l, const HttpHandlers& h, const Log& g) : limits(l), handlers(h), log(g) {}
  void accept(Door& door);
  void accepted(Door& door, Socket socket);
  std::shared_ptr<void> take_slot(const std::string& address);
  void open(Door& door, Socket socket, std::string address, std::shared_ptr<void> slot);
  std::vector<std::shared_ptr<Connection>> living() const;
};

Listener::Listener(const ServerLimits& limits, const HttpHandlers& handlers, const Log& log)
    : state_(std::make_unique<State>(limits, handlers, log)) {}
Listener::~Listener() { stop(); }

void Listener::load_tls(const TlsFiles& files) {
  TlsContext fresh = make_context(files);
  const std::lock_guard lock(state_->mutex);
  state_->tls = std::move(fresh);
}

int Listener::listen(const std::string& host, int port, Plane plane, bool tls) {
  const auto fail = [&](const std::string& why) {
    throw Error(Error::Kind::network,
                fmt::format("cannot listen on {}:{}: {}; choose another --host or --port", host, port, why));
  };
  ErrorCode e;
  tcp::resolver resolver(state_->io);
  const auto found = resolver.resolve(host, std::to_string(port), tcp::resolver::passive, e);
  if (e || found.empty()) fail(e.message());
  const tcp::endpoint endpoint = found.begin()->endpoint();
  auto door = std::make_unique<State::Door>(State::Door{tcp::acceptor(state_->io), plane, tls, asio::steady_timer(state_->io)});
  if (door->acceptor.open(endpoint.protocol(), e)) fail(e.message());
  door->acceptor.set_option(asio::socket_base::reuse_address(true), e);
  if (door->acceptor.bind(endpoint, e)) fail(e.message());
  if (door->acceptor.listen(asio::socket_base::max_listen_connections, e)) fail(e.message());
  const int bound = door->acceptor.local_endpoint().port();
  state_->doors.push_back(std::move(door));
  state_->accept(*state_->doors.back());
  return bound;
}

void Listener::State::accept(Door& door) {
  door.acceptor.async_accept(asio::make_strand(io), [this, &door](ErrorCode e, Socket socket) {
    if (e == asio::error::operation_aborted || !door.acceptor.is_open()) return;
    if (e) {  // no descriptors left: give the connections that run time to end
      door.pause.expires_after(std::chrono::milliseconds(100));
      door.pause.async_wait([this, &door](ErrorCode stopped) {
        if (!stopped) accept(door);
      });
      return;
    }
    accepted(door, std::move(socket));
    accept(door);
  });
}

std::shared_ptr<void> Listener::State::take_slot(const std::string& address) {
  const std::lock_guard lock(mutex);
  ++counts.accepted;
  int& here = per_address[address];
  if (retired || counts.connections >= limits.connections || here >= limits.connections_per_address) {
    if (here == 0) per_address.erase(address);
    ++counts.refused;
    return nullptr;
  }
  ++here;
  ++counts.connections;
  return {this, [address](void* state) {
            auto& self = *static_cast<State*>(state);
            const std::lock_guard guard(self.mutex);
            --self.counts.connections;
            if (--self.per_address[address] == 0) self.per_address.erase(address);
          }};
}

void Listener::State::accepted(Door& door, Socket socket) {
  ErrorCode e;
  const tcp::endpoint remote = socket.remote_endpoint(e);
  if (e) return;
  socket.set_option(tcp::no_delay(true), e);
  std::string address = remote.address().to_string();
  auto slot = take_slot(address);
  if (slot) return open(door, std::move(socket), std::move(address), std::move(slot));
  socket.non_blocking(true, e);
  const std::string full = full_answer();
  if (!door.tls) socket.write_some(asio::buffer(full), e);
}

void Listener::State::open(Door& door, Socket socket, std::string address, std::shared_ptr<void> slot) {
  std::unique_ptr<Wire> wire;
  if (door.tls) {
    TlsContext context;
    {
      const std::lock_guard lock(mutex);
      context = tls;
    }
    asio::ssl::stream<Socket> stream(std::move(socket), *context);
    wire = std::make_unique<StreamWire<asio::ssl::stream<Socket>>>(std::move(stream), context, std::move(slot));
  } else {
    wire = std::make_unique<StreamWire<Socket>>(std::move(socket), nullptr, std::move(slot));
  }
  const auto connection =
      std::make_shared<Connection>(std::move(wire), limits, handlers, Connection::Peer{std::move(address), door.plane});
  {
    const std::lock_guard lock(mutex);
    if (connections.size() > 64 && connections.size() > 2 * static_cast<size_t>(counts.connections))
      std::erase_if(connections, [](const auto& entry) { return entry.second.expired(); });
    connections[connection.get()] = connection;
  }
  connection->wire().post([connection] { connection->start(); });
}

std::vector<std::shared_ptr<Connection>> Listener::State::living() const {
  const std::lock_guard lock(mutex);
  std::vector<std::shared_ptr<Connection>> all;
  for (const auto& [key, weak] : connections)
    if (auto connection = weak.lock()) all.push_back(std::move(connection));
  return all;
}

void Listener::on_signals(const std::vector<int>& numbers, std::function<void(int)> handler) {
  state_->signals = std::make_unique<asio::signal_set>(state_->io);
  for (const int number : numbers) state_->signals->add(number);
  const auto wait = std::make_shared<std::function<void()>>();
  *wait = [state = state_.get(), handler = std::move(handler), again = std::weak_ptr(wait)] {
    state->signals->async_wait([handler, keep = again.lock()](ErrorCode e, int number) {
      if (e) return;
      handler(number);
      (*keep)();
    });
  };
  (*wait)();
}

void Listener::every(int milliseconds, std::function<void()> work) {
  state_->timers.push_back(std::make_unique<asio::steady_timer>(state_->io));
  const auto wait = std::make_shared<std::function<void()>>();
  *wait = [timer = state_->timers.back().get(), milliseconds, work = std::move(work), again = std::weak_ptr(wait)] {
    timer->expires_after(std::chrono::milliseconds(milliseconds));
    timer->async_wait([work, keep = again.lock()](ErrorCode e) {
      if (e) return;
      work();
      (*keep)();
    });
  };
  (*wait)();
}

void Listener::start(int threads) {
  for (int i = 0; i < threads; ++i) {
    state_->threads.emplace_back([state = state_.get()] {
      for (;;) {
        try {
          state->io.run();
          return;
        } catch (const std::exception& e) {
          state->log.error(fmt::format("serving a connection failed: {}", e.what()));
        }
      }
    });
    pthread_setname_np(state_->threads.back().native_handle(), "connections");
  }
}

void Listener::retire() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->retired = true;
  }
  asio::post(state_->io, [state = state_.get()] {
    for (const auto& door : state->doors) {
      ErrorCode ignored;
      door->acceptor.close(ignored);
      door->pause.cancel(ignored);
    }
  });
  for (const auto& connection : state_->living()) connection->wire().post([connection] { connection->retire(); });
}

void Listener::stop() {
  if (state_->threads.empty()) return;
  retire();
  for (const auto& connection : state_->living()) connection->wire().post([connection] { connection->close(); });
  asio::post(state_->io, [state = state_.get()] {
    ErrorCode ignored;
    if (state->signals) state->signals->cancel(ignored);
    for (const auto& timer : state->timers) timer->cancel(ignored);
  });
  state_->work.reset();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (!state_->living().empty() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  state_->io.stop();
  for (std::thread& thread : state_->threads) thread.join();
  state_->threads.clear();
}

ListenerCounts Listener::counts() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts;
}

bool is_loopback(const std::string& host) {
  if (host == "localhost") return true;
  ErrorCode e;
  const auto address = asio::ip::make_address(host, e);
  return !e && address.is_loopback();
}

}  // namespace conclave
