// Self-check of the kernel library, for machines without Python (under an emulator) and for sanitizers: random
// convolutions on every instruction set against plain loops, with both layouts of weights, then random numbers and
// trees as a hostile artifact may hold them; then the quantized operators (check_quantized.cpp) and the sparse ones (check_sparse.cpp).
// Every buffer has exactly the size the library asked for. Usage: check_kernels CASES [SEED]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "kernels.h"

uint64_t state = 1;

namespace {

struct Data {
  std::vector<float> x;      // [batch, height, width, channels]
  std::vector<int> weights;  // [out, in, kernel_h, kernel_w], -1 and 1
  std::vector<float> scale, bias;
  std::vector<int32_t> threshold;
};

ferryman_binary_conv random_conv() {
  ferryman_binary_conv c = {};
  const int32_t per_group[] = {1, 2, 3, 31, 32, 33, 64};
  const int32_t out_per_group[] = {1, 5, 15, 16, 17, 32, 40};
  c.groups = between(0, 2) ? 1 : between(2, 5);
  c.batch = between(1, 2);
  c.channels = c.groups * per_group[between(0, 6)];
  c.out_channels = c.groups * out_per_group[between(0, 6)];
  c.kernel_h = between(1, 3);
  c.kernel_w = between(1, 4);
  c.stride_h = between(1, 2);
  c.stride_w = between(1, 3);
  c.dilation_h = between(1, 2);
  c.dilation_w = between(1, 2);
  c.pad_top = between(0, std::min(2, c.dilation_h * (c.kernel_h - 1)));
  c.pad_left = between(0, std::min(2, c.dilation_w * (c.kernel_w - 1)));
  c.pad_bottom = between(0, std::min(2, c.dilation_h * (c.kernel_h - 1)));
  c.pad_right = between(0, std::min(2, c.dilation_w * (c.kernel_w - 1)));
  c.height = c.dilation_h * (c.kernel_h - 1) + between(1, 4);
  c.width = c.dilation_w * (c.kernel_w - 1) + between(1, 18);
  c.pad_value = between(-1, 1);
  c.input = between(FERRYMAN_SIGNS, FERRYMAN_REALS);
  c.bits_out = c.input != FERRYMAN_REALS && between(0, 1);
  c.layout = between(0, 1);
  return c;
}

size_t at(const ferryman_binary_conv& c, int32_t image, int32_t y, int32_t x, int32_t channel) {
  return ((static_cast<size_t>(image) * c.height + y) * c.width + x) * c.channels + channel;
}

float dot(const ferryman_binary_conv& c, const Data& data, int32_t image, int32_t oy, int32_t ox, int32_t n) {
  const int32_t in = c.channels / c.groups;
  const int32_t group = n / (c.out_channels / c.groups);
  float total = 0;
  for (int32_t ky = 0; ky < c.kernel_h; ++ky) {
    for (int32_t kx = 0; kx < c.kernel_w; ++kx) {
      const int32_t y = oy * c.stride_h - c.pad_top + ky * c.dilation_h;
      const int32_t x = ox * c.stride_w - c.pad_left + kx * c.dilation_w;
      for (int32_t i = 0; i < in; ++i) {
        float a = static_cast<float>(c.pad_value);
        if (y >= 0 && x >= 0 && y < c.height && x < c.width) {
          a = data.x[at(c, image, y, x, group * in + i)];
          a = c.input == FERRYMAN_REALS ? a : a >= 0 ? 1.0f : -1.0f;
        }
        total += a * static_cast<float>(data.weights[((static_cast<size_t>(n) * in + i) * c.kernel_h + ky) * c.kernel_w + kx]);
      }
    }
  }
  return total;  // exact: small multiples of a half
}

void set_bit(std::vector<uint32_t>& words, size_t word, size_t bit) {
  words.at(word) |= 1u << bit;
}

std::vector<uint32_t> weight_bits(const ferryman_binary_conv& c, const Data& data, size_t count) {
  std::vector<uint32_t> words(count);
  const size_t in = c.channels / c.groups;
  const size_t out = c.out_channels / c.groups;
  const size_t taps = static_cast<size_t>(c.kernel_h) * c.kernel_w;
  const size_t blocks = (out + 15) / 16;
  const size_t depth_words = (taps * in + 31) / 32;
  for (size_t n = 0; n < static_cast<size_t>(c.out_channels); ++n) {
    for (size_t i = 0; i < in; ++i) {
      for (size_t tap = 0; tap < taps; ++tap) {
        if (data.weights[(n * in + i) * taps + tap] < 0) {
          continue;
        }
        if (in == 1 && c.groups > 1) {
          set_bit(words, tap * ((c.out_channels + 31) / 32) + n / 32, n % 32);
          continue;
        }
        const size_t lane = n % out;
        const size_t k = tap * in + i;
        set_bit(words, ((n / out * blocks + lane / 16) * depth_words + k / 32) * 16 + lane % 16, k % 32);
      }
    }
  }
  return words;
}

// The same as running exclusive ors of each lane.
std::vector<uint32_t> pack_weights(const ferryman_binary_conv& c, const Data& data, size_t count) {
  std::vector<uint32_t> words = weight_bits(c, data, count);
  const size_t in = c.channels / c.groups;
  if (in == 1 && c.groups > 1) {
    return words;
  }
  const size_t depth_words = (static_cast<size_t>(c.kernel_h) * c.kernel_w * in + 31) / 32;
  for (size_t i = 16; i < words.size(); ++i) {
    if (i / 16 % depth_words) {
      words[i] ^= words[i - 16];
    }
  }
  return words;
}

bool takes_trees(const ferryman_binary_conv& c) {
  return c.groups == 1 && c.input != FERRYMAN_REALS;
}

// Channels in a random order, each from a random earlier one or none.
std::vector<uint32_t> pack_tree(const ferryman_binary_conv& c, const Data& data, size_t plain_count) {
  const std::vector<uint32_t> plain = weight_bits(c, data, plain_count);
  const auto out = static_cast<uint32_t>(c.out_channels);
  const auto words = static_cast<uint32_t>((c.kernel_h * c.kernel_w * c.channels + 31) / 32);
  const auto weight = [&](uint32_t channel, uint32_t word) {
    return plain[(static_cast<size_t>(channel / 16) * words + word) * 16 + channel % 16];
  };
  std::vector<uint32_t> order(out), parents(out), distances(out), ends(out), rows, at, masks, bits;
  for (uint32_t step = 0; step < out; ++step) {
    order[step] = step;
    std::swap(order[step], order[random_word() % (step + 1)]);
  }
  for (uint32_t step = 0; step < out; ++step) {
    parents[step] = step == 0 || between(0, 5) == 0 ? ~0u : random_word() % step;
    for (uint32_t word = 0; word < words; ++word) {
      const uint32_t own = weight(order[step], word);
      if (parents[step] == ~0u) {
        rows.push_back(own);
        continue;
      }
      const uint32_t before = weight(order[parents[step]], word);
      if (const uint32_t mask = own ^ before) {
        at.push_back(word);
        masks.push_back(mask);
        bits.push_back(before & mask);
        distances[step] += static_cast<uint32_t>(__builtin_popcount(mask));
      }
    }
    ends[step] = static_cast<uint32_t>(at.size());
  }
  const auto roots = static_cast<uint32_t>(rows.size() / words);
  std::vector<uint32_t> tree = {0x31455254, out, words, roots, static_cast<uint32_t>(at.size())};
  for (const auto* part : {&order, &parents, &distances, &ends, &rows, &at, &masks, &bits}) {
    tree.insert(tree.end(), part->begin(), part->end());
  }
  tree.shrink_to_fit();
  return tree;
}

// A tree that passes every check and does not hold together: other entries than the weights have.
void confuse(std::vector<uint32_t>& tree) {
  const size_t words = tree[2];
  const size_t entries = tree[4];
  uint32_t* const at = tree.data() + tree.size() - 3 * entries;
  for (size_t i = 0; i < entries; ++i) {
    at[i] = random_word() % static_cast<uint32_t>(words);
    at[i + entries] = between(0, 1) ? ~0u : random_word() | 1;
    at[i + 2 * entries] = random_word() & at[i + entries];
  }
}

// What a hostile artifact may hold: words changed, and now and then more of them or fewer.
void spoil(std::vector<uint32_t>& tree) {
  for (int changes = between(1, 4); changes > 0; --changes) {
    const uint32_t edges[] = {0, 1, 2, 31, 70, 1u << 22, INT32_MAX, ~0u, 1u << 31, random_word()};
    const size_t place = between(0, 1) ? random_word() % 5 : random_word();
    tree[place % tree.size()] = between(0, 2) ? edges[between(0, 9)] : tree[place % tree.size()] + between(-1, 1);
  }
  if (between(0, 7) == 0) {
    tree.resize(random_word() % (tree.size() + 20));
  }
  std::vector<uint32_t>(tree.begin(), tree.end()).swap(tree);  // the room has its exact size
}

std::vector<uint32_t> input_words(const ferryman_binary_conv& c, const Data& data, size_t count) {
  std::vector<uint32_t> words(count);
  const size_t pixels = static_cast<size_t>(c.batch) * c.height * c.width;
  const size_t plane = static_cast<size_t>(c.height) * c.width;
  for (size_t pixel = 0; pixel < pixels; ++pixel) {
    for (size_t channel = 0; channel < static_cast<size_t>(c.channels); ++channel) {
      const float value = data.x[pixel * c.channels + channel];
      if (c.input == FERRYMAN_BITS) {
        if (value >= 0) {
          set_bit(words, pixel * ((c.channels + 31) / 32) + channel / 32, channel % 32);
        }
        continue;
      }
      const size_t to = c.layout == FERRYMAN_CHANNELS_LAST
          ? pixel * c.channels + channel
          : (pixel / plane * c.channels + channel) * plane + pixel % plane;
      memcpy(&words.at(to), &value, sizeof value);
    }
  }
  return words;
}

int compare(const ferryman_binary_conv& c, const ferryman_binary_sizes& sizes, const Data& data, const std::vector<uint32_t>& out) {
  const size_t plane = static_cast<size_t>(sizes.out_height) * sizes.out_width;
  int bad = 0;
  for (int32_t image = 0; image < c.batch; ++image) {
    for (size_t pixel = 0; pixel < plane; ++pixel) {
      for (int32_t n = 0; n < c.out_channels; ++n) {
        const auto oy = static_cast<int32_t>(pixel / sizes.out_width);
        const auto ox = static_cast<int32_t>(pixel % sizes.out_width);
        const float expected = dot(c, data, image, oy, ox, n);
        const size_t whole = image * plane + pixel;
        if (c.bits_out) {
          const uint32_t word = out[whole * ((c.out_channels + 31) / 32) + n / 32];
          bad += (word >> n % 32 & 1) != (expected >= static_cast<float>(data.threshold[n]));
          continue;
        }
        const size_t from = c.layout == FERRYMAN_CHANNELS_LAST
            ? whole * c.out_channels + n
            : (static_cast<size_t>(image) * c.out_channels + n) * plane + pixel;
        float found;
        memcpy(&found, &out[from], sizeof found);
        bad += found != data.scale[n] * expected + data.bias[n];
      }
    }
  }
  return bad;
}

// With a tree, these are the weights.
const char* run(
    const ferryman_binary_conv& c,
    const ferryman_binary_sizes& sizes,
    const Data& data,
    std::vector<uint32_t>& out,
    const std::vector<uint32_t>* tree = nullptr) {
  const std::vector<uint32_t> x = input_words(c, data, static_cast<size_t>(sizes.input));
  const std::vector<uint32_t> weights = pack_weights(c, data, static_cast<size_t>(sizes.weights));
  ferryman_binary_call call = {};
  call.input = x.data();
  call.weights = tree ? tree->data() : weights.data();
  call.scale = data.scale.data();
  call.bias = data.bias.data();
  call.threshold = data.threshold.data();
  call.output = out.data();
  call.threads = between(1, 3);
  call.parallel = [](void*, void (*body)(void*, size_t), void* argument, size_t tasks) {
    while (tasks > 0) {
      body(argument, --tasks);
    }
  };
  return tree ? ferryman_tree_run(&c, &call, static_cast<int64_t>(tree->size())) : ferryman_binary_run(&c, &call);
}

Data random_data(const ferryman_binary_conv& c) {
  Data data;
  data.x.resize(static_cast<size_t>(c.batch) * c.height * c.width * c.channels);
  for (float& value : data.x) {
    value = random_float();
  }
  data.weights.resize(static_cast<size_t>(c.out_channels) * (c.channels / c.groups) * c.kernel_h * c.kernel_w);
  for (int& value : data.weights) {
    value = random_word() & 1 ? 1 : -1;
  }
  for (int32_t n = 0; n < c.out_channels; ++n) {
    data.scale.push_back(random_float());
    data.bias.push_back(random_float());
    data.threshold.push_back(between(-9, 9));
  }
  return data;
}

void print(const ferryman_binary_conv& c) {
  int32_t numbers[sizeof c / sizeof(int32_t)];
  memcpy(numbers, &c, sizeof c);
  for (const int32_t number : numbers) {
    printf(" %d", number);
  }
  puts("");
}

int check_cases(int cases) {
  int bad = 0;
  for (int i = 0; i < cases; ++i) {
    const ferryman_binary_conv c = random_conv();
    ferryman_binary_sizes sizes;
    if (const char* const problem = ferryman_binary_check(&c, &sizes)) {
      printf("refused: %s", problem);
      print(c);
      ++bad;
      continue;
    }
    const Data data = random_data(c);
    std::vector<uint32_t> out(static_cast<size_t>(sizes.output));
    const char* problem = run(c, sizes, data, out);
    int wrong = problem ? 1 : compare(c, sizes, data, out);
    if (takes_trees(c) && !wrong) {
      const std::vector<uint32_t> tree = pack_tree(c, data, static_cast<size_t>(sizes.weights));
      out.assign(out.size(), 0x55555555);
      problem = run(c, sizes, data, out, &tree);
      wrong = problem ? 1 : compare(c, sizes, data, out);
    }
    if (wrong) {
      printf("%d wrong%s%s:", wrong, problem ? ", " : "", problem ? problem : "");
      print(c);
    }
    bad += wrong != 0;
  }
  return bad;
}

// Good numbers of which some were changed; what passes the check and is small is computed.
int fuzz(int cases) {
  int computed = 0;
  for (int i = 0; i < cases; ++i) {
    ferryman_binary_conv c = random_conv();
    int32_t numbers[sizeof c / sizeof(int32_t)];
    memcpy(numbers, &c, sizeof c);
    for (int changes = between(1, 4); changes > 0; --changes) {
      const int32_t edges[] = {-1, 0, 1, 2, 3, 70, 1 << 24, INT32_MAX, INT32_MIN, static_cast<int32_t>(random_word())};
      numbers[random_word() % (sizeof c / sizeof(int32_t))] = edges[between(0, 9)];
    }
    memcpy(&c, numbers, sizeof c);
    ferryman_binary_sizes sizes;
    if (ferryman_binary_check(&c, &sizes) || sizes.input > 1 << 16 || sizes.weights > 1 << 16 || sizes.output > 1 << 14 ||
        sizes.output * c.kernel_h * c.kernel_w * (c.channels / c.groups) > 1 << 22) {
      continue;
    }
    std::vector<uint32_t> out(static_cast<size_t>(sizes.output));
    run(c, sizes, random_data(c), out);
    ++computed;
  }
  return computed;
}

// Good trees of which something was changed; returns how many were computed.
int fuzz_trees(int cases) {
  int computed = 0;
  for (int i = 0; i < cases; ++i) {
    ferryman_binary_conv c = random_conv();
    c.channels /= c.groups;
    c.out_channels /= c.groups;
    c.groups = 1;
    c.input = c.input == FERRYMAN_REALS ? FERRYMAN_BITS : c.input;
    ferryman_binary_sizes sizes;
    ferryman_binary_check(&c, &sizes);
    const Data data = random_data(c);
    std::vector<uint32_t> tree = pack_tree(c, data, static_cast<size_t>(sizes.weights));
    if (between(0, 1)) {
      confuse(tree);
    } else {
      spoil(tree);
    }
    std::vector<uint32_t> out(static_cast<size_t>(sizes.output));
    const char* const before = ferryman_tree_check(&c, tree.data(), static_cast<int64_t>(tree.size()));
    const char* const problem = run(c, sizes, data, out, &tree);
    if ((before == nullptr) != (problem == nullptr)) {
      printf("checked: %s, run: %s\n", before ? before : "good", problem ? problem : "good");
      return -1;
    }
    computed += problem == nullptr;
  }
  return computed;
}

} // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? atoi(argv[1]) : 100;
  int bad = 0;
  uint64_t first = 0;
  std::istringstream names(ferryman_kernels_isas());
  for (std::string name; names >> name;) {
    state = argc > 2 ? strtoull(argv[2], nullptr, 10) * 2 + 1 : 1;
    ferryman_kernels_use(name.c_str());
    digest = 1;
    const int wrong = check_cases(cases);
    const int computed = fuzz(40 * cases);
    const int trees = fuzz_trees(4 * cases);
    const int quantized = check_quantized(cases);
    const int quantized_computed = fuzz_quantized(40 * cases);
    const int sparse = check_sparse(cases);
    const int sparse_computed = fuzz_sparse(20 * cases);
    printf("%s: %d of %d cases wrong, %d of %d fuzzed ones and %d of %d trees computed; ", name.c_str(), wrong, cases,
           computed, 40 * cases, trees, 4 * cases);
    printf("quantized: %d of %d wrong, %d of %d fuzzed ones computed; ", quantized, 5 * cases, quantized_computed,
           40 * cases);
    printf("sparse: %d of %d wrong, %d of %d fuzzed ones computed\n", sparse, 4 * cases, sparse_computed, 20 * cases);
    first = first ? first : digest;
    if (digest != first) {
      puts("functions differ from those of the first instruction set");
    }
    bad += wrong + (trees < 0) + quantized + sparse + (digest != first);
  }
  return bad != 0;
}
