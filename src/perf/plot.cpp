#include "perf/plot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "core/error.h"

extern char** environ;  // NOLINT: POSIX

namespace conclave {
namespace {

constexpr size_t kMostRows = 100'000;

[[noreturn]] void refuse(const std::string& message) { throw Error(Error::Kind::bad_input, message); }

std::string trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t\r") - first + 1));
}

/// Cells of the record that starts at `at`, which is moved behind it (quotes as RFC 4180 has them).
std::vector<std::string> take_record(std::string_view text, size_t& at) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted && c == '"' && at + 1 < text.size() && text[at + 1] == '"') cells.back() += text[++at];
    else if (c == '"') quoted = !quoted;
    else if (c == ',' && !quoted) cells.emplace_back();
    else if (c == '\n' && !quoted) break;
    else cells.back() += c;
  }
  ++at;
  for (std::string& cell : cells) cell = trimmed(cell);
  return cells;
}

struct Columns {
  std::map<std::string, size_t> at;
  const std::string& file;

  size_t of(const char* name) const {
    const auto found = at.find(name);
    if (found == at.end()) refuse(fmt::format("{}: line 1 has no column \"{}\"; wanted a CSV of `conclave perf`", file, name));
    return found->second;
  }
  double number(const std::vector<std::string>& cells, const char* name, size_t line) const {
    const size_t column = of(name);
    const std::string text = column < cells.size() ? cells[column] : "";
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
      refuse(fmt::format("{}: line {}: {} is \"{}\", wanted a number", file, line, name, text.substr(0, 60)));
    return value;
  }
};

/// What gnuplot may show as a label: its quotes, escapes and line ends are taken out.
std::string label(std::string_view text) {
  std::string clean;
  for (const char c : text.substr(0, 80)) clean += std::strchr("\"'\\`$@#{}^_&\n\r", c) || static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  return clean;
}

struct Curve {
  std::string name;
  std::vector<const PlotPoint*> points;
};

/// True when two files measured the same: their curves must be told apart.
bool overlap(const std::vector<PlotFile>& files) {
  using Key = std::tuple<std::string, double, double, double>;
  std::map<Key, const PlotFile*> seen;
  for (const PlotFile& file : files)
    for (const PlotPoint& p : file.points)
      if (seen.emplace(Key(p.model, p.batch, p.input, p.output), &file).first->second != &file) return true;
  return false;
}

/// One curve per model and `group` of a point.
template <class Group>
std::vector<Curve> curves_of(const std::vector<PlotFile>& files, const Group& group) {
  std::vector<Curve> curves;
  std::map<std::string, size_t> known;
  const bool apart = overlap(files);
  for (const PlotFile& file : files) {
    for (const PlotPoint& point : file.points) {
      const std::string name = fmt::format("{}{} {}", apart ? file.name + ": " : "", point.model, group(point));
      const auto [entry, added] = known.emplace(name, curves.size());
      if (added) curves.push_back({label(name), {}});
      curves[entry->second].points.push_back(&point);
    }
  }
  return curves;
}

class Child {
 public:
  ~Child() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), wait();
  }
  pid_t* start() { return &pid_; }
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
};

struct Pipe {
  Pipe() {
    if (::pipe2(ends, O_CLOEXEC) != 0) throw Error(Error::Kind::internal, fmt::format("gnuplot: no pipe: {}", std::strerror(errno)));
  }
  ~Pipe() { close(0), close(1); }
  void close(int end) {
    if (ends[end] >= 0) ::close(std::exchange(ends[end], -1));
  }
  int ends[2];
};

/// Writes to one end of a child and reads the others until all are closed.
void exchange(Pipe& in, const std::string& commands, std::array<std::pair<Pipe*, std::string*>, 2> readers) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  size_t sent = 0;
  ::fcntl(in.ends[1], F_SETFL, O_NONBLOCK);
  while (readers[0].first->ends[0] >= 0 || readers[1].first->ends[0] >= 0) {
    if (std::chrono::steady_clock::now() > deadline) throw Error(Error::Kind::internal, "gnuplot took longer than a minute and was ended");
    pollfd waits[] = {{in.ends[1], POLLOUT, 0}, {readers[0].first->ends[0], POLLIN, 0}, {readers[1].first->ends[0], POLLIN, 0}};
    ::poll(waits, 3, 1000);
    if (in.ends[1] >= 0 && waits[0].revents) {
      const ssize_t count = ::write(in.ends[1], commands.data() + sent, commands.size() - sent);
      if (count > 0) sent += static_cast<size_t>(count);
      if ((count < 0 && errno != EAGAIN) || sent == commands.size()) in.close(1);
    }
    for (size_t i = 0; i < readers.size(); ++i) {
      if (readers[i].first->ends[0] < 0 || !waits[i + 1].revents) continue;
      std::array<char, 65536> buffer;
      const ssize_t count = ::read(readers[i].first->ends[0], buffer.data(), buffer.size());
      if (count > 0) readers[i].second->append(buffer.data(), static_cast<size_t>(count));
      else readers[i].first->close(0);
    }
  }
}

}  // namespace

std::vector<PlotPoint> read_perf_csv(std::string_view text, const std::string& file) {
  size_t at = 0;
  if (text.starts_with("\xef\xbb\xbf")) at = 3;
  Columns columns{{}, file};
  const std::vector<std::string> header = take_record(text, at);
  for (size_t i = 0; i < header.size(); ++i) columns.at.emplace(header[i], i);
  columns.of("Model");
  std::vector<PlotPoint> points;
  for (size_t line = 2; at < text.size(); ++line) {
    const std::vector<std::string> cells = take_record(text, at);
    if (cells.size() == 1 && cells[0].empty()) continue;
    if (points.size() >= kMostRows) refuse(fmt::format("{}: more than {} rows", file, kMostRows));
    const auto number = [&](const char* name) { return columns.number(cells, name, line); };
    const double batch = number("Batchsize"), input = number("In_seq"), output = number("Out_seq");
    const size_t prefill = columns.of("Prefill all time(ms)");
    if (prefill >= cells.size() || cells[prefill].empty()) continue;  // an error stands in the place of the figures
    points.push_back({cells[0], batch, input, output, number("Non-first token time(ms)"), number("Prefill average time(ms)"),
                      number("Non-first token Throughput(Tokens/s)"), number("Throughput(Tokens/s)")});
  }
  return points;
}

std::string plot_commands(const std::vector<PlotFile>& files, PlotFormat format) {
  std::vector<Curve> curves = curves_of(files, [](const PlotPoint& p) { return fmt::format("{:.0f}/{:.0f}", p.input, p.output); });
  bool by_batch = false;
  for (const Curve& curve : curves) {
    std::set<double> batches;
    for (const PlotPoint* p : curve.points) batches.insert(p->batch);
    by_batch = by_batch || batches.size() > 1;
  }
  if (!by_batch) curves = curves_of(files, [](const PlotPoint& p) { return fmt::format("batch {:.0f}", p.batch); });
  std::string text = format == PlotFormat::svg ? "set terminal svg size 1200,900 dynamic enhanced font 'sans,12' background 'white'\n"
                                               : "set terminal pngcairo size 1200,900 font 'sans,12'\n";
  for (size_t i = 0; i < curves.size(); ++i) {
    text += fmt::format("$c{} << END_OF_CURVE\n", i);
    for (const PlotPoint* p : curves[i].points)
      text += fmt::format("{} {} {} {} {}\n", by_batch ? p->batch : p->input, p->token_ms, p->prefill_ms, p->decode_rate, p->e2e_rate);
    text += "END_OF_CURVE\n";
  }
  text += fmt::format("set multiplot layout 2,2\nset grid\nset key outside bottom center horizontal\nset xlabel '{}'\nset yrange [0:*]\nset logscale x 2\n",
                      by_batch ? "batch size" : "prompt tokens");
  const char* const titles[] = {"time per token after the first (ms)", "time per prompt (ms)", "tokens/s after the first", "tokens/s over all"};
  for (size_t panel = 0; panel < std::size(titles); ++panel) {
    text += fmt::format("set title '{}'\nplot ", titles[panel]);
    for (size_t i = 0; i < curves.size(); ++i)
      text += fmt::format("{}$c{} using 1:{} smooth unique with linespoints pointtype 7 title '{}'", i ? ", " : "", i, panel + 2, curves[i].name);
    text += "\n";
  }
  return text + "unset multiplot\n";
}

std::string run_gnuplot(const std::string& commands) {
  Pipe in, out, err;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.ends[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.ends[1], STDERR_FILENO);
  char name[] = "gnuplot", defaults[] = "--default-settings";
  char* const arguments[] = {name, defaults, nullptr};
  Child child;
  const int failed = ::posix_spawnp(child.start(), name, &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) {
    throw Error(Error::Kind::unsupported, fmt::format("gnuplot cannot be started ({}); install it, on Debian: apt-get install gnuplot-nox", std::strerror(failed)));
  }
  in.close(0), out.close(1), err.close(1);
  std::string drawn, complaint;
  exchange(in, commands, {std::pair(&out, &drawn), std::pair(&err, &complaint)});
  const int status = child.wait();
  if (status != 0 || drawn.empty())
    throw Error(Error::Kind::internal, fmt::format("gnuplot drew nothing (status {}): {}", status, trimmed(complaint).substr(0, 500)));
  return drawn;
}

}  // namespace conclave
