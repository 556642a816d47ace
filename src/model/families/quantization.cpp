#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "model/families/family.h"

namespace conclave {
namespace {

constexpr std::string_view kSupported =
    "supported are quant_method fp8 (e4m3 weights with 128 x 128 block scales) and compressed-tensors int-quantized "
    "(symmetric int8 weights per channel, activations floating or dynamic symmetric int8 per token)";

[[noreturn]] void unsupported(const ConfigView& config, std::string_view key, std::string_view wanted) {
  const auto found = config.json().find(std::string(key));
  const std::string value = found == config.json().end() ? "missing" : found->dump(-1, ' ', true).substr(0, 120);
  throw Error(Error::Kind::unsupported,
              fmt::format("{}: {} is {}, wanted {}; {}", config.where(), key, value, wanted, kSupported));
}

QuantSpec parse_fp8(const ConfigView& quant) {
  const std::string format = quant.text("fmt", "e4m3");
  if (format != "e4m3" && format != "float8_e4m3fn") unsupported(quant, "fmt", "e4m3");
  if (quant.text("activation_scheme", "dynamic") != "dynamic") unsupported(quant, "activation_scheme", "dynamic");
  const auto block = quant.json().find("weight_block_size");
  if (block == quant.json().end() || *block != nlohmann::ordered_json{kFp8Block, kFp8Block})
    unsupported(quant, "weight_block_size", "[128, 128]");
  return {WeightScheme::fp8_block, Activations::floating};
}

/// One set of quantisation arguments of compressed-tensors: 8-bit symmetric integers.
void check_int8(const ConfigView& args, std::string_view strategy, bool dynamic) {
  if (args.integer("num_bits", 8) != 8) unsupported(args, "num_bits", "8");
  if (args.text("type", "int") != "int") unsupported(args, "type", "\"int\"");
  if (!args.boolean("symmetric", true)) unsupported(args, "symmetric", "true");
  if (args.text("strategy") != strategy) unsupported(args, "strategy", strategy);
  if (args.boolean("dynamic", false) != dynamic) unsupported(args, "dynamic", dynamic ? "true" : "false");
  if (args.has("group_size")) unsupported(args, "group_size", "null");
  if (args.has("block_structure")) unsupported(args, "block_structure", "null");
}

Activations parse_group(const ConfigView& group, const std::string& common_format) {
  if (group.text("format", common_format) != "int-quantized") unsupported(group, "format", "int-quantized");
  const auto weights = group.object("weights"), input = group.object("input_activations");
  if (!weights) unsupported(group, "weights", "int8 weights per channel");
  check_int8(*weights, "channel", false);
  if (group.has("output_activations")) unsupported(group, "output_activations", "null");
  if (!input) return Activations::floating;
  check_int8(*input, "token", true);
  return Activations::int8_token;
}

QuantSpec parse_compressed_tensors(const ConfigView& quant) {
  const std::string format = quant.text("format", "");
  const auto groups = quant.object("config_groups");
  if (!groups || groups->json().empty()) unsupported(quant, "config_groups", "at least one group");
  if (quant.text("quantization_status", "compressed") != "compressed")
    unsupported(quant, "quantization_status", "compressed");
  if (quant.has("kv_cache_scheme")) unsupported(quant, "kv_cache_scheme", "null");
  const auto sparsity = quant.object("sparsity_config");
  if (sparsity && !sparsity->json().empty() && sparsity->text("format", "") != "dense")
    unsupported(quant, "sparsity_config", "none");
  if (const auto transform = quant.object("transform_config"); transform && !transform->json().empty())
    unsupported(quant, "transform_config", "none");
  std::optional<Activations> activations;
  for (const auto& [name, group] : groups->json().items()) {
    const Activations found = parse_group(ConfigView(group, fmt::format("{}: {}", groups->where(), name)), format);
    if (activations.value_or(found) != found)
      unsupported(quant, "config_groups", "the same input_activations in every group");
    activations = found;
  }
  return {WeightScheme::int8_channel, *activations};
}

}  // namespace

QuantSpec parse_quantization(const ConfigView& config) {
  const auto quant = config.object("quantization_config");
  if (!quant) return {};
  const std::string method = quant->has("quant_method") ? quant->text("quant_method") : "";
  if (method == "fp8") return parse_fp8(*quant);
  if (method == "compressed-tensors") return parse_compressed_tensors(*quant);
  unsupported(*quant, "quant_method", "fp8 or compressed-tensors");
}

}  // namespace conclave
