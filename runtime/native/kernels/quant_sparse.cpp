// Quantized convolution with sparse weights. As in sparse.cpp, but elements are words of four channels of a pixel, and a
// value is the weights of four inputs, of which some have a value.
#include "quant_sparse.h"

#include <algorithm>
#include <cstring>

#include "quant_work.h"
#include "sparse_frame.h"

namespace ferryman::kernels {

SparseWeights::SparseWeights(
    int32_t index_bits, int32_t bits, const uint8_t* blob, int64_t bytes, size_t channels, size_t depth)
    : bits_(static_cast<uint32_t>(bits)),
      channels_(channels),
      depth_(depth),
      index_(index_bits, blob, static_cast<size_t>(bytes), channels, depth),
      begins_(channels),
      problem_(index_.problem()) {
  if (!problem_) {
    problem_ = begins_ ? find_values(blob, static_cast<size_t>(bytes)) : kNoMemory;
  }
}

const char* SparseWeights::find_values(const uint8_t* blob, size_t bytes) {
  size_t at = index_.bytes();
  for (size_t n = 0; n < channels_; ++n) {
    begins_.get()[n] = blob + at;
    at += (index_.count(n) * bits_ + 7) / 8;
    if (at > bytes) {
      return "the index has more values than there are";
    }
  }
  return at == bytes ? nullptr : "the index has fewer values than there are";
}

size_t SparseWeights::block_bytes() const {
  const size_t per = 8 / bits_;
  return ((depth_ + 3) / 4 + per - 1) / per * kVectorBytes;
}

bool SparseWeights::unpack(size_t channel, size_t channels, uint8_t* w) const {
  const size_t per = 8 / bits_, block = block_bytes();
  const int none = bits_ == 8 ? 0x80 : bits_ == 4 ? 0x88 : 0xaa;
  memset(w, none, (channels + kLanes - 1) / kLanes * block);
  bool good = true;
  for (size_t n = 0; n < channels; ++n) {
    uint8_t* const lane = w + n / kLanes * block + n % kLanes * 4;
    good &= each(channel + n, [&](size_t k, uint32_t value) {
      const size_t quad = k / 4;
      const size_t shift = quad % per * bits_;
      lane[quad / per * kVectorBytes + k % 4] ^= static_cast<uint8_t>((value ^ 1u << (bits_ - 1)) << shift);
    });
  }
  return good;
}

namespace {

constexpr size_t kQuad = 4;
constexpr size_t kListedMost = 1 << 16;  // words whose places are kept at a time, of one channel or several

// What every task reads.
struct SparseWork {
  const QuantWork& quant;
  const SparseWeights& weights;
  const Plan& plan;
  const uint32_t* table;  // of each weight's position, the place of its word in the frame
};

// What a task writes to on its way.
struct Scratch {
  Buffer<uint32_t> frame;
  Buffer<int8_t> pixels;
  Buffer<uint32_t> places;
  Buffer<uint32_t> values;
  Buffer<int32_t> dots;
  Buffer<int32_t> turned;

  explicit Scratch(const SparseWork& work)
      : frame(work.plan.run * work.plan.frame.group_size()),
        pixels(kPartPixels * kQuad * work.plan.frame.channels),
        places(kListedMost),
        values(kListedMost),
        dots(kLanes * kPartPixels),
        turned(kLanes * kPartPixels) {}

  explicit operator bool() const {
    return frame && pixels && places && values && dots && turned;
  }
};

// Puts what a group has of an image into its frame.
void put_frame(const SparseWork& work, const int8_t* image, const Tile& tile, size_t group, const Scratch& scratch) {
  const Frame& frame = work.plan.frame;
  const auto all = static_cast<size_t>(work.quant.conv.channels);
  const size_t in = work.plan.sizes.in, words = frame.channels;
  const size_t apart = frame.planes() * frame.plane;
  const Isa& isa = work.quant.isa;
  uint32_t* const to = scratch.frame.get() + group % work.plan.run * frame.group_size();
  memset(to, work.quant.x_zero + isa.column_bias, words * apart * sizeof *to);
  const uint32_t bias = isa.column_bias ? 0x80808080 : 0;
  const size_t step = frame.columns.stride;
  frame.each_plane(tile, [&](size_t plane, const Inside& down, const Inside& across) {
    for (size_t y = down.begin; y < down.end; ++y) {
      const size_t row = down.source + (y - down.begin) * frame.rows.stride;
      for (size_t p = across.begin; p < across.end; p += kPartPixels) {
        const size_t count = std::min(kPartPixels, across.end - p);
        const size_t first = row * frame.columns.size + across.source + (p - across.begin) * step;
        const int8_t* from = image + first * all + group * in;
        int8_t* pixel = scratch.pixels.get();
        for (size_t i = 0; i < count; ++i, from += step * all, pixel += kQuad * words) {
          memcpy(pixel, from, in);
          memset(pixel + in, 0, kQuad * words - in);
        }
        auto* const made = reinterpret_cast<uint32_t*>(scratch.pixels.get());
        for (size_t i = 0; i < count * words; ++i) {
          made[i] ^= bias;
        }
        turn(isa, made, words, count, words, to + plane * frame.plane + y * frame.pitch + p, apart);
      }
    }
  });
}

class Task {
 public:
  Task(const SparseWork& work, const Scratch& scratch, const Errand& errand)
      : work_(work), plan_(work.plan), scratch_(scratch), errand_(errand) {
    const auto channels = static_cast<size_t>(work.quant.conv.channels);
    const int8_t* const image = work.quant.x + errand.image * channels * plan_.in_pixels;
    for (size_t i = 0; i < errand.groups; ++i) {
      put_frame(work, image, errand.tile, errand.group + i, scratch);
    }
  }

  const char* run() {
    for (size_t n = errand_.channel; n < errand_.end;) {
      const size_t channels = list(n);
      if (channels == 0) {
        return kBadIndex;
      }
      plan_.each_part(errand_.tile, [&](const Tile& part) { compute_part(part, n, channels); });
      n += channels;
    }
    return nullptr;
  }

 private:
  // Lists the values of some channels of a group, from one on; 0: their index is wrong.
  size_t list(size_t first) {
    const int32_t half = 1 << (work_.quant.conv.bits - 1);
    const int32_t zero = work_.quant.x_zero + work_.quant.isa.column_bias;
    const size_t group = first / plan_.sizes.out;
    const size_t end = std::min({errand_.end, (group + 1) * plan_.sizes.out, first + kLanes});
    const uint32_t* const frame = scratch_.frame.get() + group % plan_.run * plan_.frame.group_size();
    const size_t in = plan_.sizes.in;
    size_t at = 0, n = first;
    for (; n < end && at + work_.weights.count(n) <= kListedMost; ++n) {
      const size_t begin = at;
      int32_t sum = 0;
      size_t c = 0, tap_begin = 0;
      const bool good = work_.weights.each(n, [&](size_t position, uint32_t stored) {
        for (c = position - tap_begin; c >= in; c -= in) {
          tap_begin += in;
        }
        const int32_t value = static_cast<int32_t>(stored) - half;
        const uint32_t place = work_.table[position];
        if (at == begin || scratch_.places.get()[at - 1] != place) {
          scratch_.places.get()[at] = place;
          scratch_.values.get()[at++] = 0;
        }
        scratch_.values.get()[at - 1] |= static_cast<uint32_t>(static_cast<uint8_t>(value)) << c % kQuad * 8;
        sum += value;
      });
      if (!good) {
        return 0;
      }
      base_[n - first] = -zero * sum;
      lists_[n - first] = {frame, scratch_.places.get() + begin, scratch_.values.get() + begin, at - begin};
    }
    return n - first;
  }

  void compute_part(const Tile& part, size_t n, size_t channels) const {
    const Frame& frame = plan_.frame;
    Listed<uint32_t> lists[kLanes];
    for (size_t i = 0; i < channels; ++i) {
      lists[i] = lists_[i];
      lists[i].frame += part.row * frame.pitch + part.column;
    }
    const Isa& isa = work_.quant.isa;
    int32_t* const dots = scratch_.dots.get();
    int32_t* const turned = scratch_.turned.get();
    isa.sparse_dots(lists, channels, plan_.run_pixels(part), dots, kPartPixels);
    const size_t out = plan_.sizes.out;
    const size_t row_pixels = frame.columns.out;
    const size_t pixel = (errand_.tile.row + part.row) * row_pixels + errand_.tile.column + part.column;
    for (size_t row = 0; row < part.rows; ++row) {
      turn(isa, dots + row * frame.pitch, kPartPixels, channels, part.columns, turned, kLanes);
      put(work_.quant, {errand_.image, n / out, pixel + row * row_pixels, part.columns, n % out, channels}, turned, kLanes,
          base_);
    }
  }

  const SparseWork& work_;
  const Plan& plan_;
  const Scratch& scratch_;
  const Errand errand_;
  Listed<uint32_t> lists_[kLanes] = {};
  int32_t base_[kLanes] = {};
};

} // namespace

const char* run_sparse(const QuantWork& work, const SparseWeights& weights) {
  const Geometry& g = work.g;
  ferryman_binary_sizes sizes;
  ferryman_binary_check(&g.conv, &sizes);
  const Axes axes = axes_of(g.conv, sizes);
  const Plan plan(axes, {static_cast<size_t>(g.conv.batch), static_cast<size_t>(g.conv.groups), g.channels, g.out_channels,
                         (g.channels + kQuad - 1) / kQuad, false, true, work.threads()});
  const Buffer<uint32_t> table(g.depth);
  if (!table) {
    return kNoMemory;
  }
  const auto width = static_cast<size_t>(g.conv.kernel_w);
  for (size_t tap = 0; tap < g.taps; ++tap) {
    plan.frame.put_offsets(tap / width, tap % width, g.channels, kQuad, table.get() + tap * g.channels);
  }
  const SparseWork sparse = {work, weights, plan, table.get()};
  return run_plan<Scratch>(work.call, plan, sparse, [&](const Scratch& scratch, const Errand& errand) {
    return Task(sparse, scratch, errand).run();
  });
}

} // namespace ferryman::kernels
