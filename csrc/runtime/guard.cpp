// Device guards: one for npu, and one under the name CUDA so that `with torch.cuda.device(i)` and factories
// called with device="cuda" find a guard. Streams run in order on the calling thread (CPU target), so
// recording, waiting and synchronising are immediate.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <atomic>
#include <chrono>

#include "runtime/device.h"

namespace mindspeed_ms {
namespace {

std::atomic<c10::StreamId> g_next_stream{1};
thread_local std::array<c10::StreamId, 64> tls_stream{};

struct Event {
  std::chrono::steady_clock::time_point time;
};

template <c10::DeviceType kType>
struct GuardImpl final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device d) const override {
    return {kType, d.has_index() ? exchange_device(d.index()) : current_device()};
  }
  c10::Device getDevice() const override { return {kType, current_device()}; }
  void setDevice(c10::Device d) const override {
    if (d.has_index()) set_current_device(d.index());
  }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.has_index() && d.index() < device_count()) set_current_device(d.index());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }

  static c10::Stream stream(c10::Device d, c10::StreamId id) {
    c10::Device npu(kNpu, d.has_index() ? d.index() : current_device());
    return c10::Stream(c10::Stream::UNSAFE, npu, id);
  }
  c10::Stream getStream(c10::Device d) const override {
    return stream(d, tls_stream.at(d.has_index() ? d.index() : current_device()));
  }
  c10::Stream getDefaultStream(c10::Device d) const override { return stream(d, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override {
    return stream(d, g_next_stream++);
  }
  c10::Stream getNewStream(c10::Device d, int) const override { return stream(d, g_next_stream++); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    auto& current = tls_stream.at(s.device_index());
    auto previous = stream(s.device(), current);
    current = s.id();
    return previous;
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void* getStreamNativeHandle(const c10::Stream s) const override { return reinterpret_cast<void*>(s.id()); }

  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new Event;
    static_cast<Event*>(*event)->time = std::chrono::steady_clock::now();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const override {
    TORCH_CHECK(start && end, "both events must be recorded before their elapsed time is asked for.");
    return std::chrono::duration<double, std::milli>(static_cast<Event*>(end)->time -
                                                     static_cast<Event*>(start)->time)
        .count();
  }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

using NpuGuard = GuardImpl<c10::DeviceType::PrivateUse1>;
using CudaNameGuard = GuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(PrivateUse1, NpuGuard)

}  // namespace

// Only where torch itself has no CUDA guard: a CUDA build's own guard must stay until the redirect replaces
// it.
void register_cuda_name_guard() {
  static CudaNameGuard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}

}  // namespace mindspeed_ms
