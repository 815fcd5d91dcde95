// Writes JSON of what the runner has: strings, whole numbers, truth values. No fractions, so no NaN and no infinity.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ferryman {

class Json {
 public:
  Json& begin(char bracket) {
    separate();
    text_ += bracket;
    return *this;
  }
  Json& end(char bracket) {
    text_ += bracket;
    return *this;
  }
  Json& key(std::string_view name) {
    string(name);
    text_ += ':';
    return *this;
  }
  // Bytes that are no UTF-8 become U+FFFD, one each.
  Json& string(std::string_view bytes);
  Json& number(int64_t value) {
    separate();
    text_ += std::to_string(value);
    return *this;
  }
  Json& boolean(bool value) {
    separate();
    text_ += value ? "true" : "false";
    return *this;
  }
  template <typename T>
  Json& numbers(const std::vector<T>& values) {
    begin('[');
    for (const T value : values) {
      number(value);
    }
    return end(']');
  }
  Json& strings(const std::vector<std::string>& values) {
    begin('[');
    for (const std::string& value : values) {
      string(value);
    }
    return end(']');
  }
  // Another's text.
  Json& json(const Json& other) {
    separate();
    text_ += other.text_;
    return *this;
  }
  // A value that could not be had.
  Json& unavailable(std::string_view reason) {
    return begin('{').key("unavailable").string(reason).end('}');
  }
  const std::string& text() const {
    return text_;
  }

 private:
  // A comma, unless nothing is before this in its list or object; a string never ends in one of these characters.
  void separate() {
    if (!text_.empty() && std::string_view("{[:").find(text_.back()) == std::string_view::npos) {
      text_ += ',';
    }
  }
  std::string text_;
};

} // namespace ferryman
