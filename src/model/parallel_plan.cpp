#include "model/parallel_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "model/packed_matrix.h"

namespace conclave {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

int num_heads(const ModelSpec& spec) {
  return std::visit([](const auto& a) { return a.num_heads; }, spec.attention);
}

int num_experts(const ModelSpec& spec) {
  int most = 0;
  for (const FfnSpec& layer : spec.layers)
    if (const auto* moe = std::get_if<MoeSpec>(&layer)) most = std::max(most, moe->router.num_experts);
  return most;
}

/// Inputs that packed weights keep together.
int64_t packed_unit(const ModelSpec& spec) {
  if (!is_packed(spec.quant.scheme) || spec.quant.bits != 4) return 1;
  return spec.quant.group > 0 ? spec.quant.group : 2;
}

double stored_bytes(const ModelSpec& spec, const TensorInfo& info) {
  double n = 1;
  for (const int64_t d : info.shape) n *= static_cast<double>(d);
  if (!info.linear || spec.quant.scheme == WeightScheme::floating) return n * static_cast<double>(size_of(spec.dtype));
  return n * (is_packed(spec.quant.scheme) ? spec.quant.bits / 8.0 : 1.0);
}

/// First layers of the stages whose largest has the fewest bytes; every stage gets a layer.
std::vector<int> balanced_stages(const ModelSpec& spec, int stages) {
  std::vector<double> bytes(spec.layers.size(), 0.0);
  double embed = 0, head = 0;
  for_each_tensor(spec, [&](const TensorInfo& info) {
    const double size = stored_bytes(spec, info);
    if (info.layer >= 0) bytes[static_cast<size_t>(info.layer)] += size;
    else (info.part == Part::embedding ? embed : head) += size;
  });
  bytes.front() += embed;
  bytes.back() += spec.tied_head ? embed : head;
  const auto layers = static_cast<int>(bytes.size());
  std::vector<double> sums(bytes.size() + 1, 0.0);
  for (size_t l = 0; l < bytes.size(); ++l) sums[l + 1] = sums[l] + bytes[l];
  // best[s][l]: smallest largest stage when the first l layers are cut into s stages.
  std::vector<std::vector<double>> best(static_cast<size_t>(stages) + 1, std::vector<double>(bytes.size() + 1, 1e300));
  std::vector<std::vector<int>> from(best.size(), std::vector<int>(bytes.size() + 1, 0));
  best[0][0] = 0;
  for (int s = 1; s <= stages; ++s)
    for (int l = s; l <= layers; ++l)
      for (int k = s - 1; k < l; ++k) {
        const auto su = static_cast<size_t>(s), lu = static_cast<size_t>(l), ku = static_cast<size_t>(k);
        if (const double largest = std::max(best[su - 1][ku], sums[lu] - sums[ku]); largest < best[su][lu])
          best[su][lu] = largest, from[su][lu] = k;
      }
  std::vector<int> counts(static_cast<size_t>(stages));
  for (int s = stages, l = layers; s > 0; --s) {
    const int k = from[static_cast<size_t>(s)][static_cast<size_t>(l)];
    counts[static_cast<size_t>(s - 1)] = l - k;
    l = k;
  }
  return counts;
}

int size_or(int asked, int otherwise) { return asked == -1 ? otherwise : asked; }

void check_sizes(const LayoutRequest& asked) {
  const std::pair<const char*, int> sizes[] = {{"tp", asked.tp}, {"dp", asked.dp}, {"pp", asked.pp}, {"sp", asked.sp}, {"cp", asked.cp},
                                               {"moe-tp", asked.moe_tp}, {"moe-ep", asked.moe_ep}, {"microbatch", asked.microbatches}};
  for (const auto& [name, size] : sizes)
    if (size == 0 || size < -1) refuse(fmt::format("--{} is {}, wanted a number of at least 1, or -1 for what follows from the others", name, size));
  if (size_or(asked.cp, 1) != 1)
    refuse(fmt::format("--cp is {}, but context parallelism is not offered; use --tp or --pp, and --dp for more sequences", asked.cp));
  if (size_or(asked.pp, 1) > 1 && size_or(asked.dp, 1) > 1)
    refuse(fmt::format("--pp {} and --dp {} cannot be combined; use one of them with --tp", asked.pp, asked.dp));
}

/// tp, dp, pp: their product is the world where that is given.
void fill_groups(ParallelLayout& l, const LayoutRequest& asked, int world) {
  l.dp = size_or(asked.dp, 1), l.pp = size_or(asked.pp, 1);
  const bool experts_only = asked.tp == -1 && world == 0 && (asked.moe_ep > 0 || asked.moe_tp > 0);
  const int64_t experts = int64_t{size_or(asked.moe_ep, 1)} * size_or(asked.moe_tp, 1);
  if (asked.tp > 0) l.tp = asked.tp;
  else if (world > 0 && world % (l.dp * l.pp) == 0) l.tp = world / (l.dp * l.pp);
  else if (experts_only && experts % l.dp == 0) l.tp = static_cast<int>(experts / l.dp);
  const int64_t product = int64_t{l.dp} * l.tp * l.pp;
  if (product > (1 << 20)) refuse(fmt::format("--dp {} x --tp {} x --pp {} are {} ranks, more than {}", l.dp, l.tp, l.pp, product, 1 << 20));
  if (world > 0 && product != world)
    refuse(fmt::format("--dp {} x --tp {} x --pp {} are {} ranks, but {} were started; make the product {}", l.dp, l.tp, l.pp, product, world, world));
}

void fill_experts(ParallelLayout& l, const LayoutRequest& asked) {
  const int stage = l.stage_size();
  l.moe_tp = l.tp, l.moe_ep = l.dp;
  if (asked.moe_ep > 0 && asked.moe_tp > 0) l.moe_ep = asked.moe_ep, l.moe_tp = asked.moe_tp;
  else if (asked.moe_ep > 0) l.moe_ep = asked.moe_ep, l.moe_tp = std::max(1, stage / asked.moe_ep);
  else if (asked.moe_tp > 0) l.moe_tp = asked.moe_tp, l.moe_ep = std::max(1, stage / asked.moe_tp);
  if (int64_t{l.moe_ep} * l.moe_tp != stage)
    refuse(fmt::format("--moe-ep {} x --moe-tp {} are {} ranks, but a stage has --dp {} x --tp {} = {}; the products must be equal", l.moe_ep,
                       l.moe_tp, int64_t{l.moe_ep} * l.moe_tp, l.dp, l.tp, stage));
}

void check_model(const ModelSpec& spec, const ParallelLayout& l) {
  const int heads = num_heads(spec), experts = num_experts(spec);
  if (l.tp > heads) refuse(fmt::format("--tp {} is more than the model's {} query heads (num_attention_heads)", l.tp, heads));
  if (l.pp > spec.num_layers()) refuse(fmt::format("--pp {} is more than the model's {} layers (num_hidden_layers)", l.pp, spec.num_layers()));
  if (experts > 0 && l.moe_ep > experts) refuse(fmt::format("--moe-ep {} is more than the model's {} experts ({})", l.moe_ep, experts, spec.names.experts_key));
  if (l.tp > spec.vocab_size) refuse(fmt::format("--tp {} is more than the model's {} vocabulary rows (vocab_size)", l.tp, spec.vocab_size));
  if (l.whole_sums && l.sequence_parallel)
    refuse(fmt::format("--deterministic=world has no partial sums that --sp {} could scatter; leave one of them out", l.tp));
}

/// Every rank must get some of each width, and packed groups stay whole.
void check_widths(const ModelSpec& spec, const ParallelLayout& l) {
  const int64_t unit = packed_unit(spec);
  for_each_tensor(spec, [&](const TensorInfo& info) {
    if (info.shape.size() != 2 || info.expert > 0) return;
    const bool expert = info.part == Part::expert;
    const int parts = expert ? l.moe_tp : l.tp;
    if (parts == 1) return;
    if (info.shard == Shard::columns || (expert && info.name.ends_with(spec.names.expert_down))) {
      if ((info.shape[1] + unit - 1) / unit < parts)
        refuse(fmt::format("{} has a width of {}{}, too little for --{} {}; use fewer tensor ranks", info.name, info.shape[1],
                           unit > 1 ? fmt::format(" in quantisation groups of {}", unit) : "", expert ? "moe-tp" : "tp", parts));
    } else if (info.shard == Shard::head_columns && unit > 1) {
      const int64_t head = info.shape[1] / num_heads(spec);
      for (int part = 1; part < parts; ++part)
        if (const int64_t at = share(num_heads(spec), part, parts).begin * head; at % unit != 0)
          refuse(fmt::format("{} has a width of {}; --tp {} would cut it at {}, inside a quantisation group of {}; choose a --tp that keeps "
                             "groups whole", info.name, info.shape[1], parts, at, unit));
    }
  });
}

void fill_stages(const ModelSpec& spec, ParallelLayout& l, const LayoutRequest& asked) {
  l.stage_layers = asked.stage_layers.empty() ? balanced_stages(spec, l.pp) : asked.stage_layers;
  const int sum = std::accumulate(l.stage_layers.begin(), l.stage_layers.end(), 0);
  const bool positive = std::all_of(l.stage_layers.begin(), l.stage_layers.end(), [](int n) { return n > 0; });
  if (static_cast<int>(l.stage_layers.size()) != l.pp || sum != spec.num_layers() || !positive)
    refuse(fmt::format("--pp-split {} gives {} layers to {} stages; wanted {} positive numbers whose sum is the model's {} layers",
                       fmt::join(l.stage_layers, ","), sum, l.stage_layers.size(), l.pp, spec.num_layers()));
}

/// Key/value heads of a range of query heads: as few as serve equal numbers of neighbouring query heads each.
std::vector<int> kv_heads_of(const GqaSpec& gqa, const IndexRange& query) {
  const int64_t group = gqa.num_heads / gqa.num_kv_heads;
  int64_t each = query.size();
  for (int64_t h = query.begin; h <= query.end; ++h)  // heads between which the key/value head changes
    if (h % group == 0 && h > query.begin && h < query.end) each = std::gcd(each, h - query.begin);
  std::vector<int> heads;
  for (int64_t h = query.begin; h < query.end; h += each) heads.push_back(static_cast<int>(h / group));
  return heads;
}

}  // namespace

IndexRange share(int64_t count, int part, int parts, int64_t unit) {
  const int64_t units = (count + unit - 1) / unit;
  const auto at = [&](int64_t p) { return std::min(count, units * p / parts * unit); };
  return {at(part), at(part + 1)};
}

ParallelLayout resolve_layout(const ModelSpec& spec, const LayoutRequest& asked, int world, int ranks_per_host) {
  check_sizes(asked);
  ParallelLayout l;
  fill_groups(l, asked, world);
  fill_experts(l, asked);
  const int sp = size_or(asked.sp, 1);
  if (sp != 1 && sp != l.tp) refuse(fmt::format("--sp {} must equal --tp {} (or be 1)", sp, l.tp));
  l.sequence_parallel = sp > 1;
  if (ranks_per_host > 0 && l.tp > ranks_per_host && l.tp != l.world())
    refuse(fmt::format("--tp {} is more than the {} ranks of a host; use at most {}, or --tp {} over the whole world", l.tp, ranks_per_host,
                       ranks_per_host, l.world()));
  l.microbatches = size_or(asked.microbatches, l.pp);
  l.dispatch = asked.dispatch.value_or(l.dp > 1 ? Dispatch::exchange : Dispatch::replicate);
  if (l.dp > 1 && l.dispatch == Dispatch::replicate)
    refuse(fmt::format("--moe-dispatch replicate needs the same tokens on every rank, but --dp is {}; leave it out or give exchange", l.dp));
  l.whole_sums = asked.whole_sums;
  check_model(spec, l);
  check_widths(spec, l);
  fill_stages(spec, l, asked);
  return l;
}

std::vector<int> experts_of(const RankPlan& plan, const MoeSpec& layer) {
  const IndexRange held = plan.held_experts(layer.router.num_experts);
  std::vector<int> experts(static_cast<size_t>(held.size()));
  std::iota(experts.begin(), experts.end(), static_cast<int>(held.begin));
  return experts;
}

RankPlan plan_rank(const ModelSpec& spec, const ParallelLayout& layout, int rank) {
  if (const int layers = std::accumulate(layout.stage_layers.begin(), layout.stage_layers.end(), 0); layers != spec.num_layers())
    throw Error(Error::Kind::internal, fmt::format("a layout of {} layers met a model of {}; resolve_layout() makes the model's own", layers, spec.num_layers()));
  RankPlan p;
  p.layout = layout;
  p.rank = rank;
  const int stage_size = layout.stage_size(), in_stage = rank % stage_size;
  p.stage = rank / stage_size;
  p.data = in_stage / layout.tp, p.tensor = in_stage % layout.tp;
  p.expert_group = in_stage / layout.moe_tp, p.expert_tensor = in_stage % layout.moe_tp;
  p.first_stage = p.stage == 0, p.last_stage = p.stage == layout.pp - 1;
  const auto first = layout.stage_layers.begin();
  p.layers.begin = std::accumulate(first, first + p.stage, int64_t{0});
  p.layers.end = p.layers.begin + layout.stage_layers[static_cast<size_t>(p.stage)];
  p.width_unit = packed_unit(spec);
  p.heads = share(num_heads(spec), p.tensor, layout.tp);
  p.vocab = share(spec.vocab_size, p.tensor, layout.tp);
  if (const auto* gqa = std::get_if<GqaSpec>(&spec.attention)) p.kv_heads = kv_heads_of(*gqa, p.heads);
  return p;
}

RankPlan plan_alone(const ModelSpec& spec) {
  ParallelLayout alone;
  alone.stage_layers = {spec.num_layers()};
  return plan_rank(spec, alone, 0);
}

ModelSpec local_spec(const ModelSpec& spec, const RankPlan& plan) {
  ModelSpec local = spec;
  std::visit([&](auto& a) { a.num_heads = static_cast<int>(plan.heads.size()); }, local.attention);
  if (auto* gqa = std::get_if<GqaSpec>(&local.attention)) gqa->num_kv_heads = static_cast<int>(plan.kv_heads.size());
  local.layers.assign(spec.layers.begin() + plan.layers.begin, spec.layers.begin() + plan.layers.end);
  for (FfnSpec& layer : local.layers) {
    if (plan.layout.whole_sums) continue;  // widths stay whole
    if (auto* dense = std::get_if<DenseSpec>(&layer)) {
      dense->inner = static_cast<int>(plan.width(dense->inner).size());
      continue;
    }
    auto& moe = std::get<MoeSpec>(layer);
    moe.expert_inner = static_cast<int>(plan.expert_width(moe.expert_inner).size());
    moe.shared_inner = static_cast<int>(plan.width(moe.shared_inner).size());
  }
  return local;
}

TensorCut cut_of(const ModelSpec& spec, const RankPlan& plan, const TensorInfo& info) {
  const auto rows = [](const IndexRange& r) { return TensorCut{.held = r.size() > 0, .rows = {r}, .cols = {}}; };
  const auto cols = [](const IndexRange& r) { return TensorCut{.held = r.size() > 0, .rows = {}, .cols = r}; };
  if (info.layer >= 0 && !plan.layers.contains(info.layer)) return {.held = false, .rows = {}, .cols = {}};
  const int64_t head = (info.shard == Shard::head_columns ? info.shape[1] : info.shape[0]) / num_heads(spec);
  const IndexRange own{plan.heads.begin * head, plan.heads.end * head};
  switch (info.part) {
    case Part::embedding:
      return plan.first_stage || (spec.tied_head && plan.last_stage) ? rows(plan.vocab) : TensorCut{.held = false, .rows = {}, .cols = {}};
    case Part::head: return plan.last_stage ? rows(plan.vocab) : TensorCut{.held = false, .rows = {}, .cols = {}};
    case Part::norm: return {.held = info.layer >= 0 || plan.last_stage, .rows = {}, .cols = {}};
    case Part::expert: {
      const auto& moe = std::get<MoeSpec>(spec.layers[static_cast<size_t>(info.layer)]);
      if (!plan.held_experts(moe.router.num_experts).contains(info.expert))
        return {.held = false, .rows = {}, .cols = {}};
      if (plan.layout.whole_sums) return {};
      const bool down = info.name.ends_with(spec.names.expert_down);
      const IndexRange width = plan.expert_width(down ? info.shape[1] : info.shape[0]);
      return down ? cols(width) : rows(width);
    }
    default: break;
  }
  if (plan.layout.whole_sums) {  // sums stay whole: o_proj is cut by its outputs, feed-forwards by tokens
    if (info.shard == Shard::head_columns) return rows(share(info.shape[0], plan.tensor, plan.layout.tp));
    if (info.shard == Shard::rows || info.shard == Shard::columns) return {};
  }
  switch (info.shard) {
    case Shard::rows: return rows(plan.width(info.shape[0]));
    case Shard::columns: return cols(plan.width(info.shape[1]));
    case Shard::head_columns: return cols(own);
    case Shard::heads: {
      const auto* gqa = std::get_if<GqaSpec>(&spec.attention);
      if (!gqa || info.name.ends_with("q_proj.weight")) return rows(own);
      TensorCut cut;
      for (const int kv : plan.kv_heads) {
        const IndexRange r{int64_t{kv} * gqa->head_dim, (int64_t{kv} + 1) * gqa->head_dim};
        if (!cut.rows.empty() && cut.rows.back().end == r.begin) cut.rows.back().end = r.end;
        else cut.rows.push_back(r);
      }
      return cut;
    }
    default: return {};
  }
}

}  // namespace conclave
