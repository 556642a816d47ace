#include "engine/memory.h"

#include <gtest/gtest.h>

#include <fstream>

#include "engine/engine.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

class AvailableMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("memory_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(root_);
    write("proc/meminfo", "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    8000 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  size_t available() const { return available_memory({root_ / "proc", root_ / "cgroup"}); }

  fs::path root_;
};

TEST_F(AvailableMemory, IsMemAvailableWithoutCgroups) { EXPECT_EQ(available(), size_t{8000} * 1024); }

TEST_F(AvailableMemory, HonoursTheTightestV2GroupAboveTheProcess) {
  write("proc/self/cgroup", "0::/a/b\n");
  write("cgroup/a/memory.max", "1000000\n");
  write("cgroup/a/memory.current", "300000\n");
  write("cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(available(), 700000u);
}

TEST_F(AvailableMemory, CountsReclaimableCacheAsFree) {
  write("proc/self/cgroup", "0::/\n");
  write("cgroup/memory.max", "1000000\n");
  write("cgroup/memory.current", "900000\n");
  write("cgroup/memory.stat", "anon 200000\ninactive_file 600000\n");
  EXPECT_EQ(available(), 700000u);
}

TEST_F(AvailableMemory, HonoursV1Groups) {
  write("proc/self/cgroup", "5:cpu:/x\n4:memory,hugetlb:/docker/1\n");
  write("cgroup/memory/docker/1/memory.limit_in_bytes", "500000\n");
  write("cgroup/memory/docker/1/memory.usage_in_bytes", "100000\n");
  write("cgroup/memory/docker/1/memory.stat", "total_inactive_file 50000\n");
  EXPECT_EQ(available(), 450000u);
}

TEST_F(AvailableMemory, IsZeroWhenAGroupIsOverItsLimit) {
  write("proc/self/cgroup", "0::/\n");
  write("cgroup/memory.max", "1000\n");
  write("cgroup/memory.current", "5000\n");
  EXPECT_EQ(available(), 0u);
}

TEST(AvailableMemoryHere, IsPositive) { EXPECT_GT(available_memory(), size_t{1} << 20); }

}  // namespace
}  // namespace conclave
