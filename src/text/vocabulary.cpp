#include "text/vocabulary.h"

#include <fmt/format.h>

#include "core/error.h"

namespace conclave {

void Vocabulary::add(std::string token, int64_t id, std::string_view source) {
  if (id < 0 || id >= kMaxId)
    throw Error(Error::Kind::bad_model, fmt::format("{}: token \"{}\" has the id {}, wanted 0 to {}", source, token, id, kMaxId - 1));
  if (storage_.size() >= kMaxTokens)
    throw Error(Error::Kind::bad_model, fmt::format("{}: more than {} tokens", source, kMaxTokens));
  const auto at = static_cast<size_t>(id);
  if (at < texts_.size() && texts_[at])
    throw Error(Error::Kind::bad_model, fmt::format("{}: id {} belongs to both \"{}\" and \"{}\"", source, id, *texts_[at], token));
  const std::string& stored = storage_.emplace_back(std::move(token));
  if (!ids_.emplace(stored, static_cast<int32_t>(id)).second)
    throw Error(Error::Kind::bad_model, fmt::format("{}: token \"{}\" occurs twice, at ids {} and {}", source, stored, find(stored), id));
  if (at >= texts_.size()) texts_.resize(at + 1);
  texts_[at] = &stored;
}

}  // namespace conclave
