#include "aten/meta_results.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_strided.h>

#include "runtime/device.h"

namespace mindspeed_ms {
namespace {

at::Tensor meta_of(const at::Tensor& t) {
  if (!t.defined() || t.device().type() != kNpu) return t;
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kMeta));
}

c10::IValue meta_argument(const c10::IValue& value, const ArgInfo& arg) {
  if (value.isTensor()) return meta_of(value.toTensor());
  if (value.isTensorList()) {
    auto list = value.toTensorVector();
    for (auto& t : list) t = meta_of(t);
    return c10::List<at::Tensor>(list);
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& t : value.toOptionalTensorList())
      list.push_back(t ? std::optional<at::Tensor>(meta_of(*t)) : std::nullopt);
    return list;
  }
  if (arg.kind == ArgKind::Device && value.isDevice() && value.toDevice().type() == kNpu)
    return c10::Device(at::kMeta);
  return value;
}

}  // namespace

std::optional<std::vector<at::Tensor>> meta_results(const c10::OperatorHandle& op, const OpInfo& info,
                                                    const torch::jit::Stack& stack) {
  const size_t begin = stack.size() - info.args.size();
  torch::jit::Stack values;
  for (size_t i = 0; i < info.args.size(); ++i)
    values.push_back(meta_argument(stack[begin + i], info.args[i]));
  try {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.callBoxed(values);
  } catch (const std::exception&) {
    return std::nullopt;  // whoever computes it says what is wrong, in torch's words
  }
  std::vector<at::Tensor> results;
  for (const auto& value : values) {
    if (value.isTensor())
      results.push_back(value.toTensor());
    else if (value.isTensorList())
      for (const auto& t : value.toTensorVector()) results.push_back(t);
    else
      return std::nullopt;  // a number, which only a computation knows
  }
  return results;
}

}  // namespace mindspeed_ms
