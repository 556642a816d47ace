#pragma once
// Tensor: a trivially copyable view (pointer, dtype, shape, strides); never owns. Buffer: owns aligned bytes, move only.
// Row-major; the last dimension is dense. Shapes are int64; all byte sizes go through checked arithmetic.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace conclave {

/// Element types of safetensors files; computation uses a subset.
enum class DType : uint8_t { f64, f32, f16, bf16, f8e4m3, f8e5m2, i64, i32, i16, i8, u8, boolean };

size_t size_of(DType dtype);
/// safetensors' name ("F32", "BF16", "F8_E4M3", ...).
std::string_view name_of(DType dtype);

/// a*b*... in bytes or elements; throws bad_model naming `what` when a factor is negative or the product overflows.
size_t checked_product(std::span<const int64_t> factors, std::string_view what);

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  uint8_t rank = 0;
  std::array<int64_t, 4> dim{};
  std::array<int64_t, 4> stride{};  ///< in elements

  bool empty() const { return data == nullptr; }
  template <class T>
  T* as() const { return static_cast<T*>(data); }
  /// Pointer to row `r` of the first dimension.
  template <class T>
  T* row(int64_t r) const { return static_cast<T*>(data) + r * stride[0]; }
  /// View of rows [begin, begin + count) of the first dimension.
  Tensor rows(int64_t begin, int64_t count) const;
  /// Columns [begin, begin + count) of the last dimension of a rank-2 view.
  Tensor columns(int64_t begin, int64_t count) const;
};
static_assert(std::is_trivially_copyable_v<Tensor>);

/// Dense view of f32 (or `dtype`) data with the given shape.
Tensor view(void* data, std::initializer_list<int64_t> shape, DType dtype = DType::f32);
inline Tensor view(float* data, std::initializer_list<int64_t> shape) { return view(data, shape, DType::f32); }
/// "[3, 4] F32", for messages.
std::string describe(const Tensor& tensor);

/// Owns zero-initialised, 64-byte aligned host memory (page-aligned and lazily backed when large).
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(std::byte* p) const noexcept;
  };
  std::unique_ptr<std::byte, Unmap> data_;
  size_t size_ = 0;
};

}  // namespace conclave
