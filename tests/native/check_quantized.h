// What the checks of quantized operators share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "quantized.h"

constexpr int32_t kBlock = 32;

using Bytes = std::vector<uint8_t>;

inline void backwards(void*, void (*body)(void*, size_t), void* argument, size_t tasks) {
  while (tasks > 0) {
    body(argument, --tasks);
  }
}

inline uint8_t random_byte() {
  return between(0, 3) ? static_cast<uint8_t>(random_word()) : between(0, 1) ? 0 : 255;
}

template <typename T>
std::vector<T> bytes(int64_t count) {
  std::vector<T> made(static_cast<size_t>(count));
  for (T& byte : made) {
    byte = static_cast<T>(random_byte());
  }
  return made;
}

inline std::vector<float> floats(int64_t count) {
  std::vector<float> made(static_cast<size_t>(count));
  for (float& value : made) {
    value = static_cast<float>(between(-999, 999)) / 128.0f;
  }
  return made;
}

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline int8_t quantize(float x, float scale, int32_t zero, int32_t low, int32_t high) {
  const float y = x * (1 / scale);
  const float clamped = std::min(std::max(static_cast<float>(low - zero), y), static_cast<float>(high - zero));
  return static_cast<int8_t>(zero + static_cast<int32_t>(std::nearbyint(clamped)));
}

// Quantizes `count` floats by their largest magnitude, and returns the scale.
inline float quantize_dynamic(const float* x, size_t count, int8_t* to) {
  float most = 0;
  for (size_t i = 0; i < count; ++i) {
    most = std::max(most, std::fabs(x[i]));
  }
  for (size_t i = 0; i < count; ++i) {
    to[i] = most == 0 ? 0 : quantize(x[i], most / 127, 0, -127, 127);
  }
  return most / 127;
}

// Rows as blocks of int8, each behind them its scales.
inline std::vector<int8_t> in_blocks(const std::vector<float>& rows, size_t channels) {
  std::vector<int8_t> made;
  for (size_t row = 0; row < rows.size(); row += channels) {
    std::vector<int8_t> line(channels);
    std::vector<float> scales;
    for (size_t k = 0; k < channels; k += kBlock) {
      scales.push_back(quantize_dynamic(&rows[row + k], std::min<size_t>(kBlock, channels - k), &line[k]));
    }
    line.resize(channels + scales.size() * sizeof(float));
    memcpy(&line[channels], scales.data(), scales.size() * sizeof(float));
    made.insert(made.end(), line.begin(), line.end());
  }
  return made;
}

// Changes some of a record's words, which are numbers and floats.
template <typename Record>
void spoil(Record& record) {
  int32_t numbers[sizeof record / sizeof(int32_t)];
  memcpy(numbers, &record, sizeof numbers);
  for (int changes = between(1, 4); changes > 0; --changes) {
    const int32_t edges[] = {-1, 0, 1, 2, 3, 70, 1 << 24, INT32_MAX, INT32_MIN, static_cast<int32_t>(random_word())};
    numbers[random_word() % (sizeof record / sizeof(int32_t))] = edges[between(0, 9)];
  }
  memcpy(&record, numbers, sizeof numbers);
}

constexpr int64_t kSmall = 1 << 16;

// Products and functions of rows in blocks (check_blocks.cpp).
bool product_is_right();
bool function_is_right();
bool fuzz_blocks();
