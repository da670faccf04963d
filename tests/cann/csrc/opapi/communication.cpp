// Products fused with a collective. Limits: aclnnAllGatherMatmul.md, aclnnMatmulReduceScatter.md,
// aclnnMatmulAllReduce.md.
#include "../hccl/transport.h"
#include "op.h"

using namespace opapi;

namespace {

int check(const char* function, In a, In b, In bias, const char* group, const char* reduction, int64_t turn,
          int64_t mode, Out out) {
  if (int error = refuse_types(function, "x1, x2, output", kHalves, {a, b, out})) return error;
  if (a.type() != b.type() || a.type() != out.type())
    return refuse(function, "x1, x2 and output differ in dtype");
  if (a.dim() != 2 || b.dim() != 2 || out.dim() != 2)
    return refuse(function, "x1, x2 and output must be matrices");
  if (a.p->stride[1] != 1 && a.size(1) > 1) return refuse(function, "x1 must not be transposed");
  if (a.size(1) != b.size(0))
    return refuse(function, "k differs: x1 " + shape_text(a) + ", x2 " + shape_text(b));
  if (a.size(1) < 256 || a.size(1) >= 65535)
    return refuse(function, "k must be in [256, 65535): x1 " + shape_text(a));
  if (bias) return refuse(function, "a bias is not supported");
  if (turn != 0 || mode != 1) return refuse(function, "commTurn must be 0 and streamMode 1");
  if (std::string(reduction) != "sum") return refuse(function, "reduceOp must be sum");
  auto* comm = sim::find_comm(group);
  if (!comm) return refuse(function, std::string("there is no communicator named ") + group);
  if (comm->size != 2 && comm->size != 4 && comm->size != 8)
    return refuse(function, "2, 4 or 8 ranks are supported");
  return sim::kOk;
}

std::string call_text(const char* function, In a, In b) {
  return std::string(sim::kernel_name(function)) + "(" + shape_text(a) + ", " + shape_text(b) + ")";
}

// What every rank has published, in rank order.
std::vector<Tensor> gathered(sim::Comm& comm, const std::string& call, const Tensor& mine) {
  auto bytes = mine.contiguous();
  std::vector<Tensor> all;
  comm.exchange(call, bytes.data_ptr(), bytes.nbytes(), [&] {
    for (uint32_t k = 0; k < comm.size; ++k)
      all.push_back(at::from_blob(comm.published(k, bytes.nbytes()), bytes.sizes(), bytes.options()).clone());
  });
  return all;
}
Tensor reduced(sim::Comm& comm, const std::string& call, const Tensor& mine) {
  auto all = gathered(comm, call, mine);
  for (uint32_t k = 1; k < comm.size; ++k) all[0] += all[k];
  return all[0];
}

}  // namespace

ACLNN(aclnnAllGatherMatmul, In a, In b, In bias, const char* group, int64_t gather_index, int64_t turn,
      int64_t mode, Out out, Out gathered_out) {
  if (int error = check(__func__, a, b, bias, group, "sum", turn, mode, out)) return error;
  REQUIRE(gather_index == 0, "gatherIndex must be 0");
  auto* comm = sim::find_comm(group);
  auto call = call_text(__func__, a, b);
  COLLECTIVE_KERNEL({
    auto rows = at::cat(gathered(*comm, call, a()), 0);
    if (gathered_out && gathered_out.size(0)) put(gathered_out, rows);  // shape (0): nobody asks for it
    put(out, at::matmul(wide(rows), wide(b)));
  });
}
ACLNN(aclnnMatmulReduceScatter, In a, In b, In bias, const char* group, const char* reduction, int64_t turn,
      int64_t mode, Out out) {
  if (int error = check(__func__, a, b, bias, group, reduction, turn, mode, out)) return error;
  auto* comm = sim::find_comm(group);
  REQUIRE(a.size(0) % comm->size == 0, "m must be a multiple of the number of ranks: x1 " + shape_text(a));
  auto call = call_text(__func__, a, b);
  COLLECTIVE_KERNEL(
      put(out, at::chunk(reduced(*comm, call, at::matmul(wide(a), wide(b))), comm->size, 0)[comm->rank]));
}
ACLNN(aclnnMatmulAllReduce, In a, In b, In bias, const char* group, const char* reduction, int64_t turn,
      int64_t mode, Out out) {
  if (int error = check(__func__, a, b, bias, group, reduction, turn, mode, out)) return error;
  auto* comm = sim::find_comm(group);
  auto call = call_text(__func__, a, b);
  COLLECTIVE_KERNEL(put(out, reduced(*comm, call, at::matmul(wide(a), wide(b)))));
}
