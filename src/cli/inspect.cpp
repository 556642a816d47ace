// conclave inspect: what a model is and what it costs.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/model_files.h"
#include "core/error.h"
#include "io/checkpoint.h"
#include "model/inspect.h"

namespace conclave {
namespace {
namespace fs = std::filesystem;

/// A folder that holds nothing but configuration is a shape, not a broken checkpoint.
bool has_weights(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string extension = entry.path().extension().string(), name = entry.path().filename().string();
    for (const char* known : {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}) {
      if (extension == known) return true;
    }
    if (name.ends_with(".index.json")) return true;
  }
  return false;
}

class InspectCommand : public Command {
 public:
  void declare(OptionTable& table) override {
    table.positionals("MODEL", positionals_, 1);
    table.group("Inspection");
    table.add("tensors", &options_.tensors, "list every tensor with shape, type and file");
    table.add("world", &options_.world, "with --tensors: the slices of this many tensor-parallel ranks")
        .placeholder("N")
        .range(1, 4096);
    table.add("context", &options_.context, "tokens for the memory estimate; 0 is the model's longest sequence")
        .placeholder("N")
        .range(0, 1 << 30);
    table.add("json", &json_, "print JSON");
    table.example("conclave inspect models/demo-mixtral --context 4096");
    table.example("conclave inspect deepseek-v3 --tensors --world 8");
  }

  int execute(const OptionTable&, Console& console) override {
    if (positionals_.empty())
      throw Error(Error::Kind::bad_input,
                  "no model given; usage: conclave inspect MODEL, a folder, a config.json or a published shape");
    const std::string& model = positionals_[0];
    const ModelSpec spec = parse_spec(read_shape(model), config_name(model));
    std::unique_ptr<Checkpoint> checkpoint;
    if (fs::is_directory(model) && has_weights(model)) checkpoint = std::make_unique<Checkpoint>(model);
    if (!checkpoint)
      console.log.info(fmt::format("{} has no weight files: types follow from its configuration", model));
    const Inspection inspection = inspect_model(spec, checkpoint.get(), options_);
    if (json_)
      console.out.line(to_json(inspection).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    else
      console.out.write(to_text(inspection));
    return 0;
  }

 private:
  std::vector<std::string> positionals_;
  InspectOptions options_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> make_inspect() { return std::make_unique<InspectCommand>(); }

}  // namespace conclave
