#include "json.h"

namespace ferryman {
namespace {

// Bytes of the character that `bytes` begins with; 0 where it begins with none (RFC 3629, section 4).
size_t utf8_length(std::string_view bytes) {
  const auto at = [&](size_t i) { return i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : 0; };
  const auto follows = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
  const int first = at(0);
  const int second = at(1);
  if (first < 0x80) {
    return 1;
  }
  if (first >= 0xC2 && first <= 0xDF && follows(1)) {
    return 2;
  }
  if ((first & 0xF0) == 0xE0 && follows(1) && follows(2)) {
    const bool overlong = first == 0xE0 && second < 0xA0;
    const bool surrogate = first == 0xED && second >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (first >= 0xF0 && first <= 0xF4 && follows(1) && follows(2) && follows(3)) {
    const bool overlong = first == 0xF0 && second < 0x90;
    const bool beyond = first == 0xF4 && second >= 0x90;
    return overlong || beyond ? 0 : 4;
  }
  return 0;
}

void escape(char byte, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out += "\\u00";
  out += kHex[static_cast<uint8_t>(byte) >> 4];
  out += kHex[byte & 15];
}

} // namespace

Json& Json::string(std::string_view bytes) {
  separate();
  text_ += '"';
  while (!bytes.empty()) {
    const size_t length = utf8_length(bytes);
    if (length == 0) {
      text_ += "\\ufffd";
    } else if (bytes[0] == '"' || bytes[0] == '\\') {
      text_ += '\\';
      text_ += bytes[0];
    } else if (length == 1 && (static_cast<uint8_t>(bytes[0]) < 0x20 || bytes[0] == 0x7F)) {
      escape(bytes[0], text_);
    } else {
      text_ += bytes.substr(0, length);
    }
    bytes.remove_prefix(length == 0 ? 1 : length);
  }
  text_ += '"';
  return *this;
}

} // namespace ferryman
