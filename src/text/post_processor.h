#pragma once
// The `post_processor` section of tokenizer.json for single texts: ids before and after the text.
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace conclave {

class JsonSection;

class PostProcessor {
 public:
  PostProcessor() = default;
  /// Reads the section; null adds nothing. Throws bad_model or unsupported naming `source`.
  PostProcessor(const nlohmann::json& section, const std::string& source);

  void apply(std::vector<int32_t>& ids) const;
  /// Makes sure that the text begins (ends) with the id, adding it where the file does not.
  void set_prefix(int32_t id);
  void set_suffix(int32_t id);
  /// Takes the id out of what comes before (after) the text.
  void drop_prefix(int32_t id) { std::erase(prefix_, id); }
  void drop_suffix(int32_t id) { std::erase(suffix_, id); }
  /// Throws bad_model when an id that is added has no text.
  void check_ids(const std::function<bool(int32_t)>& known) const;

 private:
  void read(const nlohmann::json& section, const std::string& source);
  void read_template(const JsonSection& s);
  void read_pair(const JsonSection& s);
  std::vector<int32_t> prefix_, suffix_;
  std::string source_;
};

}  // namespace conclave
