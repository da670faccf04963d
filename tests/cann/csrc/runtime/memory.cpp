// aclrtMalloc & co., virtual memory management, copies.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <iterator>
#include <mutex>

#include "../sim.h"
#include "internal.h"

namespace sim {
namespace {

constexpr size_t kPage = 2u << 20;          // granularity of the chip's address space
constexpr size_t kPoisonLimit = 64u << 20;  // larger blocks are left as they are: filling costs seconds
std::mutex ranges_mutex;
std::map<uintptr_t, size_t> taken, holes;  // address -> size
std::map<uintptr_t, size_t> mapped;        // VMM: address -> size of what is mapped there

void* take(size_t size) {
  arena_init();
  size = std::max<size_t>((size + kPage - 1) & ~(kPage - 1), kPage);
  std::lock_guard<std::mutex> lock(ranges_mutex);
  for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
    if (hole->second < size) continue;
    auto [start, room] = *hole;
    holes.erase(hole);
    if (room > size) holes[start + size] = room - size;
    taken[start] = size;
    return reinterpret_cast<void*>(start);
  }
  return nullptr;
}

size_t give_back(void* p) {
  std::lock_guard<std::mutex> lock(ranges_mutex);
  auto range = taken.find(reinterpret_cast<uintptr_t>(p));
  if (range == taken.end()) return 0;
  size_t size = range->second;
  auto hole = holes.emplace(range->first, size).first;
  taken.erase(range);
  auto next = std::next(hole);
  if (next != holes.end() && hole->first + hole->second == next->first) {
    hole->second += next->second;
    holes.erase(next);
  }
  if (hole != holes.begin()) {
    auto before = std::prev(hole);
    if (before->first + before->second == hole->first) {
      before->second += hole->second;
      holes.erase(hole);
    }
  }
  return size;
}

bool lock_away(void* p, size_t size) {
  return mmap(bytes_of(p), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
         MAP_FAILED;
}

// Fresh memory holds no zeros on the chip; in null mode nothing is computed and zeros keep losses finite.
void poison(void* p, size_t size) {
  if (!settings().null && size <= kPoisonLimit) memset(bytes_of(p), 0xCD, size);
}

bool reserve(size_t size, const char* who) {
  if (static_cast<size_t>(counted(Count::kMemoryUsed)) + size > settings().memory) {
    fail(kMemoryAllocation, std::string(who) + ": out of device memory: " + std::to_string(size) +
                                " bytes asked, " + std::to_string(counted(Count::kMemoryUsed)) + " of " +
                                std::to_string(settings().memory) + " in use");
    return false;
  }
  count(Count::kMemoryUsed, size);
  return true;
}

struct Physical {
  int file;
  size_t size;
};

enum Kind { kHostToHost, kHostToDevice, kDeviceToHost, kDeviceToDevice, kDefault };

int check_copy(const void* to, size_t room, const void* from, size_t size, int kind) {
  if (size > room)
    return fail(kInvalidParam,
                "memcpy: " + std::to_string(size) + " bytes into room for " + std::to_string(room));
  if (kind >= kDefault) return kOk;
  bool to_device = kind == kHostToDevice || kind == kDeviceToDevice;
  bool from_device = kind == kDeviceToHost || kind == kDeviceToDevice;
  if (on_device(to) == to_device && on_device(from) == from_device) return kOk;
  return fail(kInvalidParam, std::string("memcpy kind ") + std::to_string(kind) + " with a " +
                                 (on_device(to) ? "device" : "host") + " destination and a " +
                                 (on_device(from) ? "device" : "host") + " source");
}

void count_copy(const void* to, const void* from, size_t size) {
  if (on_device(to) && on_device(from)) {
    count(Count::kD2D), count(Count::kD2DBytes, size);
  } else if (on_device(to)) {
    count(Count::kH2D), count(Count::kH2DBytes, size);
  } else if (on_device(from)) {
    count(Count::kD2H), count(Count::kD2HBytes, size);
  }
}

}  // namespace

void arena_init() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (uintptr_t start : {kDevice, kDevice + kShadow})
      if (mmap(reinterpret_cast<void*>(start), kSpace, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED) {
        perror("[cannsim] the device's address space");
        abort();
      }
    holes[kDevice + kPage] = kSpace - kPage;
    watch_faults();
  });
}

std::string describe_address(const void* address) {
  auto at = reinterpret_cast<uintptr_t>(address);
  auto range = taken.upper_bound(at);  // no lock: the thread that faulted may hold it
  if (range == taken.begin()) return "It lies in no allocation.";
  --range;
  if (at >= range->first + range->second) return "It lies in no allocation.";
  char text[128];
  snprintf(text, sizeof text, "It lies %zu bytes into the allocation of %zu bytes at %#zx.",
           static_cast<size_t>(at - range->first), range->second, static_cast<size_t>(range->first));
  return text;
}

}  // namespace sim

using namespace sim;

API int aclrtMalloc(void** p, size_t size, int) {
  void* start = take(size);
  if (!start) return fail(kMemoryAllocation, "aclrtMalloc: no address space");
  size_t rounded = taken[reinterpret_cast<uintptr_t>(start)];
  if (!reserve(rounded, "aclrtMalloc")) {
    give_back(start);
    return kMemoryAllocation;
  }
  if (mmap(bytes_of(start), rounded, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
    return fail(kMemoryAllocation, "aclrtMalloc: mmap");
  poison(start, size);
  *p = start;
  SIM_TRACE("aclrtMalloc %zu -> %p", size, start);
  return kOk;
}
API int aclrtMallocAlign32(void** p, size_t size, int policy) { return aclrtMalloc(p, size, policy); }
API int aclrtFree(void* p) {
  if (!on_device(p)) return fail(kInvalidParam, "aclrtFree of a host pointer");
  size_t size = give_back(p);
  if (!size) return fail(kInvalidParam, "aclrtFree of an unknown pointer");
  count(Count::kMemoryUsed, -static_cast<int64_t>(size));
  return lock_away(p, size) ? kOk : kMemoryAllocation;
}
API int aclrtMallocHost(void** p, size_t size) {
  *p = aligned_alloc(64, (size + 63) & ~static_cast<size_t>(63));
  return *p ? kOk : kMemoryAllocation;
}
API int aclrtMallocHostWithCfg(void** p, uint64_t size, void*) { return aclrtMallocHost(p, size); }
API int aclrtFreeHost(void* p) {
  free(p);
  return kOk;
}
API int aclrtGetMemInfo(int, size_t* free_bytes, size_t* total) {
  *total = settings().memory;
  *free_bytes = *total - counted(Count::kMemoryUsed);
  return kOk;
}

// ---- virtual memory: MindSpore's default allocator reserves addresses and maps physical blocks into them
// ---------
API int aclrtReserveMemAddress(void** p, size_t size, size_t, void*, uint64_t) {
  *p = take(size);
  SIM_TRACE("reserve %zu -> %p", size, *p);
  return *p ? kOk : kMemoryAllocation;
}
API int aclrtReleaseMemAddress(void* p) { return give_back(p) ? kOk : kInvalidParam; }
API int aclrtMallocPhysical(void** handle, size_t size, const void*, uint64_t) {
  if (!reserve(size, "aclrtMallocPhysical")) return kMemoryAllocation;
  int file = memfd_create("cannsim", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, size)) return fail(kMemoryAllocation, "aclrtMallocPhysical: memfd");
  *handle = new Physical{file, size};
  return kOk;
}
API int aclrtFreePhysical(void* handle) {
  auto* block = static_cast<Physical*>(handle);
  close(block->file);
  count(Count::kMemoryUsed, -static_cast<int64_t>(block->size));
  delete block;
  return kOk;
}
API int aclrtMapMem(void* p, size_t size, size_t offset, void* handle, uint64_t) {
  int file = static_cast<Physical*>(handle)->file;
  if (mmap(bytes_of(p), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, offset) == MAP_FAILED)
    return fail(kMemoryAllocation, "aclrtMapMem: mmap");
  poison(p, size);
  std::lock_guard<std::mutex> lock(ranges_mutex);
  mapped[reinterpret_cast<uintptr_t>(p)] = size;
  return kOk;
}
API int aclrtUnmapMem(void* p) {
  std::lock_guard<std::mutex> lock(ranges_mutex);
  auto block = mapped.find(reinterpret_cast<uintptr_t>(p));
  if (block == mapped.end()) return fail(kInvalidParam, "aclrtUnmapMem: nothing is mapped there");
  bool done = lock_away(p, block->second);
  mapped.erase(block);
  return done ? kOk : kMemoryAllocation;
}
API int aclrtMemExportToShareableHandle(void* handle, int, uint64_t, uint64_t* out) {
  *out = static_cast<uint64_t>(static_cast<Physical*>(handle)->file);
  return kOk;
}
API int aclrtMemImportFromShareableHandle(uint64_t, int32_t, void**) {
  return fail(kFeatureNotSupported, "aclrtMemImportFromShareableHandle is not simulated");
}
API int aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t) { return kOk; }
API int aclrtDeviceGetBareTgid(int32_t* pid) {
  *pid = getpid();
  return kOk;
}
API int aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return kOk;
}
API int aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return kOk; }
API int halHostRegister(void*, uint64_t, uint32_t, uint32_t, void**) { return 1; }  // "not supported"
API int halHostUnregister(void*, uint32_t) { return 1; }

// ---- copies
// -------------------------------------------------------------------------------------------------------
API int aclrtMemcpy(void* to, size_t room, const void* from, size_t size, int kind) {
  SIM_TRACE("aclrtMemcpy %zu kind %d", size, kind);
  if (int error = check_copy(to, room, from, size, kind)) return error;
  count_copy(to, from, size);
  memcpy(bytes_of(to), bytes_of(from), size);
  return kOk;
}
API int aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t size, int kind, void* stream) {
  SIM_TRACE("aclrtMemcpyAsync %zu kind %d stream %p", size, kind, stream);
  if (int error = check_copy(to, room, from, size, kind)) return error;
  count_copy(to, from, size);
  void* target = bytes_of(to);
  const void* source = bytes_of(from);
  enqueue(
      stream, [=] { memcpy(target, source, size); }, "memcpy");
  return kOk;
}
API int aclrtMemset(void* to, size_t room, int32_t value, size_t size) {
  if (size > room) return fail(kInvalidParam, "aclrtMemset: beyond the room");
  memset(bytes_of(to), value, size);
  return kOk;
}
API int aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t size, void* stream) {
  if (size > room) return fail(kInvalidParam, "aclrtMemsetAsync: beyond the room");
  void* target = bytes_of(to);
  enqueue(
      stream, [=] { memset(target, value, size); }, "memset");
  return kOk;
}
