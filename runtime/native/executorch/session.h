// C ABI of ferryman's ExecuTorch sessions, called by ctypes from ferryman.runtime.sessions.executorch.
//
// A call that can fail returns 0 or a code; ferryman_et_error() then tells this thread what went wrong.
// Positive codes are ExecuTorch's own (runtime/core/error.h), negative ones are below.
// A session belongs to one thread at a time. Tensors are dense and in default dimension order.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FERRYMAN_ET_API extern "C" __attribute__((visibility("default")))

enum {
  FERRYMAN_ET_UNSUPPORTED = -1,   // the artifact's inputs or outputs are of a kind we do not carry
  FERRYMAN_ET_THREADS_BUSY = -2,  // another session holds the pool at another size
  FERRYMAN_ET_ABORTED = -3,       // a fatal check failed inside ExecuTorch
  FERRYMAN_ET_EXCEPTION = -4,     // a C++ exception, such as no memory
  FERRYMAN_ET_NO_ENTRY = -5,      // the artifact has no such method
};

enum { FERRYMAN_ET_MAX_DIMS = 16 };

typedef struct {
  int32_t dtype;  // ScalarType number of ExecuTorch
  int32_t ndim;
  int32_t dynamic;  // 1: sizes are upper bounds
  int32_t sizes[FERRYMAN_ET_MAX_DIMS];
  void* data;  // the session's own memory, with room for `sizes`; NULL for no bytes
} ferryman_et_tensor;

typedef struct ferryman_et_session ferryman_et_session;

// The ExecuTorch version this library was built against.
FERRYMAN_ET_API const char* ferryman_et_version(void);

// Why this thread's last call failed: ExecuTorch's own messages, one a line.
FERRYMAN_ET_API const char* ferryman_et_error(void);

// Log lines waiting to be taken; lines beyond the newest 256 are dropped.
FERRYMAN_ET_API volatile int32_t ferryman_et_log_pending;

// Copies the oldest waiting line into `line`, cut to `size` bytes; returns its level (D I E F) or 0 for none.
FERRYMAN_ET_API int ferryman_et_log_take(char* line, size_t size);

// Maps the file and loads a method.
// entry: its name; NULL for the only one, and of several for `forward`.
// cache: a file of packed weights, filled when it is empty and else read (what it lacks is then kept in memory); its
// path is shorter than 256 bytes. NULL: every use of a weight is packed for itself.
// With one thread everything runs in the caller's; with more the process's one pool is used, and has to have the same
// size in all open sessions that use it.
FERRYMAN_ET_API int ferryman_et_open(
    const char* path, const char* entry, const char* cache, int32_t threads, int32_t etdump, ferryman_et_session** out);

// Names of the artifact's methods, one a line, valid until this thread's next call.
FERRYMAN_ET_API int ferryman_et_entries(const char* path, const char** names);

// Descriptions of all inputs and outputs, valid until the session is closed.
FERRYMAN_ET_API size_t ferryman_et_inputs(const ferryman_et_session* session, const ferryman_et_tensor** out);
FERRYMAN_ET_API size_t ferryman_et_outputs(const ferryman_et_session* session, const ferryman_et_tensor** out);

// One inference: write every input to its `data`, run, read every output from its `data`. The runs overwrite both:
// inputs have to be written for every run, and `data` of an output may be another address after it.
// input_sizes: the dimensions of all inputs one after the other, NULL when none is dynamic.
// output_sizes: receives the dimensions of all outputs one after the other, NULL when none is dynamic.
FERRYMAN_ET_API int ferryman_et_run(ferryman_et_session* session, const int32_t* input_sizes, int32_t* output_sizes);

// The profile of the runs since the last call (or the opening), for sessions opened with etdump.
// The bytes stay valid until the next call for this session.
FERRYMAN_ET_API int ferryman_et_etdump(ferryman_et_session* session, const void** data, size_t* size);

// Bytes of the session's planned memory: what the artifact lays out for its tensors.
FERRYMAN_ET_API int64_t ferryman_et_planned_bytes(const ferryman_et_session* session);

FERRYMAN_ET_API void ferryman_et_close(ferryman_et_session* session);
