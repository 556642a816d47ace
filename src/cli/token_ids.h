#pragma once
// Token ids as users write them: "1,2,3" is one list, spaces separate several lists.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

/// Throws bad_input naming `option`, the piece that is not an id and its position. Empty text gives no list.
std::vector<std::vector<int32_t>> parse_id_lists(std::string_view text, std::string_view option);
/// "1,2,3".
std::string join_ids(std::span<const int32_t> ids);

}  // namespace conclave
