#pragma once
// The one exception type. Every message names the file, tensor, key or field, the value found, the value wanted
// and the next step; it is built with fmt::format at the call site. The kind decides the process exit code.
#include <stdexcept>
#include <string>

namespace conclave {

struct Error : std::runtime_error {
  enum class Kind {
    bad_input,        ///< the user's arguments or request: exit code 2
    bad_model,        ///< a checkpoint, tokenizer or template that cannot be used: 3
    unsupported,      ///< understood, but not offered by this build: 3
    out_of_memory,    ///< planned memory exceeds what the machine has: 4
    device,           ///< an accelerator failed: 5
    network,          ///< network or a peer rank failed: 6
    below_threshold,  ///< a measurement fell below the threshold that was asked for: 7
    cancelled,        ///< stopped by the user: 1
    internal,         ///< a broken invariant, or the operating system failed (I/O, disk full): 1
  };
  Error(Kind k, const std::string& message) : std::runtime_error(message), kind(k) {}
  Kind kind;
};

/// Process exit code of an error: 2 usage, 3 bad model, 4 memory, 5 device, 6 network, 7 threshold, 1 other.
constexpr int exit_code(Error::Kind kind) {
  switch (kind) {
    case Error::Kind::bad_input: return 2;
    case Error::Kind::bad_model:
    case Error::Kind::unsupported: return 3;
    case Error::Kind::out_of_memory: return 4;
    case Error::Kind::device: return 5;
    case Error::Kind::network: return 6;
    case Error::Kind::below_threshold: return 7;
    case Error::Kind::cancelled:
    case Error::Kind::internal: return 1;
  }
  return 1;
}

}  // namespace conclave
