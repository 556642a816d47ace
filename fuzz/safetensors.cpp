// Any bytes as a safetensors file: parsed or refused, and every tensor stays inside the bytes.
#include <cstdlib>

#include "core/error.h"
#include "io/non_finite.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    for (const auto& [name, record] : SafetensorsFile::parse(bytes, "input")) {
      if (record.data < bytes.data() || record.data + record.bytes > bytes.data() + size) std::abort();
      first_non_finite(record);
    }
  } catch (const Error&) {
  }
  return 0;
}
