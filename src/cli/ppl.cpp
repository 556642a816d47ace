// conclave ppl and conclave kl: perplexity of a text, and divergence between two models on it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/engine_start.h"
#include "cli/json_lines.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/progress.h"
#include "cli/rank_job.h"
#include "cli/reference_variables.h"
#include "core/error.h"
#include "eval/likelihood.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

struct TextOptions {
  std::string text;
  int window = 0, stride = 0, limit = 0;
  bool begin = true, json = false;
};

void declare_text_options(OptionTable& table, TextOptions& o) {
  table.group("Text");
  table.add("text", &o.text, "the text, or - for standard input").placeholder("FILE");
  table.add("window", &o.window, "tokens of a window; default 512, less where the context is shorter").placeholder("N").range(0, 1 << 30);
  table.add("stride", &o.stride, "tokens between the beginnings of windows; default: the window").placeholder("N").range(0, 1 << 30);
  table.add("limit", &o.limit, "only the first windows; 0: all").placeholder("N").range(0, 1 << 30);
  table.add("begin-token", &o.begin, "put the tokenizer's begin token, where it adds one, before every window");
  table.add("json", &o.json, "print one JSON object");
}

std::string read_text(const TextOptions& o) {
  if (o.text.empty()) refuse("no --text FILE given");
  constexpr size_t kMostBytes = size_t{256} << 20;
  return read_input(o.text, "--text", kMostBytes);
}

/// The text as windows that fit `context` positions.
struct Windows {
  std::vector<TextWindow> windows;
  size_t longest = 0, window = 0, stride = 0;
};
Windows windows_of_text(const std::string& text, const TextOptions& o, const Tokenizer& tokenizer, int context) {
  std::vector<int32_t> ids = tokenizer.encode(text, {.add_special_tokens = true, .parse_special = false});
  WindowOptions options;
  const std::vector<int32_t> bare = tokenizer.encode(text, {.add_special_tokens = false, .parse_special = false});
  if (o.begin && ids.size() > bare.size() && tokenizer.bos_id() && ids.front() == *tokenizer.bos_id()) options.begin_id = ids.front();
  const auto room = static_cast<size_t>(context) - 1 - (options.begin_id >= 0 ? 1 : 0);  // a scored request also makes one token
  options.window = o.window > 0 ? static_cast<size_t>(o.window) : std::min<size_t>(512, room);
  if (options.window > room) refuse(fmt::format("--window is {}, but the context of {} tokens has room for {}", options.window, context, room));
  options.stride = o.stride > 0 ? static_cast<size_t>(o.stride) : options.window;
  options.limit = static_cast<size_t>(o.limit);
  Windows out{windows_of(bare, options), 0, options.window, options.stride};
  for (const TextWindow& w : out.windows) out.longest = std::max(out.longest, w.ids.size());
  return out;
}

class PplCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    declare_text_options(table, text_);
    table.add("batch-size", &batch_size_, "windows computed at once; the result does not depend on it").placeholder("N").range(1, 1024).also("b");
    declare_model_options(table, options_, "exact");
    declare_parallel_options(table, parallel_);
    table.example("conclave ppl MODEL --text book.txt --window 2048 --stride 1024");
  }
  void complete(OptionTable& table) override {
    take_model(table, options_, positionals_);
    if (!positionals_.empty()) refuse(fmt::format("unexpected argument \"{}\"", positionals_[0]));
    if (table.print_config_asked() && options_.model.empty()) return;
    table.model_default("max-position-embeddings", fmt::format("{}", read_spec(options_).max_len), "config.json");
  }

  int execute(const OptionTable&, Console& console) override {
    explain_reference_variables(console.log);
    RankJob job(parallel_, options_);
    if (job.follows()) return job.follow(open_model(options_, console.log)), 0;
    const Interrupts interrupts;
    const ModelFiles model = open_model(options_, console.log);
    const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(model);
    if (!tokenizer) refuse("the model has no tokenizer; a text cannot be read");
    Windows text = windows_of_text(read_text(text_), text_, *tokenizer, options_.max_position_embeddings);
    EngineOptions engine_wanted = engine_options(options_);
    engine_wanted.max_context = static_cast<int>(text.longest) + 1;
    engine_wanted.max_sequences = batch_size_;
    const auto engine = start_engine(model, engine_wanted, job, console.log, interrupts);
    const auto runner = make_engine_runner(*engine, *tokenizer, {batch_size_, {}, [&] { return interrupts.raised(); }});
    Progress progress("perplexity", console.log, Progress::Unit::items);
    const Perplexity p = measure_perplexity(std::move(text.windows), *runner, [&](size_t done, size_t total) { progress.update(done, total); });
    if (text_.json)
      console.out.line(Json{{"perplexity", p.value()}, {"perplexity_stderr", p.error()}, {"nll", p.nll}, {"nll_stderr", p.nll_error},
                            {"tokens", p.tokens}, {"windows", p.windows}, {"window", text.window}, {"stride", text.stride}}.dump());
    else
      console.out.write(fmt::format("perplexity {:.4f} +- {:.4f} (negative log-likelihood {:.6f} +- {:.6f} per token) over {} tokens in {} windows of {}, "
                                    "stride {}\n", p.value(), p.error(), p.nll, p.nll_error, p.tokens, p.windows, text.window, text.stride));
    return 0;
  }

 private:
  std::vector<std::string> positionals_;
  TextOptions text_;
  ModelOptions options_;
  ParallelOptions parallel_;
  int batch_size_ = 1;
};

class KlCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL_A MODEL_B", positionals_, 2);
    declare_text_options(table, text_);
    table.add("second-precision", &second_precision_, "of MODEL_B; auto: as MODEL_A").choices({"auto", "exact", "fast"});
    table.add("second-kv-dtype", &second_kv_, "cache type of MODEL_B; auto: as MODEL_A").choices({"auto", "f32", "bf16", "f16", "int8"});
    declare_model_options(table, options_, "exact");
    table.example("conclave kl MODEL MODEL-w8a8 --text book.txt");
    table.example("conclave kl MODEL MODEL --second-kv-dtype int8 --text book.txt");
  }
  void complete(OptionTable& table) override {
    take_model(table, options_, positionals_);
    if (table.print_config_asked() && options_.model.empty()) return;
    table.model_default("max-position-embeddings", fmt::format("{}", read_spec(options_).max_len), "config.json");
  }

  int execute(const OptionTable&, Console& console) override {
    explain_reference_variables(console.log);
    if (positionals_.size() != 1) refuse("two models are wanted: conclave kl MODEL_A MODEL_B --text FILE");
    const Interrupts interrupts;
    ModelOptions other = options_;
    other.model = positionals_[0];
    if (second_precision_ != "auto") other.precision = second_precision_;
    if (second_kv_ != "auto") other.kv_dtype = second_kv_;
    const ModelFiles model = open_model(options_, console.log), second_model = open_model(other, console.log);
    const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(model);
    if (!tokenizer) refuse("MODEL_A has no tokenizer; a text cannot be read");
    const Windows text = common_windows(model, *tokenizer, second_model);
    ParallelOptions one_rank;
    one_rank.ranks = "threads";
    const auto start = [&](const ModelFiles& files, const ModelOptions& options) {
      RankJob alone(one_rank, options);
      EngineOptions wanted = engine_options(options);
      wanted.max_context = static_cast<int>(text.longest) + 1;
      return start_engine(files, wanted, alone, console.log, interrupts);
    };
    const auto first = start(model, options_), second = start(second_model, other);
    Progress progress("divergence", console.log, Progress::Unit::items);
    const Divergence d = measure_divergence(text.windows, *first, *second, [&](size_t done, size_t total) {
      if (interrupts.raised()) throw Error(Error::Kind::cancelled, "interrupted");
      progress.update(done, total);
    });
    print(d, text, console);
    return 0;
  }

 private:
  /// Windows that fit both contexts. Throws bad_input where the models' tokenizers read the text as different ids.
  Windows common_windows(const ModelFiles& model, const Tokenizer& tokenizer, const ModelFiles& second_model) const {
    const std::string text = read_text(text_);
    const int context = std::min(options_.max_position_embeddings, second_model.spec.max_len);
    Windows windows = windows_of_text(text, text_, tokenizer, context);
    const std::unique_ptr<Tokenizer> second = open_tokenizer(second_model);
    const auto same = [](const TextWindow& a, const TextWindow& b) { return a.ids == b.ids; };
    if (second && !std::ranges::equal(windows.windows, windows_of_text(text, text_, *second, context).windows, same))
      refuse(fmt::format("the tokenizers of {} and {} read the text as different ids: the models' distributions cannot be compared",
                         model.folder.string(), second_model.folder.string()));
    return windows;
  }

  void print(const Divergence& d, const Windows& text, Console& console) const {
    if (text_.json) {
      console.out.line(Json{{"kl_mean", d.kl.mean}, {"kl_stderr", d.kl.error}, {"kl_median", d.median}, {"kl_p99", d.p99}, {"kl_max", d.most},
                            {"top1_agreement", d.same_top.mean}, {"top1_agreement_stderr", d.same_top.error}, {"above_1e-4", d.above_1e4},
                            {"above_1e-3", d.above_1e3}, {"nll_a", d.nll_first}, {"nll_b", d.nll_second}, {"tokens", d.tokens},
                            {"windows", d.windows}, {"window", text.window}, {"stride", text.stride}}.dump());
      return;
    }
    console.out.write(fmt::format(
        "KL(A || B) per token, nats: mean {:.6g} +- {:.2g}, median {:.6g}, 99 % {:.6g}, largest {:.6g}\nsame most likely token: {:.3f} % +- {:.3f} %\n"
        "perplexity: A {:.4f}, B {:.4f}\nover {} tokens in {} windows of {}, stride {}\n",
        d.kl.mean, d.kl.error, d.median, d.p99, d.most, 100 * d.same_top.mean, 100 * d.same_top.error, std::exp(d.nll_first), std::exp(d.nll_second),
        d.tokens, d.windows, text.window, text.stride));
  }

  std::vector<std::string> positionals_;
  TextOptions text_;
  ModelOptions options_;
  std::string second_precision_ = "auto", second_kv_ = "auto";
};

}  // namespace

std::unique_ptr<Command> make_ppl() { return std::make_unique<PplCommand>(); }
std::unique_ptr<Command> make_kl() { return std::make_unique<KlCommand>(); }

}  // namespace conclave
