#include "core/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "core/error.h"

namespace conclave {
namespace {

struct DTypeInfo { std::string_view name; size_t bytes; };
constexpr std::array<DTypeInfo, 12> kDTypes{{{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
                                             {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1}}};

}  // namespace

size_t size_of(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].bytes; }
std::string_view name_of(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

size_t checked_product(std::span<const int64_t> factors, std::string_view what) {
  size_t product = 1;
  for (const int64_t factor : factors)
    if (factor < 0 || __builtin_mul_overflow(product, static_cast<size_t>(factor), &product))
      throw Error(Error::Kind::bad_model, fmt::format("{}: size {} is negative or too large", what, fmt::join(factors, " x ")));
  return product;
}

Tensor Tensor::rows(int64_t begin, int64_t count) const {
  if (rank == 0 || begin < 0 || count < 0 || count > dim[0] - begin)
    throw Error(Error::Kind::internal, fmt::format("{} rows from {} of {}", count, begin, describe(*this)));
  Tensor part = *this;
  part.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin * stride[0]) * size_of(dtype);
  part.dim[0] = count;
  return part;
}

Tensor Tensor::columns(int64_t begin, int64_t count) const {
  if (rank != 2 || begin < 0 || count < 0 || count > dim[1] - begin)
    throw Error(Error::Kind::internal, fmt::format("{} columns from {} of {}", count, begin, describe(*this)));
  Tensor part = *this;
  part.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin) * size_of(dtype);
  part.dim[1] = count;
  return part;
}

Tensor view(void* data, std::initializer_list<int64_t> shape, DType dtype) {
  if (shape.size() > 4) throw Error(Error::Kind::internal, "views have at most 4 dimensions");
  Tensor t;
  t.data = data;
  t.dtype = dtype;
  t.rank = static_cast<uint8_t>(shape.size());
  std::copy(shape.begin(), shape.end(), t.dim.begin());
  int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.stride[static_cast<size_t>(i)] = stride;
    stride *= t.dim[static_cast<size_t>(i)];
  }
  return t;
}

std::string describe(const Tensor& t) {
  return fmt::format("[{}] {}", fmt::join(t.dim.begin(), t.dim.begin() + t.rank, ", "), name_of(t.dtype));
}

Buffer::Buffer(size_t bytes) : size_(bytes) {
  const size_t mapped = std::max<size_t>(bytes, 1);
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error(Error::Kind::out_of_memory, fmt::format("cannot reserve {} bytes of memory: {}", bytes, std::strerror(errno)));
  data_ = {static_cast<std::byte*>(p), Unmap{mapped}};
}

void Buffer::Unmap::operator()(std::byte* p) const noexcept { munmap(p, bytes); }

}  // namespace conclave
