// What the runner throws: the party at fault, and what was expected, found, and to be done.
#pragma once

#include <string>

namespace ferryman {

struct Error {
  const char* party; // package, device, caller
  std::string message;
};

[[noreturn]] inline void blame_package(std::string message) {
  throw Error{"package", std::move(message)};
}
[[noreturn]] inline void blame_device(std::string message) {
  throw Error{"device", std::move(message)};
}
[[noreturn]] inline void blame_caller(std::string message) {
  throw Error{"caller", std::move(message)};
}

} // namespace ferryman
