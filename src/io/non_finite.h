#pragma once
// Search for NaN and infinity in stored tensors: what `--verify=full` does. Reads each byte once, at memory speed;
// integer tensors are never wrong. Tensors are only borrowed.
#include <optional>
#include <span>

#include "io/safetensors.h"

namespace conclave {

/// Index of the first NaN or infinite element, or nothing. F8_E4M3 has NaN only (0x7f and 0xff).
std::optional<size_t> first_non_finite(const TensorRecord& record);

/// Scans all tensors with one thread per processor; throws bad_model naming file, tensor and element of the first
/// offence in order.
void check_finite(std::span<const TensorRecord* const> records);

}  // namespace conclave
