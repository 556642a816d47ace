#include "io/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/error.h"

namespace conclave {
namespace {

using Json = nlohmann::json;
using Records = std::map<std::string, TensorRecord, std::less<>>;

constexpr size_t kLengthBytes = 8, kMaxHeader = 100'000'000, kMaxTensors = 1'000'000, kMaxRank = 8;
constexpr std::string_view kMetadata = "__metadata__";

struct Header {
  Records tensors;
  std::map<std::string, std::string> metadata;
};

std::optional<DType> dtype_named(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(DType::boolean); ++i)
    if (name_of(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  return std::nullopt;
}

/// Text from the file, safe to print.
std::string shown(std::string_view text) {
  constexpr size_t kLongest = 200;
  return Json(text.substr(0, kLongest)).dump(-1, ' ', true, Json::error_handler_t::replace) +
         (text.size() > kLongest ? "..." : "");
}

/// Reads the header event by event: no tree is built, so that a header of a million tensors costs one pass.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(const std::filesystem::path& file, std::span<const std::byte> data) : file_(file), data_(data) {}

  Header take() { return std::move(header_); }

  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool number_float(number_float_t, const string_t& text) override { unexpected(text); }
  bool number_integer(number_integer_t value) override { unexpected(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (!numbers_) unexpected(std::to_string(value));
    constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
    if (value > kMost) refuse(fmt::format("{} is {}, wanted at most {}", field_, value, kMost));
    if (numbers_->size() == kMaxRank) refuse(fmt::format("{} has more than {} entries", field_, kMaxRank));
    numbers_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool string(string_t& value) override {
    if (in_metadata_) {
      if (!header_.metadata.emplace(field_, value).second) refuse(fmt::format("{} occurs twice", shown(field_)));
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") unexpected(shown(value));
    dtype_ = dtype_named(value);
    if (!dtype_)
      refuse(
          fmt::format("dtype is {}, wanted one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8, BOOL",
                      shown(value)));
    return true;
  }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool start_object(size_t) override {
    if (depth_ == 0) return ++depth_, true;
    if (depth_ != 1) unexpected("an object");
    ++depth_;
    in_metadata_ = name_ == kMetadata;
    if (in_metadata_ && std::exchange(metadata_seen_, true)) refuse("occurs twice");
    return true;
  }
  bool end_object() override {
    if (--depth_ == 1 && !in_metadata_) finish_tensor();
    in_metadata_ = false;
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || (field_ != "shape" && field_ != "data_offsets")) unexpected("an array");
    numbers_ = field_ == "shape" ? &shape_.emplace() : &offsets_.emplace();
    ++depth_;
    return true;
  }
  bool end_array() override {
    numbers_ = nullptr;
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      name_ = std::move(key);
      const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
      if (std::any_of(name_.begin(), name_.end(), control)) refuse("the name holds control characters");
      field_.clear(), dtype_.reset(), shape_.reset(), offsets_.reset();
      return true;
    }
    field_ = std::move(key);
    if (in_metadata_) return true;
    const bool known = field_ == "dtype" || field_ == "shape" || field_ == "data_offsets";
    if (!known) refuse(fmt::format("unknown field {}, wanted dtype, shape and data_offsets", shown(field_)));
    if (field_ == "dtype" ? dtype_.has_value() : field_ == "shape" ? shape_.has_value() : offsets_.has_value())
      refuse(fmt::format("{} occurs twice", field_));
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception& e) override {
    throw Error(Error::Kind::bad_model, fmt::format("{}: the header is malformed JSON at its byte {}: {}",
                                                    file_.string(), position, shown(e.what())));
  }

 private:
  [[noreturn]] void refuse(const std::string& message) const {
    const std::string what = name_ == kMetadata ? std::string(kMetadata) : "tensor " + shown(name_);
    throw Error(Error::Kind::bad_model, fmt::format("{}: {}: {}", file_.string(), what, message));
  }
  [[noreturn]] void unexpected(const std::string& value) const {
    if (depth_ == 0)
      throw Error(Error::Kind::bad_model,
                  fmt::format("{}: the header is {}, wanted an object of tensors", file_.string(), value));
    if (depth_ == 1) refuse(fmt::format("is {}, wanted an object", value));
    const char* wanted = in_metadata_        ? "text"
                         : field_ == "dtype" ? "the name of a type"
                                             : "a list of non-negative integers";
    refuse(fmt::format("{} is or holds {}, wanted {}", in_metadata_ ? shown(field_) : field_, value, wanted));
  }

  void finish_tensor() {
    if (!dtype_) refuse("dtype is missing");
    if (!shape_) refuse("shape is missing");
    if (!offsets_) refuse("data_offsets is missing");
    if (offsets_->size() != 2) refuse(fmt::format("data_offsets has {} entries, wanted 2", offsets_->size()));
    if (header_.tensors.size() == kMaxTensors) refuse(fmt::format("the file holds more than {} tensors", kMaxTensors));
    const auto begin = static_cast<size_t>(offsets_->at(0)), end = static_cast<size_t>(offsets_->at(1));
    if (end < begin) refuse(fmt::format("data_offsets [{}, {}] are reversed", begin, end));
    if (end > data_.size())
      refuse(fmt::format("data_offsets end at {}, but the file has {} bytes of data; it is truncated, fetch it again",
                         end, data_.size()));
    std::vector<int64_t> factors = *shape_;
    factors.push_back(static_cast<int64_t>(size_of(*dtype_)));
    const size_t wanted =
        checked_product(factors, fmt::format("{}: tensor {}: shape x dtype", file_.string(), shown(name_)));
    if (end - begin != wanted)
      refuse(fmt::format("data_offsets span {} bytes, but dtype and shape need {}", end - begin, wanted));
    TensorRecord record{name_, *dtype_, std::move(*shape_), data_.data() + begin, wanted, file_};
    if (!header_.tensors.emplace(name_, std::move(record)).second) refuse("occurs twice");
  }

  std::filesystem::path file_;
  std::span<const std::byte> data_;
  Header header_;
  int depth_ = 0;
  bool in_metadata_ = false, metadata_seen_ = false;
  std::string name_, field_;
  std::optional<DType> dtype_;
  std::optional<std::vector<int64_t>> shape_, offsets_;
  std::vector<int64_t>* numbers_ = nullptr;
};

/// Every byte of the data belongs to exactly one tensor.
void check_coverage(const Records& tensors, std::span<const std::byte> data, const std::string& file) {
  std::vector<const TensorRecord*> order;
  for (const auto& [name, record] : tensors) order.push_back(&record);
  std::sort(order.begin(), order.end(), [](const TensorRecord* a, const TensorRecord* b) {
    return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
  });
  const std::byte* cursor = data.data();
  for (const TensorRecord* record : order) {
    const auto at = record->data - data.data(), wanted = cursor - data.data();
    if (at != wanted)
      throw Error(Error::Kind::bad_model,
                  fmt::format("{}: tensor {} begins at data byte {}, but the tensor before it ends at {}: {}", file,
                              shown(record->name), at, wanted, at < wanted ? "they overlap" : "there is a hole"));
    cursor += record->bytes;
  }
  if (cursor != data.data() + data.size())
    throw Error(Error::Kind::bad_model, fmt::format("{}: {} bytes follow the last tensor, which ends at data byte {}",
                                                    file, data.data() + data.size() - cursor, cursor - data.data()));
}

Header read_header(std::span<const std::byte> bytes, const std::filesystem::path& file) {
  const auto refuse = [&](const std::string& message) {
    throw Error(Error::Kind::bad_model, fmt::format("{}: {}", file.string(), message));
  };
  if (bytes.size() < kLengthBytes)
    refuse(fmt::format("{} bytes are no safetensors file (at least {}); fetch it again", bytes.size(), kLengthBytes));
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  if (length > kMaxHeader)
    refuse(fmt::format("header length {} exceeds {} bytes; this is no safetensors file, or it is damaged", length,
                       kMaxHeader));
  if (length > bytes.size() - kLengthBytes)
    refuse(fmt::format("header length {} exceeds the {} bytes that follow it; the file is truncated, fetch it again",
                       length, bytes.size() - kLengthBytes));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) refuse("the header does not begin with '{'; this is no safetensors file");
  if (text.find('\0') != std::string_view::npos) refuse("the header holds a NUL byte, wanted JSON padded with spaces");
  const auto data = bytes.subspan(kLengthBytes + length);
  HeaderReader reader(file, data);
  Json::sax_parse(text.begin(), text.end(), &reader);
  Header header = reader.take();
  check_coverage(header.tensors, data, file.string());
  return header;
}

}  // namespace

struct SafetensorsFile::Map {
  std::span<const std::byte> bytes;
  Header header;

  explicit Map(const std::filesystem::path& file) {
    const auto refuse = [&](const char* cause) {
      throw Error(Error::Kind::bad_model, fmt::format("{}: cannot be read: {}", file.string(), cause));
    };
    const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) refuse(std::strerror(errno));
    struct stat status {};
    const bool regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    void* p = regular && status.st_size > 0
                  ? mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, fd, 0)
                  : nullptr;
    const int cause = errno;
    ::close(fd);
    if (!regular) refuse("it is no regular file");
    if (p == MAP_FAILED) refuse(std::strerror(cause));
    bytes = {static_cast<const std::byte*>(p), static_cast<size_t>(status.st_size)};
    try {
      header = read_header(bytes, file);
    } catch (...) {
      unmap();
      throw;
    }
  }
  ~Map() { unmap(); }
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;

 private:
  void unmap() {
    if (!bytes.empty()) munmap(const_cast<std::byte*>(bytes.data()), bytes.size());
  }
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& file) : map_(std::make_unique<Map>(file)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const Records& SafetensorsFile::tensors() const { return map_->header.tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return map_->header.metadata; }

void SafetensorsFile::release(const TensorRecord& record) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(record.data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + record.bytes) / page * page;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);  // advice: failure costs memory only
}

Records SafetensorsFile::parse(std::span<const std::byte> bytes, const std::filesystem::path& name) {
  return read_header(bytes, name).tensors;
}

}  // namespace conclave
