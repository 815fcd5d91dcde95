// What sparse convolutions read: the part of an image that a tile of outputs depends on, as planes of channels.
//
// In a plane, rows are `pitch` apart, and the windows of neighbours lie side by side: with a stride, rows and columns are
// sorted by their remainder first, into phases. So a weight is an offset in the frame, and a tile's outputs are a run of
// pixels, row by row, of which those beyond the tile's columns are dropped.
#pragma once

#include <algorithm>
#include <atomic>

#include "work.h"

namespace ferryman::kernels {

// Rows, or columns, of a convolution.
struct Axis {
  size_t size, out;  // of the image, and of the output
  size_t kernel, stride, dilation, pad;
  size_t period;     // after so many taps remainders are the same again
  size_t phases;     // remainders that there are
  size_t halo;       // how many more a tile reads of each than it has outputs

  Axis(size_t size, size_t out, int32_t kernel, int32_t stride, int32_t dilation, int32_t pad);

  size_t phase(size_t tap) const {
    return tap % period;
  }
  size_t shift(size_t tap) const {
    return tap * dilation / stride;
  }
  // Where in the image the first output of a tile has the first tap of a phase; may lie outside.
  ptrdiff_t source(size_t first, size_t phase) const {
    return static_cast<ptrdiff_t>(first * stride + phase * dilation % stride) - static_cast<ptrdiff_t>(pad);
  }
};

struct Axes {
  Axis rows, columns;
};

// An image whose pixels are windows is taken for a single row.
Axes axes_of(const ferryman_binary_conv& conv, const ferryman_binary_sizes& sizes);

// Outputs.
struct Tile {
  size_t row, rows, column, columns;
};

// What a plane has of the image, down or across: from `begin` to `end`; the rest is beyond its sides.
struct Inside {
  size_t begin, end, all;
  size_t source;  // row or column of the image at `begin`; those that follow are a stride apart

  bool is_full() const {
    return begin == 0 && end == all;
  }
};

class Frame {
 public:
  // Of elements of 4 bytes, `channels` to a pixel of a group; a tile's frame has at most about `bytes`.
  Frame(const Axes& axes, size_t channels, size_t bytes, size_t tiles_wanted);

  Axis rows, columns;
  size_t channels;
  size_t tile_rows, tile_columns;  // of outputs
  size_t pitch, plane;

  size_t tiles() const {
    return row_tiles() * column_tiles();
  }
  Tile tile(size_t number) const;
  size_t group_size() const {  // in elements
    return channels * planes() * plane;
  }
  size_t planes() const {  // of a channel
    return rows.phases * columns.phases;
  }
  // Where a tap's channels lie.
  void put_offsets(size_t ky, size_t kx, uint32_t* to) const {
    const size_t phase = rows.phase(ky) * columns.phases + columns.phase(kx);
    const size_t first = phase * plane + rows.shift(ky) * pitch + columns.shift(kx);
    for (size_t c = 0; c < channels; ++c) {
      to[c] = static_cast<uint32_t>(first + c * planes() * plane);
    }
  }
  // Calls put(plane of a channel, what it has of the image's rows, and of its columns) for each plane.
  template <typename Put>
  void each_plane(const Tile& tile, const Put& put) const {
    for (size_t ky = 0; ky < rows.phases; ++ky) {
      const Inside down = inside_of(rows, tile.row, tile.rows, ky);
      for (size_t kx = 0; kx < columns.phases; ++kx) {
        put(ky * columns.phases + kx, down, inside_of(columns, tile.column, tile.columns, kx));
      }
    }
  }

 private:
  size_t row_tiles() const {
    return (rows.out + tile_rows - 1) / tile_rows;
  }
  size_t column_tiles() const {
    return (columns.out + tile_columns - 1) / tile_columns;
  }
  static Inside inside_of(const Axis& axis, size_t first, size_t outputs, size_t phase);
};

constexpr size_t kElementBytes = 4;
constexpr size_t kFrameBytes = 1 << 18;        // of a task's frame, about
constexpr size_t kPartPixels = 16 * kLanes;    // of what is not written straight to the output, at a time

// What a task does: some output channels, counted through all groups, of some groups and a tile.
struct Errand {
  size_t image, group, groups;
  size_t channel, end;
  Tile tile;
};

// How a convolution is cut into tasks.
struct Plan {
  struct Sizes {
    size_t images, groups;
    size_t in, out;   // channels of a group
    size_t elements;  // of a group's pixel, in frames
    bool direct;      // the input is the frame
    bool last;        // channels that are neighbours are best read, or written, together
    size_t threads;
  };

  Plan(const Axes& axes, const Sizes& sizes);

  Sizes sizes;
  size_t in_pixels, out_pixels;
  Frame frame;
  size_t run;    // groups of a task
  size_t split;  // output channels of a task

  size_t tasks() const {
    return sizes.images * runs() * splits() * frame.tiles();
  }
  Errand errand(size_t task) const;

  // Calls compute(part) for rectangles of a tile of which each is a run of at most kPartPixels.
  template <typename Compute>
  void each_part(const Tile& tile, const Compute& compute) const {
    const size_t columns = std::min(tile.columns, kPartPixels);
    const size_t rows = columns < tile.columns ? 1 : (kPartPixels - columns) / frame.pitch + 1;
    for (size_t row = 0; row < tile.rows; row += rows) {
      for (size_t column = 0; column < tile.columns; column += columns) {
        compute(Tile{row, std::min(rows, tile.rows - row), column, std::min(columns, tile.columns - column)});
      }
    }
  }
  // Of a tile, or a part of one, in its frame.
  size_t run_pixels(const Tile& tile) const {
    return (tile.rows - 1) * frame.pitch + tile.columns;
  }

 private:
  size_t blocks() const;  // groups that fill a block of channels
  size_t frame_bytes() const;
  size_t wanted() const;  // tasks
  size_t tiles_wanted(size_t pixels) const;
  size_t runs() const {
    return (sizes.groups + run - 1) / run;
  }
  size_t splits() const {
    return (run * sizes.out + split - 1) / split;
  }
};

// Does a plan's tasks, each with memory that several share: work(scratch, errand) says what is wrong. Returns some problem.
template <typename Scratch, typename Call, typename Given, typename Work>
const char* run_plan(const Call& call, const Plan& plan, const Given& given, const Work& work) {
  std::atomic<const char*> problem = nullptr;
  const size_t tasks = plan.tasks();
  const size_t shares = std::min(tasks, plan.sizes.threads == 1 ? 1 : 4 * plan.sizes.threads);
  for_each(call, shares, [&](size_t share) {
    const Scratch scratch(given);
    const char* found = scratch ? nullptr : kNoMemory;
    for (size_t task = share * tasks / shares; !found && task < (share + 1) * tasks / shares; ++task) {
      found = work(scratch, plan.errand(task));
    }
    if (found) {
      problem.store(found);
    }
  });
  return problem;
}

// Of how many pixels sums should run at a time, where a pixel has so many elements: what all output channels read in turn
// then stays in the nearest cache, unless fetching values would cost more.
inline size_t near_pixels(const Isa& isa, size_t elements) {
  constexpr size_t kNear = 8192;
  constexpr size_t kFewPixels = 3 * kLanes;
  return std::min(std::max((kNear / elements + kLanes) / kLanes * kLanes, kFewPixels), isa.sparse_pixels);
}

// NULL: frames stay in proportion to what is read and written.
const char* check_frames(const ferryman_binary_conv& conv, const ferryman_binary_sizes& sizes);

} // namespace ferryman::kernels
