#include "runtime/block_cache.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <new>
#include <vector>

namespace mindspeed_ms::block_cache {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Block {
  char* address;
  std::size_t size;       // mapped
  std::size_t resident;   // from the start, what may be memory: less than `size` if part was given back
  std::size_t requested;  // by the storage that has it
  std::size_t most_used_before;  // Cache::most_used_ when it was mapped
  bool fresh;                    // never freed since it was mapped
};

void unmap(Block* block) {
  munmap(block->address, block->size);
  delete block;
}

// Whether none of a block's pages was ever written, judged by a few of them. Megatron's fused gradient
// accumulation, for instance, makes a tensor of each weight's size only to tell autograd that there is one.
bool untouched(const Block& block) {
  constexpr std::size_t kSamples = 16;
  const std::size_t step = block.size / kSamples / kPage * kPage;
  for (std::size_t i = 0; i < kSamples; ++i) {
    unsigned char resident = 1;
    mincore(block.address + i * step, 1, &resident);
    if (resident & 1) return false;
  }
  return true;
}

// Sizes are rounded up by at most 1/16, so that nearly equal requests share blocks.
std::size_t rounded(std::size_t nbytes) {
  const std::size_t step = std::bit_floor(nbytes) / 16;
  return (nbytes + step - 1) / step * step;
}

char* map(std::size_t size) {
  // Huge pages need their alignment: map more, give back both ends.
  const bool huge = size >= kHugePage;
  const std::size_t span = huge ? size + kHugePage : size;
  void* base = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  auto* begin = static_cast<char*>(base);
  if (!huge) return begin;
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  const std::size_t before = (kHugePage - address % kHugePage) % kHugePage;
  if (before) munmap(begin, before);
  munmap(begin + before + size, kHugePage - before);
  // Refused where the kernel has no huge pages; ordinary ones do as well.
  madvise(begin + before, size, MADV_HUGEPAGE);
  return begin + before;
}

class Cache {
 public:
  Block* take(std::size_t nbytes) {
    const std::size_t size = rounded(nbytes);
    std::lock_guard<std::mutex> lock(mutex_);
    Block* block = find(size);
    const std::size_t after = in_use_ + (block ? block->size : size);
    shrink(most_used_ > after ? most_used_ - after : 0);
    if (!block) {
      char* address = map(size);
      if (!address) {  // the system is short of memory: what is kept may help
        shrink(0);
        address = map(size);
      }
      if (!address) return nullptr;
      block = new Block{address, size, size, 0, most_used_, true};
      ++mapped_;
    }
    block->resident = block->size;
    block->requested = nbytes;
    in_use_ = after;
    rounding_ += block->size - nbytes;
    most_used_ = std::max(most_used_, in_use_);
    trim_heap();
    return block;
  }

  void give(Block* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= block->size;
    rounding_ -= block->size - block->requested;
    if (block->fresh && untouched(*block)) {
      // It never was memory: as if it had not been asked for.
      most_used_ = std::max(block->most_used_before, most_used_ - block->size);
      return unmap(block);
    }
    block->fresh = false;
    kept_ += block->resident;
    free_.push_back(block);
  }

  Stats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<std::int64_t>(in_use_), static_cast<std::int64_t>(kept_ + rounding_), mapped_};
  }

  void release_all() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

  std::mutex& mutex() { return mutex_; }

 private:
  // The smallest kept block that fits without wasting more than an eighth, of equals the one freed last.
  Block* find(std::size_t size) {
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const std::size_t have = (*it)->size;
      if (have >= size && have <= size + size / 8 && (best == free_.end() || have <= (*best)->size))
        best = it;
    }
    if (best == free_.end()) return nullptr;
    Block* block = *best;
    free_.erase(best);
    kept_ -= block->resident;
    return block;
  }

  // Gives memory of the oldest kept blocks back until at most `limit` bytes are kept. Of the last one only
  // the end goes: it may be needed again in a moment.
  void shrink(std::size_t limit) {
    auto it = free_.begin();
    for (; kept_ > limit; ++it) {
      Block* block = *it;
      const std::size_t excess = kept_ - limit;
      const std::size_t rest =
          block->resident > excess ? (block->resident - excess) / kHugePage * kHugePage : 0;
      kept_ -= block->resident - rest;
      if (rest) {
        madvise(block->address + rest, block->resident - rest, MADV_DONTNEED);
        block->resident = rest;
        break;
      }
      unmap(block);
    }
    free_.erase(free_.begin(), it);
  }

  // Before large tensors came to the device they often were on the heap, which keeps what is freed there. As
  // they will not come back, it is worth a look each time that the device has grown by a good deal.
  void trim_heap() {
    constexpr std::size_t kGrowth = std::size_t{256} << 20;
    if (most_used_ < trimmed_at_ + kGrowth) return;
    trimmed_at_ = most_used_;
    malloc_trim(0);
  }

  std::mutex mutex_;
  std::vector<Block*> free_;  // in the order in which they were freed
  std::size_t in_use_ = 0, kept_ = 0, rounding_ = 0, most_used_ = 0, trimmed_at_ = 0;
  std::int64_t mapped_ = 0;
};

Cache& cache() {
  // Outlives every storage. A child of fork() may free the storages that it inherited: no thread may hold the
  // mutex at that moment.
  static auto* instance = [] {
    static auto* made = new Cache;
    pthread_atfork([] { made->mutex().lock(); }, [] { made->mutex().unlock(); },
                   [] { made->mutex().unlock(); });
    return made;
  }();
  return *instance;
}

// In CUDA's words: scripts look for them, and for the numbers, to try again with less. Free and total are
// those of torch.cuda.mem_get_info.
[[noreturn]] void out_of_memory(std::size_t nbytes) {
  const std::size_t page = sysconf(_SC_PAGESIZE);
  TORCH_CHECK_WITH(
      OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ",
      c10::CachingAllocator::format_size(nbytes), ". GPU 0 has a total capacity of ",
      c10::CachingAllocator::format_size(sysconf(_SC_PHYS_PAGES) * page), " of which ",
      c10::CachingAllocator::format_size(sysconf(_SC_AVPHYS_PAGES) * page),
      " is free. Of the allocated memory ", c10::CachingAllocator::format_size(cache().stats().in_use),
      " is allocated by npu tensors (on the CPU target, the memory of device npu is the host's).");
}

void give_back(void* block) { cache().give(static_cast<Block*>(block)); }

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t nbytes) override {
    if (nbytes < kSmallestBlock) return c10::GetCPUAllocator()->allocate(nbytes);
    Block* block = cache().take(nbytes);
    if (!block) out_of_memory(nbytes);
    return {block->address, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }
};

}  // namespace

c10::Allocator* allocator() {
  static auto* instance = new Allocator;
  return instance;
}

Stats stats() { return cache().stats(); }
void release_all() { cache().release_all(); }

}  // namespace mindspeed_ms::block_cache
