// Weights whose output channels are computed one from another; the layout is in kernels.h.
#pragma once

#include "work.h"

namespace ferryman::kernels {

// Reads the weights of a checked convolution from `length` words that may be anything; returns NULL, or what is wrong.
// What passes reads and writes nothing out of bounds, and its counts stay below 2^30. `tree` points into `blob`.
const char* read_tree(const Geometry& g, const uint32_t* blob, uint64_t length, Tree& tree);

// Whether the windows are whole words of the frame, so that they can be taken from `work.planes`.
bool has_planes(const Geometry& g);

// Turns frames so that each word's pixels lie side by side.
void put_planes(const Work& work, uint32_t* planes);

// Ones among the weights of each tap, as Work::tap_ones has them; false when memory runs out.
bool count_tap_ones_along(const Work& work, int32_t* ones);

} // namespace ferryman::kernels
