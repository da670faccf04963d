#include "runtime/device.h"

#include <c10/util/Exception.h>
#include <pthread.h>
#include <pybind11/pybind11.h>

#include <atomic>

namespace mindspeed_ms {
namespace {

c10::DeviceIndex g_count = 1;
thread_local c10::DeviceIndex tls_current = 0;
// On Ascend: the one card of this process, whatever the thread. MindSpore cannot change it.
bool g_one_card = false;
std::atomic<c10::DeviceIndex> g_card{0};
std::atomic<bool> g_initialized{false};
std::atomic<bool> g_bad_fork{false};
PyObject* g_initializer = nullptr;  // guarded by the GIL

void check_index(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < g_count, "npu device index ", static_cast<int>(index),
              " is out of range: ", static_cast<int>(g_count), " device(s) are visible.");
}

}  // namespace

c10::DeviceIndex device_count() noexcept { return g_count; }

void set_device_count(c10::DeviceIndex count) {
  TORCH_CHECK(count >= 1, "the npu device count must be at least 1, got ", static_cast<int>(count), ".");
  g_count = count;
}

void use_one_card(c10::DeviceIndex card) {
  check_index(card);
  g_one_card = true;
  g_card = card;
}

c10::DeviceIndex current_device() noexcept { return g_one_card ? g_card.load() : tls_current; }

void set_current_device(c10::DeviceIndex index) {
  check_index(index);
  if (!g_one_card) {
    tls_current = index;
    return;
  }
  TORCH_CHECK(!g_initialized || index == g_card, "npu:", static_cast<int>(index), " was asked for, but this ",
              "process runs on npu:", static_cast<int>(g_card.load()),
              " already and keeps to one card: call ",
              "torch.cuda.set_device before the first tensor on the device, and start one process per card.");
  g_card = index;
}

bool may_choose(c10::DeviceIndex index) noexcept {
  return index >= 0 && index < g_count && !(g_one_card && g_initialized && index != g_card);
}

c10::DeviceIndex exchange_device(c10::DeviceIndex index) {
  auto previous = current_device();
  set_current_device(index);
  return previous;
}

bool in_bad_fork() noexcept { return g_bad_fork; }
bool is_initialized() noexcept { return g_initialized; }

void set_initializer(void* callable) {
  auto* fn = static_cast<PyObject*>(callable);
  Py_XINCREF(fn);
  Py_XDECREF(g_initializer);
  g_initializer = fn;
}

void ensure_initialized() {
  TORCH_CHECK(
      !g_bad_fork,
      "Cannot use the npu device in a forked subprocess: MindSpore does not survive fork(). Start the "
      "process with the 'spawn' method, or keep npu tensors out of it.");
  if (g_initialized) return;
  pybind11::gil_scoped_acquire gil;
  if (g_initialized || !g_initializer) return;
  // Set first: the initializer itself may allocate on the device.
  g_initialized = true;
  try {
    pybind11::reinterpret_borrow<pybind11::object>(g_initializer)();
  } catch (...) {
    g_initialized = false;
    throw;
  }
  static bool atfork = [] {
    pthread_atfork(nullptr, nullptr, [] { g_bad_fork = true; });
    return true;
  }();
  (void)atfork;
}

}  // namespace mindspeed_ms
