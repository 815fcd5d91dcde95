#include "arguments.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "error.h"

namespace ferryman {

const char kHelp[] =
    R"(ferryman_runner: runs and measures ExecuTorch artifacts (.pte) where there is no Python. Answers in JSON.

  ferryman_runner facts
  ferryman_runner describe ARTIFACT [--entry E]
  ferryman_runner run      ARTIFACT [--entry E] [--threads N] --input FILE... --output FILE...
  ferryman_runner profile  ARTIFACT [--entry E] [--threads N] --input FILE... [--warmup-s S] [--seconds S]
                           [--runs-min N] [--runs-max N] [--window]

FILE           raw little-endian bytes in C order, one file an input or output; an input's sizes follow as in x.raw:2x3x4
               where they may vary (else the upper bounds are taken)
--threads N    1 (default): the calling thread alone
--warmup-s S   runs before the timed ones, in seconds (1), and 3 at least
--seconds S    timed runs go on for so long (5), and for --runs-min (30) runs; never for more than --runs-max (1000000)
--window       timed runs go on for all of --seconds whatever their number, for a meter beside
--limit-s S    ends with an error after so long (run, describe: 600; profile: 600 more than asked for)

An error is {"error": {"party": "package" | "device" | "caller", "message": ...}} and exit code 1. SIGHUP, SIGINT and
SIGTERM end a profile after the run they meet; what was measured is printed, with "stopped".
)";

namespace {

constexpr int64_t kRunsMin = 30;

int64_t whole(std::string_view option, std::string_view text, int64_t least, int64_t most) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    blame_caller(
        std::string(option) + ": expected a whole number from " + std::to_string(least) + " to " +
        std::to_string(most) + ", found `" + std::string(text) + "`");
  }
  return value;
}

int64_t nanoseconds(std::string_view option, const std::string& text) {
  constexpr double kMost = 86'400;
  const bool digits = !text.empty() && text.find_first_not_of("0123456789.") == std::string::npos;
  char* end = nullptr;
  const double value = digits ? std::strtod(text.c_str(), &end) : -1;
  if (!digits || *end != '\0' || !(value >= 0 && value <= kMost)) {
    blame_caller(std::string(option) + ": expected seconds from 0 to 86400, found `" + text + "`");
  }
  return static_cast<int64_t>(value * 1e9);
}

// What follows the last colon is sizes if it looks like sizes.
Input input(const std::string& text) {
  Input found{text, {}, false};
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) {
    return found;
  }
  const std::string_view suffix = std::string_view(text).substr(colon + 1);
  if (suffix.empty() || suffix.find_first_not_of("0123456789x") != std::string_view::npos) {
    return found;
  }
  found.path.resize(colon);
  found.sized = true;
  for (size_t begin = 0; begin <= suffix.size();) {
    const size_t end = std::min(suffix.find('x', begin), suffix.size());
    found.sizes.push_back(
        static_cast<int32_t>(whole("sizes of " + text, suffix.substr(begin, end - begin), 0, INT32_MAX)));
    begin = end + 1;
  }
  return found;
}

class Parser {
 public:
  Parser(int argc, char** argv) : words_(argv + 1, argv + argc) {}

  Arguments parse() {
    if (words_.empty()) {
      blame_caller("expected a command: facts, describe, run or profile; see --help");
    }
    found_.command = words_[0];
    const bool takes_artifact = found_.command == "describe" || found_.command == "run" || found_.command == "profile";
    if (!takes_artifact) {
      if (found_.command != "facts" && found_.command != "--help" && found_.command != "--version") {
        blame_caller("expected facts, describe, run or profile, found `" + found_.command + "`; see --help");
      }
      if (words_.size() > 1) {
        blame_caller(found_.command + " takes no arguments, found `" + words_[1] + "`");
      }
      return found_;
    }
    while (++at_ < words_.size()) {
      take(words_[at_]);
    }
    if (found_.artifact.empty()) {
      blame_caller(found_.command + ": expected an artifact, a .pte file");
    }
    if (found_.runs_min == 0) {
      found_.runs_min = std::min(kRunsMin, found_.runs_max);
    } else if (found_.runs_min > found_.runs_max) {
      blame_caller("--runs-min is more than --runs-max");
    }
    return found_;
  }

 private:
  void take(const std::string& word) {
    const bool runs = found_.command != "describe";
    const bool profile = found_.command == "profile";
    if (word == "--entry") {
      found_.entry = value(word);
    } else if (word == "--limit-s") {
      found_.limit_s = whole(word, value(word), 1, 1'000'000);
    } else if (runs && word == "--threads") {
      found_.threads = static_cast<int32_t>(whole(word, value(word), 1, 256));
    } else if (runs && word == "--input") {
      do {
        found_.inputs.push_back(input(value(word)));
      } while (more());
    } else if (found_.command == "run" && word == "--output") {
      do {
        found_.outputs.push_back(value(word));
      } while (more());
    } else if (profile && word == "--warmup-s") {
      found_.warmup_ns = nanoseconds(word, value(word));
    } else if (profile && word == "--seconds") {
      found_.span_ns = nanoseconds(word, value(word));
    } else if (profile && word == "--runs-min") {
      found_.runs_min = whole(word, value(word), 1, kRunsMax);
    } else if (profile && word == "--runs-max") {
      found_.runs_max = whole(word, value(word), 1, kRunsMax);
    } else if (profile && word == "--window") {
      found_.window = true;
    } else if (word.substr(0, 1) != "-" && !word.empty() && found_.artifact.empty()) {
      found_.artifact = word;
    } else {
      blame_caller(found_.command + ": unexpected `" + word + "`; see --help");
    }
  }

  std::string value(const std::string& option) {
    if (at_ + 1 >= words_.size() || words_[at_ + 1].empty()) {
      blame_caller(option + ": expected a value");
    }
    return words_[++at_];
  }

  // Whether the option has another value.
  bool more() const {
    return at_ + 1 < words_.size() && words_[at_ + 1].substr(0, 1) != "-" && !found_.artifact.empty();
  }

  const std::vector<std::string> words_;
  size_t at_ = 0;
  Arguments found_;
};

} // namespace

Arguments parse(int argc, char** argv) {
  return Parser(argc, argv).parse();
}

} // namespace ferryman
