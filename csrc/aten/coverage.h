#pragma once
#include <c10/core/ScalarType.h>
#include <time.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "aten/reasons.h"

namespace mindspeed_ms {

// What computes a call: MindSpore, a kernel of csrc, torch operators in a fused kernel's place, or torch's
// own CPU kernel.
enum class Route : uint8_t { MindSpore, Csrc, Composite, Host };
constexpr int kRoutes = 4;
const char* route_name(Route route);

constexpr int kDtypes = static_cast<int>(c10::ScalarType::NumOptions);

// Calls and exclusive nanoseconds of one operator on one route, with one dtype, for one reason.
struct Counter {
  Counter(Route route_, c10::ScalarType dtype_, Reason why_, Counter* next_)
      : route(route_), dtype(dtype_), why(why_), next(next_) {}
  const Route route;
  const c10::ScalarType dtype;
  const Reason why;
  Counter* const next;
  std::atomic<uint64_t> calls{0}, nanoseconds{0};
};

class OpCounters {
 public:
  explicit OpCounters(std::string name_) : name(std::move(name_)) {}
  const std::string name;

  // An operator has a handful of counters: walking them is cheaper than hashing.
  Counter& at(Route route, c10::ScalarType dtype, Reason why) {
    for (auto* c = first(); c; c = c->next)
      if (c->route == route && c->dtype == dtype && c->why == why) return *c;
    return add(route, dtype, why);
  }
  Counter* first() const { return first_.load(std::memory_order_acquire); }

 private:
  Counter& add(Route route, c10::ScalarType dtype, Reason why);
  std::atomic<Counter*> first_{nullptr};
  std::mutex adding_;
};

// Counters of the operator or kernel called `name`; lives for ever.
OpCounters& counters_of(const std::string& name);

// Nanoseconds of the clock that calls are timed on.
class Clock {
 public:
  static uint64_t now() {
    timespec t;
    clock_gettime(id_.load(std::memory_order_relaxed), &t);
    return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
  }
  // The calling thread's own time, which no other process can lengthen, or, by default, that of the wall. Not
  // while a call runs.
  static void of_thread(bool on) { id_ = on ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC; }

 private:
  static std::atomic<clockid_t> id_;
};

// Measures a call. Time spent in calls nested inside goes to those, so that the sum is operator time.
class Timed {
 public:
  Timed(OpCounters& op, Route route, c10::ScalarType dtype, Reason why)
      : counter_(op.at(route, dtype, why)), parent_(current_), start_(Clock::now()) {
    current_ = this;
  }
  ~Timed() {
    const uint64_t elapsed = Clock::now() - start_;
    current_ = parent_;
    if (parent_) parent_->nested_ += elapsed;
    if (cancelled_) return;
    counter_.calls.fetch_add(1, std::memory_order_relaxed);
    counter_.nanoseconds.fetch_add(elapsed > nested_ ? elapsed - nested_ : 0, std::memory_order_relaxed);
  }
  // The call turned out to run on another route, which counts itself.
  void cancel() { cancelled_ = true; }

 private:
  static thread_local Timed* current_;
  Counter& counter_;
  Timed* parent_;
  uint64_t start_;
  uint64_t nested_ = 0;
  bool cancelled_ = false;
};

struct CoverageRow {
  std::string op, dtype, route, why;
  uint64_t calls;
  double seconds;
};
std::vector<CoverageRow> coverage_rows();
void reset_coverage();

}  // namespace mindspeed_ms
