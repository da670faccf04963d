#pragma once
#include <c10/core/Allocator.h>

#include <cstddef>
#include <cstdint>

namespace mindspeed_ms {

// Host memory of npu storages. Small requests go to torch's CPU allocator. Large ones ("blocks") are mapped
// from the system, on huge pages, and kept for the next request of their size: a training step asks for the
// same sizes again and again, and the page faults of fresh memory cost it more than a tenth of its time.
//
// What is kept never makes the process larger: blocks in use and memory kept together stay within what was in
// use at once before. Where a new block would exceed that, memory kept for the longest time is given back.
namespace block_cache {

// Smallest request that becomes a block of its own.
constexpr std::size_t kSmallestBlock = std::size_t{1} << 20;

// The allocator of CPU storages that back npu tensors; storages resized by CPU kernels come back to it.
c10::Allocator* allocator();

struct Stats {
  std::int64_t in_use;    // bytes of the blocks that tensors have
  std::int64_t overhead;  // bytes beyond those asked for: blocks kept, and what sizes were rounded up by
  std::int64_t mapped;    // blocks mapped from the system so far
};
Stats stats();

// Gives all blocks that are kept back to the system.
void release_all();

}  // namespace block_cache
}  // namespace mindspeed_ms
