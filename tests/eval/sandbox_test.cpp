#include "eval/sandbox.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <fmt/format.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <thread>

#include "core/error.h"
#include "eval/hostile_programs.h"
#include "eval/outside.h"

namespace conclave::test {
namespace fs = std::filesystem;
namespace {

using End = SandboxResult::End;

constexpr SandboxLimits kSmall{.run_s = 30, .compile_s = 60, .memory_bytes = size_t{256} << 20, .disk_bytes = size_t{32} << 20,
                               .output_bytes = 64 << 10, .processes = 32};

class Sandbox : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string obstacle = sandbox_obstacle();
    if (!obstacle.empty()) GTEST_SKIP() << obstacle;
  }
  static void skip_without(Language language) {
    const std::string obstacle = language_obstacle(language);
    if (!obstacle.empty()) GTEST_SKIP() << obstacle;
  }
};

class Hostile : public Sandbox, public ::testing::WithParamInterface<HostileProgram> {};

SandboxLimits limits_for(const HostileProgram& program) {
  SandboxLimits limits = kSmall;
  if (program.ends == HostileProgram::killed_for_time) limits.run_s = 0.5;
  if (program.ends == HostileProgram::any) limits.run_s = 3, limits.compile_s = 10;
  if (program.language == Language::java) limits.memory_bytes = size_t{1} << 30;
  return limits;
}

std::string text_of(const HostileProgram& program, const Outside& outside) {
  return outside.fill_in((program.language == Language::python ? kPrelude : "") + std::string(program.text)) + "\n";
}

TEST_P(Hostile, LeavesNoTraceOutside) {
  const HostileProgram& program = GetParam();
  skip_without(program.language);
  if (IsSkipped()) return;
  Outside outside;
  const SandboxLimits limits = limits_for(program);
  const auto start = std::chrono::steady_clock::now();
  const SandboxResult result = run_sandboxed(program.language, text_of(program, outside), limits);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  SCOPED_TRACE(result.out.substr(0, 2000) + "\n" + result.err.substr(0, 2000));
  EXPECT_EQ(outside.traces(result.out + result.err), std::vector<std::string>{});
  EXPECT_LT(took.count(), limits.run_s + limits.compile_s);
  EXPECT_LE(result.out.size(), limits.output_bytes);
  EXPECT_LE(result.err.size(), limits.output_bytes);
  EXPECT_LT(result.peak_bytes, 2 * limits.memory_bytes);
  if (program.ends == HostileProgram::finishes) {
    EXPECT_TRUE(result.succeeded()) << "end " << static_cast<int>(result.end) << ", code " << result.code;
  }
  if (program.ends == HostileProgram::killed_for_time) { EXPECT_EQ(result.end, End::timed_out); }
  if (program.ends == HostileProgram::killed_for_memory) { EXPECT_EQ(result.end, End::out_of_memory); }
  for (const char* mistake : {"SyntaxError", "NameError", "AttributeError", "TypeError"})
    EXPECT_EQ(result.err.find(mistake), std::string::npos) << "the program itself is wrong";
}

INSTANTIATE_TEST_SUITE_P(Sandbox, Hostile, ::testing::ValuesIn(kHostilePrograms), [](const auto& info) { return info.param.name; });

TEST(SandboxTests, NoticeTheSameProgramsWithoutASandbox) {
  if (::access("/usr/bin/python3", X_OK) != 0) GTEST_SKIP() << "no /usr/bin/python3";
  for (const HostileProgram& program : kHostilePrograms) {
    if (!program.works_outside) continue;
    Outside outside;
    const TempFolder place;
    const fs::path file = place.write("program.py", text_of(program, outside));
    const std::string command = "cd " + place.path().string() + " && exec timeout 20 /usr/bin/python3 program.py > out 2>&1";
    EXPECT_EQ(std::system(command.c_str()), 0) << program.name << ": " << read_all(place / "out");
    EXPECT_FALSE(outside.traces(read_all(place / "out")).empty()) << program.name;
    outside.clean_up();
  }
}

TEST_F(Sandbox, RunsEveryLanguageThatIsThere) {
  const std::pair<Language, const char*> programs[] = {
      {Language::python, "import math, sys\nprint(math.factorial(20))\nprint('warned', file=sys.stderr)\n"},
      {Language::cpp, "#include <iostream>\n#include <thread>\nint main() { std::thread([] { std::cout << 2432902008176640000 << '\\n'; }).join(); std::cerr << "
                      "\"warned\\n\"; }\n"},
      {Language::java, "class Other { long f(int n) { return n < 2 ? 1 : n * f(n - 1); } }\npublic class Main { public static void main(String[] a) { "
                       "System.out.println(new Other().f(20)); System.err.println(\"warned\"); } }\n"},
      {Language::javascript, "let n = 1n; for (let i = 2n; i <= 20n; ++i) n *= i;\nconsole.log(n.toString()); console.error('warned');\n"},
      {Language::go, "package main\nimport (\"fmt\"; \"os\")\nfunc main() { n := 1; for i := 2; i <= 20; i++ { n *= i }; fmt.Println(n); fmt.Fprintln(os.Stderr, "
                     "\"warned\") }\n"}};
  for (const auto& [language, text] : programs) {
    if (const std::string obstacle = language_obstacle(language); !obstacle.empty()) {
      EXPECT_NE(obstacle.find(fmt::format("language {} is not available", name_of(language))), std::string::npos);
      std::cout << obstacle << "\n";
      continue;
    }
    const SandboxResult result = run_sandboxed(language, text, {.run_s = 30});
    EXPECT_TRUE(result.succeeded()) << name_of(language) << result.err;
    EXPECT_EQ(result.out, "2432902008176640000\n") << name_of(language);
    EXPECT_EQ(result.err, "warned\n") << name_of(language);
    EXPECT_FALSE(result.truncated);
  }
}

TEST_F(Sandbox, TellsHowAProgramEnded) {
  const SandboxResult failed = run_sandboxed(Language::python, "assert 1 == 2, 'no'\n");
  EXPECT_EQ(failed.end, End::exited);
  EXPECT_EQ(failed.code, 1);
  EXPECT_NE(failed.err.find("AssertionError: no"), std::string::npos);
  EXPECT_FALSE(failed.succeeded());
  const SandboxResult killed = run_sandboxed(Language::python, "import os; os.kill(os.getpid(), 11)\n");
  EXPECT_EQ(killed.end, End::signalled);
  EXPECT_EQ(killed.code, 11);
  const SandboxResult slow = run_sandboxed(Language::python, "print('begun', flush=True)\nwhile True: pass\n", {.run_s = 0.5});
  EXPECT_EQ(slow.end, End::timed_out);
  EXPECT_EQ(slow.out, "begun\n");
  EXPECT_GE(slow.seconds, 0.5);
  const SandboxResult large = run_sandboxed(Language::python, "import sys; sys.stdout.write('ab' * 100000)", {.run_s = 30, .output_bytes = 1001});
  EXPECT_TRUE(large.succeeded());
  EXPECT_EQ(large.out.size(), 1001u);
  EXPECT_TRUE(large.truncated);
  int polls = 0;
  const SandboxResult cancelled = run_sandboxed(Language::python, "import time; time.sleep(100)", {.run_s = 100}, [&] { return ++polls > 10; });
  EXPECT_EQ(cancelled.end, End::cancelled);
}

TEST_F(Sandbox, TellsACompilersComplaintFromTheProgramsOwn) {
  skip_without(Language::cpp);
  if (IsSkipped()) return;
  const SandboxResult wrong = run_sandboxed(Language::cpp, "int main() { return undeclared; }\n", {.run_s = 30});
  EXPECT_FALSE(wrong.compiled);
  EXPECT_FALSE(wrong.succeeded());
  EXPECT_NE(wrong.err.find("undeclared"), std::string::npos);
  const SandboxResult failed = run_sandboxed(Language::cpp, "int main() { return 3; }\n", {.run_s = 30});
  EXPECT_TRUE(failed.compiled);
  EXPECT_EQ(failed.code, 3);
}

TEST_F(Sandbox, GivesEveryProgramAFreshWorldAndTheSameResult) {
  const char* text = "import os\nprint(os.listdir('.'), sorted({'a', 'b'}), {'x', 'y', 'z'}, os.getpid(), os.uname().nodename)\nopen('left', 'w').write('x')\n";
  const SandboxResult first = run_sandboxed(Language::python, text), second = run_sandboxed(Language::python, text);
  EXPECT_TRUE(first.succeeded()) << first.err;
  EXPECT_EQ(first.out, second.out);
  EXPECT_EQ(first.out.substr(0, 15), "['program.py'] ") << first.out;
}

TEST_F(Sandbox, GoTestsAreRunAsTests) {
  skip_without(Language::go);
  if (IsSkipped()) return;
  const auto run = [](const char* wanted) {
    return run_sandboxed(Language::go, fmt::format("package main\nimport \"testing\"\nfunc f(a int) int {{ return a + 1 }}\nfunc TestF(t *testing.T) {{ if f(1) != {} {{ t.Fatal(\"no\") }} }}\n", wanted), {.run_s = 30});
  };
  EXPECT_TRUE(run("2").succeeded());
  const SandboxResult wrong = run("3");
  EXPECT_TRUE(wrong.compiled);
  EXPECT_EQ(wrong.code, 1);
  EXPECT_NE(wrong.out.find("FAIL: TestF"), std::string::npos) << wrong.out;
}

TEST_F(Sandbox, OrdinaryProgramsFindWhatTheyExpect) {
  const char* text = R"(
import collections, concurrent.futures, copy, datetime, fractions, hashlib, itertools, json, math, os, random, re, shutil, string, subprocess, sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    with open(os.path.join(folder, 'a'), 'w') as f: f.write('text')
    shutil.copy2(os.path.join(folder, 'a'), os.path.join(folder, 'b'))
    assert sorted(os.listdir(folder)) == ['a', 'b']
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert list(pool.map(math.isqrt, [4, 9])) == [2, 3]
assert subprocess.run(['sort'], input='b\na\n', capture_output=True, text=True, check=True).stdout == 'a\nb\n'
assert hashlib.md5(b'x').hexdigest() and random.random() < 1 and datetime.datetime.now().year > 2000
assert sys.stdin.read() == '' and os.path.exists('/dev/null')
print('fine')
)";
  const SandboxResult result = run_sandboxed(Language::python, text, {.run_s = 30});
  EXPECT_EQ(result.out, "fine\n") << result.err;
  EXPECT_EQ(error_of([] { run_sandboxed(Language::python, std::string(1000, '#'), {.disk_bytes = 1000}); }),
            "a program of 1000 bytes is more than half of the 1000 bytes of disk that it may use");
}

TEST_F(Sandbox, TheMemoryOfTheStarterIsNotTheProgramsOwn) {
  const std::vector<char> weights(size_t{400} << 20, 1);
  for (int i = 0; i < 10; ++i) {
    const SandboxResult result = run_sandboxed(Language::python, "print('fine')", kSmall);
    EXPECT_EQ(result.out, "fine\n");
    EXPECT_EQ(result.end, End::exited);
    EXPECT_LT(result.peak_bytes, size_t{100} << 20);
  }
  EXPECT_EQ(weights[12345], 1);
}

TEST_F(Sandbox, RunsInSeveralThreadsAtOnce) {
  std::vector<std::thread> threads;
  std::vector<SandboxResult> results(12);
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < results.size(); i += 4)
        results[i] = run_sandboxed(Language::python, fmt::format("import time; time.sleep(0.02); print({})", i), {.run_s = 60});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < results.size(); ++i) EXPECT_EQ(results[i].out, fmt::format("{}\n", i)) << results[i].err;
}

TEST_F(Sandbox, EndsWithTheProcessThatStartedIt) {
  Outside outside;
  const std::string text = outside.fill_in("import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '@MARK@'])\n"),
                    mark = outside.fill_in("@MARK@");
  const pid_t starter = ::fork();
  if (starter == 0) {
    run_sandboxed(Language::python, text, {.run_s = 60});
    ::_exit(0);
  }
  for (int i = 0; i < 1000 && processes_with(mark).empty(); ++i) ::usleep(10'000);
  EXPECT_FALSE(processes_with(mark).empty()) << "never started";
  ::kill(starter, SIGKILL);
  ::waitpid(starter, nullptr, 0);
  for (int i = 0; i < 500 && !processes_with(mark).empty(); ++i) ::usleep(10'000);
  EXPECT_TRUE(processes_with(mark).empty());
}

/// Runs `action` in a child process; true when it returned true there.
template <class Action>
bool in_a_child(const Action& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = false;
    try {
      good = action();
    } catch (const std::exception& e) { fprintf(stderr, "%s\n", e.what()); }
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status == 0;
}

TEST_F(Sandbox, WorksForAnUnprivilegedUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "the tests run as an unprivileged user already";
  const bool good = in_a_child([] {
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) return false;
    ::prctl(PR_SET_DUMPABLE, 1);  // as every program that such a user starts is
    const SandboxResult result = run_sandboxed(Language::python, "import os\nprint(os.getuid())\nopen('x', 'w')\n", {.run_s = 30});
    if (!result.succeeded()) fprintf(stderr, "%s\n", result.err.c_str());
    const SandboxResult bomb = run_sandboxed(Language::python, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n", {.run_s = 0.5});
    return result.succeeded() && result.out == "1000\n" && bomb.end == End::timed_out;
  });
  EXPECT_TRUE(good);
}

TEST(SandboxTests, NothingIsRunWhereNamespacesAreRefused) {
  const bool refused = in_a_child([] {
    // A user namespace of our own, in which no further one may be made: what many containers look like.
    const std::string ids = fmt::format("0 {} 1", ::geteuid());
    if (::unshare(CLONE_NEWUSER) != 0) return sandbox_obstacle().find("no sandbox on this machine") == 0;
    std::ofstream("/proc/self/uid_map") << ids;
    std::ofstream("/proc/sys/user/max_user_namespaces") << "0";
    const std::string obstacle = sandbox_obstacle();
    try {
      run_sandboxed(Language::python, "print('ran')");
    } catch (const Error& e) {
      if (e.what() != obstacle || e.kind != Error::Kind::unsupported) fprintf(stderr, "%s\n", e.what());
      return e.what() == obstacle && obstacle.find("user, mount, process, network") != std::string::npos &&
             obstacle.find("max_user_namespaces is 0") != std::string::npos;
    }
    return false;
  });
  EXPECT_TRUE(refused);
}

TEST(SandboxTests, UnknownAndMissingLanguagesAreNamed) {
  EXPECT_EQ(language_named("js"), Language::javascript);
  EXPECT_NE(error_of([] { language_named("cobol"); }).find("\"cobol\", wanted python, cpp, java"), std::string::npos);
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nonexistent", 1);
  EXPECT_EQ(language_obstacle(Language::java), "language java is not available: javac is not on PATH under /usr; install it");
  EXPECT_EQ(error_of([] { run_sandboxed(Language::cpp, "int main() {}"); }), "language cpp is not available: g++ is not on PATH under /usr; install it");
  ::setenv("PATH", path.c_str(), 1);
}

}  // namespace
}  // namespace conclave::test
