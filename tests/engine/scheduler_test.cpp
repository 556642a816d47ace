#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "core/error.h"

namespace conclave {
namespace {

constexpr int32_t kVocab = 40, kEos = 0;

uint64_t extend(uint64_t prefix, int32_t token) { return (prefix ^ static_cast<uint64_t>(token + 1)) * 0x100000001b3ull + 0x9e37; }
int32_t next_token(uint64_t prefix) { return static_cast<int32_t>((prefix >> 13) % kVocab); }

/// What a request must produce whatever else runs: a pure function of its prompt.
std::vector<int32_t> expected_tokens(const Request& r, int max_context) {
  uint64_t prefix = 0;
  for (const int32_t t : r.prompt) prefix = extend(prefix, t);
  std::vector<int32_t> out;
  const int room = max_context - static_cast<int>(r.prompt.size());
  while (static_cast<int>(out.size()) < std::min(r.max_new_tokens, room)) {
    const int32_t t = next_token(prefix);
    if (std::count(r.eos_ids.begin(), r.eos_ids.end(), t)) break;
    out.push_back(t);
    prefix = extend(prefix, t);
  }
  return out;
}

/// A cache that stores, for every position, a digest of all tokens up to it; running a chunk reads everything below it. A block that
/// was lost, shared or overwritten therefore changes the tokens.
class FakeModel {
 public:
  explicit FakeModel(const SchedulerOptions& o) : block_size_(o.block_size), cells_(static_cast<size_t>(o.num_blocks * o.block_size)) {}

  std::vector<Draw> run(const StepPlan& plan) {
    std::vector<Draw> draws;
    for (const Chunk& c : plan.chunks) {
      const auto cell = [&](int position) -> uint64_t& {
        const int32_t block = plan.blocks[static_cast<size_t>(c.first_block + position / block_size_)];
        return cells_[static_cast<size_t>(block * block_size_ + position % block_size_)];
      };
      EXPECT_EQ(c.block_count, (c.context_len + block_size_ - 1) / block_size_);
      const int first = c.context_len - c.token_count;
      uint64_t prefix = first > 0 ? cell(first - 1) : 0;
      for (int i = 0; i < c.token_count; ++i) {
        const auto t = static_cast<size_t>(c.first_token + i);
        EXPECT_EQ(plan.positions[t], first + i);
        cell(first + i) = prefix = extend(prefix, plan.tokens[t]);
      }
      if (c.sample) draws.push_back({next_token(prefix), {}});
    }
    return draws;
  }

 private:
  int block_size_;
  std::vector<uint64_t> cells_;
};

/// Drives a scheduler with random requests, cancellations and sessions, and holds it to the rules.
class Trace {
 public:
  Trace(const SchedulerOptions& o, uint64_t seed) : options_(o), scheduler_(o), model_(o), random_(seed) {}

  void operate() {
    const int dice = pick(100);
    if (dice < 12 && scheduler_.num_waiting() < 12) submit();
    else if (dice < 14) cancel();
    else if (dice < 15) end_session();
    else step();
    scheduler_.check_invariants();
  }

  void drain() {
    for (int guard = 0; !scheduler_.idle() && guard < 100000; ++guard) {
      step();
      scheduler_.check_invariants();
    }
    EXPECT_TRUE(scheduler_.idle());
    EXPECT_TRUE(open_.empty());
    scheduler_.drop_idle_sessions();
    EXPECT_EQ(scheduler_.free_blocks(), options_.num_blocks);
  }

  int finished = 0, reused_tokens = 0, refused = 0;

 private:
  struct Open {
    std::vector<int32_t> expected, got;
    uint64_t session = 0;
    std::vector<int32_t> prompt;
    bool started = false;
    uint64_t last_served = 0;
  };

  int pick(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  void submit() {
    Request r;
    r.session = static_cast<uint64_t>(pick(3) ? 0 : 1 + pick(4));
    const auto history = conversations_.find(r.session);
    if (history != conversations_.end() && pick(4)) r.prompt = history->second;
    if (pick(8) == 0 && !r.prompt.empty()) r.prompt.resize(static_cast<size_t>(1 + pick(static_cast<int>(r.prompt.size()))));
    for (int n = 1 + pick(12); n > 0; --n) r.prompt.push_back(1 + pick(kVocab - 1));
    r.max_new_tokens = 1 + pick(15);
    if (pick(2)) r.eos_ids = {kEos, 7};
    const int length = static_cast<int>(r.prompt.size()), total = std::min(length + r.max_new_tokens, options_.max_context);
    const bool fits = length < options_.max_context &&
                      (total + options_.block_size - 1) / options_.block_size <= options_.num_blocks;
    Open open{expected_tokens(r, options_.max_context), {}, r.session, r.prompt, false, 0};
    try {
      scheduler_.add(next_id_, std::move(r));
      EXPECT_TRUE(fits);
      open_[next_id_++] = std::move(open);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind, Error::Kind::bad_input);
      EXPECT_FALSE(fits) << e.what();
      conversations_.erase(open.session);
      ++refused;
    }
  }

  void cancel() {
    if (open_.empty()) return;
    auto it = open_.begin();
    std::advance(it, pick(static_cast<int>(open_.size())));
    EXPECT_EQ(scheduler_.cancel(it->first), !cancelled_.contains(it->first));
    EXPECT_FALSE(scheduler_.cancel(it->first));
    cancelled_.insert(it->first);
  }

  void end_session() { scheduler_.end_session(static_cast<uint64_t>(1 + pick(4))); }

  void step() {
    for (const Delta& d : scheduler_.take_ended()) {
      EXPECT_EQ(d.finish, FinishReason::cancelled);
      EXPECT_EQ(cancelled_.erase(d.id), 1u);
      open_.erase(d.id);
    }
    const bool work = !scheduler_.idle();
    const StepPlan plan = scheduler_.plan();
    EXPECT_EQ(work, !plan.chunks.empty()) << "work must always make progress";
    EXPECT_LE(static_cast<int>(plan.tokens.size()), options_.max_step_tokens);
    note_chunks(plan);
    for (const Delta& d : scheduler_.commit(plan, model_.run(plan))) {
      Open& open = open_.at(d.id);
      open.got.insert(open.got.end(), d.tokens.begin(), d.tokens.end());
      if (d.finish == FinishReason::none) continue;
      EXPECT_EQ(open.got, open.expected);
      std::vector<int32_t> conversation = open.prompt;
      conversation.insert(conversation.end(), open.got.begin(), open.got.end());
      if (open.session) conversations_[open.session] = std::move(conversation);
      ++finished;
      open_.erase(d.id);
    }
  }

  void note_chunks(const StepPlan& plan) {
    for (const Chunk& c : plan.chunks) {
      Open& open = open_.at(c.id);
      if (!open.started) {
        EXPECT_GT(c.id, last_started_) << "requests must start in order of arrival";
        last_started_ = c.id;
        reused_tokens += c.context_len - c.token_count;
      } else if (c.context_len > c.prompt_len + 1) {
        EXPECT_LE(plan.step - open.last_served, static_cast<uint64_t>(options_.max_sequences)) << "a generating sequence starves";
      }
      open.started = true;
      open.last_served = plan.step;
    }
  }

  SchedulerOptions options_;
  Scheduler scheduler_;
  FakeModel model_;
  std::mt19937_64 random_;
  RequestId next_id_ = 1, last_started_ = 0;
  std::map<RequestId, Open> open_;
  std::set<RequestId> cancelled_;
  std::map<uint64_t, std::vector<int32_t>> conversations_;
};

class SchedulerTrace : public testing::TestWithParam<SchedulerOptions> {};

TEST_P(SchedulerTrace, RandomRequestsGetExactlyTheirTokens) {
  int finished = 0, reused = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Trace trace(GetParam(), seed);
    for (int i = 0; i < 40000 && !HasFailure(); ++i) trace.operate();
    trace.drain();
    finished += trace.finished;
    reused += trace.reused_tokens;
  }
  EXPECT_GT(finished, 5000);
  EXPECT_GT(reused, 0) << "the trace never continued a session";
}

INSTANTIATE_TEST_SUITE_P(Configurations, SchedulerTrace,
                         testing::Values(SchedulerOptions{1, 1, 4, 16, 48}, SchedulerOptions{4, 8, 4, 40, 64},
                                         SchedulerOptions{8, 3, 1, 90, 40}, SchedulerOptions{5, 64, 16, 9, 64},
                                         SchedulerOptions{3, 16, 64, 3, 64} /* contiguous */));

Request request(std::vector<int32_t> prompt, int max_new, uint64_t session = 0) {
  Request r;
  r.prompt = std::move(prompt);
  r.max_new_tokens = max_new;
  r.session = session;
  return r;
}

std::string refusal(Scheduler& s, Request r) {
  try {
    s.add(99, std::move(r));
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Scheduler, RefusesPromptsThatNeverFitWithBothNumbers) {
  Scheduler s({2, 8, 4, 4, 32});
  const std::string too_long = refusal(s, request(std::vector<int32_t>(32, 1), 1));
  EXPECT_NE(too_long.find("32 tokens"), std::string::npos);
  EXPECT_NE(too_long.find("holds 32"), std::string::npos);
  const std::string too_many_blocks = refusal(s, request(std::vector<int32_t>(10, 1), 10));
  EXPECT_NE(too_many_blocks.find("needs 5 cache blocks"), std::string::npos);
  EXPECT_NE(too_many_blocks.find("has 4"), std::string::npos);
}

TEST(Scheduler, MixesPromptChunksAndGeneratedRowsInOneStep) {
  Scheduler s({2, 4, 4, 16, 32});
  s.add(1, request({1, 2}, 5));
  StepPlan plan = s.plan();
  s.commit(plan, std::vector<Draw>{{9, {}}});
  s.add(2, request({3, 4, 5, 6, 7}, 5));
  plan = s.plan();
  ASSERT_EQ(plan.chunks.size(), 2u);
  EXPECT_EQ(plan.chunks[0].id, 1u);
  EXPECT_EQ(plan.chunks[0].token_count, 1);
  EXPECT_TRUE(plan.chunks[0].sample);
  EXPECT_EQ(plan.chunks[1].id, 2u);
  EXPECT_EQ(plan.chunks[1].token_count, 3);
  EXPECT_FALSE(plan.chunks[1].sample);
  EXPECT_EQ(plan.tokens, (std::vector<int32_t>{9, 3, 4, 5}));
  EXPECT_EQ(plan.positions, (std::vector<int32_t>{2, 0, 1, 2}));
}

TEST(Scheduler, AnErrorEndsOneRequestAndTheOthersGoOn) {
  Scheduler s({2, 8, 4, 16, 32});
  s.add(1, request({1}, 3));
  s.add(2, request({2}, 3));
  const auto deltas = s.commit(s.plan(), std::vector<Draw>{{-1, "NaN"}, {5, {}}});
  ASSERT_EQ(deltas.size(), 2u);
  EXPECT_EQ(deltas[0].finish, FinishReason::error);
  EXPECT_EQ(deltas[0].error, "NaN");
  EXPECT_EQ(deltas[1].finish, FinishReason::none);
  EXPECT_EQ(s.num_running(), 1);
  s.check_invariants();
}

TEST(Scheduler, ASessionContinuesFromItsLongestCommonPrefix) {
  Scheduler s({1, 64, 4, 16, 64});
  s.add(1, request({1, 2, 3, 4, 5, 6}, 2, 5));
  s.commit(s.plan(), std::vector<Draw>{{7, {}}});
  s.commit(s.plan(), std::vector<Draw>{{8, {}}});  // length: 8 is never computed
  ASSERT_TRUE(s.idle());
  s.add(2, request({1, 2, 3, 4, 5, 6, 7, 8, 20}, 1, 5));
  const StepPlan plan = s.plan();
  EXPECT_EQ(plan.tokens, (std::vector<int32_t>{8, 20}));
  EXPECT_EQ(plan.chunks[0].prompt_len, 9);
  s.check_invariants();
}

TEST(Scheduler, AnUnchangedPromptStillComputesItsLastToken) {
  Scheduler s({1, 64, 4, 16, 64});
  for (RequestId id = 1; id <= 2; ++id) {
    s.add(id, request({1, 2, 3, 4}, 1, 5));
    const StepPlan plan = s.plan();
    EXPECT_EQ(plan.tokens.size(), id == 1 ? 4u : 1u);
    s.commit(plan, std::vector<Draw>{{7, {}}});
  }
}

TEST(Scheduler, IdleSessionsYieldTheirBlocksOldestFirst) {
  Scheduler s({1, 64, 4, 6, 24});
  for (RequestId id = 1; id <= 2; ++id) {
    s.add(id, request({1, 2, 3, 4, 5}, 1, id));
    s.commit(s.plan(), std::vector<Draw>{{7, {}}});
  }
  EXPECT_EQ(s.free_blocks(), 2);
  s.add(3, request(std::vector<int32_t>(12, 3), 4));  // needs 4 blocks
  s.commit(s.plan(), std::vector<Draw>{{7, {}}});
  s.check_invariants();
  s.cancel(3);
  s.add(4, request({1, 2, 3, 4, 5, 6}, 1, 2));
  EXPECT_EQ(s.plan().tokens, (std::vector<int32_t>{6})) << "session 2 was used last and keeps its cache";
}

TEST(Scheduler, EndingASessionFreesItsBlocksNowOrWhenItsRequestEnds) {
  Scheduler s({1, 64, 4, 6, 24});
  s.add(1, request({1, 2, 3, 4, 5}, 1, 9));
  s.commit(s.plan(), std::vector<Draw>{{7, {}}});
  s.end_session(9);
  EXPECT_EQ(s.free_blocks(), 6);
  s.add(2, request({1, 2, 3, 4, 5}, 1, 9));
  const StepPlan plan = s.plan();
  s.end_session(9);
  s.commit(plan, std::vector<Draw>{{7, {}}});
  EXPECT_EQ(s.free_blocks(), 6);
}

TEST(BlockPool, RefusesToFreeTwiceAndToGiveMoreThanItHas) {
  BlockPool pool(3);
  std::vector<int32_t> table;
  pool.take(2, table);
  EXPECT_EQ(table, (std::vector<int32_t>{0, 1}));
  EXPECT_THROW(pool.take(2, table), Error);
  std::vector<int32_t> copy = table;
  pool.give_back(table);
  EXPECT_EQ(pool.free(), 3);
  EXPECT_THROW(pool.give_back(copy), Error);
}

}  // namespace
}  // namespace conclave
