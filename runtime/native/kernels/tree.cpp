// Binary convolution along a tree: differences of one output channel from those of an earlier one, by the words in
// which their weights differ. 16 output pixels go side by side: windows are turned, so that each word of 16 windows is
// one load, and the counts are turned back.
#include "tree.h"

#include <algorithm>
#include <cstring>

#include "buffer.h"

namespace ferryman::kernels {
namespace {

constexpr uint32_t kMagic = 0x31455254;     // "TRE1": the layout and its version
constexpr size_t kHeader = 5;               // magic, channels, words, roots, entries
constexpr uint64_t kEntriesMax = 1 << 22;   // each moves a count by 64 at most
constexpr uint64_t kTableFree = 1 << 24;    // numbers that any table of a tap's ones may have,
constexpr uint64_t kTableTimes = 64;        // and how many times the tree's words they may be beyond
constexpr size_t kTapLanes = 64;            // taps counted at once

size_t round_up(size_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

const char* check_order(const Tree& tree) {
  const Buffer<uint8_t> seen(tree.channels);
  if (!seen) {
    return kNoMemory;
  }
  memset(seen.get(), 0, tree.channels);
  for (size_t step = 0; step < tree.channels; ++step) {
    const auto channel = static_cast<uint32_t>(tree.order[step]);
    if (channel >= tree.channels || seen.get()[channel]) {
      return "tree: the order must name each output channel once";
    }
    seen.get()[channel] = 1;
  }
  return nullptr;
}

const char* check_steps(const Tree& tree, size_t roots, size_t entries) {
  size_t found = 0;
  size_t before = 0;
  for (size_t step = 0; step < tree.channels; ++step) {
    const int64_t parent = tree.parents[step];
    const int64_t distance = tree.distances[step];
    const auto end = static_cast<size_t>(static_cast<uint32_t>(tree.ends[step]));
    if (parent < -1 || parent >= static_cast<int64_t>(step)) {
      return "tree: a parent must be an earlier step, or -1";
    }
    if (end < before || end > entries || (parent < 0 && end != before)) {
      return "tree: the ends of the steps' entries must rise, and a root has none";
    }
    if (distance < 0 || static_cast<uint64_t>(distance) > kWordBits * (end - before)) {
      return "tree: a distance must be 0 to 32 an entry";
    }
    found += parent < 0;
    before = end;
  }
  if (found != roots || before != entries) {
    return "tree: the steps have other numbers of roots and entries than the header";
  }
  return nullptr;
}

// Without branches: this goes over all entries, in each call.
const char* check_entries(const Tree& tree, size_t entries) {
  const uint32_t* const at = tree.at;
  const uint32_t* const masks = tree.masks;
  const uint32_t* const bits = tree.bits;
  const auto last = static_cast<uint32_t>(tree.words - 1);
  uint32_t outside = 0;  // the highest bit counts: `at` has it, or the difference when `at` is more than `last`
  uint32_t foreign = 0;
  uint32_t empty = 0;
  for (size_t i = 0; i < entries; ++i) {
    outside |= at[i] | (last - at[i]);
    foreign |= bits[i] & ~masks[i];
    empty |= ~(masks[i] | (0 - masks[i]));  // here too: a number or its negative has it, unless it is 0
  }
  if (outside >> (kWordBits - 1)) {
    return "tree: an entry's word must be one of the window's";
  }
  if (foreign || empty >> (kWordBits - 1)) {
    return "tree: an entry's mask must have a bit, and its weights no other";
  }
  return nullptr;
}

// The windows of a part, turned[k * lanes + pixel]; what is beyond the part's pixels is 0.
bool turn_windows(const Work& work, const Part& part, size_t lanes, uint32_t* turned) {
  const Geometry& g = work.g;
  const uint32_t* const frame = work.frames + part.image * work.frame_words();
  if (work.planes == nullptr) {
    const size_t stride = round_up(g.words);
    const Buffer<uint32_t> rows(lanes * stride);
    if (!rows) {
      return false;
    }
    memset(rows.get(), 0, lanes * stride * sizeof(uint32_t));
    Position position(part.pixel, g.out_width);
    for (size_t p = 0; p < part.pixels; ++p, position.next()) {
      gather_bits(g, frame + g.frame_corner(position) * g.in_words, 0, rows.get() + p * stride);
    }
    turn(work.isa, rows.get(), stride, lanes, stride, turned, lanes);
    return true;
  }
  const size_t plane = g.frame_height * g.frame_width;
  const auto step = static_cast<size_t>(g.conv.stride_w);
  if (part.pixels < lanes) {
    memset(turned, 0, g.words * lanes * sizeof *turned);
  }
  for (size_t p = 0; p < part.pixels;) {  // a row of the output, or what the part has of it, at a time
    const Position position(part.pixel + p, g.out_width);
    const size_t run = std::min(part.pixels - p, g.out_width - position.column);
    const uint32_t* const corner = work.planes + part.image * work.frame_words() + g.frame_corner(position);
    uint32_t* to = turned + p;
    for (size_t ky = 0; ky < static_cast<size_t>(g.conv.kernel_h); ++ky) {
      for (size_t kx = 0; kx < static_cast<size_t>(g.conv.kernel_w); ++kx) {
        const uint32_t* from = corner + g.frame_offset(ky, kx);
        for (size_t word = 0; word < g.in_words; ++word, from += plane, to += lanes) {
          if (step == 1) {
            memcpy(to, from, run * sizeof *to);
          } else {
            for (size_t i = 0; i < run; ++i) {
              to[i] = from[i * step];
            }
          }
        }
      }
    }
    p += run;
  }
  return true;
}

} // namespace

const char* read_tree(const Geometry& g, const uint32_t* blob, uint64_t length, Tree& tree) {
  if (g.conv.groups != 1 || g.conv.input == FERRYMAN_REALS) {
    return "tree: there must be one group, and signs or bits for input";
  }
  if (length < kHeader || blob[0] != kMagic) {
    return "tree: the weights are no tree of a kind known here";
  }
  tree.channels = g.out_channels;
  tree.words = g.words;
  if (blob[1] != tree.channels || blob[2] != tree.words) {
    return "tree: the header has other numbers of output channels and words";
  }
  const uint64_t roots = blob[3];
  const uint64_t entries = blob[4];
  if (roots < 1 || roots > tree.channels || entries > kEntriesMax) {
    return "tree: roots must be 1 to as many as output channels, and entries 2^22 at most";
  }
  if (length != kHeader + 4 * tree.channels + roots * tree.words + 3 * entries) {
    return "tree: the weights have another length than the header asks for";
  }
  if (g.padded() && g.conv.pad_value == 0 &&
      g.taps * g.blocks * kLanes > std::max(kTableFree, kTableTimes * length)) {
    return "tree: the weights are too few for a kernel of that size with zero padding";
  }
  const auto* const steps = reinterpret_cast<const int32_t*>(blob + kHeader);
  tree.order = steps;
  tree.parents = steps + tree.channels;
  tree.distances = steps + 2 * tree.channels;
  tree.ends = steps + 3 * tree.channels;
  tree.rows = blob + kHeader + 4 * tree.channels;
  tree.at = tree.rows + roots * tree.words;
  tree.masks = tree.at + entries;
  tree.bits = tree.masks + entries;
  const char* problem = check_order(tree);
  if (problem == nullptr) {
    problem = check_steps(tree, roots, entries);
  }
  return problem ? problem : check_entries(tree, entries);
}

bool has_planes(const Geometry& g) {
  return g.channels % kWordBits == 0 || g.pointwise();
}

void put_planes(const Work& work, uint32_t* planes) {
  const Geometry& g = work.g;
  const size_t pixels = g.frame_height * g.frame_width;
  for_each(work.call, static_cast<size_t>(g.conv.batch), [&](size_t image) {
    const size_t at = image * work.frame_words();
    turn(work.isa, work.frames + at, g.in_words, pixels, g.in_words, planes + at, pixels);
  });
}

// What differs from a window that is 1 at that tap alone, against one of zeros, which is each run's first.
bool count_tap_ones_along(const Work& work, int32_t* ones) {
  const Geometry& g = work.g;
  const size_t stride = round_up(g.words);
  const size_t lanes = std::min(round_up(g.taps + 1), kTapLanes);
  const Buffer<uint32_t> rows(lanes * stride);
  const Buffer<uint32_t> turned(stride * lanes);
  const Buffer<int32_t> counts(g.out_channels * lanes);
  if (!rows || !turned || !counts) {
    return false;
  }
  const auto all = static_cast<int32_t>(g.channels);
  for (size_t begin = 0; begin < g.taps; begin += lanes - 1) {
    const size_t taps = std::min(lanes - 1, g.taps - begin);
    memset(rows.get(), 0, lanes * stride * sizeof(uint32_t));
    for (size_t tap = 0; tap < taps; ++tap) {
      put_ones(rows.get() + (tap + 1) * stride, (begin + tap) * g.channels, g.channels);
    }
    turn(work.isa, rows.get(), stride, lanes, stride, turned.get(), lanes);
    work.isa.differences_along(*work.tree, turned.get(), lanes, counts.get());
    for (size_t n = 0; n < g.out_channels; ++n) {
      const int32_t* const differ = counts.get() + n * lanes;
      for (size_t tap = 0; tap < taps; ++tap) {
        // A tree that does not hold together may give other numbers than its weights have.
        ones[(begin + tap) * work.lanes() + n] = std::clamp((differ[0] + all - differ[tap + 1]) / 2, 0, all);
      }
    }
  }
  return true;
}

void run_tree(const Work& work, const Part& part) {
  const Geometry& g = work.g;
  const size_t lanes = round_up(part.pixels);
  const size_t stride = work.lanes();
  const Buffer<uint32_t> turned(round_up(g.words) * lanes);
  const Buffer<int32_t> along(stride * lanes);
  const Buffer<int32_t> counts(lanes * stride);
  const Bases bases(work, part);
  if (!turned || !along || !counts || !bases || !turn_windows(work, part, lanes, turned.get())) {
    work.failed->store(true);
    return;
  }
  work.isa.differences_along(*work.tree, turned.get(), lanes, along.get());
  std::fill(along.get() + g.out_channels * lanes, along.get() + stride * lanes, 0);
  turn(work.isa, along.get(), lanes, stride, lanes, counts.get(), stride);
  finish(work, part, bases, counts.get(), stride);
}

} // namespace ferryman::kernels

const char* ferryman_tree_check(const ferryman_binary_conv* conv, const uint32_t* tree, int64_t words) {
  ferryman::kernels::Tree found;
  return ferryman::kernels::read_tree(
      ferryman::kernels::Geometry(*conv), tree, static_cast<uint64_t>(std::max<int64_t>(words, 0)), found);
}
