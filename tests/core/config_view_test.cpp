#include "core/config_view.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using test::error_of;

const nlohmann::ordered_json kObject = parse_json(
    R"({"i": 3, "f": 40.0, "half": 0.5, "eps": 1e-20, "t": "x", "b": true, "n": null, "o": {"k": 1}, "big": 3000000000, "huge": 1e300, "l": [1]})",
    "test");

TEST(ConfigView, ReadsValuesOfTheRightKind) {
  const ConfigView view(kObject, "config.json");
  EXPECT_EQ(view.integer("i"), 3);
  EXPECT_EQ(view.integer("f"), 40);
  EXPECT_EQ(view.number("i"), 3.0f);
  EXPECT_EQ(view.number("half"), 0.5f);
  EXPECT_EQ(view.number("eps"), 1e-20f);
  EXPECT_EQ(view.text("t"), "x");
  EXPECT_TRUE(view.boolean("b"));
  EXPECT_EQ(view.object("o")->integer("k"), 1);
}

TEST(ConfigView, NullIsMissing) {
  const ConfigView view(kObject, "config.json");
  EXPECT_FALSE(view.has("n"));
  EXPECT_FALSE(view.has("absent"));
  EXPECT_EQ(view.integer("n", 7), 7);
  EXPECT_EQ(view.number("absent", 1.5f), 1.5f);
  EXPECT_EQ(view.text("n", "d"), "d");
  EXPECT_FALSE(view.boolean("n", false));
  EXPECT_FALSE(view.object("n").has_value());
}

TEST(ConfigView, RefusesOtherKindsNamingFileKeyAndValue) {
  const ConfigView view(kObject, "dir/config.json");
  EXPECT_EQ(error_of([&] { view.integer("half"); }), "dir/config.json: half is 0.5, wanted an integer");
  EXPECT_EQ(error_of([&] { view.integer("absent"); }), "dir/config.json: absent is missing, wanted an integer");
  EXPECT_EQ(error_of([&] { view.integer("n"); }), "dir/config.json: n is null, wanted an integer");
  EXPECT_EQ(error_of([&] { view.boolean("i"); }), "dir/config.json: i is 3, wanted true or false");
  EXPECT_EQ(error_of([&] { view.text("l"); }), "dir/config.json: l is [1], wanted text");
  EXPECT_NE(error_of([&] { view.integer("b"); }).find("b is true"), std::string::npos);
  EXPECT_NE(error_of([&] { view.integer("t", 1); }).find("t is \"x\""), std::string::npos);
  EXPECT_NE(error_of([&] { view.integer("big"); }).find("3000000000"), std::string::npos);
  EXPECT_NE(error_of([&] { view.integer("huge"); }).find("1e+300"), std::string::npos);
  EXPECT_NE(error_of([&] { view.number("huge"); }).find("finite"), std::string::npos);
  EXPECT_NE(error_of([&] { view.object("i"); }).find("an object"), std::string::npos);
  EXPECT_NE(error_of([&] { view.object("o")->text("k"); }).find("dir/config.json: o: k is 1"), std::string::npos);
  EXPECT_NE(error_of([&] { ConfigView(kObject["l"], "config.json"); }).find("wanted a JSON object"), std::string::npos);
}

}  // namespace
}  // namespace conclave
