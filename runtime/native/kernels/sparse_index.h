// Which weights have a value; see sparse.h.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "isa.h"

namespace ferryman::kernels {

constexpr int64_t kSparseDepthMax = UINT16_MAX;
constexpr const char* kBadIndex = "the index does not fit the weights";

constexpr bool is_index(int32_t bits) {
  return bits == 0 || bits == 1 || bits == 4 || bits == 8;
}

class Index {
 public:
  // Of `channels` with `depth` weights each. What is read here and by the others are `bytes` of `index`.
  Index(int32_t bits, const uint8_t* index, size_t bytes, size_t channels, size_t depth);

  // NULL: each channel's values are counted, and there are no fewer bytes than that takes.
  const char* problem() const {
    return problem_;
  }
  size_t bytes() const {  // the index has
    return begins_.get()[channels_].byte;
  }
  size_t values() const {
    return begins_.get()[channels_].value;
  }

  // The first of a channel's values, and how many it has.
  size_t begin(size_t channel) const {
    return begins_.get()[channel].value;
  }
  size_t count(size_t channel) const {
    return begin(channel + 1) - begin(channel);
  }

  // Lists a channel's positions, times `step`, and says whether all are positions. Not for index bits of 0.
  bool list(const Isa& isa, size_t channel, size_t step, uint32_t* places) const {
    const uint8_t* const from = index_ + begins_.get()[channel].byte;
    if (bits_ == 1) {
      isa.list_bits(from, depth_, step, places);
      return true;  // they were counted
    }
    return isa.list_gaps(from, bits_, count(channel), step, places) < depth_;
  }

  // Calls put(position) for each of a channel's values in order, and says whether all are positions.
  template <typename Put>
  bool each(size_t channel, const Put& put) const {
    const size_t count_of = count(channel);
    const uint8_t* const from = index_ + begins_.get()[channel].byte;
    if (bits_ == 0) {
      for (size_t k = 0; k < depth_; ++k) {
        put(k);
      }
      return true;
    }
    return bits_ == 1 ? each_bit(from, put) : bits_ == 4 ? each_gap<4>(from, count_of, put) : each_gap<8>(from, count_of, put);
  }

 private:
  struct Begin {
    size_t value, byte;
  };

  template <typename Put>
  bool each_bit(const uint8_t* from, const Put& put) const {
    for (size_t k = 0; k < depth_; k += kWordBytes * 8) {
      uint64_t word = word_at(from, k / 8);
      for (; word; word &= word - 1) {
        put(k + static_cast<size_t>(__builtin_ctzll(word)));
      }
    }
    return true;  // they were counted
  }

  template <size_t kBits, typename Put>
  bool each_gap(const uint8_t* from, size_t count_of, const Put& put) const {
    constexpr size_t kPer = 8 / kBits;
    size_t k = 0;
    for (size_t i = 0; i < count_of; ++i, ++k) {
      k += kBits == 8 ? from[i] : static_cast<size_t>(from[i / kPer] >> i % kPer * kBits & ((1 << kBits % 8) - 1));
      if (k >= depth_) {
        return false;
      }
      put(k);
    }
    return true;
  }

  static constexpr size_t kWordBytes = sizeof(uint64_t);

  size_t row_bytes() const {
    return (depth_ + 7) / 8;
  }
  // Eight bytes of a row of the bitmap, or what there is of them.
  uint64_t word_at(const uint8_t* row, size_t byte) const;
  const char* count_values(const Isa& isa);

  int32_t bits_;
  const uint8_t* index_;
  size_t bytes_, channels_, depth_;
  Buffer<Begin> begins_;
  const char* problem_;
};

} // namespace ferryman::kernels
