#include "core/tensor.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/error.h"
#include "support/temp_folder.h"

namespace conclave {
namespace {

TEST(Tensor, ViewsAreRowMajor) {
  float data[24];
  const Tensor t = view(data, {2, 3, 4});
  EXPECT_EQ(t.stride[0], 12);
  EXPECT_EQ(t.stride[1], 4);
  EXPECT_EQ(t.stride[2], 1);
  EXPECT_EQ(t.row<float>(1), data + 12);
  EXPECT_EQ(describe(t), "[2, 3, 4] F32");
}

TEST(Tensor, RowsAndColumnsStayInside) {
  float data[12];
  const Tensor t = view(data, {3, 4});
  EXPECT_EQ(t.rows(1, 2).data, data + 4);
  EXPECT_EQ(t.rows(1, 2).dim[0], 2);
  EXPECT_EQ(t.columns(1, 3).data, data + 1);
  EXPECT_EQ(t.columns(1, 3).stride[0], 4);
  EXPECT_THROW(t.rows(2, 2), Error);
  EXPECT_THROW(t.rows(-1, 1), Error);
  EXPECT_THROW(t.rows(1, std::numeric_limits<int64_t>::max()), Error);
  EXPECT_THROW(t.columns(1, 4), Error);
  EXPECT_THROW(t.columns(2, std::numeric_limits<int64_t>::max()), Error);
}

TEST(CheckedProduct, RefusesNegativeFactorsAndOverflow) {
  const int64_t fine[] = {3, 4, 5}, zero[] = {0, 1 << 20}, negative[] = {2, -1},
                large[] = {int64_t{1} << 40, int64_t{1} << 40};
  EXPECT_EQ(checked_product(fine, "x"), 60u);
  EXPECT_EQ(checked_product(zero, "x"), 0u);
  EXPECT_EQ(checked_product({}, "x"), 1u);
  EXPECT_NE(test::error_of([&] { checked_product(negative, "tensor t"); }).find("tensor t"), std::string::npos);
  EXPECT_NE(test::error_of([&] { checked_product(large, "tensor t"); }).find("too large"), std::string::npos);
}

TEST(DType, NamesAndSizesAreThoseOfSafetensors) {
  EXPECT_EQ(name_of(DType::bf16), "BF16");
  EXPECT_EQ(name_of(DType::f8e4m3), "F8_E4M3");
  EXPECT_EQ(size_of(DType::f8e4m3), 1u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_EQ(size_of(DType::boolean), 1u);
}

TEST(Buffer, IsZeroedAlignedAndMayBeEmpty) {
  const Buffer buffer(100000), empty(0), none;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  EXPECT_EQ(buffer.data()[99999], std::byte{0});
  EXPECT_EQ(empty.size(), 0u);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_THROW(Buffer(std::numeric_limits<size_t>::max() / 2), Error);
}

}  // namespace
}  // namespace conclave
