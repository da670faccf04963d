// Puts the host route in front of torch's composite kernels. An operator that has both a CPU kernel and a
// composite one (layer norm, every structured operator) would reach npu through the composite: slower, and
// rounded otherwise than plain torch on CPU. With the host route registered it runs the CPU kernel itself.
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <unordered_map>
#include <unordered_set>

#include "aten/host_route.h"

namespace mindspeed_ms {
namespace {

auto& registrations() {
  static auto* handles = new std::unordered_map<std::string, c10::RegistrationHandleRAII>;
  return *handles;
}

// Composites that look at the device to choose an implementation, and know none for npu.
bool chooses_by_device(const c10::OperatorName& name) {
  static const std::unordered_set<std::string> names = {"aten::convolution", "aten::convolution_backward",
                                                        "aten::mode.values"};
  return names.count(c10::toString(name));
}

bool has_composite(const c10::OperatorHandle& op) {
  return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
         op.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
}

}  // namespace

void register_host_kernels() {
  if (!registrations().empty()) return;
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.getNamespace() != "aten") continue;
    auto op = dispatcher.findSchema(name);
    if (!op || !has_composite(*op)) continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CPU) && !chooses_by_device(name)) continue;
    if (op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) continue;
    registrations().emplace(
        c10::toString(name),
        dispatcher.registerImpl(name, c10::DispatchKey::PrivateUse1,
                                c10::KernelFunction::makeFromBoxedFunction<&host_fallback>(), std::nullopt,
                                nullptr, "mindspeed_ms host route"));
  }
}

void drop_host_kernel(const std::string& op) { registrations().erase(op); }

}  // namespace mindspeed_ms
