#include "sparse_frame.h"

#include <algorithm>
#include <numeric>

namespace ferryman::kernels {

Axis::Axis(size_t image, size_t output, int32_t taps, int32_t step, int32_t spread, int32_t padding)
    : size(image),
      out(output),
      kernel(static_cast<size_t>(taps)),
      stride(static_cast<size_t>(step)),
      dilation(static_cast<size_t>(spread)),
      pad(static_cast<size_t>(padding)),
      period(stride / std::gcd(stride, dilation)),
      phases(std::min(kernel, period)),
      halo(shift(kernel - 1)) {}

Axes axes_of(const ferryman_binary_conv& c, const ferryman_binary_sizes& sizes) {
  const auto height = static_cast<size_t>(c.height), width = static_cast<size_t>(c.width);
  const auto out_height = static_cast<size_t>(sizes.out_height), out_width = static_cast<size_t>(sizes.out_width);
  if (c.kernel_h == 1 && c.kernel_w == 1 && c.stride_h == 1 && c.stride_w == 1) {  // which can have no padding
    return {{1, 1, 1, 1, 1, 0}, {height * width, height * width, 1, 1, 1, 0}};
  }
  return {{height, out_height, c.kernel_h, c.stride_h, c.dilation_h, c.pad_top},
          {width, out_width, c.kernel_w, c.stride_w, c.dilation_w, c.pad_left}};
}

Frame::Frame(const Axes& axes, size_t in_channels, size_t bytes, size_t tiles_wanted)
    : rows(axes.rows), columns(axes.columns), channels(in_channels) {
  const size_t fit = std::max(bytes / (4 * channels * planes()), 4 * kLanes);  // pixels of a plane
  const size_t wide = columns.out + columns.halo;
  tile_columns = columns.out;
  tile_rows = 1;
  if (wide * (1 + rows.halo) <= fit) {
    tile_rows = std::min(fit / wide - rows.halo, rows.out);
  } else if (wide > fit) {
    tile_columns = std::max(fit / (1 + rows.halo), 2 * kLanes);
  }
  if (rows.out > 1) {
    tile_rows = std::min(tile_rows, (rows.out + tiles_wanted - 1) / tiles_wanted);
  } else {
    tile_columns = std::min(tile_columns, (columns.out + tiles_wanted - 1) / tiles_wanted);
  }
  tile_rows = (rows.out + row_tiles() - 1) / row_tiles();  // about as many in each
  tile_columns = (columns.out + column_tiles() - 1) / column_tiles();
  tile_columns = std::min((tile_columns + kLanes - 1) / kLanes * kLanes, columns.out);
  pitch = tile_columns + columns.halo;
  const size_t run = (tile_rows - 1) * pitch + tile_columns;
  const size_t read = rows.halo * pitch + columns.halo + run + kLanes;  // whole vectors, from any pixel on
  plane = (read + kLanes - 1) / kLanes * kLanes;
}

Tile Frame::tile(size_t number) const {
  const size_t row = number / column_tiles() * tile_rows;
  const size_t column = number % column_tiles() * tile_columns;
  return {row, std::min(tile_rows, rows.out - row), column, std::min(tile_columns, columns.out - column)};
}

Inside Frame::inside_of(const Axis& axis, size_t first_out, size_t outputs, size_t phase) {
  const auto step = static_cast<ptrdiff_t>(axis.stride);
  const auto size = static_cast<ptrdiff_t>(axis.size);
  const ptrdiff_t first = axis.source(first_out, phase);
  const auto all = static_cast<ptrdiff_t>(outputs + axis.halo);
  const ptrdiff_t begin = first < 0 ? std::min((-first + step - 1) / step, all) : 0;
  const ptrdiff_t end = first < size ? std::min((size - first + step - 1) / step, all) : 0;
  return {static_cast<size_t>(begin), static_cast<size_t>(std::max(end, begin)), static_cast<size_t>(all),
          static_cast<size_t>(std::max<ptrdiff_t>(first + begin * step, 0))};
}

Plan::Plan(const Axes& axes, const Sizes& s)
    : sizes(s),
      in_pixels(axes.rows.size * axes.columns.size),
      out_pixels(axes.rows.out * axes.columns.out),
      frame(axes, s.elements, frame_bytes(), tiles_wanted(out_pixels)) {
  if (sizes.direct) {
    frame.plane = in_pixels;
  }
  const size_t fit = std::max<size_t>(kFrameBytes / (frame.group_size() * kElementBytes), 1);
  run = sizes.last ? blocks() : std::min(blocks(), fit);
  split = run * sizes.out;
  const size_t found = tasks();
  if (found < wanted()) {
    const size_t parts = (wanted() + found - 1) / found;
    split = std::min(((run * sizes.out + parts - 1) / parts + kLanes - 1) / kLanes * kLanes, run * sizes.out);
  }
}

size_t Plan::blocks() const {
  return std::clamp<size_t>(kLanes / std::max(sizes.in, sizes.out), 1, sizes.groups);
}

size_t Plan::frame_bytes() const {
  return sizes.direct ? SIZE_MAX : sizes.last ? kFrameBytes / blocks() : kFrameBytes;
}

size_t Plan::wanted() const {
  return sizes.threads == 1 ? 1 : 2 * sizes.threads;
}

size_t Plan::tiles_wanted(size_t pixels) const {
  const size_t without = sizes.images * ((sizes.groups + blocks() - 1) / blocks());
  return std::clamp<size_t>(pixels / kPartPixels, 1, (wanted() + without - 1) / without);
}

Errand Plan::errand(size_t task) const {
  const size_t rest = task / frame.tiles();
  const size_t of_run = rest / splits();
  Errand made = {};
  made.tile = frame.tile(task % frame.tiles());
  made.image = of_run / runs();
  made.group = of_run % runs() * run;
  made.groups = std::min(run, sizes.groups - made.group);
  made.channel = made.group * sizes.out + rest % splits() * split;
  made.end = std::min(made.channel + split, (made.group + made.groups) * sizes.out);
  return made;
}

const char* check_frames(const ferryman_binary_conv& c, const ferryman_binary_sizes& sizes) {
  const auto [rows, columns] = axes_of(c, sizes);
  const int64_t elements =
      product({c.batch, c.channels, static_cast<int64_t>(rows.phases), static_cast<int64_t>(columns.phases),
               static_cast<int64_t>(rows.out + rows.halo), static_cast<int64_t>(columns.out + columns.halo)});
  return elements <= kElementsMax && frame_fits(elements, sizes.input + sizes.output) ? nullptr : kFrameTooLarge;
}

} // namespace ferryman::kernels
