// A checked convolution and what follows from its numbers.
#pragma once

#include <initializer_list>

#include "isa.h"
#include "kernels.h"

namespace ferryman::kernels {

constexpr int64_t kElementsMax = 1LL << 31;  // of a tensor

// Product of positive numbers; more than kElementsMax counts as just that.
int64_t product(std::initializer_list<int64_t> factors);

// Whether what is made of the input, with its padding around it, stays in proportion to input and output.
bool frame_fits(int64_t frame, int64_t read_and_written);
constexpr const char* kFrameTooLarge = "the padded input must be at most 64 times as large as input and output";

constexpr int64_t ceil_div(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

constexpr size_t words_for(size_t bits) {
  return (bits + kWordBits - 1) / kWordBits;
}

// An output pixel; divided out once, then counted up.
struct Position {
  size_t row, column, width;

  Position(size_t pixel, size_t out_width) : row(pixel / out_width), column(pixel % out_width), width(out_width) {}

  void next() {
    if (++column == width) {
      column = 0;
      ++row;
    }
  }
};

// The taps of a window that lie in the image: rows from `top` on, columns from `left` on.
struct Met {
  size_t top, rows, left, columns;

  bool operator==(const Met& other) const {
    return top == other.top && rows == other.rows && left == other.left && columns == other.columns;
  }
};

struct Geometry {
  ferryman_binary_conv conv;
  size_t channels, out_channels;        // of one group
  size_t taps, depth, words;            // depth: bits of one output channel
  size_t blocks;                        // of weights, in one group
  size_t in_words, out_words;           // of one packed pixel
  size_t in_pixels, out_pixels;         // of one image
  size_t out_height, out_width;
  size_t frame_height, frame_width;     // of the packed image, with its padding around it
  bool depthwise;

  // The numbers must have passed ferryman_binary_check.
  explicit Geometry(const ferryman_binary_conv& conv);

  bool padded() const {
    return conv.pad_top || conv.pad_left || conv.pad_bottom || conv.pad_right;
  }

  // One tap, always in the image: a pixel is a window.
  bool pointwise() const {
    return taps == 1 && !padded();
  }

  // Row of the image, or column, that a tap of output row `out` meets; may lie outside.
  ptrdiff_t source_y(size_t out, size_t tap) const {
    return static_cast<ptrdiff_t>(out) * conv.stride_h - conv.pad_top + static_cast<ptrdiff_t>(tap) * conv.dilation_h;
  }
  ptrdiff_t source_x(size_t out, size_t tap) const {
    return static_cast<ptrdiff_t>(out) * conv.stride_w - conv.pad_left + static_cast<ptrdiff_t>(tap) * conv.dilation_w;
  }

  // Pixel of the frame where the window of an output pixel begins, and where a tap lies from there.
  size_t frame_corner(const Position& out) const {
    return out.row * static_cast<size_t>(conv.stride_h) * frame_width + out.column * static_cast<size_t>(conv.stride_w);
  }
  size_t frame_offset(size_t ky, size_t kx) const {
    return ky * static_cast<size_t>(conv.dilation_h) * frame_width + kx * static_cast<size_t>(conv.dilation_w);
  }

  // Calls meet(tap, pixel of the image), or with -1 for a tap outside of it, for every tap of an output pixel in order.
  template <typename Meet>
  void for_taps(const Position& out, const Meet& meet) const {
    for (size_t ky = 0, tap = 0; ky < static_cast<size_t>(conv.kernel_h); ++ky) {
      const ptrdiff_t y = source_y(out.row, ky);
      const bool row_inside = y >= 0 && y < conv.height;
      for (size_t kx = 0; kx < static_cast<size_t>(conv.kernel_w); ++kx, ++tap) {
        const ptrdiff_t x = source_x(out.column, kx);
        meet(tap, row_inside && x >= 0 && x < conv.width ? y * conv.width + x : -1);
      }
    }
  }

  Met met(const Position& out) const {
    Met met = {};
    for (size_t tap = static_cast<size_t>(conv.kernel_h); tap-- > 0;) {
      const ptrdiff_t y = source_y(out.row, tap);
      if (y >= 0 && y < conv.height) {
        met.top = tap;
        ++met.rows;
      }
    }
    for (size_t tap = static_cast<size_t>(conv.kernel_w); tap-- > 0;) {
      const ptrdiff_t x = source_x(out.column, tap);
      if (x >= 0 && x < conv.width) {
        met.left = tap;
        ++met.columns;
      }
    }
    return met;
  }

  // Whether every tap of an output pixel lies in the image.
  bool inside(const Position& out) const {
    return source_y(out.row, 0) >= 0 && source_x(out.column, 0) >= 0 &&
        source_y(out.row, static_cast<size_t>(conv.kernel_h) - 1) < conv.height &&
        source_x(out.column, static_cast<size_t>(conv.kernel_w) - 1) < conv.width;
  }
};

} // namespace ferryman::kernels
