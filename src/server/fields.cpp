#include "server/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"
#include "server/api_error.h"
#include "text/unicode.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void wrong_type(const std::string& name, const Json& value, std::string_view wanted) {
  throw ApiError(ApiCode::invalid_type, fmt::format("{} is {}, wanted {}", name, shown(value), wanted), name);
}
[[noreturn]] void wrong_value(const std::string& name, const std::string& found, const std::string& wanted) {
  throw ApiError(ApiCode::invalid_value, fmt::format("{} is {}, wanted {}", name, found, wanted), name);
}

/// "0 to 2", "more than 0", "more than 0 and less than 1".
std::string range_text(const FieldRange& r) {
  if (!r.above_low && !r.below_high) return fmt::format("{} to {}", r.low, r.high);
  return fmt::format("{} {} and {} {}", r.above_low ? "more than" : "at least", r.low, r.below_high ? "less than" : "at most",
                     r.high);
}

void check_number(const Field& field, const std::string& name, const Json& value) {
  const bool integer = field.type == FieldType::integer;
  if (!value.is_number()) wrong_type(name, value, integer ? "an integer" : "a number");
  const double number = value.get<double>();
  if (integer && number != std::trunc(number)) wrong_type(name, value, "an integer");
  const FieldRange& r = field.range;
  const bool low = r.above_low ? number > r.low : number >= r.low, high = r.below_high ? number < r.high : number <= r.high;
  if (!low || !high) wrong_value(name, shown(value), range_text(r));
}

void check_length(const std::string& name, size_t length, size_t most, const char* unit) {
  if (length > most) wrong_value(name, fmt::format("{} {} long", length, unit), fmt::format("at most {}", most));
}

void check_ids(const std::string& name, const Json& value, const ServerLimits& limits) {
  if (!value.is_array()) wrong_type(name, value, "a list of token ids");
  check_length(name, value.size(), limits.token_lists, "entries");
  for (const Json& id : value) {
    if (!id.is_number_integer()) wrong_type(name, id, "token ids");
    if (id < 0 || id > std::numeric_limits<int32_t>::max()) wrong_value(name, shown(id), "token ids from 0 to 2147483647");
  }
}

void check_texts(const std::string& name, const Json& value, const char* wanted) {
  if (!value.is_array()) wrong_type(name, value, wanted);
  for (const Json& text : value)
    if (!text.is_string()) wrong_type(name, text, wanted);
}

void check(const Field& field, const std::string& name, const Json& value, const ServerLimits& limits) {
  switch (field.type) {
    case FieldType::integer:
    case FieldType::number: return check_number(field, name, value);
    case FieldType::boolean:
      if (!value.is_boolean()) wrong_type(name, value, "true or false");
      return;
    case FieldType::text:
      if (!value.is_string()) wrong_type(name, value, "a string");
      return check_length(name, value.get_ref<const std::string&>().size(), static_cast<size_t>(field.range.high), "bytes");
    case FieldType::text_or_texts:
      if (!value.is_string()) check_texts(name, value, "a string or a list of strings");
      return;
    case FieldType::texts: return check_texts(name, value, "a list of strings");
    case FieldType::ids: return check_ids(name, value, limits);
    case FieldType::object:
      if (!value.is_object()) wrong_type(name, value, "an object");
      return;
    case FieldType::list:
      if (!value.is_array()) wrong_type(name, value, "a list");
      return;
    case FieldType::any: return;
  }
}

/// Names come from the client and go into a header.
std::string header_safe(std::string_view name) {
  constexpr size_t kLongest = 64;
  std::string text(name.substr(0, kLongest));
  for (char& c : text)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '.' && c != '-') c = '?';
  return text;
}

/// Members of all objects, counted before any is built: every colon outside a string.
size_t count_keys(std::string_view text) {
  size_t keys = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string && text[i] == '\\') ++i;
    else if (text[i] == '"') in_string = !in_string;
    else if (text[i] == ':' && !in_string) ++keys;
  }
  return keys;
}

Json type_schema(FieldType type) {
  switch (type) {
    case FieldType::integer: return {{"type", "integer"}};
    case FieldType::number: return {{"type", "number"}};
    case FieldType::boolean: return {{"type", "boolean"}};
    case FieldType::text: return {{"type", "string"}};
    case FieldType::text_or_texts:
      return {{"anyOf", {{{"type", "string"}}, {{"type", "array"}, {"items", {{"type", "string"}}}}}}};
    case FieldType::texts: return {{"type", "array"}, {"items", {{"type", "string"}}}};
    case FieldType::ids: return {{"type", "array"}, {"items", {{"type", "integer"}, {"minimum", 0}, {"maximum", 2147483647}}}};
    case FieldType::object: return {{"type", "object"}};
    case FieldType::list: return {{"type", "array"}};
    case FieldType::any: break;
  }
  return Json::object();
}

}  // namespace

FieldTable::FieldTable(std::initializer_list<std::vector<Field>> groups) {
  for (const auto& group : groups) fields_.insert(fields_.end(), group.begin(), group.end());
}

std::vector<std::string> FieldTable::read(const Json& body, Params& params, const ServerLimits& limits,
                                          const std::string& prefix) const {
  std::vector<std::string> ignored;
  for (const Field& field : fields_) {
    const auto found = body.find(field.name);
    const std::string name = prefix + field.name;
    const bool given = found != body.end() && !found->is_null();
    if (!given && field.required)
      throw ApiError(ApiCode::missing_field, fmt::format("{} is missing; it is required", name), name);
    if (!given) continue;
    if (field.effect == FieldEffect::ignored) {
      ignored.push_back(name);
    } else if (field.effect == FieldEffect::refused) {
      if (std::find(field.neutral.begin(), field.neutral.end(), *found) == field.neutral.end())
        throw ApiError(ApiCode::not_supported, fmt::format("{} is not supported: {}; leave it out", name, field.help), name);
    } else {
      check(field, name, *found, limits);
      if (field.members) {
        for (std::string& inner : field.members->read(*found, params, limits, name + ".")) ignored.push_back(std::move(inner));
      }
      if (field.set) field.set(params, *found, limits);
    }
  }
  for (const auto& [key, value] : body.items()) {
    const bool known = std::any_of(fields_.begin(), fields_.end(), [&key = key](const Field& f) { return f.name == key; });
    if (!known) ignored.push_back(header_safe(prefix + key));
  }
  return ignored;
}

Json FieldTable::schema(const Params& defaults) const {
  Json properties = Json::object(), needed = Json::array();
  for (const Field& field : fields_) {
    Json s = field.members ? field.members->schema(defaults) : type_schema(field.type);
    std::string help = field.help;
    if (field.effect == FieldEffect::ignored) help += " (no effect)";
    if (field.effect == FieldEffect::refused) help = "not supported: " + help;
    s["description"] = help;
    if (field.type == FieldType::integer || field.type == FieldType::number) {
      s["minimum"] = field.range.low, s["maximum"] = field.range.high;
      if (field.range.above_low) s["exclusiveMinimum"] = true;
      if (field.range.below_high) s["exclusiveMaximum"] = true;
    }
    if (field.type == FieldType::text) s["maxLength"] = static_cast<size_t>(field.range.high);
    if (field.get) {
      const Json value = field.get(defaults);
      if (!value.is_null()) s["default"] = value;
    }
    if (field.required) needed.push_back(field.name);
    else s["nullable"] = true;
    properties[field.name] = std::move(s);
  }
  Json schema = {{"type", "object"}, {"properties", std::move(properties)}};
  if (!needed.empty()) schema["required"] = std::move(needed);
  return schema;
}

Json parse_body(std::string_view body, const ServerLimits& limits) {
  try {
    if (count_keys(body) > limits.json_keys)
      throw ApiError(ApiCode::invalid_json, fmt::format("the request body has more than {} keys; send less", limits.json_keys));
    Json json = parse_json(body, "request body", {.max_bytes = limits.body_bytes, .max_depth = limits.json_depth});
    if (!json.is_object())
      throw ApiError(ApiCode::invalid_json,
                     fmt::format("the request body is {}, wanted a JSON object", json.is_array() ? "a list" : shown(json)));
    return json;
  } catch (const Error& e) {
    throw ApiError(ApiCode::invalid_json, e.what());
  }
}

Field json_field(std::string name, FieldType type, Json Params::*member, std::string help) {
  Field f{.name = std::move(name), .type = type, .help = std::move(help)};
  f.set = [member](Params& p, const Json& v, const ServerLimits&) { p.*member = v; };
  return f;
}

Field object_field(std::string name, FieldTable members, std::string help) {
  Field f{.name = std::move(name), .type = FieldType::object, .help = std::move(help)};
  f.members = std::make_shared<const FieldTable>(std::move(members));
  return f;
}

Field ignored_field(std::string name, std::string help) {
  return {.name = std::move(name), .help = std::move(help), .effect = FieldEffect::ignored};
}

Field refused_field(std::string name, std::vector<Json> neutral, std::string help) {
  return {.name = std::move(name), .help = std::move(help), .effect = FieldEffect::refused, .neutral = std::move(neutral)};
}

Field required(Field field) {
  field.required = true;
  return field;
}

Field stop_field(std::string name) {
  Field f{.name = name, .type = FieldType::text_or_texts, .help = "texts that end the answer and are not part of it"};
  f.set = [name](Params& p, const Json& v, const ServerLimits& limits) {
    p.stop = v.is_string() ? std::vector{v.get<std::string>()} : v.get<std::vector<std::string>>();
    check_length(name, p.stop.size(), limits.stop_strings, "entries");
    for (const std::string& text : p.stop) {
      if (text.empty()) wrong_value(name, "an empty string", "texts of at least one character");
      check_length(name, text.size(), limits.stop_bytes, "bytes");
    }
  };
  return f;
}

namespace {

constexpr double kMostInt = std::numeric_limits<int>::max();

Field logit_bias_field() {
  Field f{.name = "logit_bias", .type = FieldType::object, .help = "token id -> value from -100 to 100 added to its logit"};
  f.set = [](Params& p, const Json& v, const ServerLimits& limits) {
    check_length("logit_bias", v.size(), limits.logit_bias, "entries");
    for (const auto& [key, bias] : v.items()) {
      const bool digits =
          !key.empty() && key.size() <= 10 && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
      const long long id = digits ? std::stoll(key) : -1;
      if (id < 0 || id > std::numeric_limits<int32_t>::max())
        wrong_value("logit_bias", "a key " + shown(key), "token ids as keys");
      if (!bias.is_number()) wrong_type("logit_bias", bias, "numbers from -100 to 100");
      const double value = bias.get<double>();
      if (!(value >= -100 && value <= 100)) wrong_value("logit_bias", shown(bias), "numbers from -100 to 100");
      p.sampling.logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(value));
    }
  };
  return f;
}

Field top_k_field() {
  Field f = integer_field(
      "top_k", [](Params & p) -> auto& { return p.sampling.top_k; }, {-1, kMostInt},
      "keep the k most likely tokens; 0 and -1: all");
  f.set = [](Params& p, const Json& v, const ServerLimits&) {
    p.sampling.top_k = std::max(0, static_cast<int>(v.get<double>()));
  };
  return f;
}

Field words_field(std::string name, std::vector<std::string> Params::*words, std::string help) {
  Field f{.name = name, .type = FieldType::texts, .help = std::move(help)};
  f.set = [name, words](Params& p, const Json& v, const ServerLimits& limits) {
    p.*words = v.get<std::vector<std::string>>();
    check_length(name, (p.*words).size(), limits.bad_words, "entries");
    for (const std::string& word : p.*words) {
      if (word.empty()) wrong_value(name, "an empty string", "texts of at least one character");
      check_length(name, word.size(), limits.stop_bytes, "bytes");
    }
  };
  return f;
}

}  // namespace

Field seed_field(double least) {
  Field f = integer_field(
      "seed", [](Params & p) -> auto& { return p.seed; }, {least, 18446744073709551615.0},
      "the same seed gives the same text, whatever else runs; left out: random");
  f.set = [](Params& p, const Json& v, const ServerLimits&) {
    if (v.is_number_unsigned()) p.seed = v.get<uint64_t>();
    else if (v.is_number_integer()) p.seed = static_cast<uint64_t>(v.get<int64_t>());
    else if (const double number = v.get<double>(); std::fabs(number) <= 9007199254740992.0)
      p.seed = static_cast<uint64_t>(static_cast<int64_t>(number));
    else wrong_value("seed", shown(v), "an integer of 64 bits");
  };
  return f;
}

std::vector<Field> sampling_fields() {
  const auto d = [](auto DrySampling::*which) {
    return [which](Params & p) -> auto& { return p.sampling.dry.*which; };
  };
  Field mirostat = integer_field("mirostat", sampling_member(&Sampling::mirostat), {0, 2}, "0: off; 2: mirostat 2");
  mirostat.set = [](Params& p, const Json& v, const ServerLimits&) {
    p.sampling.mirostat = static_cast<int>(v.get<double>());
    if (p.sampling.mirostat == 1) wrong_value("mirostat", "1", "0 (off) or 2");
  };
  return {
      number_field("temperature", sampling_member(&Sampling::temperature), {0, 100}, "randomness; 0 is greedy"),
      number_field("top_p", sampling_member(&Sampling::top_p), {0, 1, true, false},
                   "keep the most likely tokens that together reach this probability"),
      top_k_field(),
      number_field("min_p", sampling_member(&Sampling::min_p), {0, 1}, "drop tokens below this share of the most likely one's probability"),
      number_field("typical_p", sampling_member(&Sampling::typical_p), {0, 1, true, false},
                   "keep locally typical tokens up to this probability"),
      number_field("top_n_sigma", sampling_member(&Sampling::top_n_sigma), {0, 100},
                   "keep logits within n standard deviations of the largest; 0: off"),
      number_field("xtc_probability", sampling_member(&Sampling::xtc_probability), {0, 1}, "chance of excluding the top choices; 0: off"),
      number_field("xtc_threshold", sampling_member(&Sampling::xtc_threshold), {0, 1},
                   "probability above which a token counts as a top choice"),
      number_field("dry_multiplier", d(&DrySampling::multiplier), {0, 100}, "penalty on continuing a repetition; 0: off"),
      number_field("dry_base", d(&DrySampling::base), {1, 100}, "growth of that penalty per token"),
      integer_field("dry_allowed_length", d(&DrySampling::allowed_length), {0, 1e6}, "repetitions up to this length are free"),
      integer_field("dry_penalty_last_n", d(&DrySampling::range), {0, kMostInt}, "tokens looked back; 0: all"),
      words_field("dry_sequence_breakers", &Params::dry_breakers, "texts at which a repetition ends"),
      mirostat,
      number_field("mirostat_tau", sampling_member(&Sampling::mirostat_tau), {0, 100}, "mirostat's aimed surprise"),
      number_field("mirostat_eta", sampling_member(&Sampling::mirostat_eta), {0, 1}, "mirostat's learning rate"),
      number_field("repetition_penalty", sampling_member(&Sampling::repetition_penalty), {0, 100, true, false},
                   "above 1: tokens seen before become less likely"),
      number_field("presence_penalty", sampling_member(&Sampling::presence_penalty), {-2, 2}, "subtracted once from tokens generated before"),
      number_field("frequency_penalty", sampling_member(&Sampling::frequency_penalty), {-2, 2},
                   "subtracted per earlier occurrence of a generated token"),
      logit_bias_field(),
      ids_field("allowed_token_ids", sampling_member(&Sampling::allowed_token_ids), "only these tokens; empty: all"),
      words_field("bad_words", &Params::bad_words, "texts that are never completed"),
      seed_field(-9223372036854775808.0),
  };
}

std::vector<Field> request_fields() {
  return {
      ids_field("stop_token_ids", member(&Params::stop_token_ids), "tokens that end the answer"),
      boolean_field("include_stop_str_in_output", member(&Params::include_stop), "keep the stop text in the answer"),
      boolean_field("ignore_eos", member(&Params::ignore_eos), "go on past the model's end of answer"),
      integer_field(
          "min_tokens", [](Params & p) -> auto& { return p.sampling.min_tokens; }, {0, kMostInt},
          "no end before that many tokens"),
      boolean_field("skip_special_tokens", member(&Params::skip_special_tokens), "leave control tokens out of the text"),
      integer_field("truncate_prompt_tokens", member(&Params::truncate_prompt), {-1, kMostInt},
                    "keep only that many of the prompt's last tokens; -1: what fits; the answer says how many were dropped"),
      boolean_field("return_token_ids", member(&Params::return_token_ids), "add token ids to each choice"),
      boolean_field("timings", member(&Params::timings), "add milliseconds of queue, prefill and decode"),
      integer_field("priority", member(&Params::priority), {1, 5}, "1 is served first, 5 last"),
      number_field("deadline_ms", member(&Params::deadline_ms), {0, 1e9}, "end the request after that time; 0: never"),
      text_field("cache_salt", member(&Params::cache_salt), 256, "prompts share cached prefixes only with prompts of the same salt"),
  };
}

}  // namespace conclave
