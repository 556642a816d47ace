#pragma once
// Runs a program that nobody has read (code written by a model) so that it can do nothing but compute: its own user, mount, process,
// network, IPC and host-name namespaces, a private root of memory with /usr read-only in it, no capabilities, a list of allowed system
// calls, limits on time, memory, processes, files and output. Without all of them nothing is run: the error says what is missing. Whatever
// the program leaves behind ends with it. Needs no privileges where the system lets users make namespaces. Safe to call from several
// threads. docs/performance-tests.md tells what it stands for.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace conclave {

enum class Language : uint8_t { python, cpp, java, javascript, go };
/// "python", "cpp", "java", "javascript", "go".
std::string_view name_of(Language language);
/// Also "js". Throws bad_input naming the languages.
Language language_named(std::string_view name);

struct SandboxLimits {
  double run_s = 3, compile_s = 120;          ///< wall-clock time; four times that of processor time for one process
  size_t memory_bytes = size_t{1} << 30;      ///< of all processes together; each is refused more than that
  size_t disk_bytes = size_t{64} << 20;       ///< of /tmp, the only folder it can write to; compilers get more
  size_t output_bytes = size_t{256} << 10;    ///< kept of standard output and of standard error; the rest is read and dropped
  int processes = 64;                         ///< threads count
};

struct SandboxResult {
  enum class End : uint8_t { exited, signalled, timed_out, out_of_memory, cancelled };
  End end = End::exited;
  int code = 0;              ///< exit code, or the signal
  bool compiled = true;      ///< false: what ended so is the compiler
  std::string out, err;      ///< of the run, or of the compiler when that failed
  bool truncated = false;    ///< there was more output than is kept
  size_t peak_bytes = 0;     ///< most memory seen in use at once, looked at every few milliseconds
  double seconds = 0;        ///< wall-clock time of the run
  /// The program's own word: one that leaves early with code 0 looks the same. A test harness lets the last line print something and looks
  /// for it.
  bool succeeded() const { return compiled && end == End::exited && code == 0; }
};

/// Why nothing can be run on this machine ("" when it can): tries every part with an empty program.
std::string sandbox_obstacle();
/// Why `language` cannot be run ("" when it can): the tool that was looked for on PATH. Tools outside /usr are not seen inside.
std::string language_obstacle(Language language);

/// Runs `program`, the text of one source file: `python3`, `g++ -std=c++11` and its result, `javac` and class Main, `node`, or `go test` for
/// a text with Test functions and `go run` else. Nothing is read from standard input. `cancelled` is polled.
/// Throws unsupported when the sandbox or the language's tool is missing (see the obstacles above), internal when the system fails.
SandboxResult run_sandboxed(Language language, std::string_view program, const SandboxLimits& limits = {},
                            const std::function<bool()>& cancelled = {});

}  // namespace conclave
