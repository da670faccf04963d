#include "aten/op_info.h"

#include <ATen/core/enum_tag.h>

#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace mindspeed_ms {
namespace {

ArgKind kind_of(const c10::Argument& arg) {
  auto type = arg.real_type();
  if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  switch (type->kind()) {
    case c10::TypeKind::DeviceObjType:
      return ArgKind::Device;
    case c10::TypeKind::GeneratorType:
      return ArgKind::Generator;
    case c10::TypeKind::ScalarTypeType:
      return ArgKind::Dtype;
    case c10::TypeKind::LayoutType:
      return ArgKind::Layout;
    case c10::TypeKind::MemoryFormatType:
      return ArgKind::MemoryFormat;
    default:
      return ArgKind::Other;
  }
}

// Operators that torch itself lets mix host and device tensors: copies, and indices kept on the host.
bool mixes(const std::string& name) {
  static const std::unordered_set<std::string> names = {"aten::copy_",
                                                        "aten::_copy_from",
                                                        "aten::_copy_from_and_resize",
                                                        "aten::_foreach_copy_",
                                                        "aten::index",
                                                        "aten::index_put",
                                                        "aten::index_put_",
                                                        "aten::_index_put_impl_",
                                                        "aten::_to_copy",
                                                        "aten::set_",
                                                        "aten::_index_put_impl",
                                                        "aten::_unsafe_index",
                                                        "aten::_unsafe_index_put"};
  return names.count(name) > 0;
}

// The running statistics of a batch norm, which its schema does not mark.
bool written_unmarked(const std::string& name, const std::string& argument) {
  return name == "aten::native_batch_norm" && argument.rfind("running_", 0) == 0;
}

}  // namespace

OpInfo::OpInfo(const c10::OperatorHandle& op)
    : name(c10::toString(op.operator_name())),
      mixes_devices(mixes(op.operator_name().name)),
      counters(counters_of(name)) {
  bool takes_generator = false;
  for (const auto& arg : op.schema().arguments()) {
    ArgInfo info{kind_of(arg), (arg.alias_info() && arg.alias_info()->isWrite()) ||
                                   written_unmarked(op.operator_name().name, arg.name())};
    writes |= info.written;
    takes_generator |= info.kind == ArgKind::Generator;
    args.push_back(info);
  }
  seeded = !takes_generator && op.hasTag(at::Tag::nondeterministic_seeded);
}

const OpInfo& op_info(const c10::OperatorHandle& op) {
  // The name lives inside the operator's registration: its address identifies the operator.
  const void* key = &op.operator_name();
  struct Slot {
    const void* key = nullptr;
    const OpInfo* info = nullptr;
  };
  static thread_local std::array<Slot, 512> cache;
  auto& slot = cache[(reinterpret_cast<uintptr_t>(key) >> 5) % cache.size()];
  if (slot.key == key) return *slot.info;

  static std::mutex mutex;
  static auto* infos = new std::unordered_map<const void*, std::unique_ptr<OpInfo>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& info = (*infos)[key];
  if (!info) info = std::make_unique<OpInfo>(op);
  slot = {key, info.get()};
  return *info;
}

}  // namespace mindspeed_ms
