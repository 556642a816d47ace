#include "engine/team.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <exception>
#include <type_traits>

#include "core/error.h"

namespace conclave {
namespace {

/// What rank 0 says next.
enum class Call : uint8_t { run, run_rows, logits, end };

/// Call, group and whether rank 0 has a tap that wants all rows; rows; plans, each with its length before it.
struct Message {
  Call call = Call::end;
  int32_t group = 0;
  bool all_rows = false;
  std::vector<int32_t> rows;
  std::vector<StepPlan> plans;
};

template <class T>
void put(std::vector<std::byte>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}

std::vector<std::byte> encode(const Message& m) {
  std::vector<std::byte> out;
  put(out, m.call), put(out, m.group), put(out, m.all_rows);
  put(out, static_cast<uint64_t>(m.rows.size()));
  for (const int32_t row : m.rows) put(out, row);
  put(out, static_cast<uint64_t>(m.plans.size()));
  for (const StepPlan& plan : m.plans) {
    const std::vector<std::byte> bytes = encode(plan);
    put(out, static_cast<uint64_t>(bytes.size()));
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  return out;
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  std::span<const std::byte> take(uint64_t n) {
    if (n > rest_.size())
      throw Error(Error::Kind::network, fmt::format("a message of rank 0 ends {} bytes early; do all ranks run the same build?", n - rest_.size()));
    const auto piece = rest_.first(n);
    rest_ = rest_.subspan(n);
    return piece;
  }
  template <class T>
  T value() {
    T v;
    std::memcpy(&v, take(sizeof v).data(), sizeof v);
    return v;
  }

 private:
  std::span<const std::byte> rest_;
};

Message decode(std::span<const std::byte> bytes) {
  Reader in(bytes);
  Message m;
  const auto call = in.value<uint8_t>();
  if (call > static_cast<uint8_t>(Call::end)) throw Error(Error::Kind::network, fmt::format("rank 0 asks for the unknown call {}; do all ranks run the same build?", call));
  m.call = static_cast<Call>(call);
  m.group = in.value<int32_t>();
  m.all_rows = in.value<uint8_t>() != 0;
  for (auto n = in.value<uint64_t>(); n > 0; --n) m.rows.push_back(in.value<int32_t>());
  for (auto n = in.value<uint64_t>(); n > 0; --n) m.plans.push_back(decode_step_plan(in.take(in.value<uint64_t>())));
  return m;
}

int64_t sampled_rows(const StepPlan& plan) {
  int64_t n = 0;
  for (const Chunk& chunk : plan.chunks) n += chunk.sample;
  return n;
}

/// One call on one rank. Rows of a step belong to data group 0.
Tensor carry_out(Rank& rank, const Message& m, const Tap& tap) {
  const auto group = static_cast<size_t>(rank.plan().data);
  switch (m.call) {
    case Call::run: return rank.runner().run(m.plans.at(group), tap, m.all_rows);
    case Call::run_rows: return group == 0 ? rank.runner().run(m.plans.at(0), m.rows, tap, m.all_rows) : rank.runner().run(StepPlan{}, tap, m.all_rows);
    case Call::logits: return static_cast<int>(group) == m.group ? rank.runner().logits(m.rows) : Tensor{};
    case Call::end: break;
  }
  return {};
}

/// Rows of logits that a data group's first rank sends to rank 0.
int64_t rows_to_send(const Message& m, int group) {
  if (m.call == Call::run) return sampled_rows(m.plans.at(static_cast<size_t>(group)));
  return m.call == Call::logits && group == m.group ? static_cast<int64_t>(m.rows.size()) : 0;
}

}  // namespace

void follow(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, Communicator& world) {
  Rank rank(spec, source, options, &world, {});
  for (std::vector<std::byte> bytes;;) {
    world.broadcast(bytes, 0);
    const Message m = decode(bytes);
    if (m.call == Call::end) return;
    const Tensor logits = carry_out(rank, m, {});
    const RankPlan& plan = rank.plan();
    if (plan.layout.dp > 1 && plan.data > 0 && plan.tensor == 0 && rows_to_send(m, plan.data) > 0) world.send(std::as_bytes(flat(logits)), 0);
  }
}

struct Team::Follower {
  std::unique_ptr<Communicator> world;
  std::exception_ptr error;
  std::thread thread;
  ~Follower() {
    if (thread.joinable()) thread.join();
  }
};

/// A call that ends every rank when it fails, with the error of the thread that failed first.
template <class F>
std::invoke_result_t<F> Team::guarded(F&& call) {
  if (!world_) return call();
  try {
    return call();
  } catch (const std::exception& e) {
    failed_ = true;
    world_->abort(e.what());
    for (const auto& f : followers_)
      if (f->thread.joinable()) f->thread.join();
    const Error* error = dynamic_cast<const Error*>(&e);
    for (const auto& f : followers_)  // a follower's own error says more than that it is gone
      if (f->error && error && error->kind == Error::Kind::network) std::rethrow_exception(f->error);
    throw;
  }
}

Team::Team(const ModelSpec& spec, const TensorSource& source, const EngineOptions& o, std::shared_ptr<Communicator> world,
           const Engine::Progress& progress)
    : world_(std::move(world)) {
  if (!world_ && o.layout.world() > 1) {
    auto all = make_threads(o.layout.world());
    world_ = std::move(all.front());
    for (size_t r = 1; r < all.size(); ++r) {
      Follower& f = *followers_.emplace_back(std::make_unique<Follower>());
      f.world = std::move(all[r]);
      f.thread = std::thread([&f, &spec, &source, &o] {
        try {
          follow(spec, source, o, *f.world);
        } catch (const std::exception& e) {
          f.error = std::current_exception();
          f.world->abort(e.what());
        }
      });
    }
  }
  guarded([&] { self_ = std::make_unique<Rank>(spec, source, o, world_ ? world_.get() : nullptr, progress); });
  if (o.layout.dp > 1)
    collected_ = Buffer(checked_product(std::array<int64_t, 4>{o.layout.dp, max_logit_rows(), spec.vocab_size, sizeof(float)}, "logits"));
}

Team::~Team() {
  try {
    if (world_ && self_ && !failed_) say(encode(Message{}));
  } catch (const std::exception&) {  // a rank is gone: the others learn it from the communicator
    world_->abort("rank 0 ends");
  }
}

void Team::say(std::vector<std::byte> message) {
  if (world_) world_->broadcast(message, 0);
}

/// Logits of all data groups, one after the other.
Tensor Team::collect(const Tensor& own, std::span<const int64_t> counts) {
  if (counts.size() <= 1) return own;
  int64_t rows = 0;
  const int64_t vocab = own.dim[1];
  auto* out = reinterpret_cast<float*>(collected_.data());
  for (size_t group = 0; group < counts.size(); ++group) {
    const int64_t n = counts[group];
    const Tensor part = view(out + rows * vocab, {n, vocab});
    if (group == 0) std::memcpy(part.data, own.data, static_cast<size_t>(n * vocab) * sizeof(float));
    else if (n > 0) world_->receive(std::as_writable_bytes(flat(part)), static_cast<int>(group) * self_->plan().layout.tp);
    rows += n;
  }
  return view(out, {rows, vocab});
}

Tensor Team::run(std::span<const StepPlan> plans, const Tap& tap, bool all_rows) {
  return guarded([&] {
    if (!world_) return self_->runner().run(plans.front(), tap, all_rows);
    Message m{.call = Call::run, .group = 0, .all_rows = all_rows, .rows = {}, .plans = {plans.begin(), plans.end()}};
    m.plans.resize(static_cast<size_t>(self_->plan().layout.dp));
    say(encode(m));
    std::vector<int64_t> counts;
    for (const StepPlan& plan : m.plans) counts.push_back(sampled_rows(plan));
    return collect(carry_out(*self_, m, tap), counts);
  });
}

Tensor Team::run(const StepPlan& plan, std::span<const int32_t> logit_rows, const Tap& tap) {
  return guarded([&] {
    if (!world_) return self_->runner().run(plan, logit_rows, tap);
    const Message m{.call = Call::run_rows, .group = 0, .all_rows = static_cast<bool>(tap), .rows = {logit_rows.begin(), logit_rows.end()}, .plans = {plan}};
    say(encode(m));
    return carry_out(*self_, m, tap);
  });
}

Tensor Team::logits(std::span<const int32_t> rows, int group) {
  return guarded([&] {
    if (!world_) return self_->runner().logits(rows);
    const Message m{.call = Call::logits, .group = group, .all_rows = false, .rows = {rows.begin(), rows.end()}, .plans = {}};
    say(encode(m));
    const Tensor own = carry_out(*self_, m, {});
    if (group == 0) return own;
    const int64_t vocab = self_->spec().vocab_size;
    const Tensor part = view(reinterpret_cast<float*>(collected_.data()), {static_cast<int64_t>(rows.size()), vocab});
    if (!rows.empty()) world_->receive(std::as_writable_bytes(flat(part)), group * self_->plan().layout.tp);
    return part;
  });
}

}  // namespace conclave
