#include "sparse_index.h"

#include <algorithm>
#include <cstring>

#include "work.h"

namespace ferryman::kernels {

Index::Index(int32_t bits, const uint8_t* index, size_t bytes, size_t channels, size_t depth)
    : bits_(bits), index_(index), bytes_(bytes), channels_(channels), depth_(depth), begins_(channels + 1) {
  problem_ = begins_ ? count_values(isa()) : kNoMemory;
}

uint64_t Index::word_at(const uint8_t* row, size_t byte) const {
  uint64_t word = 0;
  memcpy(&word, row + byte, std::min(kWordBytes, row_bytes() - byte));
  return word;
}

const char* Index::count_values(const Isa& isa) {
  size_t value = 0;
  size_t byte = bits_ == 4 || bits_ == 8 ? channels_ * sizeof(uint16_t) : 0;
  if (byte > bytes_ || (bits_ == 1 && channels_ * row_bytes() > bytes_)) {
    return kBadIndex;
  }
  for (size_t n = 0; n < channels_; ++n) {
    begins_.get()[n] = {value, byte};
    if (bits_ == 0) {
      value += depth_;
      continue;
    }
    if (bits_ == 1) {
      const uint8_t* const row = index_ + byte;
      value += isa.count_ones(row, row_bytes());
      byte += row_bytes();
      if (depth_ % 8 && row[row_bytes() - 1] >> depth_ % 8) {
        return kBadIndex;
      }
      continue;
    }
    const size_t count_of = static_cast<size_t>(index_[2 * n]) | static_cast<size_t>(index_[2 * n + 1]) << 8;
    value += count_of;
    byte += (count_of * static_cast<size_t>(bits_) + 7) / 8;
    if (count_of > depth_ || byte > bytes_) {
      return kBadIndex;
    }
  }
  begins_.get()[channels_] = {value, byte};
  return nullptr;
}

} // namespace ferryman::kernels
