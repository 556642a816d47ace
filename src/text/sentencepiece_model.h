#pragma once
// Reads a SentencePiece tokenizer.model: a protobuf message of pieces, trainer and normalizer settings. Hides the wire format;
// every length is checked against the file. Field numbers are those of sentencepiece_model.proto.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

struct SentencePieceModel {
  enum class Type { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  enum class Algorithm { unigram = 1, bpe = 2 };
  struct Piece {
    std::string text;
    float score = 0;
    Type type = Type::normal;
  };
  std::vector<Piece> pieces;
  Algorithm algorithm = Algorithm::unigram;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
  std::string bos_piece = "<s>", eos_piece = "</s>";
  std::string unk_surface = " \xE2\x81\x87 ";
};

/// Throws bad_model for a broken file and unsupported for word/char models and for normalization rules other than identity,
/// naming `source` and the field.
SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& source);

}  // namespace conclave
