// ferryman_runner: runs and measures a .pte where there is no Python, such as a phone. docs/runner.md has the answers.

#include <fcntl.h>
#include <signal.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "arguments.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "kernels.h"
#include "model.h"
#include "system.h"

namespace ferryman {
namespace {

constexpr size_t kLeastWarmup = 3;
constexpr int64_t kLimitS = 600;

volatile sig_atomic_t stop_signal = 0;
volatile sig_atomic_t printing = 0;

void on_stop(int signal) {
  stop_signal = signal;
}

// A run that does not end, or nobody who reads.
void on_limit(int) {
  constexpr char kText[] =
      "{\"error\":{\"party\":\"package\",\"message\":\"not done within --limit-s: the artifact may never end here; "
      "allow more time, or run another\"}}\n";
  if (!printing && write(STDOUT_FILENO, kText, sizeof kText - 1) < 0) {
    _exit(1);
  }
  _exit(1);
}

void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction before = {};
  sigaction(signal, nullptr, &before);
  if (before.sa_handler == SIG_IGN) { // nohup
    return;
  }
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(signal, &action, nullptr);
}

const char* name_of_stop() {
  const int signal = stop_signal;
  return signal == SIGHUP ? "SIGHUP" : signal == SIGINT ? "SIGINT" : "SIGTERM";
}

void print(const std::string& text) {
  printing = 1;
  if (!write_all(STDOUT_FILENO, text.data(), text.size())) {
    fprintf(stderr, "ferryman_runner: %s\n", with_errno("standard output").c_str());
    _exit(1);
  }
}

// What the environment asks of the kernels must be there, or the numbers would be another's.
void check_kernels() {
  const char* const asked = getenv("FERRYMAN_KERNELS_ISA");
  const std::string there = ferryman_kernels_isas();
  if (asked != nullptr && *asked != '\0' && (" " + there + " ").find(" " + std::string(asked) + " ") == std::string::npos) {
    blame_caller("FERRYMAN_KERNELS_ISA is `" + std::string(asked) + "`; this processor has " + there);
  }
}

void facts(Json& json) {
  utsname system = {};
  uname(&system);
  json.begin('{').key("runner").string(FERRYMAN_VERSION).key("executorch").string(ferryman_et_version());
  json.key("kernels_version").number(ferryman_kernels_version()).key("kernels_isa").string(ferryman_kernels_isa());
  json.key("machine").string(system.machine).key("cores").number(sysconf(_SC_NPROCESSORS_ONLN));
  json.key("kernel").string(system.release).key("page_bytes").number(sysconf(_SC_PAGESIZE)).end('}');
}

void describe(const Arguments& asked, Json& json) {
  const std::vector<std::string> entries = entries_of(asked.artifact);
  const bool clear = entries.size() == 1 || std::find(entries.begin(), entries.end(), "forward") != entries.end();
  const std::string entry = !asked.entry.empty() ? asked.entry : clear ? "" : entries[0];
  const Model model(asked.artifact, entry, 1);
  json.begin('{').key("entries").strings(entries);
  json.key("entry").string(!entry.empty() ? entry : entries.size() == 1 ? entries[0] : "forward");
  model.describe(json);
  json.end('}');
}

void run(const Arguments& asked, Json& json) {
  for (const std::string& output : asked.outputs) {
    require_another(output, asked.artifact); // which is mapped
  }
  Model model(asked.artifact, asked.entry, asked.threads);
  model.require_outputs(asked.outputs.size());
  model.read_inputs(asked.inputs);
  const int64_t run_ns = model.run();
  model.write_outputs(asked.outputs);
  json.begin('{').key("open_ns").number(model.open_ns()).key("run_ns").number(run_ns).key("outputs");
  model.describe_outputs(json);
  json.end('}');
}

std::vector<int64_t> warm_up(Model& model, int64_t span_ns) {
  std::vector<int64_t> samples_ns;
  const int64_t end_ns = now_ns() + span_ns;
  while (!stop_signal && samples_ns.size() < kRunsMax && (samples_ns.size() < kLeastWarmup || now_ns() < end_ns)) {
    samples_ns.push_back(model.run());
  }
  return samples_ns;
}

std::vector<int64_t> measure(Model& model, const Arguments& asked) {
  std::vector<int64_t> samples_ns;
  const auto least = static_cast<size_t>(asked.window ? 1 : asked.runs_min);
  const auto most = static_cast<size_t>(asked.window ? kRunsMax : asked.runs_max);
  const int64_t end_ns = now_ns() + asked.span_ns;
  while (!stop_signal && samples_ns.size() < most && (samples_ns.size() < least || now_ns() < end_ns)) {
    samples_ns.push_back(model.run());
  }
  return samples_ns;
}

void write_memory_phases(Json& json, const std::vector<std::pair<const char*, Memory>>& phases) {
  const Memory* missing = nullptr;
  int64_t peak = 0;
  json.key("memory").begin('{');
  for (const auto& [name, memory] : phases) {
    json.key(std::string(name) + "_bytes");
    if (memory.missing.empty()) {
      json.number(memory.rss);
      peak = std::max(peak, memory.peak_rss);
    } else {
      json.unavailable(memory.missing);
      missing = &memory;
    }
  }
  json.key("peak_bytes");
  missing ? json.unavailable(missing->missing) : json.number(peak);
  json.key("phases").begin('{');
  for (const auto& [name, memory] : phases) {
    write_memory(json.key(name), memory);
  }
  json.end('}').end('}');
}

void profile(const Arguments& asked, Json& json) {
  Json before;
  write_state(before);
  std::vector<std::pair<const char*, Memory>> phases = {{"before", read_memory()}};
  Model model(asked.artifact, asked.entry, asked.threads);
  phases.emplace_back("opened", read_memory());
  model.read_inputs(asked.inputs);
  const int64_t first_run_ns = model.run();
  phases.emplace_back("first_run", read_memory());
  const std::vector<int64_t> warmup_ns = warm_up(model, asked.warmup_ns);
  const int64_t started_ns = now_ns();
  const int64_t started_boottime_ns = boottime_ns();
  const std::vector<int64_t> samples_ns = measure(model, asked);
  const int64_t ended_ns = now_ns();
  const int64_t ended_boottime_ns = boottime_ns();
  Json after;
  write_state(after);
  phases.emplace_back("after", read_memory());
  if (samples_ns.empty()) {
    blame_caller(std::string("stopped by ") + name_of_stop() + " before the first timed run");
  }
  json.begin('{').key("open_ns").number(model.open_ns()).key("first_run_ns").number(first_run_ns);
  json.key("warmup_ns").numbers(warmup_ns).key("samples_ns").numbers(samples_ns);
  json.key("started_monotonic_ns").number(started_ns).key("ended_monotonic_ns").number(ended_ns);
  json.key("started_boottime_ns").number(started_boottime_ns).key("ended_boottime_ns").number(ended_boottime_ns);
  write_memory_phases(json, phases);
  json.key("threads").number(asked.threads).key("kernels_isa").string(ferryman_kernels_isa());
  json.key("packed_once").boolean(model.packed_once());
  json.key("state_before").json(before).key("state_after").json(after);
  if (stop_signal) {
    json.key("stopped").string(name_of_stop());
  }
  json.end('}');
}

void set_limit(const Arguments& asked) {
  int64_t limit_s = asked.limit_s;
  if (limit_s == 0) {
    limit_s = kLimitS + (asked.command == "profile" ? (asked.warmup_ns + asked.span_ns) / 1'000'000'000 : 0);
  }
  handle(SIGALRM, on_limit, 0);
  alarm(static_cast<unsigned>(limit_s));
}

std::string answer(int argc, char** argv) {
  const Arguments asked = parse(argc, argv);
  if (asked.command == "--help") {
    return kHelp;
  }
  if (asked.command == "--version") {
    return "ferryman_runner " FERRYMAN_VERSION "\n";
  }
  check_kernels();
  set_limit(asked);
  Json json;
  if (asked.command == "facts") {
    facts(json);
  } else if (asked.command == "describe") {
    describe(asked, json);
  } else if (asked.command == "run") {
    run(asked, json);
  } else {
    for (const int signal : {SIGHUP, SIGINT, SIGTERM}) {
      handle(signal, on_stop, static_cast<int>(SA_RESETHAND)); // the second ends it at once
    }
    profile(asked, json);
  }
  return json.text() + "\n";
}

std::string error_text(const char* party, const std::string& message) {
  Json json;
  json.begin('{').key("error").begin('{').key("party").string(party);
  return json.key("message").string(message).end('}').end('}').text() + "\n";
}

// A file opened later must not take the place of a closed standard stream.
void keep_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) < 0) {
      // Of the wrong direction: what is written to a closed output still fails.
      const int flags = stream == STDOUT_FILENO ? O_RDONLY : O_RDWR;
      if (open("/dev/null", flags) != stream) {
        _exit(1);
      }
    }
  }
}

} // namespace
} // namespace ferryman

int main(int argc, char** argv) {
  ferryman::keep_streams();
  for (const int signal : {SIGPIPE, SIGXFSZ}) { // the calls fail instead
    std::signal(signal, SIG_IGN);
  }
  std::string text;
  int code = 1;
  try {
    text = ferryman::answer(argc, argv);
    code = 0;
  } catch (const ferryman::Error& error) {
    text = ferryman::error_text(error.party, error.message);
  } catch (const std::exception& error) { // no memory
    text = ferryman::error_text("device", error.what());
  }
  ferryman::print(text);
  // Pool threads and static objects of ExecuTorch have nothing left to do.
  _exit(code);
}
