// Files, with who is at fault where one cannot be read or written.
#pragma once

#include <cstddef>
#include <string>

namespace ferryman {

// A regular file's bytes, which must be `size`. Throws Error.
std::string read_file(const std::string& path, size_t size);

// Throws Error of party device or caller; what was written of a regular file is removed then.
void write_file(const std::string& path, const void* data, size_t size);

// Throws Error unless `path` is a regular file that can be read: a pipe without a writer would keep ExecuTorch waiting.
void require_artifact(const std::string& path);

// Throws Error of party caller if `output` is there already and is the same file as `input`.
void require_another(const std::string& output, const std::string& input);

// Whether all of it could be written; errno tells why not.
bool write_all(int descriptor, const char* data, size_t size);

// `what`: and what errno says.
std::string with_errno(const std::string& what);

// A small file of /proc or /sys without the last line's end; false: errno tells why not.
bool read_text(const std::string& path, std::string& out);

} // namespace ferryman
