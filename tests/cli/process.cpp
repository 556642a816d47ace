#include "cli/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <utility>

namespace conclave::testing {
namespace {

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
    read = ends[0], write = ends[1];
  }
  ~Pipe() { close_read(), close_write(); }
  void close_read() {
    if (read >= 0) ::close(std::exchange(read, -1));
  }
  void close_write() {
    if (write >= 0) ::close(std::exchange(write, -1));
  }
};

[[noreturn]] void become(const std::string& program, const ProcessInput& input, const Pipe& in, const Pipe& out,
                         const Pipe& err) {
  ::dup2(in.read, STDIN_FILENO);
  ::dup2(out.write, STDOUT_FILENO);
  ::dup2(err.write, STDERR_FILENO);
  for (const auto& [name, value] : input.environment) ::setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> arguments{const_cast<char*>(program.c_str())};
  for (const std::string& argument : input.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  ::execv(program.c_str(), arguments.data());
  ::_exit(127);
}

}  // namespace

ProcessResult run_process(const std::string& program, const ProcessInput& input) {
  std::signal(SIGPIPE, SIG_IGN);  // a program may end before it has read its input
  Pipe in, out, err;
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    std::signal(SIGPIPE, SIG_DFL);
    become(program, input, in, out, err);
  }
  in.close_read(), out.close_write(), err.close_write();

  ProcessResult result;
  size_t sent = 0;
  bool signalled = false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(input.timeout_s);
  const auto drain = [](int& descriptor, std::string& text) {
    std::array<char, 4096> buffer;
    const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
    if (count > 0)
      text.append(buffer.data(), static_cast<size_t>(count));
    else
      ::close(std::exchange(descriptor, -1));
  };
  if (input.stdin_text.empty()) in.close_write();
  while (out.read >= 0 || err.read >= 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      ::kill(child, SIGKILL);
      result.timed_out = true;
      break;
    }
    pollfd waits[3] = {{out.read, POLLIN, 0}, {err.read, POLLIN, 0}, {in.write, POLLOUT, 0}};
    ::poll(waits, 3, 50);
    if (out.read >= 0 && waits[0].revents) drain(out.read, result.out);
    if (err.read >= 0 && waits[1].revents) drain(err.read, result.err);
    if (in.write >= 0 && waits[2].revents) {
      const ssize_t count = ::write(in.write, input.stdin_text.data() + sent, input.stdin_text.size() - sent);
      if (count > 0) sent += static_cast<size_t>(count);
      if (count <= 0 || sent == input.stdin_text.size()) in.close_write();
    }
    if (input.signal && !signalled && result.out.size() >= input.signal_after_bytes) {
      ::kill(child, input.signal);
      signalled = true;
    }
    if (input.close_stdout_early && !result.out.empty()) out.close_read();
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

ProcessResult conclave(std::vector<std::string> arguments, std::string stdin_text) {
  return run_process(CONCLAVE_BINARY, {.arguments = std::move(arguments), .stdin_text = std::move(stdin_text)});
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "conclave_cli_XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
  path = pattern;
}
TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path, error);
}
std::filesystem::path TemporaryFolder::write(const std::string& name, const std::string& content) const {
  std::ofstream(path / name, std::ios::binary) << content;
  return path / name;
}

std::string golden(const std::string& name) { return std::string(CONCLAVE_TEST_DATA) + "/golden/" + name; }

}  // namespace conclave::testing
