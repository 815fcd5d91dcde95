// Eight words at once, each into a lane of its own by steps that could be undone: a word that changes changes its
// lane for good.
#include <cstring>

#include "weights.h"

namespace {

constexpr size_t kLanes = 8;
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15; // 2^64 over the golden ratio

struct Sum {
  uint64_t lanes[kLanes];

  void take(const uint8_t* words) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      uint64_t word;
      memcpy(&word, words + lane * sizeof word, sizeof word);
      lanes[lane] = (lanes[lane] ^ word) * kOdd;
      lanes[lane] ^= lanes[lane] >> 32; // or the upper bits would never reach the lower ones
    }
  }
};

} // namespace

uint64_t ferryman_weights_checksum(const uint8_t* data, size_t size) {
  Sum sum;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    sum.lanes[lane] = kOdd * (lane + 1) + size;
  }
  constexpr size_t kStep = kLanes * sizeof(uint64_t);
  size_t done = 0;
  for (; size - done >= kStep; done += kStep) {
    sum.take(data + done);
  }
  uint8_t rest[kStep] = {};
  if (size > done) {
    memcpy(rest, data + done, size - done);
  }
  sum.take(rest);
  uint64_t whole = 0;
  for (const uint64_t lane : sum.lanes) {
    whole = (whole ^ lane) * kOdd;
    whole ^= whole >> 29;
  }
  return whole;
}
