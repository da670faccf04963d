// Extension 1, `mindspeed_ms._runtime`: the npu device for torch. Python sees it through mindspeed_ms.device.
#include <torch/csrc/utils/pybind.h>

#include "aten/borrow.h"
#include "aten/host_route.h"
#include "aten/lowering.h"
#include "aten/routes_bind.h"
#include "runtime/block_cache.h"
#include "runtime/bus.h"
#include "runtime/device.h"
#include "runtime/generator.h"
#include "runtime/memory.h"
#include "runtime/opaque.h"
#include "runtime/streams.h"

namespace py = pybind11;

namespace mindspeed_ms {

void register_device();
void register_copies();
void register_cuda_name_guard();
void register_cuda_redirect();

namespace {

void bind_device(py::module_& m) {
  m.def(
      "register_device",
      [] {
        register_device();
        register_copies();
        register_host_kernels();
      },
      "Registers allocator, hooks and host kernels of the npu device with torch.");
  m.def(
      "register_cuda_redirect",
      [] {
        register_cuda_name_guard();
        register_cuda_redirect();
      },
      "Makes device 'cuda' land on npu inside the dispatcher.");
  m.def("set_initializer", [](py::object fn) { set_initializer(fn.ptr()); });
  m.def("ensure_initialized", &ensure_initialized);
  m.def("is_initialized", &is_initialized);
  m.def("in_bad_fork", &in_bad_fork);
  m.def("device_count", [] { return static_cast<int>(device_count()); });
  m.def("set_device_count", [](int n) { set_device_count(static_cast<c10::DeviceIndex>(n)); });
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("set_device", [](int d) { set_current_device(static_cast<c10::DeviceIndex>(d)); });
  m.def("exchange_device",
        [](int d) { return static_cast<int>(exchange_device(static_cast<c10::DeviceIndex>(d))); });
  m.def(
      "use_one_card", [](int d) { use_one_card(static_cast<c10::DeviceIndex>(d)); },
      "This process has one card, `d` until set_device says otherwise before the first use.");
  m.def(
      "draw_philox",
      [](const std::optional<at::Generator>& generator, int device, uint64_t count) {
        const auto& g = generator ? *generator : default_generator(static_cast<c10::DeviceIndex>(device));
        TORCH_CHECK(g.device().type() == kNpu, "Expected a 'npu' device type for generator but found '",
                    g.device().type(), "'");
        return g.get<NpuGenerator>()->draw_philox(count);
      },
      "(seed, offset) of the next `count` numbers of each element.");
  m.def("default_generator", [](int d) { return default_generator(static_cast<c10::DeviceIndex>(d)); });
  m.def("engine_of", &engine_of,
        "The CPU generator behind an npu generator; drawing from it needs no device.");
  m.def(
      "memory_stats",
      [](int d) {
        auto& s = memory_stats(static_cast<c10::DeviceIndex>(d));
        py::dict out;
        out["allocated"] = s.allocated.load();
        out["peak"] = s.peak.load();
        out["reserved"] = reserved_memory(static_cast<c10::DeviceIndex>(d));
        out["reserved_peak"] = s.reserved_peak.load();
        out["mapped"] = block_cache::stats().mapped;
        out["allocations"] = s.allocations.load();
        out["frees"] = s.frees.load();
        return out;
      },
      "Bytes now and at peak, and counts, of live npu storages of one device; reserved: with what is kept "
      "for others.");
  m.def("share_storage", &share_storage, py::arg("to"), py::arg("from_"),
        "The memory of `from_` becomes that of `to` and of every tensor over its storage, below autograd.");
  m.def("empty_cache", &empty_cache, "Gives memory that is kept for later allocations back to the system.");
  m.def("reset_peak_memory", [](int d) { reset_peak_memory(static_cast<c10::DeviceIndex>(d)); });
}

void bind_opaque(py::module_& m) {
  m.def("opaque_memory", &opaque_memory);
  m.def("set_opaque_memory", &set_opaque_memory);
  m.def("set_opaque_hooks", [](const py::dict& hooks) {
    auto& h = opaque_hooks();
    auto take = [&](const char* name) { return py::object(hooks[name]).release().ptr(); };
    h = {take("allocate"), take("view"),    take("reshape"), take("retype"),     take("copy"),
         take("cast"),     take("clone"),   take("fill"),    take("settle"),     take("write_host"),
         take("send"),     take("to_host"), take("pin"),     take("synchronize")};
  });
}

void bind_streams(py::module_& m) {
  m.def("set_stream_hooks", [](const py::dict& hooks) {
    auto take = [&](const char* name) { return py::object(hooks[name]).release().ptr(); };
    stream_hooks() = {take("make"),   take("enter"), take("query"),       take("synchronize"),
                      take("record"), take("wait"),  take("event_query"), take("event_synchronize"),
                      take("elapsed")};
  });
  m.def("elapsed_milliseconds", &elapsed_milliseconds,
        "Between two events, as torch.Event.event_id names them.");
  m.def("synchronize_device", &opaque_synchronize, "Waits for all streams of an Ascend device.");
}

void bind_bus(py::module_& m) {
  m.def(
      "bus_counters",
      [] {
        py::dict out;
        for (auto& [cause, t] : bus_rows()) {
          py::dict row;
          row["to_device_calls"] = t.to_device_calls;
          row["to_device_bytes"] = t.to_device_bytes;
          row["to_host_calls"] = t.to_host_calls;
          row["to_host_bytes"] = t.to_host_bytes;
          row["synchronizations"] = t.synchronizations;
          out[py::str(cause)] = row;
        }
        return out;
      },
      "{cause: counts} of what crossed between host and device since the last reset, and of the times that "
      "the host waited for the device. Empty where npu memory is host memory.");
  m.def("reset_bus_counters", &reset_bus);
  m.def("count_synchronization", &count_synchronization);
}

void bind_borrow(py::module_& m) {
  m.def("set_mindspore", &set_mindspore);
  m.def("set_mindspore_starter", &set_mindspore_starter);
  m.def("to_mindspore", &lend_to_mindspore, "ms.Tensor over the memory of an npu tensor, no copy.");
  m.def(
      "from_mindspore",
      [](py::handle t, int d) { return adopt_from_mindspore(t, static_cast<c10::DeviceIndex>(d)); },
      "npu tensor over the memory of an ms.Tensor, no copy unless it is not contiguous.");
  m.def("host_alias", &host_alias, "CPU tensor over the memory of an npu tensor, no copy.");
  m.def(
      "adopt_host",
      [](const at::Tensor& t, int d) { return adopt_host(t, static_cast<c10::DeviceIndex>(d)); },
      "npu tensor over the memory of a CPU tensor, no copy.");
}

}  // namespace
}  // namespace mindspeed_ms

PYBIND11_MODULE(_runtime, m) {
  using namespace mindspeed_ms;
  m.doc() = "The npu device for torch: memory, generator, routes, borrowing to and from MindSpore.";
  bind_device(m);
  bind_opaque(m);
  bind_streams(m);
  bind_bus(m);
  bind_routes(m);
  bind_borrow(m);
  bind_lowerings(m);
}
