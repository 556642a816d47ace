#pragma once
// A tensor source with single tensors replaced, removed or renamed: what a damaged or unusual checkpoint looks like to the loader.
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "model/tensor_source.h"

namespace conclave::testing_support {

class EditedSource final : public TensorSource {
 public:
  explicit EditedSource(const TensorSource& base) : base_(base) {}

  void remove(const std::string& name) { removed_.insert(name); }
  /// A copy of a tensor that may be changed freely.
  SourceTensor& edit(const std::string& name) {
    SourceTensor copy = base_.find(name).value();
    size_t bytes = size_of(copy.dtype);
    for (const int64_t n : copy.shape) bytes *= static_cast<size_t>(n);
    auto data = std::make_shared<std::vector<std::byte>>(copy.data, copy.data + bytes);
    copy.data = data->data();
    copy.owner = data;
    return edited_[name] = copy;
  }
  /// Replaces or adds a tensor.
  void put(const std::string& name, DType dtype, std::vector<int64_t> shape, std::vector<std::byte> bytes) {
    auto data = std::make_shared<std::vector<std::byte>>(std::move(bytes));
    edited_[name] = {name, dtype, std::move(shape), data->data(), "edited", data};
  }
  template <class T>
  T* data(const std::string& name) { return reinterpret_cast<T*>(const_cast<std::byte*>(edited_.at(name).data)); }

  std::optional<SourceTensor> find(std::string_view name) const override {
    const std::string key(name);
    if (removed_.contains(key)) return std::nullopt;
    if (const auto it = edited_.find(key); it != edited_.end()) return it->second;
    return base_.find(name);
  }
  void release(const SourceTensor& tensor) const override {
    if (!edited_.contains(tensor.name)) base_.release(tensor);
  }

 private:
  const TensorSource& base_;
  std::map<std::string, SourceTensor> edited_;
  std::set<std::string> removed_;
};

}  // namespace conclave::testing_support
