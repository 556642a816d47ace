#include "eval/data_files.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::bad_input);
    return e.what();
  }
  return "no error";
}

TEST(Csv, ReadsQuotesCommasAndLineEnds) {
  const auto rows = parse_csv("a,\"b, c\"\r\n\n\"say \"\"hi\"\"\nnow\",\n,\"\"", "f.csv");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].fields, (std::vector<std::string>{"a", "b, c"}));
  EXPECT_EQ(rows[1].fields, (std::vector<std::string>{"say \"hi\"\nnow", ""}));
  EXPECT_EQ(rows[1].where, "f.csv:3");
  EXPECT_EQ(rows[2].fields, (std::vector<std::string>{"", ""}));
  EXPECT_EQ(rows[2].where, "f.csv:5");
}

TEST(Csv, NamesFileAndLineOfWhatIsWrong) {
  EXPECT_NE(error_of([] { parse_csv("a\n\"b", "f.csv"); }).find("f.csv:2: a quoted field is not closed"), std::string::npos);
  EXPECT_NE(error_of([] { parse_csv("a\n\"b\"c,d", "f.csv"); }).find("f.csv:2: text follows the closing quote of field 1"), std::string::npos);
  EXPECT_NE(error_of([] { parse_csv("\n", "f.csv"); }).find("f.csv has no rows"), std::string::npos);
  EXPECT_NE(error_of([] { parse_csv("\xff", "f.csv"); }).find("f.csv is not UTF-8"), std::string::npos);
  const test::TempFolder folder;
  EXPECT_NE(error_of([&] { read_csv_table(folder.write("t.csv", "a,b\n1,2\n3\n")); }).find("t.csv:3: the row has 1 fields, the header 2"), std::string::npos);
  const CsvTable table = read_csv_table(folder.write("u.csv", "a,b\n1,2\n"));
  EXPECT_EQ(table.column("b"), 1u);
  EXPECT_NE(error_of([&] { table.column("c"); }).find("the columns are a, b"), std::string::npos);
}

TEST(Csv, QuotesWhatMustBeQuoted) {
  EXPECT_EQ(csv_field("plain"), "plain");
  EXPECT_EQ(csv_field("a \"b\", c"), "\"a \"\"b\"\", c\"");
}

TEST(JsonLines, NamesFileAndLineOfWhatIsWrong) {
  const test::TempFolder folder;
  const auto rows = read_json_lines(folder.write("a.jsonl", "{\"x\": \"1\"}\n\n{\"x\": 2, \"y\": true}"));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].text("x"), "2");
  EXPECT_TRUE(rows[1].boolean("y"));
  EXPECT_NE(error_of([&] { rows[1].boolean("x"); }).find("a.jsonl:3: \"x\" is number, wanted true or false"), std::string::npos);
  EXPECT_NE(error_of([&] { rows[0].text("z"); }).find("a.jsonl:1: there is no \"z\""), std::string::npos);
  EXPECT_NE(error_of([&] { read_json_lines(folder.write("b.jsonl", "{}\n{\n")); }).find("b.jsonl:2"), std::string::npos);
  EXPECT_NE(error_of([&] { read_json_lines(folder.write("c.jsonl", "\n \n")); }).find("c.jsonl is empty"), std::string::npos);
  EXPECT_NE(error_of([&] { read_json_lines(folder.write("d.jsonl", "[1]")); }).find("d.jsonl:1: the line is array"), std::string::npos);
  EXPECT_NE(error_of([&] { read_json_lines(folder / "none.jsonl"); }).find("cannot be read"), std::string::npos);
}

}  // namespace
}  // namespace conclave
