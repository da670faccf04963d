// The operators of the single-operator path, by the type that GE gives them.
#include <c10/core/InferenceMode.h>

#include <unordered_map>

#include "op.h"

using namespace opapi;

namespace {

// One call: its inputs, outputs and attributes as ATen sees them.
class Call {
 public:
  explicit Call(const sim::AclopCall& call) : c(call) {}
  size_t inputs() const { return c.in.size(); }
  Tensor in(size_t i) const { return view(c.in[i], c.in_data[i]); }
  Tensor index(size_t i) const { return in(i).to(at::kLong); }
  std::vector<int64_t> ints(size_t i) const {
    auto x = index(i).contiguous();
    return {x.data_ptr<int64_t>(), x.data_ptr<int64_t>() + x.numel()};
  }
  int64_t attribute(const char* name, int64_t otherwise) const {
    auto found = c.attributes.ints.find(name);
    return found == c.attributes.ints.end() ? otherwise : found->second;
  }
  std::string word(const char* name) const {
    auto found = c.attributes.strings.find(name);
    return found == c.attributes.strings.end() ? "" : found->second;
  }
  at::IntArrayRef out_shape(size_t i = 0) const { return c.out[i].dims; }
  Tensor out(size_t i = 0) const { return view(c.out[i], c.out_data[i]); }
  void write(const Tensor& result, size_t i = 0) const {
    auto to = out(i);
    to.copy_(result.sizes() == to.sizes() ? result : result.reshape(to.sizes()));
  }
  std::vector<Tensor> all() const {
    std::vector<Tensor> list;
    for (size_t i = 0; i < inputs(); ++i) list.push_back(in(i));
    return list;
  }

 private:
  static Tensor view(const sim::Desc& d, const sim::Buffer& b) {
    void* data = b.data ? b.data : const_cast<void*>(d.constant);
    return at::from_blob(sim::bytes_of(data), d.dims, at::TensorOptions().dtype(scalar_type(d.dtype)));
  }
  const sim::AclopCall& c;
};

void same(const Call& c) { c.write(c.in(0)); }
void gather(const Call& c) {
  auto x = c.in(0);
  int64_t axis = at::maybe_wrap_dim(c.ints(2)[0], x.dim());
  c.write(at::index_select(x, axis, c.index(1).reshape({-1})));
}
void unsorted_segment_sum(const Call& c) {
  auto x = wide(c.in(0)), rows = c.index(1).reshape({-1});
  auto shape = c.out_shape().vec();
  auto sum = at::zeros(shape, x.options());
  shape[0] = rows.numel();
  c.write(sum.index_add_(0, rows, x.reshape(shape)));
}
void scatter_elements(const Call& c) {
  auto x = c.in(0).clone();
  int64_t axis = c.attribute("axis", 0);
  if (c.word("reduction") == "add")
    x.scatter_add_(axis, c.index(1), c.in(2));
  else
    x.scatter_(axis, c.index(1), c.in(2));
  c.write(x);
}
void tensor_scatter_update(const Call& c) {
  c10::List<std::optional<Tensor>> index;
  for (auto& part : c.index(1).unbind(-1)) index.push_back(part);
  c.write(at::index_put(c.in(0), index, c.in(2)));
}
void sort(const Call& c) {
  auto [values, where] = at::sort(c.in(0), c.attribute("axis", -1), c.attribute("descending", 0));
  c.write(values);
  c.write(where, 1);
}
void top_k(const Call& c) {
  auto [values, where] = at::topk(c.in(0), c.ints(1)[0], c.attribute("dim", -1), c.attribute("largest", 1),
                                  c.attribute("sorted", 1));
  c.write(values);
  c.write(where, 1);
}
void range(const Call& c) {
  auto to = c.out();
  to.copy_(at::arange(to.numel()).to(to.scalar_type()) * c.in(2) + c.in(0));
}
void reduce_sum(const Call& c) {
  auto dims = c.ints(1);
  c.write(at::sum(wide(c.in(0)), dims, c.attribute("keep_dims", 0)));
}

const std::unordered_map<std::string, void (*)(const Call&)> kKernels = {
    {"Identity", same},
    {"Cast", same},
    {"Reshape", same},
    {"TensorMove", same},
    {"ZerosLike", [](const Call& c) { c.out().zero_(); }},
    {"OnesLike", [](const Call& c) { c.out().fill_(1); }},
    {"Fill", [](const Call& c) { c.write(c.in(1).expand(c.out_shape())); }},
    {"Add", [](const Call& c) { c.write(wide(c.in(0)) + wide(c.in(1))); }},
    {"AddV2", [](const Call& c) { c.write(wide(c.in(0)) + wide(c.in(1))); }},
    {"Sub", [](const Call& c) { c.write(wide(c.in(0)) - wide(c.in(1))); }},
    {"Mul", [](const Call& c) { c.write(wide(c.in(0)) * wide(c.in(1))); }},
    {"RealDiv", [](const Call& c) { c.write(wide(c.in(0)) / wide(c.in(1))); }},
    {"Div", [](const Call& c) { c.write(wide(c.in(0)) / wide(c.in(1))); }},
    {"Square", [](const Call& c) { c.write(at::square(wide(c.in(0)))); }},
    // Gradients from the result y: inputs y, dy.
    {"SqrtGrad", [](const Call& c) { c.write(wide(c.in(1)) / (2 * wide(c.in(0)))); }},
    {"RsqrtGrad", [](const Call& c) { c.write(-0.5 * wide(c.in(1)) * at::pow(wide(c.in(0)), 3)); }},
    {"ReciprocalGrad", [](const Call& c) { c.write(-wide(c.in(1)) * at::square(wide(c.in(0)))); }},
    {"TanhGrad", [](const Call& c) { c.write(at::tanh_backward(wide(c.in(1)), wide(c.in(0)))); }},
    {"SigmoidGrad", [](const Call& c) { c.write(at::sigmoid_backward(wide(c.in(1)), wide(c.in(0)))); }},
    {"Maximum", [](const Call& c) { c.write(at::maximum(c.in(0), c.in(1))); }},
    {"Minimum", [](const Call& c) { c.write(at::minimum(c.in(0), c.in(1))); }},
    {"IsNan", [](const Call& c) { c.write(at::isnan(c.in(0))); }},
    {"IsInf", [](const Call& c) { c.write(at::isinf(c.in(0))); }},
    {"Transpose", [](const Call& c) { c.write(c.in(0).permute(c.ints(1))); }},
    {"ConcatD",
     [](const Call& c) { c.write(at::cat(c.all(), c.attribute("concat_dim", c.attribute("axis", 0)))); }},
    {"Pack", [](const Call& c) { c.write(at::stack(c.all(), c.attribute("axis", 0))); }},
    {"Tril", [](const Call& c) { c.write(at::tril(c.in(0), c.attribute("diagonal", 0))); }},
    {"Triu", [](const Call& c) { c.write(at::triu(c.in(0), c.attribute("diagonal", 0))); }},
    {"ArgMaxV2", [](const Call& c) { c.write(at::argmax(c.in(0), c.ints(1)[0])); }},
    {"Cumsum", [](const Call& c) { c.write(at::cumsum(wide(c.in(0)), c.ints(1)[0])); }},
    {"GatherElements",
     [](const Call& c) {
       c.write(at::gather(c.in(0), c.attribute("dim", c.attribute("axis", 0)), c.index(c.inputs() - 1)));
     }},
    {"GatherV2", gather},
    {"UnsortedSegmentSum", unsorted_segment_sum},
    {"ScatterElements", scatter_elements},
    {"TensorScatterUpdate", tensor_scatter_update},
    {"Sort", sort},
    {"TopK", top_k},
    {"TopKV2", top_k},
    {"Range", range},
    {"ReduceSum", reduce_sum},
};

void run_aclop(const sim::AclopCall& call) {
  c10::InferenceMode no_autograd(true);
  auto kernel = kKernels.find(call.type);
  if (kernel == kKernels.end())
    throw std::runtime_error("aclop " + call.type + " with " + std::to_string(call.in.size()) +
                             " inputs is not simulated");
  kernel->second(Call(call));
}

const bool registered = (sim::aclop_kernel = run_aclop, true);

}  // namespace
