#include "core/float_types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace conclave {
namespace {

/// Value of a small float from its fields, by the definition of the format.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits, int bias) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1), exponent = (bits >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const double sign = (bits >> (mantissa_bits + exponent_bits)) & 1 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1u << mantissa_bits), static_cast<int>(exponent) - bias - mantissa_bits);
}

TEST(FloatTypes, EveryF16HasItsValueAndComesBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto bits = static_cast<uint16_t>(h);
    const float f = f16_to_f32(bits);
    if ((h & 0x7c00) == 0x7c00) {
      if (h & 0x3ff) EXPECT_TRUE(std::isnan(f) && std::isnan(f16_to_f32(f32_to_f16(f))));
      else EXPECT_EQ(f, (h & 0x8000) ? -INFINITY : INFINITY);
      continue;
    }
    ASSERT_EQ(f, value_of(h, 5, 10, 15));
    ASSERT_EQ(f32_to_f16(f), bits);
  }
}

TEST(FloatTypes, EveryE4m3HasItsValueAndComesBack) {
  for (uint32_t v = 0; v < 256; ++v) {
    const float f = f8e4m3_to_f32(static_cast<uint8_t>(v));
    if ((v & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(f));
      EXPECT_EQ(f32_to_f8e4m3(f) & 0x7f, 0x7f);
      continue;
    }
    ASSERT_EQ(f, value_of(v, 4, 3, 7));
    ASSERT_EQ(f32_to_f8e4m3(f), v);
  }
  EXPECT_EQ(f8e4m3_to_f32(0x7e), 448.0f);
  EXPECT_EQ(f32_to_f8e4m3(1e9f), 0x7e);
  EXPECT_EQ(f32_to_f8e4m3(-INFINITY), 0xfe);
}

/// Between neighbours a and b the nearer wins, and the even one at the middle.
TEST(FloatTypes, NarrowingRoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const double low = f16_to_f32(static_cast<uint16_t>(h)), high = f16_to_f32(static_cast<uint16_t>(h + 1)), middle = (low + high) / 2;
    ASSERT_EQ(f32_to_f16(static_cast<float>(middle)), h + (h & 1));
    ASSERT_EQ(f32_to_f16(std::nextafter(static_cast<float>(middle), 0.0f)), h);
    ASSERT_EQ(f32_to_f16(std::nextafter(static_cast<float>(middle), INFINITY)), h + 1);
  }
  for (uint32_t v = 0; v < 0x7e; ++v) {
    const double middle = (f8e4m3_to_f32(static_cast<uint8_t>(v)) + f8e4m3_to_f32(static_cast<uint8_t>(v + 1))) / 2;
    ASSERT_EQ(f32_to_f8e4m3(static_cast<float>(middle)), v + (v & 1));
  }
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
}

TEST(FloatTypes, Bf16IsTheUpperHalfRoundedToEven) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float f = bf16_to_f32(static_cast<uint16_t>(b));
    if (!std::isnan(f)) {
      ASSERT_EQ(f32_to_bf16(f), b);
    }
  }
}

}  // namespace
}  // namespace conclave
