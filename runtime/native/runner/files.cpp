#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace ferryman {
namespace {

class Descriptor {
 public:
  // Not blocking: a pipe with nobody at its other end must not keep the runner waiting.
  Descriptor(const std::string& path, int flags) : value_(open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0666)) {}
  ~Descriptor() {
    close();
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const {
    return value_;
  }
  bool close() {
    const int value = value_;
    value_ = -1;
    return value < 0 || ::close(value) == 0;
  }

 private:
  int value_;
};

// Reads up to `size` bytes; false: an error, of which errno tells.
bool read_up_to(int descriptor, size_t size, std::string& out) {
  out.resize(size);
  size_t done = 0;
  while (done < size) {
    const ssize_t count = read(descriptor, out.data() + done, size - done);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return false;
    }
    if (count == 0) {
      break;
    }
    done += static_cast<size_t>(count);
  }
  out.resize(done);
  return true;
}

} // namespace

std::string with_errno(const std::string& what) {
  return what + ": " + strerror(errno);
}

bool read_text(const std::string& path, std::string& out) {
  constexpr size_t kMost = 65536;
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0 || !read_up_to(file.get(), kMost, out)) {
    return false;
  }
  while (!out.empty() && (out.back() == '\n' || out.back() == ' ')) {
    out.pop_back();
  }
  return true;
}

std::string read_file(const std::string& path, size_t size) {
  const Descriptor file(path, O_RDONLY);
  struct stat found = {};
  if (file.get() < 0 || fstat(file.get(), &found) != 0) {
    blame_caller(with_errno(path));
  }
  if (!S_ISREG(found.st_mode)) {
    blame_caller(path + " is no regular file");
  }
  if (static_cast<uint64_t>(found.st_size) != size) {
    blame_caller(
        path + ": expected " + std::to_string(size) + " bytes, found " + std::to_string(found.st_size));
  }
  std::string bytes;
  if (!read_up_to(file.get(), size, bytes)) {
    blame_device(with_errno(path));
  }
  if (bytes.size() != size) {
    blame_caller(path + " became shorter while it was read");
  }
  return bytes;
}

void write_file(const std::string& path, const void* data, size_t size) {
  Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.get() < 0) {
    const bool full = errno == ENOSPC || errno == EDQUOT || errno == EROFS || errno == EIO;
    throw Error{full ? "device" : "caller", with_errno(path)};
  }
  struct stat found = {};
  const bool regular = fstat(file.get(), &found) == 0 && S_ISREG(found.st_mode);
  if (!write_all(file.get(), static_cast<const char*>(data), size) || !file.close()) {
    const std::string message = with_errno(path);
    if (regular) {
      unlink(path.c_str());
    }
    blame_device(message);
  }
}

void require_artifact(const std::string& path) {
  struct stat found = {};
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0 || fstat(file.get(), &found) != 0) {
    blame_caller(with_errno(path));
  }
  if (!S_ISREG(found.st_mode)) {
    blame_caller(path + " is no regular file");
  }
}

void require_another(const std::string& output, const std::string& input) {
  struct stat one = {};
  struct stat other = {};
  if (stat(output.c_str(), &one) == 0 && stat(input.c_str(), &other) == 0 && one.st_dev == other.st_dev &&
      one.st_ino == other.st_ino) {
    blame_caller("the output " + output + " would overwrite " + input);
  }
}

bool write_all(int descriptor, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t count = write(descriptor, data, size);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return false;
    }
    data += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

} // namespace ferryman
