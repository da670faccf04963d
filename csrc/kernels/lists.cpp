#include "kernels/lists.h"

namespace mindspeed_ms::kernels {

std::vector<Span> split_lists(const Sizes& sizes) {
  constexpr std::int64_t kElements = 16 * 1024;
  std::vector<Span> spans;
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    for (std::int64_t begin = 0; begin < sizes[t]; begin += kElements) {
      spans.push_back({t, begin, std::min(begin + kElements, sizes[t])});
    }
  }
  return spans;
}

void check_list(const Pointers& list, const Sizes& sizes, const char* kernel, const char* name) {
  if (list.size() == sizes.size()) return;
  throw std::invalid_argument(std::string(kernel) + ": list '" + name + "' has " +
                              std::to_string(list.size()) + " tensors, expected " +
                              std::to_string(sizes.size()));
}

}  // namespace mindspeed_ms::kernels
