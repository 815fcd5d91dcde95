// C ABI: what may be done with the weights that XNNPACK packs of an artifact. No dependency beyond the C++ library.
//
// Both runtimes can keep packed weights in a file and pack each weight once, but know them by the weight's bytes or
// place alone, and what is packed holds more: scales, and of statically quantized layers the activations' scales and
// zero points too. Two layers that share a weight and differ in those take each other's (ExecuTorch 1.5.1 and LiteRT
// 2.3: wrong outputs, and no error). So an artifact is looked through first.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FERRYMAN_WEIGHTS_API extern "C" __attribute__((visibility("default")))

enum {
  FERRYMAN_WEIGHTS_PACKED = 1,   // XNNPACK packs some
  FERRYMAN_WEIGHTS_SHARED = 2,   // several layers use one weight
  FERRYMAN_WEIGHTS_UNSAFE = 4,   // and differ in something else that is packed with it
  FERRYMAN_WEIGHTS_DYNAMIC = 8,  // some tensor has a dimension that varies
  FERRYMAN_WEIGHTS_UNKNOWN = 16,  // the bytes are no such artifact, or damaged
};

// Returns the above, of a whole `.pte` or `.tflite` file; it may hold anything.
FERRYMAN_WEIGHTS_API int32_t ferryman_weights_pte(const uint8_t* data, size_t size);
FERRYMAN_WEIGHTS_API int32_t ferryman_weights_tflite(const uint8_t* data, size_t size);

// Tells damage, not forgery, at about the speed of reading. Any one 8-byte word that changes changes it.
FERRYMAN_WEIGHTS_API uint64_t ferryman_weights_checksum(const uint8_t* data, size_t size);

// Changes with what this processor, by its own word, can do: what XNNPACK chooses layouts by.
FERRYMAN_WEIGHTS_API uint64_t ferryman_weights_processor(void);
