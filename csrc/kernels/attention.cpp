#include "kernels/attention.h"

#include <cstdlib>

#define MSK_SOURCE "kernels/attention.inl"
#include <pybind11/stl.h>

#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {
namespace {

AttentionView view(const std::array<std::int64_t, 4>& v) {
  return {static_cast<std::uintptr_t>(v[0]), v[1], v[2], v[3]};
}

AttentionProblem problem(const std::vector<std::array<std::int64_t, 6>>& sequences,
                         const std::array<std::int64_t, 4>& heads_and_dims, double scale, double softcap,
                         const std::array<std::int64_t, 2>& window, const std::array<std::int64_t, 4>& mask,
                         std::int64_t drop, std::uint64_t seed, int dtype) {
  AttentionProblem p;
  for (const auto& s : sequences) p.sequences.push_back({s[0], s[1], s[2], s[3], s[4], s[5]});
  p.heads = heads_and_dims[0];
  p.kv_heads = heads_and_dims[1];
  p.dim = heads_and_dims[2];
  p.value_dim = heads_and_dims[3];
  p.scale = scale;
  p.softcap = softcap;
  p.left = window[0];
  p.right = window[1];
  p.mask = view(mask);
  p.drop = drop;
  p.seed = seed;
  p.dtype = dtype;
  return p;
}

}  // namespace

void bind_attention(pybind11::module_& m) {
  pybind11::class_<AttentionView>(m, "AttentionView")
      .def(pybind11::init(&view), "Address and strides in elements: (data, batch, row, head).");
  pybind11::implicitly_convertible<pybind11::tuple, AttentionView>();
  pybind11::class_<AttentionProblem>(m, "AttentionProblem").def(pybind11::init(&problem));
  MSK_DEF(m, attention_forward);
  MSK_DEF(m, attention_backward);
  MSK_DEF(m, attention_keep);
}

}  // namespace mindspeed_ms::kernels
