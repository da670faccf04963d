// Device guards: one for npu, and one under the name CUDA so that `with torch.cuda.device(i)` and factories
// called with device="cuda" find a guard. On the CPU target work is done on the calling thread, so recording,
// waiting and synchronising are immediate; on Ascend they are MindSpore's.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pybind11/pybind11.h>

#include <array>
#include <atomic>
#include <chrono>

#include "runtime/bus.h"
#include "runtime/device.h"
#include "runtime/opaque.h"
#include "runtime/streams.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

// Calls a stream hook; where MindSpore has not started, no stream has anything to do yet.
template <typename Result, typename... Args>
Result on_device(PyObject* StreamHooks::*hook, Result otherwise, Args&&... args) {
  if (!opaque_memory()) return otherwise;
  py::gil_scoped_acquire gil;
  PyObject* fn = stream_hooks().*hook;
  if (!fn) return otherwise;
  auto out = py::reinterpret_borrow<py::object>(fn)(std::forward<Args>(args)...);
  if constexpr (std::is_same_v<Result, py::object>)
    return out;
  else
    return out.is_none() ? otherwise : py::cast<Result>(out);
}

std::atomic<c10::StreamId> g_next_stream{1};
thread_local std::array<c10::StreamId, 64> tls_stream{};

struct Event {
  std::chrono::steady_clock::time_point time;
  PyObject* device = nullptr;  // owned: MindSpore's event

  py::handle handle() const { return device ? py::handle(device) : py::handle(Py_None); }
  ~Event() {
    if (!device || !Py_IsInitialized()) return;
    py::gil_scoped_acquire gil;
    Py_DECREF(device);
  }
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
    if (d.has_index() && d.index() != current_device() && may_choose(d.index()))
      set_current_device(d.index());
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
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool high) const override {
    return getNewStream(d, high ? -1 : 0);
  }
  c10::Stream getNewStream(c10::Device d, int priority) const override {
    if (opaque_memory()) ensure_initialized();
    const c10::StreamId id = g_next_stream++;
    on_device(&StreamHooks::make, 0, id, priority);
    return stream(d, id);
  }
  c10::Stream exchangeStream(c10::Stream s) const override {
    auto& current = tls_stream.at(s.device_index());
    auto previous = stream(s.device(), current);
    if (current != s.id()) on_device(&StreamHooks::enter, 0, s.id());
    current = s.id();
    return previous;
  }
  bool queryStream(const c10::Stream& s) const override {
    return on_device(&StreamHooks::query, true, s.id());
  }
  void synchronizeStream(const c10::Stream& s) const override {
    if (!opaque_memory()) return;
    on_device(&StreamHooks::synchronize, 0, s.id());
    count_synchronization();
  }
  void* getStreamNativeHandle(const c10::Stream s) const override { return reinterpret_cast<void*>(s.id()); }

  void record(void** event, const c10::Stream& s, const c10::DeviceIndex,
              const c10::EventFlag flag) const override {
    if (!*event) *event = new Event;
    auto& e = *static_cast<Event*>(*event);
    e.time = std::chrono::steady_clock::now();
    if (!opaque_memory()) return;
    py::gil_scoped_acquire gil;
    const bool timing = flag == c10::EventFlag::BACKEND_DEFAULT;
    auto made = on_device(&StreamHooks::record, py::object(py::none()), e.handle(), s.id(), timing);
    Py_XDECREF(e.device);
    e.device = made.is_none() ? nullptr : made.release().ptr();
  }
  void block(void* event, const c10::Stream& s) const override {
    if (event) on_device(&StreamHooks::wait, 0, static_cast<Event*>(event)->handle(), s.id());
  }
  bool queryEvent(void* event) const override {
    return !event || on_device(&StreamHooks::event_query, true, static_cast<Event*>(event)->handle());
  }
  void synchronizeEvent(void* event) const override {
    if (!event || !opaque_memory()) return;
    on_device(&StreamHooks::event_synchronize, 0, static_cast<Event*>(event)->handle());
    count_synchronization();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const override {
    return elapsed_milliseconds(reinterpret_cast<int64_t>(start), reinterpret_cast<int64_t>(end));
  }
  void synchronizeDevice(const c10::DeviceIndex) const override {
    if (opaque_memory()) opaque_synchronize();
  }
};

using NpuGuard = GuardImpl<c10::DeviceType::PrivateUse1>;
using CudaNameGuard = GuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(PrivateUse1, NpuGuard)

}  // namespace

StreamHooks& stream_hooks() {
  static StreamHooks hooks;
  return hooks;
}

bool side_streams_used() noexcept { return g_next_stream > 1; }

double elapsed_milliseconds(int64_t start, int64_t end) {
  TORCH_CHECK(start && end, "both events must be recorded before their elapsed time is asked for.");
  auto *a = reinterpret_cast<Event*>(start), *b = reinterpret_cast<Event*>(end);
  const double host = std::chrono::duration<double, std::milli>(b->time - a->time).count();
  return on_device(&StreamHooks::elapsed, host, a->handle(), b->handle());
}

// Only where torch itself has no CUDA guard: a CUDA build's own guard must stay until the redirect replaces
// it.
void register_cuda_name_guard() {
  static CudaNameGuard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}

}  // namespace mindspeed_ms
