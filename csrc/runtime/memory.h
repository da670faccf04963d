#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Storage.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "runtime/device.h"

struct _object;
using PyObject = _object;

namespace mindspeed_ms {

// Bytes held by live npu storages of one device.
struct MemoryStats {
  std::atomic<int64_t> allocated{0}, peak{0}, reserved_peak{0}, allocations{0}, frees{0};
};
MemoryStats& memory_stats(c10::DeviceIndex device);
void reset_peak_memory(c10::DeviceIndex device);
// Allocated bytes and what the process keeps besides for later allocations (which no device owns).
int64_t reserved_memory(c10::DeviceIndex device);
// Gives memory that is kept for later allocations back to the system.
void empty_cache();

// What backs an npu storage. It is the context of the storage's DataPtr, so torch decides its life.
class Memory {
 public:
  Memory(size_t nbytes, c10::DeviceIndex device);
  virtual ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  size_t nbytes() const { return nbytes_; }

 protected:
  size_t nbytes_;
  c10::DeviceIndex device_;
};

// CPU target: device memory is host memory, held as a CPU storage that CPU kernels and MindSpore use in
// place.
class HostMemory final : public Memory {
 public:
  HostMemory(c10::Storage cpu, c10::DeviceIndex device);
  ~HostMemory() override;

  const c10::Storage& cpu() const { return cpu_; }

  // The ms.Tensor that last borrowed this memory from its start, kept so that borrowing again costs nothing.
  PyObject* lent = nullptr;  // owned, guarded by the GIL
  at::ScalarType lent_dtype = at::ScalarType::Undefined;
  c10::SmallVector<int64_t, 5> lent_sizes;

 private:
  c10::Storage cpu_;
};

// Opaque memory, as on Ascend: only the ms.Tensor `whole` knows where the bytes are. The address torch sees
// is reserved but not readable, so that code which looks behind the tensor fails at once.
class OpaqueMemory final : public Memory {
 public:
  // An ms.Tensor over some of the elements, as it was lent.
  struct View {
    int64_t offset;
    at::ScalarType dtype;
    c10::SmallVector<int64_t, 5> sizes, strides;
    PyObject* tensor;  // owned

    bool is(at::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset) const;
  };

  OpaqueMemory(size_t nbytes, c10::DeviceIndex device);
  ~OpaqueMemory() override;

  void* address() const { return address_; }
  void drop_views();

  // Guarded by the GIL. ms.Tensors have one dtype each: `whole` has that of the first use, before which there
  // is no memory; `retyped` is the same memory under the dtype of the last use that was another.
  PyObject* whole = nullptr;    // owned; contiguous from the start of its memory
  PyObject* retyped = nullptr;  // owned
  at::ScalarType dtype = at::ScalarType::Undefined, retyped_dtype = at::ScalarType::Undefined;
  size_t numel = 0;                    // of `whole`
  c10::SmallVector<int64_t, 5> sizes;  // of `whole`

  // Kept so that lending again costs nothing. All of them are views of one device address, so none gets
  // stale while this memory lives; a storage that is resized, or set to another, has another memory.
  std::vector<View> views;

 private:
  void* address_;
};

// True if npu memory is opaque: on Ascend.
bool opaque_memory();
void set_opaque_memory(bool on);

// Drops a reference: storages die on any thread, with or without the GIL, and after the interpreter has gone.
void release_object(PyObject* object);

c10::DataPtr make_data_ptr(HostMemory* memory, c10::DeviceIndex device);
c10::DataPtr make_data_ptr(OpaqueMemory* memory, c10::DeviceIndex device);
c10::DataPtr allocate_bytes(size_t nbytes, c10::DeviceIndex device);

// The memory behind an npu storage; raises if the storage is not one of ours.
Memory& memory_of(const c10::StorageImpl& storage);
inline Memory& memory_of(const at::Tensor& t) { return memory_of(*t.storage().unsafeGetStorageImpl()); }
// The storage of `to`, and so every tensor over it, gets the memory of `from`, which lives as long as either.
// Nothing that torch records (versions, gradients) sees it. Both are on one device, the CPU or npu.
void share_storage(const at::Tensor& to, const at::Tensor& from);
HostMemory& host_memory_of(const c10::StorageImpl& storage);

// npu storage over a CPU storage, no copy.
c10::Storage adopt_storage(const c10::Storage& cpu, c10::DeviceIndex device);

// A CPU tensor over the memory of npu tensor `t`, no copy; the host route computes on it. CPU target only.
at::Tensor host_alias(const at::Tensor& t);
// An npu tensor over the memory of CPU tensor `t`, no copy.
at::Tensor adopt_host(const at::Tensor& t, c10::DeviceIndex device);
// After a CPU kernel resized the alias of `storage`: take its new memory over.
void refresh_storage(c10::StorageImpl& storage);

// Resizes an npu storage, keeping the common prefix of its bytes (UntypedStorage.resize_).
void resize_storage(c10::StorageImpl& storage, size_t nbytes);

}  // namespace mindspeed_ms
