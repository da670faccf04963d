#include <pybind11/stl.h>

#include "kernels/bind.h"
#include "kernels/pool.h"
#include "kernels/prelude.h"

namespace mindspeed_ms::kernels {
namespace {

// Removes dimensions of size 1 and joins those that are adjacent in both arrays.
void collapse(std::vector<std::int64_t>& shape, std::vector<std::int64_t>& strides) {
  std::size_t used = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) continue;
    if (used && strides[used - 1] == strides[d] * shape[d]) {
      shape[used - 1] *= shape[d];
      strides[used - 1] = strides[d];
      continue;
    }
    shape[used] = shape[d];
    strides[used] = strides[d];
    ++used;
  }
  shape.resize(used);
  strides.resize(used);
}

template <class T>
void copy_items(const T* from, T* to, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
  while (shape.size() < 2) {
    shape.insert(shape.begin(), 1);
    strides.insert(strides.begin(), 0);
  }
  // The two dimensions of a tile: the last one, along which the output is adjacent, and the one along which
  // the input is (or comes nearest to it).
  const std::size_t last = shape.size() - 1;
  std::size_t near = last - 1;
  for (std::size_t d = 0; d < last; ++d) {
    if (strides[d] > 0 && strides[d] < strides[near]) near = d;
  }
  std::vector<std::int64_t> out_strides(shape.size(), 1);
  for (std::size_t d = last; d-- > 0;) out_strides[d] = out_strides[d + 1] * shape[d + 1];
  const bool plain = strides[last] == 1;
  const std::int64_t tile_rows = plain ? 16 : 64;
  const std::int64_t tile_cols = plain ? 4096 : 64;
  const std::int64_t down = (shape[near] + tile_rows - 1) / tile_rows;
  const std::int64_t across = (shape[last] + tile_cols - 1) / tile_cols;
  std::int64_t outer = 1;
  for (std::size_t d = 0; d < last; ++d) outer *= d == near ? 1 : shape[d];
  parallel_blocks(outer * down * across, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      std::int64_t rest = task / (down * across);
      const T* in = from;
      T* out = to;
      for (std::size_t d = last; d-- > 0;) {
        if (d == near) continue;
        in += rest % shape[d] * strides[d];
        out += rest % shape[d] * out_strides[d];
        rest /= shape[d];
      }
      const std::int64_t r0 = task / across % down * tile_rows;
      const std::int64_t c0 = task % across * tile_cols;
      const std::int64_t r1 = std::min(r0 + tile_rows, shape[near]);
      const std::int64_t c1 = std::min(c0 + tile_cols, shape[last]);
      for (std::int64_t r = r0; r < r1; ++r) {
        const T* in_row = in + r * strides[near];
        T* out_row = out + r * out_strides[near];
        if (plain) {
          std::memcpy(out_row + c0, in_row + c0, static_cast<std::size_t>(c1 - c0) * sizeof(T));
        } else {
          for (std::int64_t c = c0; c < c1; ++c) out_row[c] = in_row[c * strides[last]];
        }
      }
    }
  });
}

}  // namespace

// Copies a strided array into a contiguous one of the same shape; strides in elements, `item` bytes an
// element (1, 2, 4 or 8). Transposes go through tiles that fit the cache.
void copy_to_contiguous(Ptr source, Ptr target, std::vector<std::int64_t> shape,
                        std::vector<std::int64_t> strides, std::int64_t item) {
  if (shape.size() != strides.size()) {
    throw std::invalid_argument("copy_to_contiguous: shape and strides differ in length");
  }
  for (const std::int64_t size : shape) {
    if (size == 0) return;
  }
  collapse(shape, strides);
  switch (item) {
    case 1:
      return copy_items(as<const std::uint8_t>(source), as<std::uint8_t>(target), shape, strides);
    case 2:
      return copy_items(as<const std::uint16_t>(source), as<std::uint16_t>(target), shape, strides);
    case 4:
      return copy_items(as<const std::uint32_t>(source), as<std::uint32_t>(target), shape, strides);
    case 8:
      return copy_items(as<const std::uint64_t>(source), as<std::uint64_t>(target), shape, strides);
  }
  throw std::invalid_argument("copy_to_contiguous: elements of " + std::to_string(item) + " bytes");
}

// `rows` runs of `width` bytes, `source_step` and `target_step` bytes apart.
void copy_rows(Ptr source, Ptr target, std::int64_t rows, std::int64_t width, std::int64_t source_step,
               std::int64_t target_step) {
  if (rows > 1 && width == source_step && width == target_step)
    return copy_rows(source, target, 1, rows * width, 0, 0);
  constexpr std::int64_t kTask = 256 * 1024;
  const std::int64_t across = std::max<std::int64_t>((width + kTask - 1) / kTask, 1);
  parallel_blocks(rows * across, rows_per_task(std::min(width, kTask)),
                  [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t task = begin; task < end; ++task) {
                      const std::int64_t row = task / across, at = task % across * kTask;
                      std::memcpy(as<char>(target) + row * target_step + at,
                                  as<const char>(source) + row * source_step + at,
                                  static_cast<std::size_t>(std::min(kTask, width - at)));
                    }
                  });
}

void bind_strided_copy(pybind11::module_& m) {
  DEFINE_WITH_NAMES(m, "copy_to_contiguous", &copy_to_contiguous, source, target, shape, strides, item);
  DEFINE_WITH_NAMES(m, "copy_rows", &copy_rows, source, target, rows, width, source_step, target_step);
}

}  // namespace mindspeed_ms::kernels
