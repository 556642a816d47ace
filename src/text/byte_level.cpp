#include <array>

#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace conclave {
namespace {

/// Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 and up.
bool stands_for_itself(int byte) { return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE; }

struct Table {
  std::array<std::string, 256> characters;
  std::array<int, 0x144> bytes;
  Table() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t code = stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
      append_utf8(characters[static_cast<size_t>(byte)], code);
      bytes[code] = byte;
    }
  }
};

const Table& table() {
  static const Table table;
  return table;
}

}  // namespace

const std::string& byte_level_character(unsigned char byte) { return table().characters[byte]; }

int byte_level_byte(char32_t code) { return code < table().bytes.size() ? table().bytes[code] : -1; }

}  // namespace conclave
