#include "eval/programs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "eval/prompt_encoder.h"

namespace conclave {
namespace {

constexpr std::array kPythonHelpers = {"import math",        "import re",           "import sys",       "import copy",         "import datetime",
                                       "import itertools",   "import collections",  "import heapq",     "import statistics",   "import functools",
                                       "import hashlib",     "import numpy",        "import numpy as np", "import string",     "from typing import *",
                                       "from collections import *"};
constexpr std::array kCppHelpers = {"#include<stdlib.h>", "#include<algorithm>", "#include<math.h>",  "#include<stdio.h>", "#include<vector>",
                                    "#include<string>",   "#include<climits>",   "#include<cstring>", "#include<iostream>"};
constexpr std::array kGoHelpers = {"math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand", "crypto/md5"};

/// Lines before the first one that is neither blank nor indented; all of them when there is none.
std::string indented_part(std::string_view text, bool& cut) {
  cut = false;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    if (!stripped(line).empty() && line[0] != ' ' && line[0] != '\t') {
      cut = true;
      return std::string(text.substr(0, at == 0 ? 0 : at - 1));
    }
    at = end + 1;
  }
  return std::string(text);
}

template <size_t N>
std::string before_last(std::string text, const std::array<const char*, N>& words) {
  for (const char* word : words)
    if (const size_t at = text.rfind(word); at != std::string::npos) text.resize(at);
  return text;
}

std::string through_last_brace(std::string text) {
  const size_t at = text.rfind('}');
  return at == std::string::npos ? text : text.substr(0, at) + "}";
}

std::string go_program(const PolyglotProblem& p, std::string_view generation) {
  const std::string prompt = p.import.empty() ? p.prompt : replaced(p.prompt, p.import, "");
  std::string imports;
  for (const std::string_view package : kGoHelpers) {
    const std::string_view name = package.substr(package.find('/') == std::string_view::npos ? 0 : package.find('/') + 1);
    if (p.test_setup.find(package) != std::string::npos || generation.find(fmt::format("{}.", name)) == std::string_view::npos) continue;
    imports += fmt::format("{}\"{}\"\n", imports.empty() ? "" : "    ", package);
  }
  if (!imports.empty()) imports = "import (\n" + imports + ")\n";
  return fmt::format("{}\n{}{}{}\n{}", p.test_setup, imports, prompt, generation, p.test);
}

}  // namespace

std::string cut_completion(std::string_view text) {
  bool cut = false;
  std::string code = indented_part(text, cut);
  constexpr std::array kEnds = {"\ndef", "\nclass", "\n#", "\nassert", "\n\"\"\"", "\nprint", "\nif", "\n\n\n"};
  return cut ? code : before_last(std::move(code), kEnds);
}

std::string humaneval_program(std::string_view prompt, std::string_view completion, std::string_view test, std::string_view entry_point) {
  return fmt::format("{}{}\n{}\ncheck({})", prompt, completion, test, entry_point);
}

std::string language_tag(std::string_view language) {
  if (language == "cpp") return "// language: C++";
  if (language == "go") return "// language: Go";
  if (language == "java") return "// language: Java";
  if (language == "js") return "// language: JavaScript";
  return "# language: Python";
}

std::string cut_generation(std::string_view text, std::string_view language) {
  std::string code(text);
  if (language == "python") {
    constexpr std::array kEnds = {"\ndef", "\nclass", "\nif", "\n#", "\nprint", "\nassert"};
    return before_last(std::move(code), kEnds);
  }
  if (language == "java") {
    if (const size_t at = code.find("public static void main"); at != std::string::npos) code = code.substr(0, at) + '}';
    code = through_last_brace(std::move(code));
    if (std::count(code.begin(), code.end(), '{') + 1 == std::count(code.begin(), code.end(), '}')) code += "\n}";
    return code;
  }
  if (language == "go") {
    constexpr std::array kEnds = {"\n//", "\nfunc main("};
    code = before_last(std::move(code), kEnds);
  }
  return through_last_brace(std::move(code));
}

std::string polyglot_program(const PolyglotProblem& p, std::string_view generation) {
  if (p.language == "python") {
    bool cut = false;
    return fmt::format("{}\n{}{}\n{}\n", fmt::join(kPythonHelpers, "\n"), p.prompt, indented_part(generation, cut), p.test);
  }
  if (p.language == "go") return go_program(p, generation);
  std::string helpers;
  if (p.language == "cpp") {
    for (const char* helper : kCppHelpers)
      if (p.prompt.find(helper) == std::string::npos) helpers += std::string(helper) + "\n";
    helpers += "\n";
  }
  return fmt::format("{}{}{}\n{}", helpers, p.prompt, generation, p.test);
}

double pass_at_k(int n, int c, int k) {
  if (n - c < k) return 1;
  double none = 1;
  for (int i = n - c + 1; i <= n; ++i) none *= 1 - static_cast<double>(k) / i;
  return 1 - none;
}

}  // namespace conclave
