// conclave serve as a program: start, signals, exit codes, configuration of the reference stack. The server's inside: tests/server.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "cli/process.h"

namespace conclave::testing {
namespace {

const std::string kModel = std::string(CONCLAVE_SOURCE) + "/models/demo-mixtral";

/// Runs until the reference profile's line has come, then sends SIGTERM.
ProcessResult serve_and_stop(std::vector<std::string> more) {
  std::vector<std::string> arguments{
      "serve",          kModel, "--profile",         "reference", "--port",        "0",  "--management-port", "0",
      "--metrics-port", "0",    "--management-host", "127.0.0.1", "--max-context", "256"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_process(CONCLAVE_BINARY, {.arguments = arguments, .stdin_text = {}, .environment = {}, .signal = SIGTERM});
}

TEST(Serve, StartsAndStops) {
  const ProcessResult r = serve_and_stop({});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(r.out, "Daemon start success!\n");
  EXPECT_NE(r.err.find("listening on http://127.0.0.1:"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("serving demo-mixtral"), std::string::npos);
}

TEST(Serve, RefusesToBeOpen) {
  const ProcessResult r = conclave({"serve", kModel, "--host", "0.0.0.0", "--port", "0"});
  EXPECT_EQ(r.exit_code, 2);
  EXPECT_NE(r.err.find("--key-file"), std::string::npos) << r.err;
}

TEST(Serve, RandomWeightsNeedNoTokenizer) {
  const TemporaryFolder folder;
  std::ostringstream config;
  config << std::ifstream(golden("mixtral-gqa") + "/config.json").rdbuf();
  folder.write("config.json", config.str());
  const ProcessResult r = run_process(
      CONCLAVE_BINARY, {.arguments = {"serve", folder.path.string(), "--random-weights", "--port", "0", "--profile", "reference", "--management-port",
                                      "0", "--metrics-port", "0", "--management-host", "127.0.0.1", "--max-context", "64"},
                        .stdin_text = {}, .environment = {}, .signal = SIGTERM});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(r.out, "Daemon start success!\n");
}

TEST(BenchServe, NamesWhatIsWrong) {
  EXPECT_EQ(conclave({"bench", "serve"}).exit_code, 2);
  EXPECT_EQ(conclave({"bench", "serve", "https://127.0.0.1"}).exit_code, 2);
  EXPECT_EQ(conclave({"bench", "serve", "http://127.0.0.1:1"}).exit_code, 6);
  EXPECT_EQ(conclave({"bench", "serve", "http://127.0.0.1:1", "--rate", "0"}).exit_code, 2);
  EXPECT_EQ(conclave({"bench", "serve", "http://127.0.0.1:1", "--prompt-tokens", "9-3", "--served-model-name", "x", "--vocab", "9"}).exit_code, 2);
  EXPECT_EQ(conclave({"help", "bench", "serve"}).exit_code, 0);
}

TEST(Serve, NamesWhatIsWrong) {
  EXPECT_EQ(conclave({"serve"}).exit_code, 2);
  EXPECT_EQ(conclave({"serve", "/nowhere", "--port", "0"}).exit_code, 3);
  EXPECT_EQ(conclave({"serve", kModel, "--port", "70000"}).exit_code, 2);
  EXPECT_EQ(conclave({"serve", kModel, "--port", "0", "--tls-certificate", "/nowhere.pem"}).exit_code, 2);
  EXPECT_EQ(conclave({"serve", kModel, "--port", "0", "--key-file", "/nowhere"}).exit_code, 2);
}

TEST(Serve, TakesTheReferenceStacksConfiguration) {
  const TemporaryFolder folder;
  const auto file = folder.write("config.json", R"({"Version": "1.0",
    "ServerConfig": {"ipAddress": "127.0.0.1", "port": 1, "httpsEnabled": false, "fullTextEnabled": false},
    "BackendConfig": {"npuDeviceIds": [[0]], "ModelDeployConfig": {"maxSeqLen": 300, "ModelConfig": [{"modelName": "mine", "worldSize": 1}]},
                      "ScheduleConfig": {"maxBatchSize": 4, "cacheBlockSize": 32}}})");
  const ProcessResult shown = conclave({"serve", kModel, "--import-config", file.string(), "--print-config"});
  EXPECT_EQ(shown.exit_code, 0) << shown.err;
  for (const char* line : {"max_context = 300", "max_batch_size = 4", "block_size = 32", "port = 1 ", "\"mine\""})
    EXPECT_NE(shown.out.find(line), std::string::npos) << line << "\n" << shown.out;
  const ProcessResult r = serve_and_stop({"--import-config", file.string()});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  for (const char* key :
       {"BackendConfig.npuDeviceIds has no effect", "ServerConfig.fullTextEnabled has no effect", "worldSize has no effect"})
    EXPECT_NE(r.err.find(key), std::string::npos) << key << "\n" << r.err;
  EXPECT_NE(r.err.find("serving mine"), std::string::npos) << r.err;
  const auto tls = folder.write("tls.json", R"({"ServerConfig": {"httpsEnabled": true}})");
  EXPECT_EQ(conclave({"serve", kModel, "--import-config", tls.string()}).exit_code, 2);
  EXPECT_EQ(conclave({"serve", kModel, "--import-config", folder.write("no.json", "{}").string()}).exit_code, 3);
}

}  // namespace
}  // namespace conclave::testing
