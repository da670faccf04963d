#include "kernels/pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mindspeed_ms::kernels::pool {
namespace {

// How long a worker waits for the next job before it sleeps: Python and autograd take 20 to 100 us between
// two kernels, and waking a thread takes as long again. After kBusy it offers its core to whoever else wants
// it.
constexpr auto kBusy = std::chrono::microseconds(20);
constexpr auto kSpin = std::chrono::microseconds(200);

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local bool inside_task = false;

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    stop_.store(true);
    wake_.fetch_add(1);
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  void run(std::int64_t count, Task task, void* context) {
    // The ticket is (epoch, next index). While the job is written it is locked: an index that no worker may
    // take. A worker that read the fields of an older job fails its compare-exchange, as the epoch differs.
    const std::uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store((epoch << 32) | kLocked, std::memory_order_seq_cst);
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(epoch << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      wake_.fetch_add(1);
      wake_.notify_all();
    }
    inside_task = true;
    drain();
    inside_task = false;
    for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins) {
      if (spins < 2000) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr std::uint64_t kLocked = 0xffffffffu;

  // Takes tasks until none is left.
  void drain() {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const Task task = task_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      const auto index = static_cast<std::int64_t>(ticket & kLocked);
      if (index == static_cast<std::int64_t>(kLocked) || index >= count_.load(std::memory_order_relaxed))
        return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        continue;
      }
      task(context, index);
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void work() {
    inside_task = true;
    std::uint64_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      const auto start = std::chrono::steady_clock::now();
      auto waited = start - start;
      bool fresh = false;
      do {
        if (waited > kBusy) std::this_thread::yield();
        for (int i = 0; i < 32 && !fresh; ++i) {
          fresh = (ticket_.load(std::memory_order_acquire) >> 32) != seen;
          pause();
        }
        waited = std::chrono::steady_clock::now() - start;
      } while (!fresh && waited < kSpin);
      if (!fresh) {
        const int wake = wake_.load();
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        // Re-check after announcing the sleep: the caller publishes first and looks for sleepers second.
        if ((ticket_.load(std::memory_order_seq_cst) >> 32) == seen && !stop_.load()) wake_.wait(wake);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      }
      const std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if ((ticket & kLocked) == kLocked) continue;
      seen = ticket >> 32;
      drain();
    }
  }

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<std::uint64_t> ticket_{kLocked};
  alignas(64) std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<std::int64_t> count_{0};
  alignas(64) std::atomic<std::int64_t> done_{0};
  alignas(64) std::atomic<int> wake_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
};

struct State {
  std::mutex busy;
  Pool* pool = nullptr;  // never freed at exit: its threads may still be inside when statics are destroyed
  std::atomic<int> threads{1};
};

State* state() {
  // A child of fork() has none of the parent's threads and may inherit a held lock: it starts a new state.
  static std::atomic<State*> current = [] {
    pthread_atfork(nullptr, nullptr, [] {
      auto* fresh = new State;
      fresh->threads.store(current.load()->threads.load());
      current.store(fresh);
    });
    return new State;
  }();
  return current.load(std::memory_order_acquire);
}

}  // namespace

int threads() { return state()->threads.load(std::memory_order_relaxed); }

void set_threads(int n) {
  if (n < 1)
    throw std::invalid_argument("set_threads: the pool needs at least 1 thread, got " + std::to_string(n));
  State* s = state();
  if (n == s->threads.load(std::memory_order_relaxed)) return;
  std::lock_guard<std::mutex> lock(s->busy);
  delete s->pool;
  s->pool = nullptr;
  s->threads.store(n, std::memory_order_relaxed);
}

void run(std::int64_t count, Task task, void* context) {
  State* s = state();
  std::unique_lock<std::mutex> lock(s->busy, std::defer_lock);
  if (count <= 1 || inside_task || s->threads.load(std::memory_order_relaxed) == 1 || !lock.try_lock()) {
    for (std::int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  if (count >= 0xffffffffll) throw std::invalid_argument("pool::run: more than 2^32 - 2 tasks in one job");
  if (!s->pool) s->pool = new Pool(s->threads.load(std::memory_order_relaxed));
  s->pool->run(count, task, context);
}

}  // namespace mindspeed_ms::kernels::pool
