#include "io/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "core/error.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using test::error_of;
using test::TempFolder;

/// The bytes of a file: length, header, data.
std::string file_bytes(std::string_view header, size_t data_bytes) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return bytes + std::string(header) + std::string(data_bytes, '\1');
}

std::string refusal(std::string_view bytes) {
  return error_of([&] { SafetensorsFile::parse(std::as_bytes(std::span(bytes)), "dir/x.safetensors"); });
}

constexpr std::string_view kGood =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
    R"("a":{"dtype":"F32","shape":[],"data_offsets":[12,16]},"e":{"dtype":"I8","shape":[0,4],"data_offsets":[16,16]}}   )";

TEST(Safetensors, ReadsShapesTypesAndPlaces) {
  const std::string bytes = file_bytes(kGood, 16);
  const auto tensors = SafetensorsFile::parse(std::as_bytes(std::span(bytes)), "x");
  ASSERT_EQ(tensors.size(), 3u);
  const TensorRecord& b = tensors.at("b");
  EXPECT_EQ(b.dtype, DType::bf16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.bytes, 12u);
  EXPECT_EQ(reinterpret_cast<const char*>(b.data) - bytes.data(), static_cast<std::ptrdiff_t>(8 + kGood.size()));
  EXPECT_TRUE(tensors.at("a").shape.empty());
  EXPECT_EQ(tensors.at("e").bytes, 0u);
}

struct Fault {
  const char* what;
  std::string bytes;
  const char* named;  ///< what the message must name besides the file
};

std::string with(std::string_view entry, size_t data_bytes) {
  return file_bytes(fmt::format("{{{}}}", entry), data_bytes);
}
std::string one(std::string_view fields, size_t data_bytes = 4) {
  return with(fmt::format("\"t\":{{{}}}", fields), data_bytes);
}

std::vector<Fault> structural_faults() {
  using namespace std::string_literals;
  const std::string good = file_bytes(kGood, 16);
  const auto length = [&](uint64_t n) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &n, 8);
    return bytes;
  };
  return {
      {"empty file", "", "0 bytes"},
      {"cut in the length", good.substr(0, 7), "7 bytes"},
      {"cut after the length", good.substr(0, 8), "header length"},
      {"cut in the header", good.substr(0, 40), "header length"},
      {"cut at the last byte of data", good.substr(0, good.size() - 1), "truncated"},
      {"no data at all", good.substr(0, good.size() - 16), "truncated"},
      {"byte after the data", good + "x", "1 bytes follow"},
      {"header longer than the file", length(good.size()), "header length"},
      {"header length of 2^63", length(uint64_t{1} << 63), "header length"},
      {"header length of 2^64 - 1", length(~uint64_t{0}), "header length"},
      {"header length above 100 MB", length(100'000'001), "100000000"},
      {"header length of zero", length(0), "'{'"},
      {"header one byte short", length(kGood.size() - 4), "malformed"},
      {"header begins with a space", file_bytes(" {}", 0), "'{'"},
      {"header is an array", file_bytes("[]", 0), "'{'"},
      {"header is text", file_bytes("\"x\"", 0), "'{'"},
      {"garbage after the header object", file_bytes("{} x", 0), "malformed"},
      {"second object", file_bytes("{}{}", 0), "malformed"},
      {"NUL padding", file_bytes("{}\0\0"s, 0), "NUL"},
      {"invalid UTF-8 in a name", with("\"t\xff\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}", 4),
       "malformed"},
      {"overlong UTF-8", with("\"t\xc0\x80\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}", 4), "malformed"},
      {"lone surrogate", with(R"("\ud800":{"dtype":"I8","shape":[4],"data_offsets":[0,4]})", 4), "malformed"},
      {"control character in a name", with(R"("t\u001b[2J":{"dtype":"I8","shape":[4],"data_offsets":[0,4]})", 4),
       "control"},
      {"tensor is a number", with("\"t\":3", 0), "\"t\""},
      {"tensor is a list", with("\"t\":[]", 0), "\"t\""},
      {"tensor is null", with("\"t\":null", 0), "\"t\""},
      {"tensor twice",
       with(
           R"("t":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"t":{"dtype":"I8","shape":[2],"data_offsets":[2,4]})",
           4),
       "twice"},
      {"dtype twice", one(R"("dtype":"I8","dtype":"I8","shape":[4],"data_offsets":[0,4])"), "dtype occurs twice"},
      {"shape twice", one(R"("dtype":"I8","shape":[4],"shape":[4],"data_offsets":[0,4])"), "shape occurs twice"},
      {"unknown field", one(R"("dtype":"I8","shape":[4],"data_offsets":[0,4],"extra":1)"), "extra"},
      {"dtype missing", one(R"("shape":[4],"data_offsets":[0,4])"), "dtype is missing"},
      {"shape missing", one(R"("dtype":"I8","data_offsets":[0,4])"), "shape is missing"},
      {"offsets missing", one(R"("dtype":"I8","shape":[4])"), "data_offsets is missing"},
      {"empty entry", one(""), "dtype is missing"},
      {"unknown dtype", one(R"("dtype":"F7","shape":[4],"data_offsets":[0,4])"), "F7"},
      {"lower-case dtype", one(R"("dtype":"f32","shape":[1],"data_offsets":[0,4])"), "f32"},
      {"dtype is a number", one(R"("dtype":8,"shape":[4],"data_offsets":[0,4])"), "dtype"},
      {"shape is a number", one(R"("dtype":"I8","shape":4,"data_offsets":[0,4])"), "shape"},
      {"shape is text", one(R"("dtype":"I8","shape":"4","data_offsets":[0,4])"), "shape"},
      {"shape holds text", one(R"("dtype":"I8","shape":["4"],"data_offsets":[0,4])"), "shape"},
      {"shape holds a list", one(R"("dtype":"I8","shape":[[4]],"data_offsets":[0,4])"), "shape"},
      {"shape holds null", one(R"("dtype":"I8","shape":[null],"data_offsets":[0,4])"), "shape"},
      {"negative shape", one(R"("dtype":"I8","shape":[-4],"data_offsets":[0,4])"), "-4"},
      {"two negative sizes", one(R"("dtype":"I8","shape":[-2,-2],"data_offsets":[0,4])"), "-2"},
      {"fractional shape", one(R"("dtype":"I8","shape":[4.0],"data_offsets":[0,4])"), "4.0"},
      {"size beyond 2^63", one(R"("dtype":"I8","shape":[9223372036854775808],"data_offsets":[0,4])"),
       "9223372036854775808"},
      {"size beyond 2^64", one(R"("dtype":"I8","shape":[18446744073709551620],"data_offsets":[0,4])"),
       "18446744073709551620"},
      {"product wraps to the right size",
       one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0), "too large"},
      {"product with dtype wraps", one(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
       "too large"},
      {"nine dimensions", one(R"("dtype":"I8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4])"), "more than 8"},
      {"shape larger than the data", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "need 8"},
      {"shape smaller than the data", one(R"("dtype":"I8","shape":[3],"data_offsets":[0,4])"), "need 3"},
      {"one offset", one(R"("dtype":"I8","shape":[4],"data_offsets":[0])"), "1 entries"},
      {"three offsets", one(R"("dtype":"I8","shape":[4],"data_offsets":[0,4,4])"), "3 entries"},
      {"reversed offsets", one(R"("dtype":"I8","shape":[4],"data_offsets":[4,0])"), "reversed"},
      {"negative offset", one(R"("dtype":"I8","shape":[4],"data_offsets":[-4,0])"), "-4"},
      {"fractional offset", one(R"("dtype":"I8","shape":[4],"data_offsets":[0.5,4])"), "0.5"},
      {"offset past the end", one(R"("dtype":"I8","shape":[4],"data_offsets":[1,5])"), "truncated"},
      {"huge offset", one(R"("dtype":"I8","shape":[4],"data_offsets":[9223372036854775803,9223372036854775807])"),
       "truncated"},
      {"offset of 2^64 - 1", one(R"("dtype":"I8","shape":[4],"data_offsets":[0,18446744073709551615])"),
       "18446744073709551615"},
      {"overlap",
       with(
           R"("a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"I8","shape":[3],"data_offsets":[1,4]})",
           4),
       "overlap"},
      {"same place twice",
       with(
           R"("a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[4],"data_offsets":[0,4]})",
           4),
       "overlap"},
      {"hole between",
       with(
           R"("a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"I8","shape":[2],"data_offsets":[2,4]})",
           4),
       "hole"},
      {"hole at the start", one(R"("dtype":"I8","shape":[2],"data_offsets":[2,4])"), "hole"},
      {"hole at the end", one(R"("dtype":"I8","shape":[2],"data_offsets":[0,2])"), "2 bytes follow"},
      {"data without tensors", file_bytes("{}", 4), "4 bytes follow"},
      {"metadata holds a number", with(R"("__metadata__":{"a":1})", 0), "__metadata__"},
      {"metadata holds an object", with(R"("__metadata__":{"a":{}})", 0), "__metadata__"},
      {"metadata is text", with(R"("__metadata__":"a")", 0), "__metadata__"},
      {"metadata twice", with(R"("__metadata__":{},"__metadata__":{})", 0), "twice"},
      {"deep nesting", file_bytes(std::string(100000, '{'), 0), "malformed"},
      {"a million brackets", one("\"shape\":" + std::string(1000000, '[')), "shape"},
  };
}

TEST(Safetensors, RefusesStructuralFaultsNamingFileAndPlace) {
  const auto faults = structural_faults();
  EXPECT_GE(faults.size(), 40u);
  for (const Fault& fault : faults) {
    const std::string message = refusal(fault.bytes);
    EXPECT_NE(message.find("dir/x.safetensors"), std::string::npos) << fault.what << ": " << message;
    EXPECT_NE(message.find(fault.named), std::string::npos) << fault.what << ": " << message;
  }
}

TEST(Safetensors, RefusesEveryTruncationAndNeverReadsOutside) {
  const std::string good = file_bytes(kGood, 16);
  for (size_t n = 0; n < good.size(); ++n) {
    const std::vector<char> cut(
        good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n));  // own allocation: sanitizers see its end
    EXPECT_THROW(SafetensorsFile::parse(std::as_bytes(std::span(cut)), "x"), Error) << n;
  }
}

TEST(Safetensors, AnyChangedByteIsReadOrRefused) {
  const std::string good = file_bytes(kGood, 16);
  int refused = 0;
  for (size_t i = 0; i < good.size() - 16; ++i)
    for (const int flip : {0x01, 0x20, 0x80}) {
      std::string bytes = good;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      try {
        SafetensorsFile::parse(std::as_bytes(std::span(bytes)), "x");
      } catch (const Error&) {
        ++refused;
      }
    }
  EXPECT_GT(refused, 400);
}

TEST(SafetensorsFile, MapsAFileAndItsMetadata) {
  const TempFolder folder;
  SafetensorsFile file(folder.write("m.safetensors", file_bytes(kGood, 16)));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensors().at("b").data[0], std::byte{1});
  EXPECT_EQ(file.tensors().at("b").file, folder / "m.safetensors");
  file.release(file.tensors().at("b"));
  EXPECT_EQ(file.tensors().at("b").data[11], std::byte{1});
  SafetensorsFile moved(std::move(file));
  EXPECT_EQ(moved.tensors().size(), 3u);
}

TEST(SafetensorsFile, NamesWhyAFileCannotBeRead) {
  const TempFolder folder;
  const auto message = [](const std::filesystem::path& file) { return error_of([&] { SafetensorsFile f(file); }); };
  EXPECT_NE(message(folder / "no.safetensors").find("No such file"), std::string::npos);
  EXPECT_NE(message(folder.path()).find("no regular file"), std::string::npos);
  EXPECT_NE(message(folder.write("empty.safetensors", "")).find("0 bytes"), std::string::npos);
}

std::vector<SafetensorsWriter::Entry> two_entries() { return {{"a", DType::f32, {2, 2}}, {"b \"q\"", DType::i8, {3}}}; }

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TempFolder folder;
  const float values[4] = {1, 2, 3, 4};
  const int8_t bytes[3] = {-1, 0, 1};
  {
    SafetensorsWriter writer(folder / "w.safetensors", two_entries(), {{"format", "pt"}});
    writer.write(std::as_bytes(std::span(values)).first(6));
    writer.write(std::as_bytes(std::span(values)).subspan(6));
    writer.write(std::as_bytes(std::span(bytes)));
    EXPECT_FALSE(std::filesystem::exists(folder / "w.safetensors"));
    writer.finish();
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "w.safetensors.partial"));
  const SafetensorsFile file(folder / "w.safetensors");
  EXPECT_EQ(std::memcmp(file.tensors().at("a").data, values, sizeof(values)), 0);
  EXPECT_EQ(std::memcmp(file.tensors().at("b \"q\"").data, bytes, sizeof(bytes)), 0);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const std::string text = test::read_all(folder / "w.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  EXPECT_EQ(length % 8, 0u);
}

TEST(SafetensorsWriter, LeavesNothingWhenItIsNotFinished) {
  const TempFolder folder;
  { SafetensorsWriter writer(folder / "w.safetensors", two_entries()); }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  const std::string message = error_of([&] {
    SafetensorsWriter writer(folder / "w.safetensors", two_entries());
    writer.write(std::vector<std::byte>(17));
    writer.finish();
  });
  EXPECT_NE(message.find("b \"q\""), std::string::npos) << message;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_THROW((SafetensorsWriter(folder / "w.safetensors", two_entries()).write(std::vector<std::byte>(20))), Error);
  EXPECT_THROW(SafetensorsWriter(folder / "w.safetensors", {{"a", DType::i8, {1}}, {"a", DType::i8, {1}}}), Error);
}

TEST(SafetensorsWriter, NamesPathAndCauseWhenItCannotWrite) {
  const TempFolder folder;
  const std::string missing = error_of([&] { SafetensorsWriter w(folder / "none/w.safetensors", two_entries()); });
  EXPECT_NE(missing.find("none/w.safetensors.partial"), std::string::npos) << missing;
  EXPECT_NE(missing.find("No such file"), std::string::npos) << missing;
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);  // stands for a full disk
  const std::string full = error_of([&] {
    SafetensorsWriter w(folder / "w.safetensors", {{"a", DType::i8, {5000}}});
    w.write(std::vector<std::byte>(5000));
  });
  setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_NE(full.find("w.safetensors.partial: cannot be written: File too large"), std::string::npos) << full;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsWriter, KeepsAnOlderFileUntilTheNewOneIsComplete) {
  const TempFolder folder;
  folder.write("w.safetensors", "old");
  { SafetensorsWriter writer(folder / "w.safetensors", two_entries()); }
  EXPECT_EQ(test::read_all(folder / "w.safetensors"), "old");
}

}  // namespace
}  // namespace conclave
