#include "perf/plot.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "perf/report.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

using test::error_of;

const std::string kHeader = perf_csv({"", {}});

std::string row(const char* model, int batch) { return std::string(model) + "," + std::to_string(batch) + ",256,64,1.5,200,100,50,20,80,,\n"; }

TEST(PerfPlot, ReadsRowsWithFiguresAndLeavesFailedOnesOut) {
  const auto points = read_perf_csv(kHeader + row("mixtral        ", 4) + "m,8,256,64,\"no, memory\",,,,,,1,2\n\n" + row("\"a,\nb\"", 2), "f.csv");
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[0].model, "mixtral") << "the reference stack pads its cells";
  EXPECT_EQ(points[0].batch, 4);
  EXPECT_EQ(points[0].token_ms, 50);
  EXPECT_EQ(points[0].prefill_ms, 100);
  EXPECT_EQ(points[0].decode_rate, 20);
  EXPECT_EQ(points[0].e2e_rate, 80);
  EXPECT_EQ(points[1].model, "a,\nb");
}

TEST(PerfPlot, OtherFilesAreRefusedWithTheirPlace) {
  EXPECT_NE(error_of([] { read_perf_csv("a,b\n1,2\n", "f.csv"); }).find("f.csv: line 1 has no column \"Model\""), std::string::npos);
  EXPECT_NE(error_of([] { read_perf_csv("", "f.csv"); }).find("line 1"), std::string::npos);
  EXPECT_NE(error_of([] { read_perf_csv(kHeader + "m,x,256,64,1,2,3,4,5,6,,\n", "f.csv"); }).find("f.csv: line 2: Batchsize is \"x\""), std::string::npos);
  EXPECT_NE(error_of([] { read_perf_csv(kHeader + "m,1\n", "f.csv"); }).find("In_seq is \"\""), std::string::npos);
  EXPECT_NE(error_of([] { read_perf_csv(kHeader + "m,1,1,1,1,1,1,nan,1,1,,\n", "f.csv"); }).find("wanted a number"), std::string::npos);
  EXPECT_NE(error_of([] { read_perf_csv(kHeader + "\"m,1", "f.csv"); }).find("line 2"), std::string::npos) << "an open quote";
}

TEST(PerfPlot, FilesOfOneModelMakeOneCurveUnlessTheyMeasuredTheSame) {
  const auto points = [](int batch) { return read_perf_csv(kHeader + row("m", batch), "f"); };
  const std::string joined = plot_commands({{"first", points(1)}, {"second", points(4)}}, PlotFormat::svg);
  EXPECT_NE(joined.find("'m 256/64'"), std::string::npos) << joined;
  EXPECT_EQ(joined.find("$c1"), std::string::npos);
  EXPECT_NE(joined.find("set xlabel 'batch size'"), std::string::npos);
  const std::string apart = plot_commands({{"first", points(4)}, {"second", points(4)}}, PlotFormat::svg);
  EXPECT_NE(apart.find("'first: m batch 4'"), std::string::npos) << apart;
  EXPECT_NE(apart.find("'second: m batch 4'"), std::string::npos);
  EXPECT_NE(apart.find("set xlabel 'prompt tokens'"), std::string::npos);
}

TEST(PerfPlot, TextOfTheFilesIsNeverACommand) {
  const test::TempFolder folder;
  const std::string hostile = "m'; system('touch " + (folder / "made").string() + "'); `touch x` \\\" $c0 @x {/Bold y}\nEND_OF_CURVE\nsystem 'id'";
  std::string cell = "\"";
  for (const char c : hostile) cell += c == '"' ? std::string("\"\"") : std::string(1, c);
  const auto points = read_perf_csv(kHeader + row((cell + "\"").c_str(), 1) + row((cell + "\"").c_str(), 2), "f");
  const std::string commands = plot_commands({{hostile, points}, {hostile + "2", points}}, PlotFormat::svg);
  for (const char* bad : {"'; system", "`", "\\", "{/", "@x", "\nEND_OF_CURVE\nsystem"}) EXPECT_EQ(commands.find(bad), std::string::npos) << bad << commands;
  if (std::system("command -v gnuplot > /dev/null") == 0) {
    EXPECT_NE(run_gnuplot(commands).find("</svg>"), std::string::npos);
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "made"));
}

TEST(PerfPlot, GnuplotDrawsBothFormats) {
  if (std::system("command -v gnuplot > /dev/null") != 0) GTEST_SKIP() << "no gnuplot on this machine";
  const auto points = read_perf_csv(kHeader + row("m", 1) + row("m", 4), "f");
  EXPECT_NE(run_gnuplot(plot_commands({{"f", points}}, PlotFormat::svg)).find("<svg"), std::string::npos);
  EXPECT_EQ(run_gnuplot(plot_commands({{"f", points}}, PlotFormat::png)).substr(1, 3), "PNG");
  EXPECT_NE(error_of([] { run_gnuplot("plot nonsense(\n"); }).find("gnuplot drew nothing"), std::string::npos);
}

TEST(PerfPlot, AMissingGnuplotIsSaid) {
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nonexistent", 1);
  EXPECT_NE(error_of([] { run_gnuplot("plot x\n"); }).find("gnuplot cannot be started (No such file or directory); install it"), std::string::npos);
  ::setenv("PATH", path.c_str(), 1);
}

}  // namespace
}  // namespace conclave
