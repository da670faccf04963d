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
                         std::int64_t drop, std::uint64_t seed, DType dtype) {
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
      .def(pybind11::init(&view), pybind11::arg("place"),
           "Address and strides in elements: (data, batch, row, head).");
  pybind11::implicitly_convertible<pybind11::tuple, AttentionView>();
  pybind11::class_<AttentionProblem>(m, "AttentionProblem")
      .def(pybind11::init(&problem), pybind11::arg("sequences"), pybind11::arg("heads_and_dims"),
           pybind11::arg("scale"), pybind11::arg("softcap"), pybind11::arg("window"), pybind11::arg("mask"),
           pybind11::arg("drop"), pybind11::arg("seed"), pybind11::arg("dtype"));
  MSK_DEF(m, attention_forward, problem, q, k, v, o, lse, lse_batch, lse_head);
  MSK_DEF(m, attention_backward, problem, q, k, v, o, dout, lse, dlse, lse_batch, lse_head, dq, dk, dv);
  MSK_DEF(m, attention_keep, problem, sequence, keep);
}

}  // namespace mindspeed_ms::kernels
