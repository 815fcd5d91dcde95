// Sparse convolution. A tile of outputs at a time: what it depends on is put into a frame of planes, where outputs side by
// side read floats side by side; each value of an output channel is then multiplied with a run of the frame. Where pixels are
// windows and lie in planes already, the input is the frame.
#include "sparse.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "arena.h"
#include "sparse_frame.h"
#include "sparse_index.h"
#include "work.h"

namespace ferryman::kernels {
namespace {

constexpr size_t kListedMost = 1 << 16;  // values whose places are kept at a time, of one channel or several
constexpr size_t kListsMost = 128;       // and of how many channels

ferryman_binary_conv shape_of(const ferryman_sparse_conv& c) {
  return {c.batch,      c.height,     c.width,   c.channels, c.out_channels, c.kernel_h,   c.kernel_w,
          c.stride_h,   c.stride_w,   c.dilation_h, c.dilation_w, c.pad_top, c.pad_left,   c.pad_bottom,
          c.pad_right,  c.groups,     0,         FERRYMAN_REALS, 0,          c.input_layout};
}

// What every task reads.
struct SparseWork {
  const ferryman_sparse_conv& conv;
  const ferryman_sparse_call& call;
  const Isa& isa;
  const Index& index;
  const Plan& plan;
  const uint32_t* table;  // of each weight's position, its place in the frame
  size_t step;            // of those, where all are a step after the last; or 0
  size_t pixels;          // of which sums run at a time
  float low, high;

  bool last() const {
    return conv.output_layout == FERRYMAN_CHANNELS_LAST && conv.out_channels > 1;
  }
};

// What a task writes to on its way.
struct Scratch {
  size_t places_at, lists_at, part_at;
  Arena arena;

  explicit Scratch(const SparseWork& work)
      : places_at(Arena::room<float>(work.plan.sizes.direct ? 0 : work.plan.run * work.plan.frame.group_size())),
        lists_at(places_at + Arena::room<uint32_t>(work.conv.index_bits ? kListedMost : 0)),
        part_at(lists_at + Arena::room<Listed<float>>(kListsMost)),
        arena(part_at + Arena::room<float>(kLanes * kPartPixels)) {}

  explicit operator bool() const {
    return static_cast<bool>(arena);
  }
  float* frame() const {
    return reinterpret_cast<float*>(arena.get());
  }
  uint32_t* places() const {
    return reinterpret_cast<uint32_t*>(arena.get() + places_at);
  }
  Listed<float>* lists() const {
    return reinterpret_cast<Listed<float>*>(arena.get() + lists_at);
  }
  float* part() const {
    return reinterpret_cast<float*>(arena.get() + part_at);
  }
};

// Puts what some channels have of an image, channels last, into their frame.
void put_pixels(const SparseWork& work, const float* image, const Tile& tile, size_t channel, size_t channels, float* to) {
  const Frame& frame = work.plan.frame;
  const auto all = static_cast<size_t>(work.conv.channels);
  const size_t apart = frame.planes() * frame.plane;
  frame.each_plane(tile, [&](size_t plane, const Inside& down, const Inside& across) {
    const size_t full = down.is_full() && across.is_full() ? down.all * frame.pitch : 0;
    for (size_t c = 0; c < channels; ++c) {
      std::fill(to + c * apart + plane * frame.plane + full, to + c * apart + (plane + 1) * frame.plane, 0.0f);
    }
    for (size_t y = down.begin; y < down.end; ++y) {
      const size_t row = down.source + (y - down.begin) * frame.rows.stride;
      const float* const from = image + (row * frame.columns.size + across.source) * all + channel;
      work.isa.transpose(from, frame.columns.stride * all, across.end - across.begin, channels,
                         to + plane * frame.plane + y * frame.pitch + across.begin, apart);
    }
  });
}

// The same of planes.
void put_planes(const SparseWork& work, const float* image, const Tile& tile, size_t channel, size_t channels, float* to) {
  const Frame& frame = work.plan.frame;
  const size_t apart = frame.planes() * frame.plane;
  frame.each_plane(tile, [&](size_t plane, const Inside& down, const Inside& across) {
    float* const first = to + plane * frame.plane;
    if (down.begin == down.end || across.begin == across.end) {
      for (size_t c = 0; c < channels; ++c) {
        std::fill_n(first + c * apart, frame.plane, 0.0f);
      }
      return;
    }
    const float* const from = image + channel * work.plan.in_pixels + down.source * frame.columns.size + across.source;
    work.isa.take_planes({from, work.plan.in_pixels, frame.rows.stride * frame.columns.size, frame.columns.stride, channels,
                          down.end - down.begin, across.end - across.begin, down.begin, across.begin, first, apart,
                          frame.pitch, frame.plane});
  });
}

class Task {
 public:
  Task(const SparseWork& work, const Scratch& scratch, const Errand& errand)
      : work_(work), plan_(work.plan), scratch_(scratch), errand_(errand), channel_(errand.channel) {
    const float* const image = work.call.input + errand.image * static_cast<size_t>(work.conv.channels) * plan_.in_pixels;
    if (plan_.sizes.direct) {
      frame_ = image + errand.group * plan_.frame.group_size() + errand.tile.column;
    } else {
      const size_t in = plan_.sizes.in;
      const bool last = work.conv.input_layout == FERRYMAN_CHANNELS_LAST && work.conv.channels > 1;
      (last ? put_pixels : put_planes)(
          work, image, errand.tile, errand.group * in, errand.groups * in, scratch.frame());
      frame_ = scratch.frame();
    }
  }

  const char* run() {
    while (channel_ < errand_.end) {
      const size_t channels = list();
      if (channels == 0) {
        return kBadIndex;
      }
      compute(channels);
      channel_ += channels;
    }
    return nullptr;
  }

 private:
  // Lists the next channels' values; 0: their index is wrong.
  size_t list() const {
    const Index& index = work_.index;
    uint32_t* to = scratch_.places();
    const uint32_t* const most = to + kListedMost;
    size_t n = channel_;
    for (; n < errand_.end && n - channel_ < kListsMost; ++n) {
      const size_t count = index.count(n);
      const uint32_t* places = work_.table;
      if (work_.conv.index_bits) {
        if (count > static_cast<size_t>(most - to)) {
          break;
        }
        if (!index.list(work_.isa, n, std::max<size_t>(work_.step, 1), to)) {
          return 0;
        }
        for (size_t i = 0; i < count && !work_.step; ++i) {
          to[i] = work_.table[to[i]];
        }
        places = to;
        to += count;
      }
      const float* const frame = frame_ + (n / plan_.sizes.out - errand_.group) * plan_.frame.group_size();
      scratch_.lists()[n - channel_] = {frame, places, work_.call.values + index.begin(n), count};
    }
    return n - channel_;
  }

  // Sums of some of the listed channels, of about as many pixels each time.
  void sum(SparseSums sums) const {
    const size_t pixels = sums.pixels;
    const size_t runs = (pixels + work_.pixels - 1) / work_.pixels;
    const size_t step = ((pixels + runs - 1) / runs + work_.isa.width - 1) / work_.isa.width * work_.isa.width;
    for (size_t p = 0; p < pixels; p += step) {
      sums.pixels = std::min(step, pixels - p);
      work_.isa.sparse_sums(sums);
      sums.at += step;
      sums.add = sums.add ? sums.add + step : nullptr;
      sums.out += step;
    }
  }

  // The outputs of the listed channels.
  void compute(size_t channels) const {
    const Frame& frame = plan_.frame;
    const Tile& tile = errand_.tile;
    const size_t at = plane(channel_) + tile.row * frame.columns.out + tile.column;
    float* const out = work_.call.output + at;
    if (plan_.sizes.direct && plan_.out_pixels == 1) {
      work_.isa.sparse_row(
          {scratch_.lists(), channels, 0, 1, work_.call.bias + channel_, added(at), work_.low, work_.high, out, 1});
      return;
    }
    const bool whole = frame.pitch == frame.columns.out && tile.columns == frame.columns.out;
    if (!work_.last() && (tile.rows == 1 || whole)) {
      sum({scratch_.lists(), channels, 0, plan_.run_pixels(tile), work_.call.bias + channel_, added(at), work_.low,
           work_.high, out, plan_.out_pixels});
      return;
    }
    plan_.each_part(tile, [&](const Tile& part) {
      for (size_t n = 0; n < channels; n += kLanes) {
        compute_part(part, n, std::min(kLanes, channels - n));
      }
    });
  }

  // Of a part of the tile and a block of the listed channels, by way of memory of its own.
  void compute_part(const Tile& part, size_t n, size_t channels) const {
    const Frame& frame = plan_.frame;
    float* const made = scratch_.part();
    const bool early = work_.last() && !work_.conv.add;  // sums are clipped at once
    sum({scratch_.lists() + n, channels, part.row * frame.pitch + part.column, plan_.run_pixels(part),
         work_.call.bias + channel_ + n, nullptr, early ? work_.low : -INFINITY, early ? work_.high : INFINITY, made,
         kPartPixels});
    const size_t width = frame.columns.out;
    const size_t pixel = (errand_.tile.row + part.row) * width + errand_.tile.column + part.column;
    if (!work_.last()) {
      for (size_t i = 0; i < channels; ++i) {
        const size_t at = plane(channel_ + n + i) + pixel;
        work_.isa.finish({made + i * kPartPixels, frame.pitch, part.rows, part.columns, added(at), work_.low, work_.high,
                          work_.call.output + at, width});
      }
      return;
    }
    const auto all = static_cast<size_t>(work_.conv.out_channels);
    for (size_t row = 0; row < part.rows; ++row) {
      const size_t at = (errand_.image * plan_.out_pixels + pixel + row * width) * all + channel_ + n;
      float* const out = work_.call.output + at;
      work_.isa.transpose(made + row * frame.pitch, kPartPixels, channels, part.columns, out, all);
      if (!early) {
        work_.isa.finish({out, all, part.columns, channels, added(at), work_.low, work_.high, out, all});
      }
    }
  }

  // Where the output has a channel, channels first.
  size_t plane(size_t channel) const {
    return (errand_.image * static_cast<size_t>(work_.conv.out_channels) + channel) * plan_.out_pixels;
  }
  const float* added(size_t at) const {
    return work_.conv.add ? work_.call.add + at : nullptr;
  }

  const SparseWork& work_;
  const Plan& plan_;
  const Scratch& scratch_;
  const Errand errand_;
  size_t channel_;  // the next
  const float* frame_;
};

Plan plan_of(const ferryman_sparse_conv& conv, const ferryman_sparse_call& call, const Axes& axes) {
  const auto groups = static_cast<size_t>(conv.groups);
  const size_t in = static_cast<size_t>(conv.channels) / groups;
  const size_t out = static_cast<size_t>(conv.out_channels) / groups;
  const size_t pixels = axes.rows.size * axes.columns.size;
  const bool pointwise =
      axes.rows.size == 1 && axes.columns.out == pixels && axes.rows.kernel == 1 && axes.columns.kernel == 1;
  const bool last = conv.input_layout == FERRYMAN_CHANNELS_LAST;
  const bool planes = (!last || conv.channels == 1) && pixels % kLanes == 0 &&
      reinterpret_cast<uintptr_t>(call.input) % kAlignment == 0;
  const bool direct = pointwise && (planes || pixels == 1);
  return Plan(axes, {static_cast<size_t>(conv.batch), groups, in, out, in, direct,
                     last || conv.output_layout == FERRYMAN_CHANNELS_LAST, static_cast<size_t>(std::max(call.threads, 1))});
}

const char* run_sparse(const ferryman_sparse_conv& conv, const ferryman_sparse_call& call) {
  const ferryman_binary_conv shape = shape_of(conv);
  ferryman_binary_sizes sizes;
  ferryman_binary_check(&shape, &sizes);
  const Isa& own = isa();
  const Plan plan = plan_of(conv, call, axes_of(shape, sizes));
  const size_t in = plan.sizes.in;
  const auto width = static_cast<size_t>(conv.kernel_w);
  const size_t taps = static_cast<size_t>(conv.kernel_h) * width;
  const Index index(conv.index_bits, call.index, static_cast<size_t>(call.index_bytes),
                    static_cast<size_t>(conv.out_channels), taps * in);
  const Buffer<uint32_t> table(taps * in);
  if (!table || index.problem()) {
    return index.problem() ? index.problem() : kNoMemory;
  }
  if (index.values() != static_cast<size_t>(call.value_count)) {
    return "the index has another number of values";
  }
  if (conv.index_bits && index.bytes() != static_cast<size_t>(call.index_bytes)) {
    return "the index has another number of bytes";
  }
  for (size_t tap = 0; tap < taps; ++tap) {
    plan.frame.put_offsets(tap / width, tap % width, table.get() + tap * in);
  }
  const size_t step = taps == 1 ? plan.frame.planes() * plan.frame.plane : 0;
  const SparseWork work = {conv, call, own, index, plan, table.get(), step,
                           near_pixels(own, in), conv.low == -FLT_MAX ? -INFINITY : conv.low,
                           conv.high == FLT_MAX ? INFINITY : conv.high};
  return run_plan<Scratch>(call, plan, work, [&](const Scratch& scratch, const Errand& errand) {
    return Task(work, scratch, errand).run();
  });
}

} // namespace
} // namespace ferryman::kernels

const char* ferryman_sparse_conv_check(const ferryman_sparse_conv* conv, ferryman_sparse_sizes* sizes) {
  using namespace ferryman::kernels;
  const ferryman_sparse_conv& c = *conv;
  const ferryman_binary_conv shape = shape_of(c);
  ferryman_binary_sizes of_shape;
  if (const char* const problem = ferryman_binary_check(&shape, &of_shape)) {
    return problem;
  }
  if (c.output_layout != FERRYMAN_CHANNELS_FIRST && c.output_layout != FERRYMAN_CHANNELS_LAST) {
    return "unknown kind of layout";
  }
  if (!is_index(c.index_bits)) {
    return "an index must have 0, 1, 4 or 8 bits";
  }
  if (!(c.low <= c.high)) {
    return "the output's low end must not be above the high one";
  }
  if (int64_t{c.kernel_h} * c.kernel_w * (c.channels / c.groups) > kSparseDepthMax) {
    return "an output must not depend on more than 65535 inputs";
  }
  sizes->out_height = of_shape.out_height;
  sizes->out_width = of_shape.out_width;
  sizes->input = of_shape.input;
  sizes->output = of_shape.output;
  sizes->per_channel = of_shape.per_channel;
  return check_frames(shape, of_shape);
}

const char* ferryman_sparse_conv_run(const ferryman_sparse_conv* conv, const ferryman_sparse_call* call) {
  return ferryman::kernels::run_sparse(*conv, *call);
}
