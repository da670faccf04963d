#include "runtime/memory.h"

#include <pybind11/pybind11.h>
#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstring>
#include <mutex>

#include "runtime/block_cache.h"
#include "runtime/opaque.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

std::array<MemoryStats, 64> g_stats;
bool g_opaque = false;

void delete_memory(void* ctx) { delete static_cast<Memory*>(ctx); }

// For a storage whose memory is another's: its context is a reference to that one.
void drop_reference(void* ctx) { delete static_cast<c10::Storage*>(ctx); }

// Addresses that nobody can read. Reserving one is a call of the kernel and takes as long as an operator's
// launch, so those that come back are kept, by powers of two pages.
class Reservations {
 public:
  void* take(size_t nbytes) {
    const int size = size_class(nbytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!free_[size].empty()) {
        void* address = free_[size].back();
        free_[size].pop_back();
        return address;
      }
    }
    void* address =
        mmap(nullptr, kPage << size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(address != MAP_FAILED, "cannot reserve ", kPage << size,
                " bytes of address space for an npu storage.");
    return address;
  }

  void give_back(void* address, size_t nbytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_[size_class(nbytes)].push_back(address);
  }

 private:
  static constexpr size_t kPage = 4096;
  static int size_class(size_t nbytes) {
    const size_t pages = (std::max<size_t>(nbytes, 1) + kPage - 1) / kPage;
    return std::bit_width(pages - 1);
  }

  std::mutex mutex_;
  std::array<std::vector<void*>, 64> free_;
};
Reservations& reservations() {
  static auto* instance = new Reservations;
  return *instance;
}

void raise(std::atomic<int64_t>& peak, int64_t now) {
  int64_t before = peak;
  while (now > before && !peak.compare_exchange_weak(before, now)) {
  }
}

}  // namespace

void release_object(PyObject* object) {
  if (!object || !Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  Py_DECREF(object);
}

MemoryStats& memory_stats(c10::DeviceIndex device) { return g_stats.at(device); }

void reset_peak_memory(c10::DeviceIndex device) {
  auto& stats = memory_stats(device);
  stats.peak = stats.allocated.load();
  stats.reserved_peak = reserved_memory(device);
}

int64_t reserved_memory(c10::DeviceIndex device) {
  return memory_stats(device).allocated + (g_opaque ? 0 : block_cache::stats().overhead);
}

void empty_cache() { block_cache::release_all(); }

Memory::Memory(size_t nbytes, c10::DeviceIndex device) : nbytes_(nbytes), device_(device) {
  auto& stats = memory_stats(device);
  raise(stats.peak, stats.allocated += static_cast<int64_t>(nbytes));
  raise(stats.reserved_peak, reserved_memory(device));
  ++stats.allocations;
}

Memory::~Memory() {
  auto& stats = memory_stats(device_);
  stats.allocated -= static_cast<int64_t>(nbytes_);
  ++stats.frees;
}

HostMemory::HostMemory(c10::Storage cpu, c10::DeviceIndex device)
    : Memory(cpu.nbytes(), device), cpu_(std::move(cpu)) {}

HostMemory::~HostMemory() { release_object(lent); }

OpaqueMemory::OpaqueMemory(size_t nbytes, c10::DeviceIndex device) : Memory(nbytes, device) {
  address_ = reservations().take(nbytes);
}

OpaqueMemory::~OpaqueMemory() {
  reservations().give_back(address_, nbytes_);
  if (views.empty() && !retyped && !whole) return;
  if (!Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  drop_views();
  Py_XDECREF(retyped);
  Py_XDECREF(whole);
}

void OpaqueMemory::drop_views() {
  auto dropped = std::move(views);
  views.clear();
  for (auto& view : dropped) Py_DECREF(view.tensor);
}

bool OpaqueMemory::View::is(at::ScalarType dtype_, at::IntArrayRef sizes_, at::IntArrayRef strides_,
                            int64_t offset_) const {
  return offset == offset_ && dtype == dtype_ && sizes_ == sizes && strides_ == strides;
}

bool opaque_memory() { return g_opaque; }
void set_opaque_memory(bool on) { g_opaque = on; }

c10::DataPtr make_data_ptr(HostMemory* memory, c10::DeviceIndex device) {
  return {const_cast<void*>(memory->cpu().data()), memory, &delete_memory, c10::Device(kNpu, device)};
}

c10::DataPtr make_data_ptr(OpaqueMemory* memory, c10::DeviceIndex device) {
  return {memory->address(), memory, &delete_memory, c10::Device(kNpu, device)};
}

c10::DataPtr allocate_bytes(size_t nbytes, c10::DeviceIndex device) {
  if (g_opaque) {
    return make_data_ptr(new OpaqueMemory(nbytes, device), device);
  }
  c10::Storage cpu(c10::Storage::use_byte_size_t(), nbytes, block_cache::allocator(), /*resizable=*/true);
  return make_data_ptr(new HostMemory(std::move(cpu), device), device);
}

Memory& memory_of(const c10::StorageImpl& storage) {
  const auto& ptr = storage.data_ptr();
  if (ptr.get_deleter() == &drop_reference) {
    return memory_of(*static_cast<c10::Storage*>(ptr.get_context())->unsafeGetStorageImpl());
  }
  TORCH_CHECK(ptr.get_deleter() == &delete_memory,
              "this npu storage was not allocated by mindspeed_ms and cannot be used on its device.");
  return *static_cast<Memory*>(ptr.get_context());
}

void share_storage(const at::Tensor& to, const at::Tensor& from) {
  TORCH_CHECK(to.device() == from.device(), "a tensor on ", to.device(),
              " cannot share the memory of one on ", from.device());
  auto* storage = to.storage().unsafeGetStorageImpl();
  c10::Storage owner = from.storage();
  while (owner.data_ptr().get_deleter() == &drop_reference)
    owner = c10::Storage(*static_cast<c10::Storage*>(owner.data_ptr().get_context()));
  if (owner.unsafeGetStorageImpl() == storage) return;
  auto* reference = new c10::Storage(std::move(owner));
  storage->set_data_ptr_noswap(
      {reference->mutable_data_ptr().get(), reference, &drop_reference, reference->device()});
  storage->set_nbytes(reference->nbytes());
}

HostMemory& host_memory_of(const c10::StorageImpl& storage) {
  TORCH_INTERNAL_ASSERT_DEBUG_ONLY(!g_opaque);
  return static_cast<HostMemory&>(memory_of(storage));
}

c10::Storage adopt_storage(const c10::Storage& cpu, c10::DeviceIndex device) {
  return c10::Storage(c10::Storage::use_byte_size_t(), cpu.nbytes(),
                      make_data_ptr(new HostMemory(cpu, device), device), c10::GetAllocator(kNpu),
                      /*resizable=*/true);
}

at::Tensor host_alias(const at::Tensor& t) {
  auto* impl = t.unsafeGetTensorImpl();
  auto alias = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(host_memory_of(*impl->unsafe_storage().unsafeGetStorageImpl()).cpu()),
      c10::DispatchKeySet(c10::DispatchKey::CPU), impl->dtype());
  auto* out = alias.unsafeGetTensorImpl();
  out->set_sizes_and_strides(impl->sizes(), impl->strides(), impl->storage_offset());
  if (t.is_conj()) out->_set_conj(true);
  if (t.is_neg()) out->_set_neg(true);
  if (impl->is_wrapped_number()) out->set_wrapped_number(true);
  return alias;
}

at::Tensor adopt_host(const at::Tensor& t, c10::DeviceIndex device) {
  auto* impl = t.unsafeGetTensorImpl();
  auto out = at::detail::make_tensor<c10::TensorImpl>(adopt_storage(impl->unsafe_storage(), device),
                                                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                      impl->dtype());
  auto* o = out.unsafeGetTensorImpl();
  o->set_sizes_and_strides(impl->sizes(), impl->strides(), impl->storage_offset());
  if (t.is_conj()) o->_set_conj(true);
  if (t.is_neg()) o->_set_neg(true);
  return out;
}

void refresh_storage(c10::StorageImpl& storage) {
  auto& old = host_memory_of(storage);
  c10::Storage cpu = old.cpu();
  if (cpu.data() == storage.data() && cpu.nbytes() == storage.nbytes()) return;
  auto device = storage.device().index();
  storage.set_data_ptr_noswap(make_data_ptr(new HostMemory(cpu, device), device));
  storage.set_nbytes(cpu.nbytes());
}

void resize_storage(c10::StorageImpl& storage, size_t nbytes) {
  TORCH_CHECK(storage.resizable(), "Trying to resize npu storage that is not resizable");
  auto device = storage.device().index();
  if (g_opaque) {
    storage.set_data_ptr_noswap(
        resize_opaque(static_cast<OpaqueMemory&>(memory_of(storage)), storage.nbytes(), nbytes, device));
  } else {
    auto fresh = allocate_bytes(nbytes, device);
    const size_t keep = std::min(nbytes, storage.nbytes());
    if (keep) std::memcpy(fresh.get(), storage.data(), keep);
    storage.set_data_ptr_noswap(std::move(fresh));
  }
  storage.set_nbytes(nbytes);
}

}  // namespace mindspeed_ms
