#include "io/checkpoint.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"
#include "io/non_finite.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TempFolder;

const fs::path kGolden = fs::path(CONCLAVE_TEST_DATA) / "golden";

void write_tensor(const fs::path& file, const std::string& name, float value = 1) {
  SafetensorsWriter writer(file, {{name, DType::f32, {1}}});
  writer.write(std::as_bytes(std::span(&value, 1)));
  writer.finish();
}

/// Two shards, one tensor each, and an index that the test may break.
struct Sharded {
  TempFolder folder;
  nlohmann::ordered_json index;
  Sharded() {
    folder.write("config.json", "{}");
    write_tensor(folder / "s1.safetensors", "a");
    write_tensor(folder / "s2.safetensors", "b");
    index["weight_map"] = {{"a", "s1.safetensors"}, {"b", "s2.safetensors"}};
  }
  std::string open() const {
    folder.write("model.safetensors.index.json", index.dump());
    return error_of([&] { Checkpoint checkpoint(folder.path()); });
  }
};

void expect_names(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << message << " lacks " << part;
}

TEST(Checkpoint, OpensEveryGoldenFolder) {
  int opened = 0;
  for (const auto& entry : fs::directory_iterator(kGolden)) {
    if (!entry.is_directory()) continue;
    const Checkpoint checkpoint(entry.path());
    EXPECT_NE(checkpoint.find("model.embed_tokens.weight"), nullptr) << entry.path();
    EXPECT_EQ(checkpoint.find("no.such"), nullptr);
    EXPECT_NO_THROW(checkpoint.verify(Verify::full)) << entry.path();
    ++opened;
  }
  EXPECT_EQ(opened, 13);
}

TEST(Checkpoint, MergesShardsAndKeepsTheirFiles) {
  const auto start = std::chrono::steady_clock::now();
  const Checkpoint checkpoint(kGolden / "mixtral-sharded");
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  std::cout << "6 shards opened in " << elapsed.count() << " ms\n";
  EXPECT_EQ(checkpoint.find("model.embed_tokens.weight")->file.filename(), "model-00001-of-00006.safetensors");
  EXPECT_EQ(checkpoint.find("lm_head.weight")->file.filename(), "model-00006-of-00006.safetensors");
  EXPECT_EQ(checkpoint.config().at("model_type"), "mixtral");
}

TEST(Checkpoint, NamesAMissingFolderFileOrConfig) {
  const TempFolder folder;
  const auto open = [](const fs::path& path) { return error_of([&] { Checkpoint c(path); }); };
  expect_names(open(folder / "nothing"), {"nothing", "no such folder"});
  expect_names(open(folder.write("file.bin", "x")), {"file.bin", "is a file"});
  expect_names(open(folder.path()), {"no config.json"});
  folder.write("config.json", "{\"a\": }");
  expect_names(open(folder.path()), {"config.json", "malformed", "line 1"});
  folder.write("config.json", "[]");
  expect_names(open(folder.path()), {"config.json", "JSON object"});
}

TEST(Checkpoint, RefusesPickleFilesWithWhatToDo) {
  for (const char* name :
       {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth"}) {
    const TempFolder folder;
    folder.write("config.json", "{}");
    folder.write(name, "\x80\x02");
    expect_names(error_of([&] { Checkpoint c(folder.path()); }), {name, "pickle", "safetensors", "safe_serialization"});
  }
}

TEST(Checkpoint, RefusesFoldersWithoutUsableWeights) {
  const TempFolder folder;
  folder.write("config.json", "{}");
  expect_names(error_of([&] { Checkpoint c(folder.path()); }), {"no weights", "model.safetensors.index.json"});
  write_tensor(folder / "model-00001-of-00002.safetensors", "a");
  expect_names(error_of([&] { Checkpoint c(folder.path()); }), {"model-00001-of-00002.safetensors", "index"});
}

TEST(Checkpoint, RefusesIndexPathsThatLeaveTheFolder) {
  Sharded model;
  write_tensor(model.folder.path().parent_path() / "outside.safetensors", "b");
  for (const char* name :
       {"../outside.safetensors", "/etc/passwd", "sub/s2.safetensors", "..", ".", "", "./s2.safetensors",
        "a\\b.safetensors", "s2.safetensors\n", "s2.safetensors/../s1.safetensors"}) {
    model.index["weight_map"]["b"] = name;
    expect_names(model.open(), {"model.safetensors.index.json", "plain file name"});
  }
  model.index["weight_map"]["b"] = std::string("s2.safetensors\0", 15);
  expect_names(model.open(), {"plain file name"});
  model.index["weight_map"]["b"] = "s2.bin";
  expect_names(model.open(), {"s2.bin", ".safetensors"});
  fs::create_symlink(model.folder.path().parent_path() / "outside.safetensors", model.folder / "link.safetensors");
  model.index["weight_map"]["b"] = "link.safetensors";
  expect_names(model.open(), {"link.safetensors", "leaves the folder"});
  fs::remove(model.folder.path().parent_path() / "outside.safetensors");
}

TEST(Checkpoint, FollowsLinksOfTheDownloadCache) {
  const TempFolder cache;
  fs::create_directories(cache / "blobs");
  fs::create_directories(cache / "snapshots/rev");
  write_tensor(cache / "blobs/0123", "a");
  cache.write("snapshots/rev/config.json", "{}");
  fs::create_symlink("../../blobs/0123", cache / "snapshots/rev/s1.safetensors");
  cache.write("snapshots/rev/model.safetensors.index.json", R"({"weight_map": {"a": "s1.safetensors"}})");
  EXPECT_NO_THROW(Checkpoint(cache / "snapshots/rev"));
}

TEST(Checkpoint, IndexAndShardsMustAgree) {
  {
    Sharded model;
    fs::remove(model.folder / "s2.safetensors");
    expect_names(model.open(), {"s2.safetensors", "missing"});
  }
  {
    Sharded model;
    model.index["weight_map"]["c"] = "s2.safetensors";
    expect_names(model.open(), {"s2.safetensors", "tensor c is missing"});
  }
  {
    Sharded model;
    model.index["weight_map"].erase("b");
    model.index["weight_map"]["c"] = "s2.safetensors";
    expect_names(model.open(), {"s2.safetensors", "tensor b", "does not list"});
  }
  {
    Sharded model;
    model.index["weight_map"]["b"] = "s1.safetensors";
    model.index["weight_map"]["c"] = "s2.safetensors";
    expect_names(model.open(), {"tensor b", "places in s1.safetensors"});
  }
  {
    Sharded model;
    write_tensor(model.folder / "s2.safetensors", "a");
    expect_names(model.open(), {"s2.safetensors", "tensor a is also in", "s1.safetensors"});
  }
  {
    Sharded model;
    write_tensor(model.folder / "model.safetensors", "a");
    expect_names(model.open(), {"holds both model.safetensors and"});
  }
  EXPECT_EQ(Sharded().open(), "no error");
}

TEST(Checkpoint, RefusesMalformedIndexes) {
  const Sharded model;
  for (const char* text :
       {"", "{", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})",
        R"({"weight_map": {"a": "s1.safetensors", "a": "s2.safetensors"}})"}) {
    model.folder.write("model.safetensors.index.json", text);
    expect_names(error_of([&] { Checkpoint c(model.folder.path()); }), {"model.safetensors.index.json"});
  }
}

TEST(Checkpoint, FullVerificationNamesNanAndInfinity) {
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    const TempFolder folder;
    folder.write("config.json", "{}");
    SafetensorsWriter writer(folder / "model.safetensors",
                             {{"good", DType::f32, {3000}}, {"bad.weight_scale_inv", DType::f32, {3000}}});
    std::vector<float> values(3000, 1.0f);
    writer.write(std::as_bytes(std::span(values)));
    values[2047] = bad;
    writer.write(std::as_bytes(std::span(values)));
    writer.finish();
    const Checkpoint checkpoint(folder.path());
    EXPECT_NO_THROW(checkpoint.verify(Verify::fast));
    expect_names(error_of([&] { checkpoint.verify(Verify::full); }),
                 {"model.safetensors", "bad.weight_scale_inv", "element 2047", "F32"});
  }
}

TEST(NonFinite, KnowsTheSpecialCodesOfEveryType) {
  const auto first = [](DType dtype, std::vector<uint8_t> bytes) {
    TensorRecord record;
    record.dtype = dtype;
    record.bytes = bytes.size();
    record.data = reinterpret_cast<const std::byte*>(bytes.data());
    return first_non_finite(record);
  };
  EXPECT_EQ(first(DType::f8e4m3, {0x7e, 0xfe, 0x00, 0x80}), std::nullopt);  // +-448 and zeros are numbers
  EXPECT_EQ(first(DType::f8e4m3, {0x7e, 0x7f}), 1u);
  EXPECT_EQ(first(DType::f8e4m3, {0xff}), 0u);
  EXPECT_EQ(first(DType::f8e5m2, {0x7b, 0xfb}), std::nullopt);
  EXPECT_EQ(first(DType::f8e5m2, {0x7b, 0x7c}), 1u);
  EXPECT_EQ(first(DType::bf16, {0x7f, 0x7f}), std::nullopt);  // largest finite
  EXPECT_EQ(first(DType::bf16, {0x00, 0x00, 0x80, 0x7f}), 1u);
  EXPECT_EQ(first(DType::f16, {0xff, 0x7b}), std::nullopt);
  EXPECT_EQ(first(DType::f16, {0x01, 0xfc}), 0u);
  EXPECT_EQ(first(DType::f64, {0, 0, 0, 0, 0, 0, 0xf0, 0x7f}), 0u);
  EXPECT_EQ(first(DType::i8, {0x7f, 0xff}), std::nullopt);
}

TEST(ReadConfig, TakesAFolderOrAFile) {
  EXPECT_EQ(read_config(kGolden / "ernie-tied").at("model_type"), "ernie4_5_moe");
  EXPECT_EQ(read_config(kGolden / "ernie-tied/config.json").at("model_type"), "ernie4_5_moe");
}

}  // namespace
}  // namespace conclave
