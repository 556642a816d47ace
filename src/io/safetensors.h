#pragma once
// safetensors files: a bounds-checked reader over a read-only memory map, and a writer that leaves nothing under the
// final name unless it is complete (temporary file, fsync, rename). Rules of the format (and of its 2023 audit): u64 LE
// header length of at most 100 MB, header starts with '{', offsets inside the data, no holes, no overlaps, sizes equal
// to dtype x shape.
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace conclave {

/// One stored tensor; `data` points into the map of its file and lives as long as the file object.
struct TensorRecord {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  std::filesystem::path file;
};

class SafetensorsFile {
 public:
  /// Maps and checks the header; throws bad_model naming file, tensor and field.
  explicit SafetensorsFile(const std::filesystem::path& file);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::map<std::string, TensorRecord, std::less<>>& tensors() const;
  const std::map<std::string, std::string>& metadata() const;
  /// Tells the system that the tensor's pages are not needed any more.
  void release(const TensorRecord& record) const;

  /// Header only, from memory: what fuzzing and tests call. Throws as the constructor does.
  static std::map<std::string, TensorRecord, std::less<>> parse(std::span<const std::byte> bytes,
                                                                const std::filesystem::path& name);

 private:
  struct Map;
  std::unique_ptr<Map> map_;
};

/// Writes tensors one after the other with bounded memory. All names, dtypes and shapes are declared first.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };
  /// Creates `<file>.partial`. Throws internal naming path and cause when it cannot be written.
  SafetensorsWriter(std::filesystem::path file, std::vector<Entry> entries,
                    std::map<std::string, std::string> metadata = {});
  ~SafetensorsWriter();  ///< removes the partial file unless finish() succeeded
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// Data of the next entry in declared order; may be given in several pieces.
  void write(std::span<const std::byte> bytes);
  /// fsync and rename; throws internal if entries are incomplete or the disk is full.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave
