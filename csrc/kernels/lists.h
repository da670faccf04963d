#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/prelude.h"

namespace mindspeed_ms::kernels {

// Lists of tensors (Megatron's multi_tensor_apply, torch's _foreach_*): one address per tensor, and one
// number of elements per tensor for all lists of a call.
using Pointers = std::vector<Ptr>;
using Sizes = std::vector<std::int64_t>;

// A piece of one tensor, small enough to balance the threads, large enough to pay for the hand-out.
struct Span {
  std::size_t tensor;
  std::int64_t begin, end;
};

std::vector<Span> split_lists(const Sizes& sizes);

// Throws std::invalid_argument when a list has not one entry per tensor.
void check_list(const Pointers& list, const Sizes& sizes, const char* kernel, const char* name);

// The address of element `i` of tensor `t`, or null when the list is empty (not given).
template <class T>
T* element(const Pointers& list, std::size_t t, std::int64_t i) {
  return list.empty() ? nullptr : as<T>(list[t]) + i;
}

}  // namespace mindspeed_ms::kernels
