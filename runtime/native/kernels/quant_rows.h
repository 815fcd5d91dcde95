// Rows of int8, quantized when they are used, and their products with blocks of lanes.
#pragma once

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "quantized.h"
#include "work.h"

namespace ferryman::kernels {

constexpr int64_t kSizeMax = 1 << 24;
constexpr size_t kTaskRows = 64;
constexpr size_t kTaskBlocks = 2;
constexpr size_t kRowTaskBlocks = 4;  // of a row alone

// Of a row in blocks.
constexpr size_t blocks_bytes(size_t channels) {
  return channels + (channels + kBlock - 1) / kBlock * sizeof(float);
}

// Elements of a row of floats, or bytes of one in blocks.
constexpr int64_t row_size(int64_t channels, int32_t kind) {
  return kind == FERRYMAN_BLOCKS ? static_cast<int64_t>(blocks_bytes(static_cast<size_t>(channels))) : channels;
}

// Rows as `group_dots` takes them, scaled by row or by block.
struct Rows {
  size_t channels, group, groups, stride, count;
  bool blocks;
  Buffer<int8_t> x;
  Buffer<float> scale;
  Buffer<int32_t> sums;

  Rows(size_t rows, size_t row_channels, size_t row_group, bool in_blocks)
      : channels(row_channels),
        group(row_group),
        groups((channels + group - 1) / group),
        stride((channels + 3) / 4 * 4),
        count(rows),
        blocks(in_blocks),
        x(rows * stride),
        scale(rows * (blocks ? groups : 1)),
        sums(rows * groups) {}

  explicit operator bool() const {
    return x && scale && sums;
  }

  void quantize(const Isa& isa, size_t row, const float* from) const {
    int8_t* const to = x.get() + row * stride;
    if (blocks) {
      isa.quantize_blocks(from, channels, to, scale.get() + row * groups);
    } else {
      const float by = isa.largest(from, channels) / INT8_MAX;
      isa.quantize(from, channels, {by == 0 ? 0 : 1 / by, -INT8_MAX, INT8_MAX, 0}, to);
      scale.get()[row] = by;
    }
    add_up(isa, row);
  }

  // What is in blocks already.
  void take(const Isa& isa, size_t row, const int8_t* from) const {
    memcpy(x.get() + row * stride, from, channels);
    memcpy(scale.get() + row * groups, from + channels, groups * sizeof(float));
    add_up(isa, row);
  }

  Grouped grouped() const {
    Grouped made = {};
    made.channels = channels;
    made.group = group;
    made.groups = groups;
    made.x = x.get();
    made.x_stride = stride;
    made.sums = sums.get();
    made.x_scale = blocks ? scale.get() : nullptr;
    made.rows = count;
    return made;
  }

 private:
  void add_up(const Isa& isa, size_t row) const {
    int8_t* const at = x.get() + row * stride;
    memset(at + channels, 0, stride - channels);
    const size_t whole = channels / group;
    int32_t* const to = sums.get() + row * groups;
    isa.sums(at, group, whole, group, to);
    isa.sums(at + whole * group, 0, groups - whole, channels % group, to + whole);
  }
};

inline size_t task_blocks(const Grouped& grouped) {
  return grouped.rows == 1 ? kRowTaskBlocks : kTaskBlocks;
}

// Tasks that a product is cut into.
inline size_t tiles(const Grouped& grouped) {
  return (grouped.blocks + task_blocks(grouped) - 1) / task_blocks(grouped) * ((grouped.rows + kTaskRows - 1) / kTaskRows);
}

// The first block of a tile.
inline size_t first_block(const Grouped& grouped, size_t task) {
  return task / ((grouped.rows + kTaskRows - 1) / kTaskRows) * task_blocks(grouped);
}

// Computes a tile and calls put(row, n, made, lanes) for each of its rows, with made[lane] of output n + lane. `w`: the
// weights of the tile's blocks alone, or null.
template <typename Put>
void multiply(const Isa& isa, const Grouped& grouped, size_t task, const uint8_t* w, const Put& put) {
  const size_t runs = (grouped.rows + kTaskRows - 1) / kTaskRows;
  const size_t block = first_block(grouped, task);
  const size_t first = task % runs * kTaskRows;
  const size_t scales = block * grouped.groups * kLanes;
  Grouped some = grouped;
  some.x += first * grouped.x_stride;
  some.sums += first * grouped.groups;
  some.x_scale = grouped.x_scale ? grouped.x_scale + first * grouped.groups : nullptr;
  some.rows = std::min(kTaskRows, grouped.rows - first);
  some.w = w ? w : grouped.w + block * grouped.block_stride;
  some.blocks = std::min(task_blocks(grouped), grouped.blocks - block);
  some.scale = grouped.scale ? grouped.scale + scales : nullptr;
  some.wide_scale = grouped.wide_scale ? grouped.wide_scale + scales : nullptr;
  some.zero = grouped.zero ? grouped.zero + scales : nullptr;
  alignas(kAlignment) float made[kTaskRows * kTaskBlocks * kLanes];
  isa.group_dots(some, made);
  const size_t lanes = some.blocks * kLanes;
  for (size_t row = 0; row < some.rows; ++row) {
    put(first + row, block * kLanes, made + row * lanes, lanes);
  }
}

} // namespace ferryman::kernels
