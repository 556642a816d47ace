#include "cli/judge.h"

#include <fmt/format.h>

#include <random>

#include "core/error.h"
#include "eval/sandbox.h"

namespace conclave {
namespace {

/// A line that only a program that came to its end prints: nobody can know it before.
std::string random_mark() {
  std::random_device device;
  return fmt::format("reached-{:08x}{:08x}{:08x}", device(), device(), device());
}

std::string shown_end(const SandboxResult& r) {
  if (!r.compiled) return "failed: it does not compile";
  switch (r.end) {
    case SandboxResult::End::timed_out: return "timed out";
    case SandboxResult::End::out_of_memory: return "failed: out of memory";
    case SandboxResult::End::signalled: return fmt::format("failed: signal {}", r.code);
    default: return r.code == 0 ? "failed: it ended before its last line" : fmt::format("failed: exit code {}", r.code);
  }
}

/// The data sets' own surroundings import numpy, and programs may: without it right programs would fail.
void require_numpy(const SandboxResult& result) {
  if (result.err.find("numpy") == std::string::npos) return;
  if (run_sandboxed(Language::python, "import numpy\n").succeeded()) return;  // the program is at fault
  throw Error(Error::Kind::unsupported, "a Python program needs numpy, which the sandbox's python3 cannot import; install python3-numpy");
}

Verdict judge(const Program& program, const std::function<bool()>& cancelled) {
  const Language language = language_named(program.language);
  const std::string mark = random_mark();
  std::string source = program.source;
  const bool marked = language == Language::python || language == Language::javascript;
  if (language == Language::python) source += fmt::format("\nprint(\"{}\")\n", mark);
  if (language == Language::javascript) source += fmt::format("\nconsole.log(\"{}\")\n", mark);
  SandboxLimits limits;
  limits.run_s = program.timeout_s;
  const SandboxResult result = run_sandboxed(language, source, limits, cancelled);
  if (result.end == SandboxResult::End::cancelled) throw Error(Error::Kind::cancelled, "interrupted");
  bool passed = result.succeeded() && (!marked || result.out.find(mark) != std::string::npos);
  if (language == Language::python && !passed) require_numpy(result);
  // Tests of the JavaScript set are assertions that only print.
  if (language == Language::javascript) passed = passed && result.err.empty() && result.out == mark + "\n";
  return {passed, passed ? "passed" : shown_end(result)};
}

}  // namespace

Judge make_judge(std::function<bool()> cancelled) {
  if (const std::string obstacle = sandbox_obstacle(); !obstacle.empty())
    throw Error(Error::Kind::unsupported, fmt::format("programs of models are run in a sandbox alone, and this machine has none: {}", obstacle));
  return [cancelled = std::move(cancelled)](const Program& program) { return judge(program, cancelled); };
}

}  // namespace conclave
