// Quantized convolution with sparse weights. As in sparse.cpp, but elements are words of four channels of a pixel, and a
// value is the weights of four inputs, of which some have a value.
#include "quant_sparse.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "arena.h"
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
  size_t words;            // of a channel's weights, four inputs of a tap to each
  const uint32_t* bytes;   // of each weight's position, its byte in those
  const uint32_t* places;  // of each word, where in the frame its inputs lie
  size_t pixels;           // of which sums run at a time
};

// What a task writes to on its way.
struct Scratch {
  size_t pixels_at, positions_at, row_at, places_at, values_at, dots_at, turned_at;
  Arena arena;

  explicit Scratch(const SparseWork& work)
      : pixels_at(Arena::room<uint32_t>(work.plan.run * work.plan.frame.group_size())),
        positions_at(pixels_at + Arena::room<uint32_t>(kPartPixels * work.plan.frame.channels)),
        row_at(positions_at + Arena::room<uint32_t>(kListedMost)),
        places_at(row_at + Arena::room<uint32_t>(work.words)),
        values_at(places_at + Arena::room<uint32_t>(kListedMost)),
        dots_at(values_at + Arena::room<uint32_t>(kListedMost)),
        turned_at(dots_at + Arena::room<int32_t>(kLanes * kPartPixels)),
        arena(turned_at + Arena::room<int32_t>(kLanes * kPartPixels)) {}

  explicit operator bool() const {
    return static_cast<bool>(arena);
  }
  uint32_t* words(size_t at) const {
    return reinterpret_cast<uint32_t*>(arena.get() + at);
  }
  int32_t* sums(size_t at) const {
    return reinterpret_cast<int32_t*>(arena.get() + at);
  }
};

// Puts what a group has of an image into its frame.
void put_frame(const SparseWork& work, const int8_t* image, const Tile& tile, size_t group, const Scratch& scratch) {
  const Frame& frame = work.plan.frame;
  const auto all = static_cast<size_t>(work.quant.conv.channels);
  const size_t in = work.plan.sizes.in, words = frame.channels;
  const size_t apart = frame.planes() * frame.plane;
  const Isa& isa = work.quant.isa;
  uint32_t* const to = scratch.words(0) + group % work.plan.run * frame.group_size();
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
        uint32_t* const made = scratch.words(scratch.pixels_at);
        for (size_t i = 0; i < count; ++i, from += step * all) {
          made[(i + 1) * words - 1] = 0;
          memcpy(made + i * words, from, in);
        }
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
    const int32_t zero = work_.quant.x_zero + work_.quant.isa.column_bias;
    const size_t group = first / plan_.sizes.out;
    const size_t end = std::min({errand_.end, (group + 1) * plan_.sizes.out, first + kLanes});
    const uint32_t* const frame = scratch_.words(0) + group % plan_.run * plan_.frame.group_size();
    const int32_t bits = work_.quant.conv.bits;
    uint32_t* places = scratch_.words(scratch_.places_at);
    uint32_t* values = scratch_.words(scratch_.values_at);
    const uint32_t* const most = places + kListedMost;
    size_t n = first;
    for (; n < end && work_.words <= static_cast<size_t>(most - places); ++n) {
      if (!work_.weights.list(work_.quant.isa, n, scratch_.words(scratch_.positions_at))) {
        return 0;
      }
      const Found found = bits == 8 ? join<8>(n, places, values)
          : bits == 4               ? join<4>(n, places, values)
                                    : join<2>(n, places, values);
      base_[n - first] = -zero * found.sum;
      lists_[n - first] = {frame, places, values, found.words};
      places += found.words;
      values += found.words;
    }
    return n - first;
  }

  struct Found {
    size_t words;
    int32_t sum;
  };

  // Lists the words of a channel's weights that are not zeros; its positions are listed.
  template <uint32_t kBits>
  Found join(size_t n, uint32_t* places, uint32_t* values) const {
    constexpr uint32_t kPer = 8 / kBits, kHalf = 1 << (kBits - 1);
    const uint32_t* const positions = scratch_.words(scratch_.positions_at);
    uint32_t* const row = scratch_.words(scratch_.row_at);
    auto* const bytes = reinterpret_cast<uint8_t*>(row);
    const uint8_t* const stored = work_.weights.begin(n);
    const uint32_t* const byte_of = work_.bytes;
    const size_t count = work_.weights.count(n);
    uint32_t sum = 0;
    memset(row, 0, work_.words * sizeof *row);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t value = (stored[i / kPer] >> i % kPer * kBits & ((1u << kBits) - 1)) - kHalf;
      bytes[byte_of[positions[i]]] = static_cast<uint8_t>(value);
      sum += value;
    }
    return {work_.quant.isa.list_words(row, work_.places, work_.words, values, places), static_cast<int32_t>(sum)};
  }

  void compute_part(const Tile& part, size_t n, size_t channels) const {
    const Frame& frame = plan_.frame;
    const Isa& isa = work_.quant.isa;
    int32_t* const dots = scratch_.sums(scratch_.dots_at);
    int32_t* const turned = scratch_.sums(scratch_.turned_at);
    const size_t first = part.row * frame.pitch + part.column, pixels = plan_.run_pixels(part);
    for (size_t p = 0; p < pixels; p += work_.pixels) {
      isa.sparse_dots(lists_, channels, first + p, std::min(work_.pixels, pixels - p), dots + p, kPartPixels);
    }
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
  const size_t words = g.taps * plan.frame.channels;
  const Buffer<uint32_t> bytes(g.depth);
  const Buffer<uint32_t> places(words);
  if (!bytes || !places) {
    return kNoMemory;
  }
  const auto width = static_cast<size_t>(g.conv.kernel_w);
  for (size_t tap = 0; tap < g.taps; ++tap) {
    const size_t first = tap * plan.frame.channels;
    plan.frame.put_offsets(tap / width, tap % width, places.get() + first);
    std::iota(bytes.get() + tap * g.channels, bytes.get() + (tap + 1) * g.channels, static_cast<uint32_t>(kQuad * first));
  }
  const SparseWork sparse = {
      work, weights, plan, words, bytes.get(), places.get(), near_pixels(work.isa, plan.frame.channels)};
  return run_plan<Scratch>(work.call, plan, sparse, [&](const Scratch& scratch, const Errand& errand) {
    return Task(sparse, scratch, errand).run();
  });
}

} // namespace ferryman::kernels
