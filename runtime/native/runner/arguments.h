// The runner's command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ferryman {

// Most samples, and most runs of a warm-up.
constexpr int64_t kRunsMax = 1'000'000;

struct Input {
  std::string path;
  std::vector<int32_t> sizes; // of FILE:2x3x4
  bool sized = false;
};

struct Arguments {
  std::string command; // facts, describe, run, profile, --help, --version
  std::string artifact;
  std::string entry; // empty: the only one, else `forward`
  int32_t threads = 1;
  std::vector<Input> inputs;
  std::vector<std::string> outputs;
  int64_t warmup_ns = 1'000'000'000;
  int64_t span_ns = 5'000'000'000;
  int64_t runs_min = 0; // after parsing at least 1
  int64_t runs_max = kRunsMax;
  bool window = false;
  int64_t limit_s = 0; // 0: worked out from the others
};

extern const char kHelp[];

// Throws Error of party caller.
Arguments parse(int argc, char** argv);

} // namespace ferryman
