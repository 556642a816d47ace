#include "text/number_tokenizer.h"

#include <fmt/format.h>

#include <charconv>

#include "core/error.h"
#include "text/added_tokens.h"

namespace conclave {
namespace {

class NumberTokenizer final : public Tokenizer {
 public:
  explicit NumberTokenizer(int32_t vocab_size) : vocab_size_(vocab_size) {}

  void append_bytes(int32_t id, bool, bool& at_start, std::string& out) const override {
    if (id < 0) throw Error(Error::Kind::bad_input, fmt::format("token id {} is given, wanted ids from 0", id));
    out += fmt::format("{}{}", at_start ? "" : " ", id);
    at_start = false;
  }
  bool strips_leading_space() const override { return true; }
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> id_of(std::string_view token) const override {
    int32_t id = 0;
    const auto [rest, error] = std::from_chars(token.data(), token.data() + token.size(), id);
    const bool whole = error == std::errc() && rest == token.data() + token.size() && id >= 0 && id < vocab_size_;
    return whole ? std::optional(id) : std::nullopt;
  }
  int32_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }

 protected:
  void encode_marked(const MarkedText& text, std::vector<int32_t>& ids) const override {
    const std::string_view bytes = text.bytes;
    for (size_t at = bytes.find_first_not_of(' '); at != std::string_view::npos;) {
      const size_t end = std::min(bytes.find(' ', at), bytes.size());
      ids.push_back(id_of(bytes.substr(at, end - at)).value_or(id_of_word(bytes.substr(at, end - at))));
      at = bytes.find_first_not_of(' ', end);
    }
  }
  void add_special(std::vector<int32_t>&) const override {}

 private:
  int32_t id_of_word(std::string_view word) const {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (const char c : word) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    return static_cast<int32_t>(hash % static_cast<uint64_t>(vocab_size_));
  }
  int32_t vocab_size_;
};

}  // namespace

std::unique_ptr<Tokenizer> number_tokenizer(int32_t vocab_size) { return std::make_unique<NumberTokenizer>(vocab_size); }

}  // namespace conclave
