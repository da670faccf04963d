// What torch asks of an accelerator (AcceleratorHooksInterface) and its allocators.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <map>
#include <mutex>

#include "runtime/device.h"
#include "runtime/generator.h"
#include "runtime/memory.h"
#include "runtime/opaque.h"

namespace mindspeed_ms {
namespace {

class NpuAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    ensure_initialized();
    return allocate_bytes(nbytes, current_device());
  }
  void copy_data(void* dest, const void* src, std::size_t count) const override {
    TORCH_CHECK(!opaque_memory(), "opaque npu memory cannot be copied by address.");
    default_copy_data(dest, src, count);
  }
  bool initialized() override { return is_initialized(); }
  void emptyCache(c10::MempoolId_t) override { empty_cache(); }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}  // streams run in order on the CPU target
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    auto& s = memory_stats(device);
    c10::CachingDeviceAllocator::DeviceStats out;
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    for (auto* bytes : {&out.allocated_bytes, &out.active_bytes, &out.requested_bytes}) {
      (*bytes)[all].current = s.allocated;
      (*bytes)[all].peak = s.peak;
    }
    out.reserved_bytes[all].current = reserved_memory(device);
    out.reserved_bytes[all].peak = s.reserved_peak;
    out.allocation[all].current = s.allocations - s.frees;
    out.allocation[all].allocated = s.allocations;
    out.allocation[all].freed = s.frees;
    return out;
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override {
    auto& s = memory_stats(device);
    s.allocations = s.allocations - s.frees;
    s.frees = 0;
  }
  void resetPeakStats(c10::DeviceIndex device) override { reset_peak_memory(device); }
};

// Pinned memory: ordinary host memory on the CPU target, MindSpore's on Ascend. The ranges are remembered so
// that is_pinned() tells the truth.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    if (opaque_memory()) ensure_initialized();
    PinnedBlock block{nbytes};
    void* data = opaque_memory() && nbytes ? pin_host(nbytes, &block.owner) : c10::alloc_cpu(nbytes);
    if (data) {
      std::lock_guard<std::mutex> lock(mutex_);
      ranges_[reinterpret_cast<uintptr_t>(data)] = block;
    }
    return {data, data, &PinnedAllocator::free, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }
  bool contains(const void* p) const {
    auto address = reinterpret_cast<uintptr_t>(p);
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = ranges_.upper_bound(address);
    if (it == ranges_.begin()) return false;
    --it;
    return address < it->first + it->second.nbytes;
  }
  static PinnedAllocator& get() {
    static auto* allocator = new PinnedAllocator;  // outlives every tensor
    return *allocator;
  }

 private:
  static void free(void* data) {
    auto& self = get();
    PyObject* owner = nullptr;
    {
      std::lock_guard<std::mutex> lock(self.mutex_);
      auto it = self.ranges_.find(reinterpret_cast<uintptr_t>(data));
      if (it != self.ranges_.end()) {
        owner = it->second.owner;
        self.ranges_.erase(it);
      }
    }
    if (owner)
      release_object(owner);
    else
      c10::free_cpu(data);
  }
  struct PinnedBlock {
    size_t nbytes;
    PyObject* owner = nullptr;  // MindSpore's tensor over it
  };
  mutable std::mutex mutex_;
  std::map<uintptr_t, PinnedBlock> ranges_;
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  void init() const override { ensure_initialized(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return is_initialized(); }
  c10::DeviceIndex deviceCount() const override { return device_count(); }
  void setCurrentDevice(c10::DeviceIndex d) const override { set_current_device(d); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex d) const override { return exchange_device(d); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex d) const override { return exchange_device(d); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex d) const override { return default_generator(d); }
  at::Generator getNewGenerator(c10::DeviceIndex d) const override { return new_generator(d); }
  at::Device getDeviceFromPtr(void*) const override { return at::Device(kNpu, current_device()); }
  bool isPinnedPtr(const void* p) const override { return PinnedAllocator::get().contains(p); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &PinnedAllocator::get(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t nbytes) const override {
    resize_storage(*storage.unsafeGetStorageImpl(), nbytes);
  }
};

NpuAllocator g_allocator;
Hooks g_hooks;

}  // namespace

void register_device() {
  c10::SetAllocator(kNpu, &g_allocator);
  at::RegisterPrivateUse1HooksInterface(&g_hooks);
}

}  // namespace mindspeed_ms
