#pragma once
#include <cstdint>
#include <type_traits>

namespace mindspeed_ms::kernels {

// The one thread pool of the native kernels. The caller works too; workers spin for a while after
// a job and then sleep in a futex, so that they do not take cores from torch's and MindSpore's own threads.
// Tasks are handed out dynamically: a worker that is late (or descheduled) is not waited for. Nested calls,
// calls while another thread holds the pool, and single tasks run inline. A kernel's result must depend on
// its tasks only, never on who runs them: that makes every kernel deterministic, whatever the thread count.
namespace pool {

using Task = void (*)(void* context, std::int64_t index);

int threads();
// Number of threads including the caller (>= 1); throws std::invalid_argument otherwise.
void set_threads(int n);
// Runs task(context, i) for every i in [0, count), returns when all are done.
void run(std::int64_t count, Task task, void* context);

}  // namespace pool

// f(i) for i in [0, count); f must not throw.
template <class F>
void parallel_for(std::int64_t count, F&& f) {
  using Fn = std::remove_reference_t<F>;
  pool::run(
      count, [](void* context, std::int64_t i) { (*static_cast<Fn*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// f(begin, end) over [0, n) in blocks of `block` (the last one shorter); f must not throw.
template <class F>
void parallel_blocks(std::int64_t n, std::int64_t block, F&& f) {
  if (n <= 0) return;
  block = block < 1 ? 1 : block;
  parallel_for((n + block - 1) / block, [&](std::int64_t i) {
    const std::int64_t begin = i * block;
    f(begin, begin + block < n ? begin + block : n);
  });
}

// Rows per task so that a task touches about 64 KB: small inputs stay on the calling thread, and the split
// depends on the shape only.
inline std::int64_t rows_per_task(std::int64_t bytes_per_row) {
  constexpr std::int64_t kTaskBytes = 64 * 1024;
  return bytes_per_row >= kTaskBytes ? 1 : kTaskBytes / (bytes_per_row < 1 ? 1 : bytes_per_row);
}

}  // namespace mindspeed_ms::kernels
