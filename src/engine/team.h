#pragma once
// All ranks as rank 0 sees them. It says what the next call is, every rank makes it, and rank 0 has the result; a single rank is called
// directly. With ranks as threads the team owns them; across processes each of the others runs follow(). A rank that fails ends every
// rank's calls with one message.
#include <memory>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "engine/rank.h"

namespace conclave {

class Team {
 public:
  /// `world` null: the ranks of `options.layout` are threads of this process. Else this is its rank 0. Throws the error of the rank that
  /// failed first.
  Team(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, std::shared_ptr<Communicator> world,
       const Engine::Progress& progress);
  /// Tells the other ranks to end.
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// As Runner::run(), with one plan for each data group (missing ones are empty): logits of group 0's rows, then group 1's ...
  Tensor run(std::span<const StepPlan> plans, const Tap& tap, bool all_rows);
  /// As Runner's; data group 0 only.
  Tensor run(const StepPlan& plan, std::span<const int32_t> logit_rows, const Tap& tap);
  /// Of further rows of data group `group`'s last step.
  Tensor logits(std::span<const int32_t> rows, int group = 0);
  int max_logit_rows() { return self_->runner().max_logit_rows(); }
  Rank& self() { return *self_; }

 private:
  struct Follower;
  template <class F>
  std::invoke_result_t<F> guarded(F&& call);
  void say(std::vector<std::byte> message);
  Tensor collect(const Tensor& own, std::span<const int64_t> counts);

  std::shared_ptr<Communicator> world_;  ///< null: one rank
  std::vector<std::unique_ptr<Follower>> followers_;
  std::unique_ptr<Rank> self_;
  Buffer collected_;
  bool failed_ = false;
};

/// The life of a rank other than 0: loads its part, then makes the calls that rank 0 names until it says the end.
void follow(const ModelSpec& spec, const TensorSource& source, const EngineOptions& options, Communicator& world);

}  // namespace conclave
