// Reading FlatBuffers that nobody has verified: every access is checked against the bytes there are.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace ferryman {

struct Broken {};

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <typename T>
  T at(size_t position) const {
    if (position > size_ || size_ - position < sizeof(T)) {
      throw Broken{};
    }
    T value;
    memcpy(&value, data_ + position, sizeof value);
    return value;
  }

  Bytes part(size_t position, size_t count) const {
    if (position > size_ || size_ - position < count) {
      throw Broken{};
    }
    return {data_ + position, count};
  }

  std::string text() const {
    return {reinterpret_cast<const char*>(data_), size_};
  }

  size_t size() const {
    return size_;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

class Vector;

class Table {
 public:
  Table(const Bytes& bytes, size_t position) : bytes_(bytes), position_(position) {
    const auto back = bytes.at<int32_t>(position);
    vtable_ = position - static_cast<size_t>(static_cast<int64_t>(back)); // wraps, and is checked when it is read
    slots_bytes_ = bytes.at<uint16_t>(vtable_);
  }

  static Table root(const Bytes& bytes) {
    return {bytes, bytes.at<uint32_t>(0)};
  }

  template <typename T>
  T number(int slot, T otherwise) const {
    const size_t at = place(slot);
    return at ? bytes_.at<T>(at) : otherwise;
  }

  bool has(int slot) const {
    return place(slot) != 0;
  }

  Table table(int slot) const {
    return {bytes_, follow(slot)};
  }

  Vector vector(int slot) const;

  // Of a string, or of a vector of numbers of `item` bytes; empty when there is none.
  Bytes bytes(int slot, size_t item = 1) const {
    if (!has(slot)) {
      return {nullptr, 0};
    }
    const size_t at = follow(slot);
    return bytes_.part(at + sizeof(uint32_t), bytes_.at<uint32_t>(at) * item);
  }

 private:
  size_t place(int slot) const {
    const size_t entry = 4 + 2 * static_cast<size_t>(slot);
    const uint16_t offset = entry < slots_bytes_ ? bytes_.at<uint16_t>(vtable_ + entry) : 0;
    return offset ? position_ + offset : 0;
  }

  size_t follow(int slot) const {
    const size_t at = place(slot);
    if (at == 0) {
      throw Broken{};
    }
    return at + bytes_.at<uint32_t>(at);
  }

  Bytes bytes_;
  size_t position_;
  size_t vtable_;
  uint16_t slots_bytes_;
};

// Of tables.
class Vector {
 public:
  Vector(const Bytes& bytes, size_t start, size_t count) : bytes_(bytes), start_(start), count_(count) {}

  size_t size() const {
    return count_;
  }

  Table operator[](size_t index) const {
    if (index >= count_) {
      throw Broken{};
    }
    const size_t at = start_ + sizeof(uint32_t) * index;
    return {bytes_, at + bytes_.at<uint32_t>(at)};
  }

 private:
  Bytes bytes_;
  size_t start_;
  size_t count_;
};

inline Vector Table::vector(int slot) const {
  if (!has(slot)) {
    return {bytes_, 0, 0};
  }
  const size_t at = follow(slot);
  const size_t count = bytes_.at<uint32_t>(at);
  bytes_.part(at + sizeof(uint32_t), count * sizeof(uint32_t)); // a count that the bytes cannot hold must not keep us
  return {bytes_, at + sizeof(uint32_t), count};
}

} // namespace ferryman
