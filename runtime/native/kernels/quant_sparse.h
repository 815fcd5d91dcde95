// Quantized weights of which only some have a value: an index (sparse.h), then the values; see quantized.h.
#pragma once

#include "sparse_index.h"

namespace ferryman::kernels {

class SparseWeights {
 public:
  // Of `channels` outputs with `depth` weights of `bits` each.
  SparseWeights(int32_t index_bits, int32_t bits, const uint8_t* blob, int64_t bytes, size_t channels, size_t depth);

  // NULL: the blob has as many values as its index counts.
  const char* problem() const {
    return problem_;
  }

  // Of a channel's values.
  size_t count(size_t channel) const {
    return index_.count(channel);
  }

  // Of a channel's values, as they are stored.
  const uint8_t* begin(size_t channel) const {
    return begins_.get()[channel];
  }

  // Lists a channel's positions, and says whether all are some.
  bool list(const Isa& isa, size_t channel, uint32_t* positions) const {
    return index_.list(isa, channel, 1, positions);
  }

  // Calls put(position, value) for each of a channel's values in order, as they are stored; whether all are positions.
  template <typename Put>
  bool each(size_t channel, const Put& put) const {
    const uint8_t* from = begins_.get()[channel];
    const uint32_t mask = (1u << bits_) - 1;
    uint32_t shift = 0;
    return index_.each(channel, [&](size_t position) {
      put(position, *from >> shift & mask);
      shift += bits_;
      from += shift / 8;
      shift %= 8;
    });
  }

  // Lays channels out densely, from one that begins a block on; `w` has room for their blocks. Whether all are positions.
  bool unpack(size_t channel, size_t channels, uint8_t* w) const;

  // Of a block of unpacked channels.
  size_t block_bytes() const;

 private:
  const char* find_values(const uint8_t* blob, size_t bytes);

  uint32_t bits_;
  size_t channels_, depth_;
  Index index_;
  Buffer<const uint8_t*> begins_;  // of each channel's values
  const char* problem_;
};

} // namespace ferryman::kernels
