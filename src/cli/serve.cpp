// conclave serve: a model behind the OpenAI interface and others.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <future>

#include "cli/command.h"
#include "cli/import_config.h"
#include "cli/model_files.h"
#include "cli/model_options.h"
#include "cli/rank_job.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "core/error.h"
#include "server/probe.h"
#include "server/server.h"
#include "text/number_tokenizer.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;

constexpr int kOtherDescriptors = 64;  ///< files besides the connections

/// Raises the number of open files to what this process may have; returns it.
int allow_descriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1 << 30));
}

struct ServeOptions {
  std::string host = "127.0.0.1", management_host, metrics_host, key_file, tls_certificate, tls_key, tls_client_ca,
              profile = "conclave", import_config, tokenizer;
  int port = 8080, management_port = -1, metrics_port = -1, max_batch_size = 16, max_context = 0, max_queued = 1024,
      io_threads = 2, drain_seconds = 90;
  int64_t cache_tokens = 0, max_queued_tokens = 4 << 20;
  float step_budget_ms = 0;
  int expert_sampling = 4;
  int max_body_mib = 4, max_connections = 12'000, max_connections_per_address = 256;
  std::vector<std::string> names, allowed_hosts;
  bool insecure = false, strict_fields = false, share_generated = false;
};

void declare_network_options(OptionTable& table, ServeOptions& o) {
  table.group("Network");
  table.add("host", &o.host, "address to listen on; others than this machine's own need --key-file or --insecure")
      .placeholder("ADDRESS");
  table.add("port", &o.port, "port of the API; 0 is any free one").placeholder("N").range(0, 65535);
  table.add("management-port", &o.management_port, "own port for health and management; -1: on --port")
      .placeholder("N")
      .range(-1, 65535);
  table.add("management-host", &o.management_host, "its address; empty: as --host").placeholder("ADDRESS");
  table.add("metrics-port", &o.metrics_port, "own port for /metrics; -1: on --port").placeholder("N").range(-1, 65535);
  table.add("metrics-host", &o.metrics_host, "its address; empty: as --host").placeholder("ADDRESS");
  table.add("key-file", &o.key_file, "API keys: lines of NAME SHA256 and limits; read again on SIGHUP").placeholder("FILE");
  table.add("insecure", &o.insecure, "allow other machines without API keys");
  table.add("tls-certificate", &o.tls_certificate, "serve TLS with this certificate chain (PEM)").placeholder("FILE");
  table.add("tls-key", &o.tls_key, "its private key (PEM); empty: in the same file").placeholder("FILE");
  table.add("tls-client-ca", &o.tls_client_ca, "ask clients for a certificate signed by this authority (PEM)")
      .placeholder("FILE");
  table.add("allowed-host", &o.allowed_hosts, "further name that browsers may use for this server; may be repeated")
      .placeholder("NAME");
  table.add("io-threads", &o.io_threads, "threads that serve connections").placeholder("N").range(1, 16);
  table.add("max-connections", &o.max_connections, "open connections").placeholder("N").range(1, 1'000'000);
  table.add("max-connections-per-address", &o.max_connections_per_address, "open connections of one client address")
      .placeholder("N")
      .range(1, 1'000'000);
  table.add("max-body", &o.max_body_mib, "largest request body").placeholder("MIB").range(1, 1024);
  table.add("drain-seconds", &o.drain_seconds, "time for running requests after SIGTERM; a second signal ends them at once")
      .placeholder("S")
      .range(0, 86400);
}

void declare_serving_options(OptionTable& table, ServeOptions& o) {
  table.group("Serving");
  table.add("served-model-name", &o.names, "name of the model in requests instead of the folder's; may be repeated")
      .placeholder("NAME");
  table
      .add("tokenizer", &o.tokenizer,
           "take tokenizer and chat template from this folder; random weights without one speak of token ids as numbers")
      .placeholder("DIR");
  table.add("max-context", &o.max_context, "longest prompt and answer together; 0 is the model's own limit")
      .placeholder("N")
      .range(0, 1 << 30);
  table.add("max-batch-size", &o.max_batch_size, "sequences computed at once").placeholder("N").range(1, 4096);
  table
      .add("cache-tokens", &o.cache_tokens,
           "tokens that the cache holds; 0: all sequences at full length, or what half of the free memory holds")
      .placeholder("N")
      .range(0, double{1LL << 40});
  table.add("max-queued", &o.max_queued, "requests that wait or run; more are refused").placeholder("N").range(1, 1 << 20);
  table.add("max-queued-tokens", &o.max_queued_tokens, "prompt tokens that wait; more are refused")
      .placeholder("N")
      .range(1, double{1LL << 40});
  table.add("step-budget-ms", &o.step_budget_ms, "aimed length of a step while answers stream; 0 is no aim")
      .placeholder("MS")
      .range(0, 60'000);
  table.add("share-generated", &o.share_generated,
            "let answers in the cache serve later prompts with MLA too, which may change the lowest bits of their results");
  table
      .add("expert-sampling", &o.expert_sampling,
           "count which experts are chosen in one step of that many, for /metrics and /expert_load; 0: never")
      .placeholder("N")
      .range(0, 1 << 20);
  table
      .add("profile", &o.profile,
           "reference: the reference stack's ports (1025, management 1026, metrics 1027), its metric names and its line at the "
           "start")
      .choices({"conclave", "reference"});
  table
      .add("import-config", &o.import_config,
           "take defaults from the reference stack's config.json; keys without effect are listed")
      .placeholder("FILE");
  table.add("strict-fields", &o.strict_fields, "refuse request fields without effect instead of listing them");
}

class ServeCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    declare_network_options(table, serve_);
    declare_serving_options(table, serve_);
    declare_model_options(table, model_options_);
    declare_parallel_options(table, parallel_);
    table.example("conclave serve models/demo-mixtral");
    table.example("conclave serve DIR --host 0.0.0.0 --key-file keys.txt --tls-certificate server.pem");
  }

  void complete(OptionTable& table) override {
    take_model(table, model_options_, positionals_);
    if (!serve_.import_config.empty()) imported_ = import_config(serve_.import_config, table);
    if (imported_.wants_tls && serve_.tls_certificate.empty())
      throw Error(Error::Kind::bad_input,
                  fmt::format("{} asks for TLS (httpsEnabled); give --tls-certificate, or set httpsEnabled to false",
                              serve_.import_config));
    if (serve_.profile != "reference") return;
    const auto preset = [&](const char* option, const char* value) {
      if (table.find(option).origin() == Origin::built_in) table.model_default(option, value, "--profile reference");
    };
    preset("port", "1025");
    preset("management-host", "127.0.0.2");
    preset("management-port", "1026");
    preset("metrics-port", "1027");
  }

  int execute(const OptionTable&, Console& console) override {
    if (model_options_.model.empty()) read_shape(model_options_.model);  // says what is missing
    for (const std::string& key : imported_.unsupported)
      console.log.warning(fmt::format("{}: {} has no effect here", serve_.import_config, key));
    RankJob job(parallel_, model_options_);
    if (job.follows()) return job.follow(open_model(model_options_, console.log)), 0;
    const int descriptors = allow_descriptors();
    if (descriptors < serve_.max_connections + kOtherDescriptors)
      console.log.warning(fmt::format("this process may open {} files, fewer than {} connections need; raise the limit (ulimit -Hn) or lower "
                                      "--max-connections", descriptors, serve_.max_connections));
    Server server(setup(), console.log);
    server.handle_signals();
    for (size_t i = 0; i < server.ports().size(); ++i)
      console.log.info(fmt::format("listening on {}://{}:{}", serve_.tls_certificate.empty() ? "http" : "https",
                                   addresses_[i].host, server.ports()[i]));
    try {
      server.app().publish(load(server, job, console));
    } catch (const Error& e) {
      if (e.kind == Error::Kind::cancelled) return 0;
      throw;
    }
    console.log.info(fmt::format("serving {}", server.app().model()->id));
    if (serve_.profile == "reference") {
      console.out.line("Daemon start success!");
      console.out.flush();
    }
    if (!server.wait()) console.log.warning("some requests were cut off");
    return 0;
  }

 private:
  ServerSetup setup() {
    ServerSetup s;
    s.options.version = CONCLAVE_VERSION;
    s.options.strict_fields = serve_.strict_fields;
    s.options.allowed_hosts = serve_.allowed_hosts;
    s.options.reference_profile = serve_.profile == "reference";
    s.options.limits.body_bytes = static_cast<size_t>(serve_.max_body_mib) << 20;
    s.options.limits.connections = serve_.max_connections;
    s.options.limits.connections_per_address = serve_.max_connections_per_address;
    s.options.limits.drain_ms = serve_.drain_seconds * 1000;
    const auto either = [&](const std::string& host) { return host.empty() ? serve_.host : host; };
    auto main_plane = static_cast<unsigned>(Plane::all);
    if (serve_.management_port >= 0) main_plane &= ~static_cast<unsigned>(Plane::management);
    if (serve_.metrics_port >= 0) main_plane &= ~static_cast<unsigned>(Plane::metrics);
    addresses_ = {{serve_.host, serve_.port, static_cast<Plane>(main_plane)}};
    if (serve_.management_port >= 0)
      addresses_.push_back({either(serve_.management_host), serve_.management_port, Plane::management});
    if (serve_.metrics_port >= 0) addresses_.push_back({either(serve_.metrics_host), serve_.metrics_port, Plane::metrics});
    s.addresses = addresses_;
    s.tls = {serve_.tls_certificate, serve_.tls_key, serve_.tls_client_ca};
    s.key_file = serve_.key_file;
    s.insecure = serve_.insecure;
    s.threads = serve_.io_threads;
    return s;
  }

  std::shared_ptr<const ServedModel> load(Server& server, RankJob& job, Console& console) {
    server.app().note_progress("opening", 0, 0);
    ModelFiles files = open_model(model_options_, console.log);
    auto served = std::make_shared<ServedModel>();
    name_model(*served, files);
    if (!serve_.tokenizer.empty()) files.folder = serve_.tokenizer;
    served->tokenizer = open_tokenizer(files);
    if (!served->tokenizer) served->tokenizer = number_tokenizer(files.spec.vocab_size);
    describe(*served, files, console.log);
    const EngineOptions options = batch_options(files, job.layout());
    Progress progress("loading", console.log);
    auto engine = job.make_engine(files, options, [&](size_t done, size_t total) {
      if (server.stop_asked()) throw Error(Error::Kind::cancelled, "stopped while loading");
      progress.update(done, total);
      server.app().note_progress("loading", done, total);
    });
    console.log.info(model_line(*engine));
    if (files.random) console.log.warning("random weights: the output means nothing");
    served->context = engine->options().max_context;
    served->max_sequences = options.max_sequences;
    served->isa = std::string(engine->isa());
    served->engine = std::make_unique<ServicePort>(std::move(engine),
                                                   ServiceOptions{.max_queued_requests = serve_.max_queued,
                                                                  .max_queued_tokens = serve_.max_queued_tokens,
                                                                  .step_budget_ms = static_cast<double>(serve_.step_budget_ms)});
    server.app().note_progress("warming", 1, 1);
    warm_up(*served);
    return served;
  }

  /// Ready means that a step has run.
  static void warm_up(const ServedModel& served) {
    constexpr double kLongest = 600'000;
    auto answered = std::make_shared<std::promise<bool>>();
    probe_engine(served, kLongest, [answered](bool good) { answered->set_value(good); });
    if (!answered->get_future().get())
      throw Error(Error::Kind::bad_model, "the first step gave no token: the weights hold NaN or infinity; check them with --verify=full");
  }

  void name_model(ServedModel& served, const ModelFiles& files) const {
    fs::path folder = fs::absolute(files.folder.empty() ? fs::path(model_options_.model) : files.folder).lexically_normal();
    if (!folder.has_filename()) folder = folder.parent_path();
    served.id = serve_.names.empty() ? folder.filename().string() : serve_.names.front();
    if (serve_.names.size() > 1) served.aliases.assign(serve_.names.begin() + 1, serve_.names.end());
  }

  void describe(ServedModel& served, const ModelFiles& files, const Log& log) const {
    served.family = files.spec.family;
    served.dtype = std::string(name_of(files.spec.dtype));
    served.vocab_size = files.spec.vocab_size;
    served.num_layers = files.spec.num_layers();
    served.moe_layers = moe_layers(files.spec);
    served.created =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
    served.eos_ids = eos_ids_of(files, served.tokenizer.get());
    if (files.folder.empty()) return;  // a published shape: no files, no text
    const GenerationDefaults d = read_generation_config(files.folder);
    served.defaults = {.temperature = d.temperature,
                       .top_p = d.top_p,
                       .min_p = d.min_p,
                       .repetition_penalty = d.repetition_penalty,
                       .top_k = d.top_k};
    served.special_tokens = special_tokens_of(files.folder);
    try {
      served.chat = open_template(files, true, log);
    } catch (const Error& e) {
      if (e.kind != Error::Kind::unsupported) throw;
      log.warning(fmt::format("{}; /v1/chat/completions is refused", e.what()));
    }
    if (served.chat) served.chat_template_source = served.chat->source();
  }

  /// A cache for all sequences at full length may exceed the memory: then the default takes half of what the weights leave.
  EngineOptions batch_options(const ModelFiles& files, const ParallelLayout& layout) const {
    EngineOptions o = engine_options(model_options_);
    o.layout = layout;
    o.max_sequences = serve_.max_batch_size;
    o.max_context = serve_.max_context > 0 ? serve_.max_context : files.spec.max_len;
    if (model_options_.max_position_embeddings > 0)
      o.max_context = std::min(o.max_context, model_options_.max_position_embeddings);
    o.cache_tokens = serve_.cache_tokens;
    o.share_generated = serve_.share_generated;
    o.expert_sampling = serve_.expert_sampling;
    if (o.cache_tokens > 0 || o.kv_mode == KvMode::contiguous) return o;
    const int64_t full = int64_t{o.max_sequences} * ((o.max_context + o.block_size - 1) / o.block_size) * o.block_size;
    o.cache_tokens = full;
    const MemoryPlan plan = Engine::plan_memory(files.spec, *files.source, o);
    const size_t others = plan.total() - plan.kv_cache + o.reserve_bytes, available = available_memory();
    const size_t budget = available > others ? (available - others) / 2 : 0;
    if (plan.kv_cache > budget) {
      const auto fits =
          static_cast<int64_t>(static_cast<double>(full) * static_cast<double>(budget) / static_cast<double>(plan.kv_cache));
      o.cache_tokens = std::max<int64_t>(fits, o.max_context);
    }
    return o;
  }

  std::vector<std::string> positionals_;
  ModelOptions model_options_;
  ParallelOptions parallel_;
  ServeOptions serve_;
  std::vector<ListenAt> addresses_;
  ImportedConfig imported_;
};

}  // namespace

std::unique_ptr<Command> make_serve() { return std::make_unique<ServeCommand>(); }

}  // namespace conclave
